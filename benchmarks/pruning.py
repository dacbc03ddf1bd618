"""Which channels should go: masks that are learned with the multiply-adds, against older criteria, at equal multiply-adds and epochs.

    python benchmarks/pruning.py [cifar10_resnet20] --weights resnet20.th [--target-flops 0.667] [--seeds 0] [--json results/pruning.json]

Every criterion has as many trials: shorter trainings on fewer images, with the first seed, judged on validation images. The settings of
its best trial are then trained with all seeds, and seen on test images. Masks that are learned, with soft counts in both forms, and the
l1 norms of masks and of norm layers' scales choose while the network trains; the l1 norm of kernels and the same share of every layer
choose by what is there when they cut. From the cut on all of them train what is left. LILNETX_DATA names the folder with the data sets.
Trainings resume, and what the JSON file knows is not trained again. --settings-of 0.667 makes no trials and takes what those of
another share of the multiply-adds found.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

from lilnetx_mini.jobs import run_jobs
from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.train import Run, accuracy
from lilnetx_mini.provenance import circumstances

SETTINGS = {"epochs": "4", "threads": "1"}
TRIAL = {"epochs": "3", "images": "15000"}
RATES = ("0.005", "0.02")
LATE, EARLY = [{"arrival": "0.1"}, {"arrival": "0.3"}], [{"arrival": "0"}, {"arrival": "0.2"}]
STRENGTHS = [{"lam_mask": "1"}, {"lam_mask": "10"}]
TRIED = ("plain_lr", "arrival", "lam_mask")
# what makes a criterion, and what is tried with each of the rates
CRITERIA: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "masks, (l1/l2)^2": ({"form": "squared"}, LATE),
    "masks, sqrt(d) l1/l2": ({"form": "root"}, LATE),
    "l1 of masks": ({"criterion": "l1", "mask_start": "ones", "arrival": "0.2"}, STRENGTHS),
    "l1 of norm scales": ({"criterion": "scales", "arrival": "0.2"}, STRENGTHS),
    "l1 of kernels": ({"criterion": "magnitude"}, EARLY),
    "the same share": ({"criterion": "uniform"}, EARLY),
}


def train(name: str, changes: dict[str, str], seed: int, folder: str, test: bool, position: int = 0) -> dict:
    """One training, or what it gave before: share of the multiply-adds left, and accuracies."""
    done = Path(folder) / "result.json"
    known = json.loads(done.read_text()) if done.exists() else {}
    if known.get("changes") == changes and (known["test_accuracy"] or not test):
        return known
    run = Run(recipes.get(name, changes), seed, folder, compress="method" in changes)
    run.resume()
    trained = run.fit(progress=False)
    last = trained.metrics[-1]
    result = {
        "changes": changes, "seed": seed, "flops_left": last.get("flops_left", 1.0), "accuracy": last["validation_accuracy"],
        "test_accuracy": accuracy(trained.model, run.splits.test) if test else None, "made": circumstances(),
    }  # fmt: skip
    write_atomic(done, json.dumps(result).encode())
    return result


def train_all(todo: dict[tuple, tuple], known: list[dict], jobs: int) -> dict[tuple, dict]:
    """The results of several calls of `train`, by the same keys, those that are known without training."""
    had = {key: r for key, (_, changes, seed, _, test) in todo.items() for r in known
           if (r["changes"], r["seed"], bool(r["test_accuracy"])) == (changes, seed, test)}  # fmt: skip
    calls = {key: call for key, call in todo.items() if key not in had}
    in_folders = {call[3]: result for call, result in run_jobs(train, list(calls.values()), jobs)} if calls else {}
    return {key: had.get(key) or in_folders[call[3]] for key, call in todo.items()}


def settings(text: str) -> dict[str, str]:
    """"a=1,b=2" by key."""
    return dict(part.split("=", 1) for part in text.split(",") if part)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", nargs="?", default="cifar10_resnet20", choices=recipes.RECIPES)
    p.add_argument("--weights", metavar="FILE", default="", help="a checkpoint of torch to start from")
    p.add_argument("--target-flops", metavar="SHARE", type=float, default=0.667)
    p.add_argument("--set", metavar="KEY=VALUE,...", type=settings, default={}, help="settings of the recipe for all trainings")
    p.add_argument("--trial", metavar="KEY=VALUE,...", type=settings, default=TRIAL, help="those of trials besides")
    p.add_argument("--settings-of", metavar="SHARE", type=float, help="of the JSON file, take the best settings of this share")
    p.add_argument("--criteria", default="", help="only those whose names contain one of these, with commas")
    p.add_argument("--seeds", default="0", type=lambda text: [int(s) for s in text.split(",")])
    p.add_argument("--out", default="runs/pruning", type=Path, help="folder for checkpoints")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--json", metavar="FILE", type=Path, help="add the results to what is there")
    return p.parse_args()


def best_settings(trials: list[dict]) -> dict[str, str]:
    """Of the trial with the best accuracy on validation images, what was tried."""
    best = max(trials, key=lambda r: r["accuracy"])
    return {k: v for k, v in best["changes"].items() if k in TRIED}


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments()
    base = SETTINGS | ({"weights": a.weights} if a.weights else {}) | a.set
    masks = {"method": "prune", "target_flops": f"{a.target_flops:g}"}
    kinds = {"whole": ({}, [{}])} | {k: (masks | own, trials) for k, (own, trials) in CRITERIA.items()}
    kinds = {k: c for k, c in kinds.items() if any(part in k for part in a.criteria.split(","))}
    file = json.loads(a.json.read_text()) if a.json and a.json.exists() else {}
    shares, share = file.get(a.recipe, {}), f"{a.target_flops:g}"
    of = shares.get(f"{a.settings_of:g}", {}) if a.settings_of else {}
    if a.settings_of and set(kinds) - set(of):
        raise SystemExit(f"{a.json} has no trials with {a.settings_of:g} of {', '.join(sorted(set(kinds) - set(of)))}")
    known = [r for row in shares.get(share, {}).values() for r in row["trials"] + row["final"]]

    def call(kind: str, changes: dict[str, str], seed: int, test: bool) -> tuple:
        told = "-".join(f"{k}={v}" for k, v in changes.items() if k in (*TRIED, *TRIAL, "target_flops"))
        return a.recipe, changes, seed, str(a.out / a.recipe / kind.replace(" ", "_").replace("/", "") / told / f"seed{seed}"), test

    tried = {k: of[k]["trials"] for k in kinds if of}
    if not tried:
        todo = {}
        for kind, (own, values) in kinds.items():
            several = [{"plain_lr": lr} | t for lr, t in product(RATES, values)]
            todo |= {(kind, n): call(kind, base | own | t | a.trial, a.seeds[0], False) for n, t in enumerate(several)}
        trials = train_all(todo, known, a.jobs)
        tried = {kind: [r for key, r in trials.items() if key[0] == kind] for kind in kinds}
    chosen = {kind: base | own | best_settings(tried[kind]) for kind, (own, _) in kinds.items()}
    final = train_all({(k, s): call(k, changes, s, True) for k, changes in chosen.items() for s in a.seeds}, known, a.jobs)
    rows = {k: {"trials": tried[k], "final": [final[k, s] for s in a.seeds]} for k in kinds}
    print(f"{a.recipe}, {a.target_flops:.1%} of the multiply-adds asked for, seeds {', '.join(map(str, a.seeds))}")
    print(f"  {'':24}{'left':>8}{'validation':>12}{'test':>9}   each seed; best trial, of {len(RATES) * 2}")
    for k, row in rows.items():
        left, held, test = (np.mean([r[x] for r in row["final"]]) for x in ("flops_left", "accuracy", "test_accuracy"))
        told = ", ".join(f"{x}={y}" for x, y in best_settings(tried[k]).items())
        each = ", ".join(f"{r['test_accuracy']:.2%}" for r in row["final"])
        print(f"  {k:24}{left:8.1%}{held:12.2%}{test:9.2%}   {each}; {told}")
    if a.json:
        write_atomic(a.json, json.dumps(file | {a.recipe: shares | {share: shares.get(share, {}) | rows}}, indent=1).encode())


if __name__ == "__main__":
    main()
