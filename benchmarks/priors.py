"""Which prior makes a network narrow at the least cost: LilNetX's norms of slices, or masks with soft counts, at equal bytes and work.

    python benchmarks/priors.py [digits mnist_lenet5] [--seeds 0,1,2] [--out runs/priors] [--json results/priors.json]

Slices: latents with a rate and the group prior, asked for a share of the multiply-adds; the file then has the bytes that it has. Masks:
channels are chosen by masks with soft counts and cut, what is left becomes latents with a rate and no group prior, and is asked for
the same bytes as the other's file with this seed. The rate empties slices besides, so that more multiply-adds go than were cut; masks
are therefore asked for three shares, and the accuracy at equal multiply-adds is read from the line through the three points, the
multiply-adds on a logarithmic scale. Equal epochs. Accuracies are on validation images. LILNETX_DATA names the folder with mnist/.
Trainings resume, and those that are done are not repeated.
"""

from __future__ import annotations

import numpy as np
from targets import arguments, at_equal, record, train_all

# settings, and shares of the multiply-adds
CASES: dict[str, tuple[dict[str, str], tuple[float, ...]]] = {
    "digits": ({"epochs": "40"}, (0.5, 0.3)),
    "mnist_lenet5": ({"epochs": "6", "images": "20000"}, (0.5, 0.25)),
}
CUT = {"method": "prune", "then": "lilnetx", "arrival": "0.3", "lam_group": "0"}
MORE = (1.0, 1.4, 1.9)  # times the share, for masks


def _equal(row: dict, points: list[dict]) -> float:
    """The accuracy of masks at a row's multiply-adds; NaN if these are not between those of the points."""
    between = min(p["flops"] for p in points) <= row["flops"] <= max(p["flops"] for p in points)
    return at_equal("flops", points, [row])[0] if between else float("nan")


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    a = arguments(__doc__, "runs/priors", CASES)
    for name in a.recipes:
        settings, shares = CASES[name]
        first = {
            (share, s): (name, settings | {"target_flops": f"{share:g}"}, s, str(a.out / name / f"slices{share:g}" / f"seed{s}"))
            for share in shares for s in a.seeds
        }  # fmt: skip
        slices = train_all(first, a.jobs)
        second = {}
        for (share, s), r in slices.items():
            for more in MORE:
                asked = {"target_size": f"{r['size']:g}", "target_flops": f"{min(more * share, 0.99):g}"}
                folder = a.out / name / f"masks{share:g}" / f"{more:g}" / f"seed{s}"
                second[share, s, more] = (name, settings | CUT | asked, s, str(folder))
        masks, rows = train_all(second, a.jobs), []
        for share in shares:
            each = [slices[share, s] for s in a.seeds]
            points = [masks[share, s, more] for s in a.seeds for more in MORE]
            equal = [_equal(r, [p for p in points if p["seed"] == r["seed"]]) for r in each]
            rows.append({"share": share, "slices": each, "masks": points, "masks_at_equal": equal})
            print(f"{name}, {share:.0%} of the multiply-adds asked for, seeds {', '.join(map(str, a.seeds))}")
            for r, other in zip(each, equal, strict=True):
                own = [p for p in points if p["seed"] == r["seed"]]
                beside = ", ".join(f"{p['accuracy']:.2%} at {p['size']:,.0f} bytes, {p['flops']:.1%}" for p in own)
                print(f"  {r['size']:,.0f} bytes, {r['flops']:.1%}: slices {r['accuracy']:.2%}, masks {other:.2%}   ({beside})")
            print(f"  mean: slices {np.mean([r['accuracy'] for r in each]):.2%}, masks {np.nanmean(equal):.2%}")
        if a.json:
            record(a.json, name, {"points": rows})


if __name__ == "__main__":
    main()
