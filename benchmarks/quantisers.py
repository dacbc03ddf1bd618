"""Which stand-in for rounding trains best, and for which latents the rate should be estimated: accuracy at equal file size.

    python benchmarks/quantisers.py [digits mnist_lenet5 cifar10_resnet20] [--seeds 0,1,2] [--json results/quantisers.json]

Trainings with a target size, with the recipes' settings of benchmarks/targets.py. Straight: rounded latents, whose gradient passes
(the paper). Noise: latents with uniform noise for the first 70 % of the steps, then straight. Soft: rounded ever more sharply
(Agustsson and Theis 2020), then straight. Each with the rate of latents with noise; and straight with the rate of rounded latents.
Accuracies are on validation images.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from targets import CASES, train

from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.provenance import circumstances

KINDS = {
    "straight": {},
    "noise": {"quantiser": "noise"},
    "soft": {"quantiser": "soft"},
    "rate of rounded": {"rate_of": "rounded"},
}


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipes", nargs="*", default=list(CASES), choices=CASES)
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--out", default="runs/quantisers", help="folder for checkpoints")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--json", metavar="FILE", help="write the results there, beside those of other recipes")
    a = p.parse_args()
    seeds = [int(s) for s in a.seeds.split(",")]
    for name in a.recipes:
        settings, size, _, _ = CASES[name]
        with ProcessPoolExecutor(a.jobs, get_context("spawn")) as pool:
            futures = {
                (kind, s): pool.submit(
                    train, name, settings | {"target_size": str(size)} | more, s, str(Path(a.out) / name / kind / f"seed{s}")
                )
                for kind, more in KINDS.items()
                for s in seeds
            }
            rows = {kind: [futures[kind, s].result() for s in seeds] for kind in KINDS}
        print(f"{name}, asked for {size:,} bytes, seeds {a.seeds}")
        for kind, results in rows.items():
            each = ", ".join(f"{r['accuracy']:.2%} ({r['size']:,.0f} B)" for r in results)
            print(f"  {kind:16} mean accuracy {np.mean([r['accuracy'] for r in results]):.2%}   {each}")
        if a.json:
            path = Path(a.json)
            known = json.loads(path.read_text()) if path.exists() else {}
            write_atomic(path, json.dumps(known | {name: {"asked": size, "kinds": rows, "made": circumstances()}}, indent=1).encode())


if __name__ == "__main__":
    main()
