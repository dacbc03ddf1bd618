"""Several trainings of one recipe: a curve of size against accuracy, and the smallest file at an accuracy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..lnx import write_atomic
from ..provenance import circumstances
from . import report
from .recipes import get

TRIES = 6  # trainings of a search
CLOSE = 1.1  # it ends where the largest size that fails and the smallest that holds are this close
FIRST = 30  # it starts with a file this many times smaller than float32


def sweep(
    name: str, changes: dict[str, str], key: str, values: list[float], seeds: list[int], out: str | os.PathLike, **options
) -> dict | None:
    """Train a recipe once for every value of a setting, in folders of `out`; what is there already is not trained again.

    key      "lam_rate", with which lam_group keeps its ratio, or a target: "target_size", "target_flops", "target_slices"
    options  for `report.main_job`: fresh, jobs, progress, device
    returns  {"points": [{"value", "file_bytes", "flops_left", "slices_zero", "validation_accuracy", "file_accuracy", "seed"}, ...],
             "plain": ...}; it is in ``out/sweep.json`` too. None in all processes of ``torchrun`` but the first
    """
    recipe, out = get(name, changes), Path(out)
    ratio = recipe.lam_group / recipe.lam_rate if recipe.lam_rate else 1.0
    result: dict | None = {"recipe": name, "changes": changes, "key": key, "points": [], "plain": []}
    points = [{key: str(v)} | ({"lam_group": str(v * ratio)} if key == "lam_rate" else {}) for v in values]
    for more in points:
        get(name, changes | more)  # a wrong value is refused before anything is trained
    for n, (value, more) in enumerate(zip(values, points, strict=True)):
        done = report.main_job(name, changes | more, seeds, out / f"{key}={value:g}", plain=n == 0, **options)
        if done is None:
            result = None
            continue
        result["plain"] += done["plain"]
        result["points"] += [{"value": value, **{k: r[k] for k in POINT}} for r in done["compressed"]]
        write_atomic(out / "sweep.json", json.dumps(result | {"made": circumstances()}, indent=1).encode())
    return result


POINT = ("seed", "file_bytes", "flops_left", "slices_zero", "validation_accuracy", "file_accuracy")


def table(result: dict) -> str:
    """The points of a sweep for people."""
    head = f"{result['key']:>14}{'seed':>6}{'bytes':>10}{'MACs left':>11}{'slices zero':>13}{'validation':>12}{'test':>9}"
    rows = [
        f"{p['value']:14g}{p['seed']:6}{p['file_bytes']:10,}{p['flops_left'] or math.nan:11.1%}{p['slices_zero']:13.1%}"
        f"{p['validation_accuracy']:12.2%}{p['file_accuracy']:9.2%}"
        for p in result["points"]
    ]
    plain = [
        f"{'plain':>14}{p['seed']:6}{p['float_bytes']:10,}{1:11.1%}{0:13.1%}{p['validation_accuracy']:12.2%}{p['test_accuracy']:9.2%}"
        for p in result["plain"]
    ]
    return "\n".join([head, *rows, *plain])


def picture(result: dict, path: str | os.PathLike) -> None:
    """File bytes against test accuracy, with the plain network for comparison, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from .. import plots

    fig, ax = plots.plt.subplots(figsize=(7, 4.6), layout="constrained")
    points = [("float32", p["float_bytes"], p["test_accuracy"]) for p in result["plain"]]
    plots.size_accuracy(points + [(".lnx", p["file_bytes"], p["file_accuracy"]) for p in result["points"]], ax)
    for p in result["points"]:
        ax.annotate(f"{p['value']:g}", (p["file_bytes"] / 1000, 100 * p["file_accuracy"]), (7, 5), textcoords="offset points", fontsize=8)
    ax.set_title(f"{result['recipe']}: size against accuracy, {result['key']} beside each point")
    fig.savefig(path, dpi=120)
    plots.plt.close(fig)


def check_drop(drop: float, changes: dict[str, str]) -> None:
    """InputError if `smallest` cannot do that."""
    if not 0 < drop < 100:
        raise InputError(f"an accuracy drop of {drop} points: a number between 0 and 100 is needed")
    if "target_size" in changes:
        raise InputError("a target size and a largest accuracy drop: the second finds the size by itself, so leave one of them out")


def smallest(
    name: str,
    changes: dict[str, str],
    drop: float,
    seeds: list[int],
    out: str | os.PathLike,
    said: Callable[[str], None] = lambda text: None,
    **options,
) -> dict:
    """The smallest file whose validation accuracy is at most `drop` points below the plain network's, mean over the seeds.

    A bisection over target sizes, on a logarithmic scale: up to six trainings in folders of `out`, resumable.

    said     is called with a line about every training
    returns  the report of the best training, with "tries": [(target size, mean file bytes, mean validation accuracy), ...]
    raises   InputError if no size reaches that accuracy, with the best that was seen
    """
    check_drop(drop, changes)
    out, tries, best = Path(out), [], None
    holds, fails, size = math.inf, 0.0, 0.0
    while len(tries) < TRIES and (holds == math.inf or holds / max(fails, 1) > CLOSE):
        if not tries:
            size = sum(4 * p.numel() for p in get(name, changes).model().parameters()) / FIRST
        elif holds == math.inf:
            size *= 2
        else:
            size = math.sqrt(holds * fails) if fails else holds / 2
        more = changes | {"target_size": str(round(size))}
        first = not tries
        done = report.main_job(name, more, seeds, out / f"target_size={size:.0f}", plain=first, **options)
        if first:
            wanted = float(np.mean([p["validation_accuracy"] for p in done["plain"]])) - drop / 100
        reached = float(np.mean([r["validation_accuracy"] for r in done["compressed"]]))
        bytes_ = float(np.mean([r["file_bytes"] for r in done["compressed"]]))
        tries.append((round(size), bytes_, reached))
        said(f"{bytes_:10,.0f} bytes: {reached:.2%} on validation data, {'enough' if reached >= wanted else f'below {wanted:.2%}'}")
        if reached >= wanted:
            holds, best = size, done
        else:
            fails = size
    if best is None:
        most = max(tries, key=lambda t: t[2])
        raise InputError(
            f"{drop} points below the plain network, {wanted:.2%} on validation data, are out of reach: {most[2]:.2%} with "
            f"{most[1]:,.0f} bytes was the best of {len(tries)} trainings. More epochs, or a larger drop"
        )
    best |= {"tries": tries, "wanted_validation_accuracy": wanted}
    write_atomic(out / "report.json", json.dumps(best, indent=1).encode())
    return best
