"""Pictures that more than one place draws: readable without colour, with units on every axis."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from .errors import MissingExtraError
from .lnx import Ledger

try:
    import matplotlib.pyplot as plt
except ImportError:
    raise MissingExtraError("matplotlib", "train") from None

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes

    from .bench import Row
    from .runtime import Timing

# Okabe and Ito's palette, told apart by readers of every kind of colour vision
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, RED, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#D55E00",
    "#000000",
)
SECTION_COLOURS = {
    "header": BLACK,
    "network": PINK,
    "tables": YELLOW,
    "significance": SKY,
    "coefficients": BLUE,
    "decoders": GREEN,
    "side": ORANGE,
    "raw": RED,
}


def byte_map(ledger: Ledger, ax: Axes | None = None, columns: int = 64) -> Axes:
    """Every byte of a file as one cell, in file order, coloured by the section that it belongs to.

    ledger   from ``lnx.ledger(path)``
    columns  bytes in a row
    """
    ax = ax or plt.gca()
    names = list(ledger.sections)
    owner = np.repeat(np.arange(len(names)), [ledger.sections[n] for n in names])
    rows = -(-len(owner) // columns)
    grid = np.ones((rows * columns, 3))
    colours = np.array([[int(SECTION_COLOURS[n][i : i + 2], 16) / 255 for i in (1, 3, 5)] for n in names])
    grid[: len(owner)] = colours[owner]
    ax.imshow(
        grid.reshape(rows, columns, 3), aspect="auto", interpolation="nearest", extent=(0, columns, rows * columns, 0)
    )
    for row in range(1, rows):
        ax.axhline(row * columns, color="white", lw=0.4)
    for n in names:
        ax.plot([], [], "s", color=SECTION_COLOURS[n], label=f"{n}: {ledger.sections[n]:,} B")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handletextpad=0.3)
    ax.set(xlabel="byte within its row", ylabel="byte of the file", title=f"where the {ledger.file_bytes:,} bytes go")
    return ax


KINDS = {"float32": ("o", BLACK), "zip of float32": ("s", ORANGE), ".lnx": ("D", BLUE)}


def size_accuracy(points: list[tuple[str, float, float]], ax: Axes | None = None) -> Axes:
    """Sizes against test accuracies, one marker a kind of file.

    points  (kind, bytes, accuracy as a fraction); points of one kind share marker and colour, those of KINDS in all pictures
    """
    ax = ax or plt.gca()
    kinds = list(dict.fromkeys(kind for kind, _, _ in points))
    free = cycle(zip("^vP", (GREEN, PINK, RED), strict=True))
    for kind in kinds:
        marker, colour = KINDS[kind] if kind in KINDS else next(free)
        sizes, accuracies = zip(*[(b / 1000, 100 * a) for k, b, a in points if k == kind], strict=True)
        ax.plot(sizes, accuracies, marker, color=colour, ms=8, alpha=0.8, label=kind)
    lowest = min(100 * a for _, _, a in points)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(
        xlabel="size (kB, log scale)", ylabel="test accuracy (%)", ylim=(lowest - 1, 100), title="size against accuracy"
    )
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False)
    return ax


def speed(rows: list[Row], profile: list[Timing], title: str, path: str | os.PathLike) -> None:
    """Two panels in an image file: engines' milliseconds with their quartiles, and milliseconds and work of every layer.

    rows     from ``bench.measure``
    profile  from ``Network.profile``; none: there is only the first panel
    """
    steps = [t for t in profile if t.macs_done or t.macs_skipped]
    fig, axes = plt.subplots(1, 3 if steps else 1, figsize=(12 if steps else 6, max(3.0, 0.6 + 0.2 * len(steps))), squeeze=False)
    ax, *others = axes[0]
    values = [r.milliseconds for r in rows]
    spread = np.abs(np.array([r.quartiles for r in rows]).T - values)
    ax.barh([r.name for r in rows], values, color=[BLUE, SKY, ORANGE, YELLOW][: len(rows)], xerr=spread, capsize=3)
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds a call (median, quartiles)", title=title)
    if steps:
        names, place = [t.name.removesuffix(".weight") for t in steps], np.arange(len(steps))
        left, right = others
        left.barh(place, [t.milliseconds for t in steps], color=BLUE)
        left.set(xlabel="milliseconds an image", yticks=place, yticklabels=names, title="time by layer")
        done, skipped = (np.array([getattr(t, k) for t in steps]) / 1e6 for k in ("macs_done", "macs_skipped"))
        right.barh(place, done, color=BLUE, label="done")
        right.barh(place, skipped, left=done, color="none", edgecolor=BLACK, hatch="////", lw=0.5, label="skipped")
        right.set(xlabel="multiply-adds an image (millions)", yticks=[], title="work by layer")
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
        for panel in others:
            panel.invert_yaxis()
            panel.tick_params(axis="y", labelsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)
