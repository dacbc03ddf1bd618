"""Asked for and got: what comes out of training with a target, and what fixed multipliers make of the same epochs.

    python benchmarks/targets.py [digits mnist_lenet5 cifar10_resnet20] [--seeds 0,1,2] [--out runs/targets] [--json results/targets.json]

For each recipe, with the settings below: trainings with a target size and with a target of multiply-adds, and trainings with five
fixed multipliers around the recipe's. `error` is (got - asked) / asked. The accuracy of a target is compared with the best of the
five multipliers at that size, or at that share of the multiply-adds: the line through the points of fixed multipliers, the measure on
a logarithmic scale, read at what was got. Accuracies are on validation images. LILNETX_DATA names the folder with mnist/ and
cifar-10-batches-py/. Trainings resume, and those that are done are not repeated; neither are those with fixed multipliers that the
JSON file holds already from such a machine, as no target changes them. From another one they are: processors that add in another
order train other networks, and a short training of ResNet-20 may then differ by two points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lilnetx_mini.jobs import run_jobs
from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.targets import measure
from lilnetx_mini.nn.train import Run
from lilnetx_mini.provenance import circumstances

# settings; target size in bytes; target of multiply-adds; factors of both multipliers
CASES: dict[str, tuple[dict[str, str], float, float, tuple[float, ...]]] = {
    "digits": ({}, 3000, 0.5, (0.25, 0.5, 1.0, 1.5, 2.5)),
    "mnist_lenet5": ({"epochs": "4", "images": "20000"}, 4000, 0.5, (4.0, 8.0, 12.0, 16.0, 24.0)),
    "cifar10_resnet20": ({"epochs": "4", "images": "10000", "threads": "1", "side_bits": "8"}, 40_000, 0.5, (1.0, 2.0, 4.0, 8.0, 16.0)),
}


def train(name: str, changes: dict[str, str], seed: int, folder: str, position: int = 0) -> dict:
    """One training, or what it gave before: its file's bytes, shares of multiply-adds and slices, validation accuracy.

    Where masks cut first, multiply-adds count from the whole network, and slices from what was left.

    position  the line for a progress bar, which `run_jobs` hands out; here is none
    """
    done = Path(folder) / "result.json"
    if done.exists() and json.loads(done.read_text())["changes"] == changes:
        return json.loads(done.read_text())
    run = Run(recipes.get(name, changes), seed, folder)
    run.resume()
    trained = run.fit(progress=False)
    now = measure(trained.compressor, run.example(), side_bits=run.recipe.side_bits)
    last = trained.metrics[-1]
    result = {"changes": changes, "seed": seed, "size": now.size, "flops": last.get("flops_left", 1.0) * now.flops,
              "slices": now.slices, "accuracy": last["validation_accuracy"]}  # fmt: skip
    write_atomic(done, json.dumps(result).encode())
    return result


def tasks(name: str, seeds: list[int], out: Path) -> dict[tuple, tuple]:
    """Every training of a recipe: (kind, value, seed) to the arguments of `train`."""
    settings, size, flops, factors = CASES[name]
    base = recipes.get(name, settings)
    kinds = {("size", size): {"target_size": str(size)}, ("flops", flops): {"target_flops": str(flops)}}
    for f in factors:
        kinds["fixed", f] = {"lam_rate": str(f * base.lam_rate), "lam_group": str(f * base.lam_group)}
    return {
        (*kind, seed): (name, settings | more, seed, str(out / name / f"{kind[0]}{kind[1]:g}" / f"seed{seed}"))
        for kind, more in kinds.items()
        for seed in seeds
    }


def summary(name: str, results: dict[tuple, dict]) -> dict:
    """What was asked and got, and the accuracy beside that of fixed multipliers, for each seed."""
    _, size, flops, _ = CASES[name]
    seeds = sorted({seed for _, _, seed in results})
    got = {kind: [results[kind, asked, s] for s in seeds] for kind, asked in (("size", size), ("flops", flops))}
    fixed = sorted((r for (kind, _, _), r in results.items() if kind == "fixed"), key=lambda r: r["size"])
    return {
        "asked": {"size": size, "flops": flops},
        "error": {
            kind: [r[kind] / asked - 1 for r in got[kind]] for kind, asked in (("size", size), ("flops", flops))
        },
        "fixed_accuracy": {kind: at_equal(kind, fixed, rows) for kind, rows in got.items()},
        "fixed": fixed,
        "targets": got,
    }


def at_equal(measure: str, fixed: list[dict], rows: list[dict]) -> list[float]:
    """The accuracy of trainings with fixed multipliers at the "size" or the "flops", and with the seed, of each row.

    Read from the line through their points, the measure on a logarithmic scale.
    """
    accuracies = []
    for row in rows:
        points = sorted((r[measure], r["accuracy"]) for r in fixed if r["seed"] == row["seed"])
        measured, right = np.array(points).T
        accuracies.append(float(np.interp(np.log(row[measure]), np.log(measured), right)))
    return accuracies


def arguments(what: str | None, out: str, cases: Iterable[str] = CASES) -> argparse.Namespace:
    """Of a script that trains these recipes."""
    p = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipes", nargs="*", help=f"of {', '.join(cases)}; all unless said otherwise")
    p.add_argument("--seeds", default="0,1,2", type=lambda text: [int(s) for s in text.split(",")])
    p.add_argument("--out", default=out, type=Path, help="folder for checkpoints")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the results there, beside those of other recipes")
    a = p.parse_args()
    a.recipes = a.recipes or list(cases)
    if unknown := set(a.recipes) - set(cases):
        p.error(f"no case {min(unknown)!r}: there are {', '.join(cases)}")
    return a


def train_all(todo: dict[tuple, tuple], jobs: int) -> dict[tuple, dict]:
    """The results of several calls of `train`, by the same keys."""
    in_folders = {folder: result for (*_, folder), result in run_jobs(train, list(todo.values()), jobs)}
    return {key: in_folders[folder] for key, (*_, folder) in todo.items()}


def record(path: Path, name: str, row: dict) -> None:
    """Write the results of one recipe beside those of others."""
    known = json.loads(path.read_text()) if path.exists() else {}
    write_atomic(path, json.dumps(known | {name: row | {"made": circumstances()}}, indent=1).encode())


def remembered(row: dict, todo: dict[tuple, tuple]) -> dict[tuple, dict]:
    """Of a row of the JSON file, the results of fixed multipliers that are to be had, if they were made on such a machine."""
    made, now = row.get("fixed_made", row.get("made", {})), circumstances()
    if any(made.get(key) != now[key] for key in ("machine", "versions")):
        return {}
    fixed = {key: call for key, call in todo.items() if key[0] == "fixed"}
    return {key: r for key, (_, *call, _) in fixed.items() for r in row.get("fixed", []) if [r["changes"], r["seed"]] == call}


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments(__doc__, "runs/targets")
    for name in a.recipes:
        old = json.loads(a.json.read_text()).get(name, {}) if a.json and a.json.exists() else {}
        todo = tasks(name, a.seeds, a.out)
        known = remembered(old, todo)
        row = summary(name, known | train_all({key: call for key, call in todo.items() if key not in known}, a.jobs))
        if known:
            row["fixed_made"] = old.get("fixed_made", old["made"])
        print(f"{name}, seeds {', '.join(map(str, a.seeds))}")
        for kind, asked in row["asked"].items():
            errors = ", ".join(f"{e:+.1%}" for e in row["error"][kind])
            accuracies = ", ".join(f"{r['accuracy']:.2%}" for r in row["targets"][kind])
            fixed = ", ".join(f"{x:.2%}" for x in row["fixed_accuracy"][kind])
            print(f"  {kind} {asked:g}: {errors}   accuracy {accuracies}   of fixed multipliers as small {fixed}")
        for r in row["fixed"]:
            print(f"    {r['changes']['lam_rate']:>8} seed {r['seed']}: {r['size']:9,.0f} bytes, ", end="")
            print(f"{r['flops']:.3f} of the multiply-adds, {r['accuracy']:.2%}")
        if a.json:
            record(a.json, name, row)


if __name__ == "__main__":
    main()
