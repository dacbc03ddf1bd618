"""Checkers for notebook 02, how many bits is a weight: entropy, the wrong table, tables from a CDF, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge, number
from . import row as as_text

LN2 = float(np.log(2))


def _array(x: Any, size: int, call: str) -> NDArray[np.float64]:
    """The answer as a float array of one axis, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    x = np.asarray(x)
    if x.shape != (size,) or x.dtype.kind not in "fiu":
        raise Wrong(f"{call} should be {size} numbers in one row, and is {x.dtype} of shape {x.shape}")
    return x.astype(np.float64)


def _compare(got: float, want: float, call: str, suspects: dict[str, float]) -> None:
    """Wrong unless got is want; if got is one of the usual mistakes, the message names it."""
    if got == want or abs(got - want) <= 1e-9 * max(1.0, abs(want)):
        return
    if np.isnan(got):
        raise Wrong(
            f"{call} is nan, and should be {want:.6g}: 0 * log2(0) is nan, but a value that never occurs costs nothing"
        )
    for name, value in suspects.items():
        if np.isfinite(value) and abs(got - value) <= 1e-6 * max(1.0, abs(value)):
            raise Wrong(f"{call} is {got:.12g}, and should be {want:.12g}: {name}")
    raise Wrong(f"{call} is {got:.12g}, and should be {want:.12g}")


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def _entropy(counts: NDArray) -> float:
    p = np.asarray(counts, np.float64)[np.asarray(counts) > 0] / np.sum(counts)
    return float((p * np.log2(1 / p)).sum())


def bits_per_value(answer: Callable[[NDArray], float]) -> Verdict:
    """Exercise 1: ``answer(counts)`` is the entropy, in bits a value, of data whose histogram is `counts`."""

    def check() -> str:
        rng = np.random.default_rng()
        fixed = [[8, 4, 2, 1, 1], [7], [1], [5, 5], [0, 3, 0, 1, 0], [0, 9, 0], [0, 0, 0, 10**6, 1], [3] * 7, [1] * 256]
        drawn = [rng.integers(0, 5, rng.integers(2, 30)) * rng.integers(1, 1000) for _ in range(20)]
        for counts in (
            [np.array(c, np.int64) for c in fixed]
            + [np.append(d, 1) for d in drawn]
            + [np.array([16000, 0, 384], np.uint16)]
        ):
            call = f"bits_per_value({as_text(counts)})"
            with np.errstate(all="ignore"):
                got = number(answer(counts.copy()), call)
            want, used = _entropy(counts), int((counts > 0).sum())
            _compare(got, want, call, {
                "that is the right number in nats; bits need log2": want * LN2,
                "the sign is the wrong way round": -want,
                "that is the cost of all values together; divide by how many there are": want * float(counts.sum()),
                "each value's bits must be weighted by how often it occurs, not averaged over the distinct values":
                    float(np.mean(-np.log2(counts[counts > 0] / counts.sum()))),
                "that is the mean over distinct values; the weights p already sum to one": want / used,
                "that is the mean over all entries of the histogram; the weights p already sum to one": want / counts.size,
                "that is what a fixed number of bits a value takes; frequent values are cheaper": float(np.log2(used)),
            })  # fmt: skip
        return "entropy of 30 histograms, among them constants, empty entries and 256 equal counts"

    return judge(check)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def _cross_entropy(counts: NDArray, table: NDArray) -> float:
    used = counts > 0
    with np.errstate(divide="ignore"):
        return float(-(counts[used] / counts.sum() * np.log2(table[used])).sum() + 0.0)


