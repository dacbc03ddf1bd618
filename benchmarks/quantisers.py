"""Which stand-in for rounding trains best, and for which latents the rate should be estimated: accuracy at equal file size.

    python benchmarks/quantisers.py [digits mnist_lenet5 cifar10_resnet20] [--seeds 0,1,2] [--json results/quantisers.json]

Trainings with a target size, with the recipes' settings of benchmarks/targets.py. Straight: rounded latents, whose gradient passes
(the paper). Noise: latents with uniform noise for the first 70 % of the steps, then straight. Soft: rounded ever more sharply
(Agustsson and Theis 2020), then straight. Each with the rate of latents with noise; and straight with the rate of rounded latents.
Not all arrive at the size that was asked. So that sizes are equal nevertheless, each row has beside it what straight gets with fixed
multipliers at the row's own sizes, from results/targets.json (benchmarks/targets.py). Accuracies are on validation images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from targets import CASES, arguments, at_equal, record, train_all

TARGETS = Path(__file__).parent.parent / "results/targets.json"

KINDS = {
    "straight": {},
    "noise": {"quantiser": "noise"},
    "soft": {"quantiser": "soft"},
    "rate of rounded": {"rate_of": "rounded"},
}


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments(__doc__, "runs/quantisers")
    for name in a.recipes:
        settings, size, _, _ = CASES[name]
        fixed = json.loads(TARGETS.read_text())[name]["fixed"]
        if missing := set(a.seeds) - {r["seed"] for r in fixed}:
            raise SystemExit(f"{TARGETS} has no fixed multipliers of {name} with seed {min(missing)}: run benchmarks/targets.py first")
        asked = settings | {"target_size": str(size)}
        todo = {(k, s): (name, asked | more, s, str(a.out / name / k / f"seed{s}")) for k, more in KINDS.items() for s in a.seeds}
        results = train_all(todo, a.jobs)
        rows = {kind: [results[kind, s] for s in a.seeds] for kind in KINDS}
        beside = {kind: at_equal("size", fixed, each) for kind, each in rows.items()}
        print(f"{name}, asked for {size:,} bytes, seeds {', '.join(map(str, a.seeds))}; mean accuracies")
        for kind, each in rows.items():
            shown = ", ".join(f"{r['accuracy']:.2%} ({r['size']:,.0f} B)" for r in each)
            mean, other = np.mean([r["accuracy"] for r in each]), np.mean(beside[kind])
            print(f"  {kind:16}{mean:8.2%}, straight at the same sizes {other:.2%}   {shown}")
        if a.json:
            record(a.json, name, {"asked": size, "kinds": rows, "straight_at_these_sizes": beside})


if __name__ == "__main__":
    main()
