"""Which stand-in for rounding trains best, and for which latents the rate should be estimated: accuracy at equal file size.

    python benchmarks/quantisers.py [digits mnist_lenet5 cifar10_resnet20] [--seeds 0,1,2] [--json results/quantisers.json]

Trainings with a target size, with the recipes' settings of benchmarks/targets.py. Straight: rounded latents, whose gradient passes
(the paper). Noise: latents with uniform noise for the first 70 % of the steps, then straight. Soft: rounded ever more sharply
(Agustsson and Theis 2020), then straight. Each with the rate of latents with noise; and straight with the rate of rounded latents.
Accuracies are on validation images.
"""

from __future__ import annotations

import numpy as np
from targets import CASES, arguments, record, train_all

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
        asked = settings | {"target_size": str(size)}
        todo = {(k, s): (name, asked | more, s, str(a.out / name / k / f"seed{s}")) for k, more in KINDS.items() for s in a.seeds}
        results = train_all(todo, a.jobs)
        rows = {kind: [results[kind, s] for s in a.seeds] for kind in KINDS}
        print(f"{name}, asked for {size:,} bytes, seeds {', '.join(map(str, a.seeds))}")
        for kind, each in rows.items():
            shown = ", ".join(f"{r['accuracy']:.2%} ({r['size']:,.0f} B)" for r in each)
            print(f"  {kind:16} mean accuracy {np.mean([r['accuracy'] for r in each]):.2%}   {shown}")
        if a.json:
            record(a.json, name, {"asked": size, "kinds": rows})


if __name__ == "__main__":
    main()