def wrong_table(answer: Callable[[NDArray, NDArray], float]) -> Verdict:
    """Exercise 2: ``answer(counts, table)`` is the bits a value of data with histogram `counts` under probabilities `table`."""

    def check() -> str:
        rng = np.random.default_rng()
        halves = [0.5, 0.25, 0.125, 0.0625, 0.0625]
        cases = [([8, 4, 2, 1, 1], halves), ([1, 1, 1, 1, 4], halves), ([6], [1.0]), ([0, 4, 0], [0.25, 0.5, 0.25]),
                 ([3, 0, 1], [0.5, 0.0, 0.5]), ([9, 1], [1.0, 0.0]), ([0, 5, 5], [0.5, 0.0, 0.5]),
                 ([10**6, 1], [1 - 1e-12, 1e-300])]  # fmt: skip
        for _ in range(20):
            k = int(rng.integers(2, 20))
            cases.append((np.append(rng.integers(0, 50, k), 1), rng.dirichlet(np.ones(k + 1))))
        for counts, table in cases:
            counts, table = np.array(counts, np.int64), np.array(table, np.float64)
            call = f"wrong_table({as_text(counts)}, {as_text(table)})"
            with np.errstate(all="ignore"):
                got = number(answer(counts.copy(), table.copy()), call)
                p = counts / counts.sum()
                both = (counts > 0) & (table > 0)
                swapped = float(-(table[both] * np.log2(p[both])).sum())
            want = _cross_entropy(counts, table)
            if want == np.inf and got != np.inf and not np.isnan(got):
                raise Wrong(
                    f"{call} is {got:.6g}, and should be inf: "
                    "the table gives probability 0 to a value that occurs, so no code exists for it"
                )
            if np.isfinite(want) and got == np.inf:
                raise Wrong(
                    f"{call} is inf, and should be {want:.6g}: a probability of 0 does no harm where the count is 0 as well"
                )
            _compare(got, want, call, {
                "that is the right number in nats; bits need log2": want * LN2,
                "that is the data's own entropy; the bits come from the table, only the weights from the data": _entropy(counts),
                "that is the excess over the entropy (the Kullback-Leibler divergence); the whole cost is asked for":
                    want - _entropy(counts),
                "data and table are the wrong way round": swapped,
                "the sign is the wrong way round": -want,
                "that is the cost of all values together; divide by how many there are": want * float(counts.sum()),
                "those are the table's bits weighted by the table itself: its own entropy, whatever the data":
                    float(-(table[table > 0] * np.log2(table[table > 0])).sum()),
                "that is the mean of the table's bits over distinct values; weight them by the data":
                    float(np.mean(-np.log2(table[table > 0]))),
            })  # fmt: skip
        return "cost under 28 tables, among them ones with impossible values"

    return judge(check)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def _logistic(centre: float, scale: float) -> Callable[[NDArray], NDArray]:
    return lambda z: 0.5 * (1 + np.tanh((np.asarray(z, np.float64) - centre) / (2 * scale)))


def _mixture(*parts: tuple[float, float, float]) -> Callable[[NDArray], NDArray]:
    return lambda z: sum(w * _logistic(c, s)(z) for w, c, s in parts)


