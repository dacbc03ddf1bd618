"""Checkers for notebook 12, ranks and bits: a product of two matrices, ranks that pay, values on nested grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import grid
from . import Verdict, Wrong, judge, number, row

Array = NDArray[np.float64]


# -- exercise 1: two matrices ------------------------------------------------------------------------------------------


def factors(answer: Callable[[Array, int], tuple[Array, Array]]) -> Verdict:
    """Exercise 1: ``answer(w, rank)`` is (first (rank, in), second (out, rank)), whose product second @ first is the best of that rank."""

    def check() -> str:
        rng = np.random.default_rng()
        sizes = [(5, 8, 2), (8, 5, 2), (6, 6, 6), (1, 7, 1), (7, 1, 1), *(_sizes(rng) for _ in range(20))]
        for out, into, rank in sizes:
            w = rng.normal(size=(out, into)) * rng.choice([1e-3, 1, 1e3])
            given = w.copy()
            result = answer(given, rank)
            if not np.array_equal(given, w):
                raise Wrong("your function changed its argument: work on a copy")
            if not isinstance(result, tuple | list) or len(result) != 2:
                raise Wrong("two matrices are asked for, first and second")
            _product(*(np.asarray(np.nan if m is None else m, float) for m in result), w, rank)
        return "wide, tall and square matrices, from rank one to full rank"

    return judge(check)


def _sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    out, into = rng.integers(2, 12, 2)
    return int(out), int(into), int(rng.integers(1, min(out, into) + 1))


def _product(first: Array, second: Array, w: Array, rank: int) -> None:
    out, into = w.shape
    about = f"w {w.shape}, rank {rank}"
    if (second.shape, first.shape) == ((rank, into), (out, rank)) != (first.shape, second.shape):
        raise Wrong(f"{about}: they have changed places; the first layer reads the inputs")
    if (first.shape, second.shape) != ((rank, into), (out, rank)):
        raise Wrong(f"{about}: first should be {(rank, into)} and second {(out, rank)}, and they are {first.shape} and {second.shape}")
    u, s, v = np.linalg.svd(w, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    got = second @ first

    def same(a: Array) -> bool:
        return np.allclose(got, a, rtol=1e-6, atol=1e-8 * s[0])

    if same(best):
        return
    suspects = {
        "the singular values are missing: u @ v alone is no approximation of w": u[:, :rank] @ v[:rank],
        "the singular values are in it twice: give them to one side, or their roots to both": (u[:, :rank] * s[:rank] ** 2) @ v[:rank],
        "these are the smallest singular values; they fall, so the first ones matter": (u[:, -rank:] * s[-rank:]) @ v[-rank:],
        "half of the values are missing: a square root on one side needs one on the other": (u[:, :rank] * np.sqrt(s[:rank])) @ v[:rank],
        "NumPy's third matrix is transposed already: its rows are what you need": _other(u, s, v, rank),
    }
    reasons = [why for why, m in suspects.items() if m is not None and same(m)]
    wrong, least = np.linalg.norm(got - w), np.sqrt(np.square(s[rank:]).sum())
    text = f"{about}: the product misses w by {wrong:.4g}, and the best of this rank by {least:.4g}"
    raise Wrong(text + (f": {reasons[0]}" if reasons else ""))


def _other(u: Array, s: Array, v: Array, rank: int) -> Array | None:
    """With columns of v instead of rows, where there are as many."""
    return (u[:, :rank] * s[:rank]) @ v[:, :rank].T if v.shape[0] == v.shape[1] else None


# -- exercise 2: ranks that pay ----------------------------------------------------------------------------------------


def largest_rank(answer: Callable[[int, int, int], int]) -> Verdict:
    """Exercise 2: ``answer(out, into, k)`` is the largest rank at which two layers cost less than a k x k convolution, 0 if none does."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(64, 32, 3), (4, 4, 1), (10, 64, 1), (1, 9, 1), (1, 1, 1), (2, 2, 1), (16, 3, 5)]
        cases += [(int(rng.integers(1, 200)), int(rng.integers(1, 200)), int(rng.choice([1, 3, 5]))) for _ in range(60)]
        for out, into, k in cases:
            call = f"largest_rank({out}, {into}, {k})"
            got, reads = number(answer(out, into, k), call), into * k * k
            want = (out * reads - 1) // (out + reads)
            if got == want:
                continue
            suspects = {
                "two layers then cost as much as one, and not less": out * reads / (out + reads),
                "a rank is a whole number": (out * reads) / (out + reads) if got != int(got) else None,
                "the first layer reads k * k positions of every input channel": max(out * into - 1, 0) // (out + into),
                "that is one too many: r is the largest that costs less, not the first that costs more": want + 1,
            }
            reasons = [why for why, x in suspects.items() if x is not None and got == x]
            raise Wrong(f"{call} is {want}, not {got:g}" + (f": {reasons[0]}" if reasons else ""))
        return "1x1, 3x3 and 5x5 kernels, layers so thin that no rank pays, and ties"

    return judge(check)


