"""Checkers for notebook 13, latency and transformers: reading a table, fitting a line, multiply-adds of attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge, number, row

Array = NDArray[np.float64]


# -- exercise 1: between the points of a table -------------------------------------------------------------------------


def _bilinear(outs: Array, ins: Array, ms: Array, out: float, into: float) -> float:
    along = [np.interp(into, ins, line) for line in ms]
    return float(np.interp(out, outs, along))


def _nearest(outs: Array, ins: Array, ms: Array, out: float, into: float) -> float:
    return float(ms[np.abs(outs - out).argmin(), np.abs(ins - into).argmin()])


def _below(outs: Array, ins: Array, ms: Array, out: float, into: float) -> float:
    return float(ms[np.searchsorted(outs, out, "right") - 1, np.searchsorted(ins, into, "right") - 1])


def _cell(outs: Array, ins: Array, out: float, into: float) -> tuple[int, int]:
    a, b = (int(np.clip(np.searchsorted(side, at, "right") - 1, 0, len(side) - 2)) for side, at in ((outs, out), (ins, into)))
    return a, b


def _suspects(outs: Array, ins: Array, ms: Array, out: float, into: float) -> dict[str, float]:
    a, b = _cell(outs, ins, out, into)
    s, t = (out - outs[a]) / (outs[a + 1] - outs[a]), (into - ins[b]) / (ins[b + 1] - ins[b])
    (low, right), (up, both) = ms[a : a + 2, b : b + 2]
    found = {
        "that is the point below: go on from there to the next, on both sides": _below(outs, ins, ms, out, into),
        "that is the nearest point: read between the points": _nearest(outs, ins, ms, out, into),
        "that goes between the points for the outputs alone": low * (1 - s) + up * s,
        "that goes between the points for the inputs alone": low * (1 - t) + right * t,
        "that is the mean of the four points around: nearer ones count for more": float(np.mean([low, right, up, both])),
        "the farther point counts for more there: weights have changed places": both * (1 - s) * (1 - t)
        + up * (1 - s) * t + right * s * (1 - t) + low * s * t,
        "add the two steps and the corner counts for nothing: interpolate on one side, then between the results": low
        + s * (up - low) + t * (right - low),
    }  # fmt: skip
    if outs[0] <= into <= outs[-1] and ins[0] <= out <= ins[-1]:
        found["outputs and inputs have changed places"] = _bilinear(outs, ins, ms, into, out)
    return found


def read(answer: Callable[[Array, Array, Array, float, float], float]) -> Verdict:
    """Exercise 1: ``answer(outs, ins, ms, out, into)`` are the milliseconds of a layer of those widths; ValueError outside the table."""

    def check() -> str:
        rng = np.random.default_rng()
        first = np.array([4.0, 8, 16]), np.array([2.0, 8, 12]), np.array([[1.0, 2, 5], [3, 7, 9], [4, 11, 20]])
        tables = [first]
        for _ in range(6):
            outs, ins = (np.sort(rng.choice(np.arange(1, 65), rng.integers(2, 6), replace=False)).astype(float) for _ in range(2))
            tables.append((outs, ins, rng.uniform(0.01, 3, (len(outs), len(ins)))))
        for outs, ins, ms in tables:
            inside = [(outs[0] * 0.3 + outs[1] * 0.7, ins[0] * 0.4 + ins[1] * 0.6), (outs[0], ins[0]), (outs[-1], ins[-1])]
            inside += [(outs[-1], ins[0]), (outs[-2], ins[-1])]
            inside += [(rng.uniform(outs[0], outs[-1]), rng.uniform(ins[0], ins[-1])) for _ in range(8)]
            for out, into in [(5.0, 7.0), (10.0, 11.0), *inside] if ms is first[2] else inside:
                _point(answer, outs, ins, ms, float(out), float(into))
            for out, into in ((outs[0] - 1, ins[0]), (outs[-1] + 1, ins[0]), (outs[0], ins[0] - 1), (outs[-1], ins[-1] + 0.5)):
                _outside(answer, outs, ins, ms, float(out), float(into))
        return "points of the table, corners, between them, and outside on all four sides"

    return judge(check)


def _point(answer: Callable, outs: Array, ins: Array, ms: Array, out: float, into: float) -> None:
    about = f"outs {row(outs)}, ins {row(ins)}, ms {ms.round(3).tolist()}: read at ({out:.6g}, {into:.6g})"
    got, want = number(answer(outs.copy(), ins.copy(), ms.copy(), out, into), about), _bilinear(outs, ins, ms, out, into)
    if np.isclose(got, want, rtol=1e-6):
        return
    reasons = [why for why, x in _suspects(outs, ins, ms, out, into).items() if np.isclose(got, x, rtol=1e-6)]
    raise Wrong(f"{about} it is {want:.6g}, not {got:.6g}" + (f": {reasons[0]}" if reasons else ""))


def _outside(answer: Callable, outs: Array, ins: Array, ms: Array, out: float, into: float) -> None:
    try:
        got = answer(outs.copy(), ins.copy(), ms.copy(), out, into)
    except ValueError:
        return
    except IndexError as e:
        raise Wrong(f"({out:g}, {into:g}) is outside the table: say so with a ValueError, not by {e!r}") from None
    asked = f"outs {row(outs)}, ins {row(ins)}: nothing was measured at ({out:g}, {into:g})"
    raise Wrong(f"{asked}, and your function says {got}: raise a ValueError")


# -- exercise 2: from layers to a network ------------------------------------------------------------------------------


def fit(answer: Callable[[Array, Array], tuple[float, float]]) -> Verdict:
    """Exercise 2: ``answer(sums, measured)`` is (base, factor), with which the squares of relative errors add up to least."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(np.array([1.0, 2, 3]), np.array([2.5, 3.5, 4.5])), (np.array([1.0, 2, 4, 10]), np.array([1.0, 3, 4, 14]))]
        for _ in range(20):
            sums = rng.uniform(0.1, 10, rng.integers(3, 12)) * rng.choice([0.01, 1, 100])
            cases.append((sums, (rng.uniform(0, 0.5) * sums.mean() + rng.uniform(0.5, 2) * sums) * rng.uniform(0.8, 1.2, len(sums))))
        for sums, measured in cases:
            result = answer(sums.copy(), measured.copy())
            if not isinstance(result, tuple | list | np.ndarray) or len(result) != 2:
                raise Wrong("two numbers are asked for, base and factor")
            _line(number(result[0], "the base"), number(result[1], "the factor"), sums, measured)
        return "exact lines, noisy ones, microseconds and seconds"

    return judge(check)


