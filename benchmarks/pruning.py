"""Which channels should go: masks that are learned with the multiply-adds, against older criteria, at equal multiply-adds and epochs.

    python benchmarks/pruning.py [cifar10_resnet20] --weights resnet20.th [--target-flops 0.667] [--seeds 0] [--json results/pruning.json]

Every criterion has as many trials, with the first seed and judged on validation images; the settings of its best trial are then trained
with all seeds, and seen on test images. Masks that are learned, with soft counts in both forms, and the l1 norms of masks and of norm
layers' scales choose while the network trains; the l1 norm of kernels and the same share of every layer choose by what is there when
they cut. From the cut on all of them train what is left. LILNETX_DATA names the folder with the data sets. Trainings resume.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np

from lilnetx_mini.jobs import run_jobs
from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.train import Run, accuracy
from lilnetx_mini.provenance import circumstances

SETTINGS = {"epochs": "6", "threads": "1"}
RATES = ("0.02", "0.06")
LATE, EARLY = [{"arrival": "0.2"}, {"arrival": "0.5"}], [{"arrival": "0"}, {"arrival": "0.2"}]
STRENGTHS = [{"lam_mask": "1"}, {"lam_mask": "10"}]
TRIED = ("plain_lr", "arrival", "lam_mask")
# what makes a criterion, and what is tried with each of the rates
CRITERIA: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "masks, (l1/l2)^2": ({"form": "squared"}, LATE),
    "masks, sqrt(d) l1/l2": ({"form": "root"}, LATE),
    "l1 of masks": ({"criterion": "l1", "arrival": "0.2"}, STRENGTHS),
    "l1 of norm scales": ({"criterion": "scales", "arrival": "0.2"}, STRENGTHS),
    "l1 of kernels": ({"criterion": "magnitude"}, EARLY),
    "the same share": ({"criterion": "uniform"}, EARLY),
}


def train(name: str, changes: dict[str, str], seed: int, folder: str, test: bool, position: int = 0) -> dict:
    """One training, or what it gave before: share of the multiply-adds left, accuracies, seconds if it was not interrupted."""
    done = Path(folder) / "result.json"
    known = json.loads(done.read_text()) if done.exists() else {}
    if known.get("changes") == changes and (known["test_accuracy"] or not test):
        return known
    run = Run(recipes.get(name, changes), seed, folder, compress="method" in changes)
    whole, start = not run.resume(), time.monotonic()
    trained = run.fit(progress=False)
    seconds = time.monotonic() - start if whole else known.get("seconds")
    last = trained.metrics[-1]
    result = {"changes": changes, "seed": seed, "flops_left": last.get("flops_left", 1.0), "accuracy": last["validation_accuracy"],
              "test_accuracy": accuracy(trained.model, run.splits.test) if test else None, "seconds": seconds}  # fmt: skip
    write_atomic(done, json.dumps(result).encode())
    return result


def train_all(todo: dict[tuple, tuple], jobs: int) -> dict[tuple, dict]:
    """The results of several calls of `train`, by the same keys."""
    in_folders = {call[3]: result for call, result in run_jobs(train, list(todo.values()), jobs)}
    return {key: in_folders[call[3]] for key, call in todo.items()}


def arguments() -> argparse.Namespace:
    """Of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", nargs="?", default="cifar10_resnet20", choices=recipes.RECIPES)
    p.add_argument("--weights", metavar="FILE", default="", help="a checkpoint of torch to start from")
    p.add_argument("--target-flops", metavar="SHARE", type=float, default=0.667)
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of the recipe for all trainings")
    p.add_argument("--criteria", default="", help="only those whose names contain this")
    p.add_argument("--seeds", default="0", type=lambda text: [int(s) for s in text.split(",")])
    p.add_argument("--out", default="runs/pruning", type=Path, help="folder for checkpoints")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    return p.parse_args()


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments()
    base = SETTINGS | ({"weights": a.weights} if a.weights else {}) | dict(s.split("=", 1) for s in a.set)
    chosen = {name: c for name, c in CRITERIA.items() if a.criteria in name}
    masks = base | {"method": "prune", "target_flops": f"{a.target_flops:g}"}
    tries = {name: [{"plain_lr": lr} | t for lr, t in product(RATES, trials)] for name, (_, trials) in chosen.items()}

    def call(kind: str, changes: dict[str, str], seed: int, test: bool) -> tuple:
        told = "-".join(f"{k}={v}" for k, v in changes.items() if k in (*TRIED, "target_flops"))
        return a.recipe, changes, seed, str(a.out / a.recipe / kind.replace(" ", "_").replace("/", "") / told / f"seed{seed}"), test

    todo = {("whole", n): call("whole", base | {"plain_lr": lr}, a.seeds[0], False) for n, lr in enumerate(RATES)}
    for name, (own, _) in chosen.items():
        todo |= {(name, n): call(name, masks | own | t, a.seeds[0], False) for n, t in enumerate(tries[name])}
    trials = train_all(todo, a.jobs)
    best = {k: max((key for key in todo if key[0] == k), key=lambda key: trials[key]["accuracy"]) for k in ("whole", *chosen)}
    final = train_all({(k, s): call(k, todo[key][1], s, True) for k, key in best.items() for s in a.seeds}, a.jobs)
    rows = {k: {"trials": [r for key, r in trials.items() if key[0] == k], "final": [final[k, s] for s in a.seeds]} for k in best}
    print(f"{a.recipe}, {a.target_flops:.1%} of the multiply-adds asked for, seeds {', '.join(map(str, a.seeds))}")
    print(f"  {'':24}{'left':>8}{'validation':>12}{'test':>9}   each seed; best trial, of {len(RATES) * 2}")
    for k, row in rows.items():
        left, held, test = (np.mean([r[x] for r in row["final"]]) for x in ("flops_left", "accuracy", "test_accuracy"))
        settings = ", ".join(f"{x}={y}" for x, y in row["final"][0]["changes"].items() if x in TRIED)
        each = ", ".join(f"{r['test_accuracy']:.2%}" for r in row["final"])
        print(f"  {k:24}{left:8.1%}{held:12.2%}{test:9.2%}   {each}; {settings}")
    if a.json:
        write_atomic(a.json, json.dumps({a.recipe: rows | {"made": circumstances()}}, indent=1).encode())


if __name__ == "__main__":
    main()