# -- exercise 3: nested grids ------------------------------------------------------------------------------------------


def _nested(w: Array, radius: float, bits: int, cut: bool = True, residual: bool = True) -> Array:
    left = np.clip(w, -radius, radius) if cut else w
    step, out = 2 * radius, np.zeros_like(w)
    for finer in (3, 5, 17, 257)[: grid.LEVELS.index(bits) + 1]:
        step /= finer
        part = step * np.clip(np.rint(left / step), -(finer // 2), finer // 2)
        out, left = out + part, left - (part if residual else 0)
    return out


def on_grid(answer: Callable[[Array, float, int], Array]) -> Verdict:
    """Exercise 3: ``answer(w, radius, bits)`` are the values of weights on the nested grid of so many bits."""

    def check() -> str:
        rng = np.random.default_rng()
        first = np.array([0.5, -0.31, 0.05, 0.9, -0.72, 0.13])
        cases = [(first, 1.0, bits) for bits in grid.LEVELS] + [(np.array([3.0, -3.0, 0.0]), 1.0, bits) for bits in grid.LEVELS]
        for _ in range(40):
            radius = float(rng.choice([1e-3, 0.2, 1, 7])) * rng.uniform(0.5, 1.5)
            cases.append((rng.normal(size=12) * radius * 0.6, radius, int(rng.choice(grid.LEVELS))))
        for w, radius, bits in cases:
            given = w.copy()
            got = np.asarray(answer(given, radius, bits))
            if not np.array_equal(given, w):
                raise Wrong("your function changed its argument: work on a copy")
            _values(got, w, radius, bits)
        return "all four grids, weights beyond the range, large and small ranges"

    return judge(check)


def _values(got: Any, w: Array, radius: float, bits: int) -> None:
    about = f"weights {row(w)}, radius {radius:.4g}, {bits} bits"
    if got.shape != w.shape or got.dtype.kind not in "fiu":
        raise Wrong(f"{about}: a number for each weight is asked for, and {got.dtype} of shape {got.shape} came")
    step = 2 * radius / (2**bits - 1)
    want = grid.from_grid(grid.to_grid(w[None], [radius], [bits]), [radius], [bits])[0].astype(float)
    near = np.abs(got - want) <= step * 1e-3 + 1e-6 * radius
    ties = np.abs(np.abs(np.clip(w, -radius, radius) / step) % 1 - 0.5) < 1e-3  # either neighbour will do
    if (near | (ties & (np.abs(got - want) <= step * 1.001))).all():
        return
    power = 2 * radius / 2**bits
    suspects = {
        "weights beyond the range are cut to it first": _nested(w, radius, bits, cut=False),
        "a correction rounds what is left, not the weight again": _nested(w, radius, bits, residual=False),
        "that is the last correction alone: add all parts": _nested(w, radius, bits) - _nested(w, radius, bits // 2) if bits > 2 else None,
        "that is a grid of 2**b cells, here they are 2**b - 1": power * np.rint(np.clip(w, -radius, radius) / power),
        "that is one grid too many": _nested(w, radius, 2 * bits) if bits < 16 else None,
        "that is one grid too few": _nested(w, radius, bits // 2) if bits > 2 else None,
        "the range goes from -radius to radius: the first step is 2 * radius / 3": _nested(w, radius / 2, bits),
        "the number of a point has to be multiplied by the step": _nested(w, radius, bits) / step,
    }
    reasons = [why for why, x in suspects.items() if x is not None and np.allclose(got, x, rtol=1e-4, atol=1e-6 * radius)]
    raise Wrong(f"{about}: {row(want)} is right, not {row(got)}" + (f": {reasons[0]}" if reasons else ""))
