"""What it costs to let a network find its channels, ranks or bits while it trains: whole trainings, against one of the plain network.

    python benchmarks/search.py [cifar10_resnet20] [--set epochs=2,images=5000] [--runs 3] [--only prune] [--json results/search.json]

Every training is a whole one, with its search, the cut, and what it evaluates; they take turns, and a ratio compares two of the same
turn; medians. What is cut halfway leaves the network at once, so the second half is faster and pays for the first. LILNETX_DATA names
the folder with the data sets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.train import Run
from lilnetx_mini.provenance import circumstances

SIDES = {
    "plain": {},
    "prune to 2/3": {"method": "prune", "target_flops": "0.667"},
    "prune to 1/2": {"method": "prune", "target_flops": "0.5"},
    "factor to 1/2": {"method": "low_rank", "target_flops": "0.5"},
    "quantize to 4 bits": {"method": "quantize", "target_bits": "4"},
}


def seconds(recipe: str, changes: dict[str, str]) -> float:
    """Of a whole training in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Run(recipes.get(recipe, changes), 0, folder, compress="method" in changes).fit(progress=False)
        return time.perf_counter() - start


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", nargs="?", default="cifar10_resnet20", choices=recipes.RECIPES)
    p.add_argument("--set", metavar="KEY=VALUE,...", default="epochs=2,images=5000", help="settings of the recipe for all trainings")
    p.add_argument("--runs", type=int, default=3, help="turns")
    p.add_argument("--only", default="", help="only those whose names contain this, and the plain one")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    a = p.parse_args()
    base = dict(part.split("=", 1) for part in a.set.split(",") if part)
    sides = {name: base | own for name, own in SIDES.items() if a.only in name or not own}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in tqdm(list(sides) * a.runs, unit="training", disable=None):
        times[name].append(seconds(a.recipe, sides[name]))
    rows = {}
    print(f"{a.recipe}, {a.set}, {a.runs} turns")
    for name, taken in times.items():
        ratio = float(np.median(np.array(taken) / np.array(times["plain"])))
        rows[name] = {"seconds": taken, "ratio": ratio}
        print(f"  {name:22}{np.median(taken):8.1f} s{ratio:8.2f} x")
    if a.json:
        write_atomic(a.json, json.dumps({"recipe": a.recipe, "settings": base, "rows": rows, "made": circumstances()}, indent=1).encode())


if __name__ == "__main__":
    main()