def _least(sums: Array, measured: Array, weights: Array, through: bool = True) -> tuple[float, float]:
    """Base and factor with the smallest sum of the squares of weighted errors; without `through` the base is 0."""
    columns = np.stack([np.ones_like(sums) * through, sums], 1) * weights[:, None]
    base, factor = np.linalg.lstsq(columns, measured * weights, rcond=None)[0]
    return float(base), float(factor)


def _line(base: float, factor: float, sums: Array, measured: Array) -> None:
    want = _least(sums, measured, 1 / measured)

    def same(pair: tuple[float, float]) -> bool:
        return np.allclose((base, factor), pair, rtol=1e-4, atol=1e-6 * measured.mean())

    if same(want):
        return
    suspects = {
        "those are factor and base: base comes first": want[::-1],
        "that makes the errors in milliseconds small, and here they are to be shares: divide by what was measured": _least(
            sums, measured, np.ones_like(sums)
        ),
        "the base is missing: additions, pools and calls take their time too": _least(sums, measured, 1 / measured, through=False),
        "errors are to be shares of what was measured, not of the sums": _least(sums, measured, 1 / sums),
        "weigh the errors, not their squares, by 1 / measured": _least(sums, measured, measured**-0.5),
    }
    reasons = [why for why, x in suspects.items() if same(x)]
    errors = [float(np.square((b + f * sums) / measured - 1).sum()) for b, f in ((base, factor), want)]
    text = f"sums {row(sums)}, measured {row(measured)}: base {want[0]:.5g} and factor {want[1]:.5g}, not {base:.5g} and {factor:.5g}"
    raise Wrong(f"{text}; the squares of relative errors add up to {errors[0]:.4g} with yours, and {errors[1]:.4g} is possible"
                + (f": {reasons[0]}" if reasons else ""))  # fmt: skip


# -- exercise 3: the multiply-adds of attention ------------------------------------------------------------------------


def attention_macs(answer: Callable[[int, int, int, int], int]) -> Verdict:
    """Exercise 3: ``answer(length, width, size, heads)`` are the multiply-adds of self-attention with so many heads left, for one text."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(48, 128, 32, 3), (10, 64, 16, 4), (7, 12, 4, 0), (1, 8, 8, 1), (2, 6, 3, 2)]
        cases += [(int(rng.integers(1, 200)), int(rng.integers(1, 30)) * 8, 8, int(rng.integers(0, 20))) for _ in range(40)]
        for length, width, size, heads in cases:
            call, inner = f"attention_macs({length}, {width}, {size}, {heads})", size * heads
            got = number(answer(length, width, size, heads), call)
            layers, products = 4 * length * width * inner, 2 * length * length * inner
            if got == layers + products:
                continue
            suspects = {
                "the products of queries with keys, and of what comes of them with values, are missing": layers,
                "there are two products: queries with keys, and what comes of them with values": layers + products // 2,
                "every position looks at every position: the products cost length * length": layers + 2 * length * inner,
                "a layer is missing: queries, keys, values, and the one that mixes what heads have found": layers * 3 // 4 + products,
                "layers run at every position: length times": 4 * width * inner + products,
                "with fewer heads, queries, keys and values have size * heads channels, not width": 4 * length * width**2 + products,
                "the last layer reads size * heads channels": length * width * (3 * inner + width) + products,
                "that is one head": 4 * length * width * size + 2 * length * length * size,
                "every head has products of its own, over its size channels": layers + 2 * length * length * size,
                "a multiply-add is one, not two": 2 * (layers + products),
            }
            reasons = [why for why, x in suspects.items() if got == x]
            raise Wrong(f"{call} is {layers + products:,}, not {got:,.0f}" + (f": {reasons[0]}" if reasons else ""))
        return "short and long texts, all heads, some, one and none"

    return judge(check)
