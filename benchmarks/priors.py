"""Which prior makes a network narrow at the least cost: LilNetX's norms of slices, or masks with soft counts, at equal bytes and work.

    python benchmarks/priors.py [digits mnist_lenet5] [--seeds 0,1,2] [--out runs/priors] [--json results/priors.json]

Every training is asked for both, bytes of its file and a share of the multiply-adds, in the same number of epochs. Slices: latents with
a rate and the group prior, as the paper has them. Masks: channels are chosen by masks and cut, and what is left becomes latents with
a rate and without the group prior. Both: the same, and the group prior goes on among the channels that are left. Accuracies are on
validation images. LILNETX_DATA names the folder with mnist/. Trainings resume, and those that are done are not repeated.
"""

from __future__ import annotations

import numpy as np
from targets import arguments, record, train_all

# settings, and points: bytes and share of the multiply-adds
CASES: dict[str, tuple[dict[str, str], tuple[tuple[int, float], ...]]] = {
    "digits": ({"epochs": "40"}, ((4000, 0.5), (2500, 0.3))),
    "mnist_lenet5": ({"epochs": "6", "images": "20000"}, ((4000, 0.5), (2500, 0.25))),
}
CUT = {"method": "prune", "then": "lilnetx", "arrival": "0.3"}
PRIORS = {"slices": {}, "masks": CUT | {"lam_group": "0"}, "both": CUT}


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments(__doc__, "runs/priors", CASES)
    for name in a.recipes:
        settings, points = CASES[name]
        todo = {}
        for size, flops in points:
            asked = settings | {"target_size": str(size), "target_flops": str(flops)}
            for prior, more in PRIORS.items():
                for s in a.seeds:
                    todo[size, prior, s] = (name, asked | more, s, str(a.out / name / f"{size}" / prior / f"seed{s}"))
        results, rows = train_all(todo, a.jobs), []
        for size, flops in points:
            print(f"{name}, asked for {size:,} bytes and {flops:.0%} of the multiply-adds, seeds {', '.join(map(str, a.seeds))}")
            print(f"  {'':8}{'bytes':>8}{'left':>8}{'accuracy':>10}   each seed")
            rows.append({"size": size, "flops": flops, "priors": {p: [results[size, p, s] for s in a.seeds] for p in PRIORS}})
            for prior, each in rows[-1]["priors"].items():
                got, left, right = (np.mean([r[k] for r in each]) for k in ("size", "flops", "accuracy"))
                shown = ", ".join(f"{r['accuracy']:.2%} ({r['size']:,.0f} B, {r['flops']:.1%})" for r in each)
                print(f"  {prior:8}{got:8,.0f}{left:8.1%}{right:10.2%}   {shown}")
        if a.json:
            record(a.json, name, {"points": rows})


if __name__ == "__main__":
    main()