def table_from_cdf(answer: Callable[[Callable, int, int], NDArray]) -> Verdict:
    """Exercise 3: ``answer(cdf, low, high)`` holds P(low) .. P(high), with what lies beyond added to the two ends."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(_logistic(0, 1), -2, 2), (_logistic(0, 0.05), -2, 2), (_logistic(0.3, 4), -3, 5), (_logistic(0, 1), 0, 0),
                 (_logistic(2, 0.5), 1, 2), (_mixture((0.7, -2, 0.1), (0.3, 3, 0.8)), -6, 9),
                 (_logistic(40, 1), -3, 3), (_logistic(-40, 1), -3, 3)]  # fmt: skip
        for _ in range(20):
            low = int(rng.integers(-9, 3))
            cases.append((_logistic(rng.normal(), np.exp(rng.normal())), low, low + int(rng.integers(1, 12))))
        for cdf, low, high in cases:
            call = f"table_from_cdf(cdf, {low}, {high})"
            edges = np.arange(low, high) + 0.5
            want = np.diff(np.concatenate([[0.0], cdf(edges), [1.0]]))
            with np.errstate(all="ignore"):
                got = answer(cdf, low, high)
            if np.ndim(got) == 1 and np.size(got) == want.size - 1:
                raise Wrong(
                    f"{call} should hold {want.size} probabilities, and holds {np.size(got)}: "
                    f"both ends count, as in range({low}, {high} + 1)"
                )
            got = _array(got, want.size, call)
            if np.allclose(got, want, rtol=0, atol=1e-9):
                continue
            q = np.arange(low, high + 1)
            inside = cdf(q + 0.5) - cdf(q - 0.5)
            shown = f"{call} is {as_text(got)}, and should be {as_text(want)}"
            suspects = {
                "what lies beyond is missing: P(low) also stands for all that is lower, P(high) for all that is higher": inside,
                "what lies beyond belongs to the two ends; sharing it out changes the others too": inside
                / max(inside.sum(), 1e-300),
                "that is cdf(q + 1) - cdf(q): q is what rounds to q, from q - 1/2 to q + 1/2": cdf(q + 1.0) - cdf(q),
                "that is cdf(q) - cdf(q - 1): q is what rounds to q, from q - 1/2 to q + 1/2": cdf(q) - cdf(q - 1.0),
                "that is the CDF itself, not its gains": cdf(q),
                "that is the CDF itself at the half-steps, not its gains": cdf(q + 0.5),
            }
            for name, value in suspects.items():
                if np.allclose(got, value, rtol=0, atol=1e-9):
                    raise Wrong(f"{shown}: {name}")
            if abs(got.sum() - 1) > 1e-9:
                raise Wrong(f"{shown}; your probabilities sum to {got.sum():.6g}, not to 1")
            raise Wrong(f"{shown}; your probabilities do sum to 1, so look at where each interval begins and ends")
        return "tables from 28 distributions: narrow, wide, off centre, beyond the table, and with a single entry"

    return judge(check)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def log_probability(answer: Callable[[NDArray, NDArray], NDArray]) -> Verdict:
    """Exercise 4: ``answer(hi, lo)`` is log(sigmoid(hi) - sigmoid(lo)), natural, finite for every pair hi > lo."""

    def check() -> str:
        rng = np.random.default_rng()
        around, halves = (
            [0, 0, 0, 0, 0, 1, -1, 40, -40, 800, -800, 1e4, -1e4, 1e4, -1e4],
            [0.5, 1e-3, 5, 50, 1e4] + 8 * [0.5] + 2 * [0.01],
        )
        centre = np.concatenate([rng.uniform(-30, 30, 60), rng.uniform(-1e4, 1e4, 30), around])
        half = np.concatenate([np.exp(rng.uniform(-5, 2, 90)), halves])
        hi, lo = centre + half, centre - half

        def log_sigmoid(x: NDArray) -> NDArray:
            return -np.logaddexp(0, -x)

        # sigmoid(hi) - sigmoid(lo) = sigmoid(hi) * sigmoid(-lo) * (1 - exp(lo - hi)), with no difference of near equals
        want = log_sigmoid(hi) + log_sigmoid(-lo) + np.log(-np.expm1(lo - hi))
        with np.errstate(all="ignore"):
            got = _array(answer(hi.copy(), lo.copy()), hi.size, "log_probability(hi, lo)")
            mirrored = _array(answer(-lo, -hi), hi.size, "log_probability(hi, lo)")  # of the same probability
        wrong, mirrored_wrong = (~(np.abs(x - want) <= 1e-9 + 1e-6 * np.abs(want)) for x in (got, mirrored))
        if not wrong.any():
            return f"{hi.size} pairs of logits, up to 1e4 on both sides, and symmetric ones"
        # show the plainest failure: an ordinary pair if one fails, else the least extreme that is not finite, symmetric ones last
        plain = (np.abs(centre) < 8) & (half < 5) & (half > 0.1)
        i = int(np.lexsort((np.abs(centre), np.isfinite(got), hi == -lo, ~plain, ~wrong))[0])
        shown = f"log_probability({hi[i]:.6g}, {lo[i]:.6g}) is {got[i]:.8g}, and should be {want[i]:.8g}"
        if abs(got[i] * LN2 - want[i]) <= 1e-6 * abs(want[i]):
            raise Wrong(f"{shown}: that is log2; the natural logarithm is asked for")
        if abs(got[i] - np.exp(want[i])) < 1e-9:
            raise Wrong(f"{shown}: that is P itself, not its logarithm")
        if abs(got[i] + want[i]) <= 1e-6 * abs(want[i]):
            raise Wrong(f"{shown}: the sign is the wrong way round")
        if hi[i] == -lo[i] and not wrong[plain & (hi != -lo)].any():
            raise Wrong(
                f"{shown}: at the symmetric point hi = -lo the sum hi + lo is 0, and so is its sign; either side will do, but choose one"
            )
        if not plain[i] and not mirrored_wrong[i]:
            raise Wrong(f"{shown}; yet log_probability({-lo[i]:.6g}, {-hi[i]:.6g}) is right, and is the same probability: "
                        "mirror to the side where the sigmoids are small")  # fmt: skip
        if not np.isfinite(got[i]):
            raise Wrong(f"{shown}: that far out even small sigmoids underflow to 0; stay with their logarithms")
        raise Wrong(shown)

    return judge(check)
