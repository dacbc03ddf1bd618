"""Checkers for notebook 05, train for size: Huffman's code lengths, multipliers between conventions, the price of a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge, number
from . import row as as_text

LN2 = float(np.log(2))
UNITS = ("bits", "bits a slice", "nats a weight")
Groups = Sequence[tuple[int, int]]


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def code_lengths(counts: NDArray) -> NDArray[np.int64]:
    """Bits of every value's codeword in a Huffman code (1952); 0 where a count is 0, and if only one value occurs.

    Van Leeuwen's way (1976), without a heap: of counts in order, and of sums in the order in which they arise, the two smallest are
    always in front.
    """
    counts = [int(c) for c in counts]
    used = sorted((i for i, c in enumerate(counts) if c > 0), key=lambda i: counts[i])
    weight, parent = [counts[i] for i in used], [0] * (2 * len(used))
    leaf, inner = 0, len(used)
    for made in range(len(used), 2 * len(used) - 1):
        weight.append(0)
        for _ in range(2):
            if inner >= made or (leaf < len(used) and weight[leaf] <= weight[inner]):
                pick, leaf = leaf, leaf + 1
            else:
                pick, inner = inner, inner + 1
            weight[made] += weight[pick]
            parent[pick] = made
    depth, out = [0] * (2 * len(used)), np.zeros(len(counts), np.int64)
    for node in range(2 * len(used) - 3, -1, -1):
        depth[node] = depth[parent[node]] + 1
    out[used] = depth[: len(used)]
    return out


def _cost(counts: NDArray, lengths: Sequence[int]) -> int:
    """Bits of all values, exact whatever the counts."""
    return sum(int(c) * int(n) for c, n in zip(counts, lengths, strict=True))


def _fibonacci(n: int) -> NDArray[np.int64]:
    a = [1, 1]
    while len(a) < n:
        a.append(a[-1] + a[-2])
    return np.array(a[:n], np.int64)


def _lengths(answer: Any, counts: NDArray, call: str) -> list[int]:
    """The answer as whole numbers of the right count, or Wrong."""
    if answer is None:
        raise Wrong(f"{call} returned None: is there a return?")
    got = np.asarray(answer)
    if got.shape != counts.shape:
        raise Wrong(f"{call} should be {counts.size} lengths in one row, one for every count, and is of shape {got.shape}")
    if got.dtype.kind not in "iuf" or not np.all(np.isfinite(got)) or np.any(got != np.floor(got)):
        raise Wrong(f"{call} is {as_text(got)}: a codeword has a whole number of bits")
    return [int(n) for n in got]


def _judge_lengths(counts: NDArray, got: list[int], call: str) -> None:
    shown = f"{call} is {as_text(got)}"
    used = counts > 0
    best = code_lengths(counts)
    if any(n != 0 for n, u in zip(got, used, strict=True) if not u):
        raise Wrong(f"{shown}: a value that never occurs needs no codeword, so its length is 0")
    if used.sum() == 1:
        if got[int(np.argmax(used))] != 0:
            raise Wrong(f"{shown}: if only one value occurs the decoder knows all, and no bit is needed: length 0")
        return
    mine = [n for n, u in zip(got, used, strict=True) if u]
    if min(mine) < 1:
        raise Wrong(f"{shown}: beside others, no codeword can be shorter than one bit")
    kraft = sum(Fraction(1, 2**n) for n in mine)
    if [n - 1 for n in got] == [int(n) if u else -1 for n, u in zip(best, used, strict=True)]:
        raise Wrong(f"{shown}: every length is one bit too long; a leaf's depth counts the branches above it, not the nodes")
    if kraft > 1:
        raise Wrong(f"{shown}: no code has such short codewords; the sum of 2**-length is {float(kraft):.4g}, "
                    "and where no codeword begins another it is at most 1")  # fmt: skip
    total = int(counts.sum(dtype=object))
    shannon = [int(np.ceil(np.log2(total / int(c)) - 1e-12)) if c > 0 else 0 for c in counts]
    cost, least = _cost(counts, got), _cost(counts, best)
    if cost == least:
        return
    tail = f"{shown}: {cost / total:.6g} bits a value, and the best code takes {least / total:.6g}"
    if got == shannon:
        raise Wrong(f"{tail}; -log2 P rounded up is a code (Shannon's), but seldom the best one")
    if len(set(mine)) == 1:
        raise Wrong(f"{tail}; all codewords are equally long, but frequent values should have shorter ones")
    if sorted(mine) == sorted(best[used].tolist()):
        raise Wrong(f"{tail}; the lengths are right, but stand at the wrong values: keep each in the place of its count")
    if kraft < 1:
        raise Wrong(f"{tail}; the sum of 2**-length is {float(kraft):.4g}: below 1, some codeword could be shorter")
    raise Wrong(f"{tail}; at each step the two *smallest* weights of all must be joined, sums of earlier steps included")


def huffman_lengths(answer: Callable[[NDArray], NDArray]) -> Verdict:
    """Exercise 1: ``answer(counts)`` holds the codeword lengths of a Huffman code, in the order of the counts."""

    def check() -> str:
        rng = np.random.default_rng()
        fixed = [[8, 4, 2, 1, 1], [1, 1], [7, 1], [1, 1, 1], [5, 5, 5, 5], [2, 2, 2, 2, 2], [1, 1, 2, 2, 2], [9, 3, 3, 3, 2],
                 [7], [0, 9, 0], [0, 3, 0, 1, 0], [0, 0, 10**6, 1, 1], [3] * 7, [1] * 256, [60_000, 12_000, 1_500, 90, 4]]  # fmt: skip
        cases = [np.array(c, np.int64) for c in fixed] + [_fibonacci(6), _fibonacci(80), _fibonacci(30)[::-1].copy()]
        for _ in range(15):
            k = int(rng.integers(2, 40))
            cases.append(np.append(rng.integers(0, 9, k) * rng.integers(1, 1000), 1))
            cases.append(rng.permutation(np.ceil(1e6 * rng.dirichlet(np.full(k, 0.3))).astype(np.int64)))
        for counts in cases:
            call, given = f"huffman_lengths({as_text(counts)})", counts.copy()
            got = _lengths(answer(given), counts, call)
            if not np.array_equal(given, counts):
                raise Wrong("huffman_lengths changed its argument counts: work on a copy")
            _judge_lengths(counts, got, call)
        return f"the shortest codes for {len(cases)} histograms: equal counts, a single value, empty entries, Fibonacci numbers"

    return judge(check)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def _best(losses: NDArray, probabilities: NDArray, lam: float, count: int) -> int:
    with np.errstate(divide="ignore"):
        return int(np.argmin(losses - lam / count * np.log2(probabilities)))


def _mistakes() -> dict[str, Callable[[NDArray, NDArray, float, int], int]]:
    """What usual mistakes would choose."""
    return {
        "you take the value with the smallest loss; its bits have a price too":
            lambda t, p, lam, n: int(np.argmin(t)),
        "you take the likeliest value, so the cheapest in bits; what the task loses counts too":
            lambda t, p, lam, n: int(np.argmax(p)),
        "the price of a bit is lam / count: lam is the price of one bit on *every* weight":
            lambda t, p, lam, n: int(np.argmin(t - lam * np.log2(p))),
        "bits need log2; with the natural logarithm each costs 31 % too little":
            lambda t, p, lam, n: int(np.argmin(t - lam / n * np.log(p))),
        "the sign of the bits is the wrong way round: an unlikely value costs more":
            lambda t, p, lam, n: int(np.argmin(t + lam / n * np.log2(p))),
        "you take the value with the largest objective; both terms are costs":
            lambda t, p, lam, n: int(np.argmax(t - lam / n * np.log2(p))),
        "the cost of a value is -log2 P, not 1 - P":
            lambda t, p, lam, n: int(np.argmin(t + lam / n * (1 - p))),
    }  # fmt: skip


def best_value(answer: Callable[[NDArray, NDArray, float, int], int]) -> Verdict:
    """Exercise 2: ``answer(losses, probabilities, lam, count)`` is the index of the value with the smallest objective."""

    def check() -> str:
        rng = np.random.default_rng()
        cases: list[tuple[NDArray, NDArray, float, int]] = [
            (np.array([0.30, 0.25]), np.array([0.5, 0.5]), 1.0, 100),
            (np.array([0.30, 0.2999]), np.array([0.9, 0.1]), 10.0, 1000),
            (np.array([0.30, 0.20]), np.array([0.9, 0.1]), 10.0, 1000),
            (np.array([0.1, 0.1, 0.1]), np.array([0.1, 0.8, 0.1]), 0.5, 10),
            (np.array([0.10, 0.01, 0.02]), np.array([0.7, 0.0, 0.3]), 1.0, 100),
            (np.array([0.5, 0.4]), np.array([1.0, 0.0]), 1e-6, 10**6),
            (np.array([0.2, 0.1, 0.3]), np.array([0.8, 0.1, 0.1]), 0.0, 74_512),
        ]
        for k in range(80):  # two values, with the gain a little above or below its price
            n, lam, zero = int(rng.integers(2, 10**5)), float(np.exp(rng.uniform(-2, 4))), float(rng.uniform(0.7, 0.99))
            price = lam / n * np.log2(zero / (1 - zero))
            gain = price * float(rng.choice([0.75, 0.95, 1.05, 1.4]))
            losses, P = np.array([0.4, 0.4 - gain]), np.array([zero, 1 - zero])
            cases.append((losses, P, lam, n) if k % 2 else (losses[::-1].copy(), P[::-1].copy(), lam, n))
        for _ in range(40):  # several values
            k, n, lam = int(rng.integers(3, 9)), int(rng.integers(2, 10**5)), float(np.exp(rng.uniform(-2, 4)))
            cases.append((0.4 + lam / n * rng.uniform(0, 6, k), rng.dirichlet(np.full(k, 0.5)) + 1e-9, lam, n))
        got = []
        for losses, P, lam, n in cases:
            call = f"best_value({as_text(losses)}, {as_text(P)}, {lam:.6g}, {n})"
            with np.errstate(all="ignore"):
                got.append(int(number(answer(losses.copy(), P.copy(), lam, n), call, "iu", "one whole number, an index")))
            if not 0 <= got[-1] < losses.size:
                raise Wrong(f"{call} is {got[-1]}: the *index* of a value is asked for, 0 to {losses.size - 1}")
        wrong = [i for i, case in enumerate(cases) if got[i] != _best(*case)]
        if not wrong:
            return f"the right choice in {len(cases)} cases, most of them close calls"
        losses, P, lam, n = cases[wrong[0]]
        with np.errstate(all="ignore"):
            objective = losses - lam / n * np.log2(P)
            shown = (f"best_value({as_text(losses)}, {as_text(P)}, {lam:.6g}, {n}) is {got[wrong[0]]}, and should be "
                     f"{_best(*cases[wrong[0]])}: the objectives are {as_text(objective)}")  # fmt: skip
            for name, mistake in _mistakes().items():
                if all(mistake(*case) == g for case, g in zip(cases, got, strict=True)):
                    raise Wrong(f"{shown}. Look at this: {name}")
        raise Wrong(shown)

    return judge(check)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def _to_ours(theirs: float, unit: str, groups: Groups) -> float:
    slices, weights = sum(s for s, _ in groups), sum(s * d for s, d in groups)
    return theirs * {"bits": weights, "bits a slice": weights / slices, "nats a weight": LN2}[unit]


def _conversion_suspects(theirs: float, unit: str, groups: Groups) -> dict[str, float]:
    slices, weights = sum(s for s, _ in groups), sum(s * d for s, d in groups)
    big = [(s, d) for s, d in groups if d > 1]
    if unit == "bits":
        return {
            "the conversion is upside down: their price is for one bit of the whole, ours for one bit on each of N weights":
                theirs / weights,
            "that multiplies by the number of slices; N counts weights, slices times d": theirs * slices,
            "that leaves the multiplier as it is, but their rate is not divided by N": theirs,
        }  # fmt: skip
    if unit == "bits a slice":
        return {
            "the conversion is upside down: a slice holds several weights, so a price a slice is less than the same a weight":
                theirs * slices / weights,
            "that is the plain mean of the d; the groups have different numbers of slices":
                theirs * float(np.mean([d for _, d in groups])),
            "that is the first group's d; the rate is summed over all groups before it is divided": theirs * groups[0][1],
            "that is the largest d; groups with d = 1 have slices too": theirs * max(d for _, d in groups),
            "groups with d = 1 are missing: each of their weights counts as a slice":
                theirs * sum(s * d for s, d in big) / max(sum(s for s, _ in big), 1),
            "that multiplies by the number of weights, but their rate is divided too, by the number of slices": theirs * weights,
            "that divides by the number of slices alone: N * theirs / slices is asked for": theirs / slices,
            "that leaves the multiplier as it is, but their rate is divided by another number": theirs,
        }  # fmt: skip
    return {
        "the conversion is upside down: a nat is 1.44 bits, so the number of nats is the smaller one": theirs / LN2,
        "that leaves the multiplier as it is, but their rate is in nats": theirs,
        "their rate is divided by N already": theirs * LN2 * weights,
    }


def to_ours(answer: Callable[[float, str, Groups], float]) -> Verdict:
    """Exercise 3: ``answer(theirs, unit, groups)`` is the multiplier of bits a weight with the same objective."""

    def check() -> str:
        rng = np.random.default_rng()
        shapes: list[Groups] = [[(8208, 9), (640, 1)], [(100, 9)], [(500, 1)], [(3, 25), (10, 9), (1000, 1)], [(2, 49), (7, 1), (1, 9)]]
        for _ in range(10):
            size = int(rng.integers(2, 5))
            shapes.append([(int(rng.integers(1, 5000)), int(d)) for d in rng.choice([1, 3, 9, 25, 49], size, replace=False)])
        for groups in shapes:
            for unit in UNITS:
                theirs = float(np.exp(rng.uniform(-9, 4)))
                call = f"to_ours({theirs:.6g}, {unit!r}, {[(int(s), int(d)) for s, d in groups]})"
                got = answer(theirs, unit, list(groups))
                if got is None:
                    raise Wrong(f"{call} returned None: is there a return for every unit?")
                if np.size(got) != 1 or np.asarray(got).dtype.kind not in "fiu":
                    raise Wrong(f"{call} should be one number, and is {got!r}")
                got, want = float(np.asarray(got).reshape(())), _to_ours(theirs, unit, groups)
                if abs(got - want) <= 1e-9 * abs(want):
                    continue
                shown = f"{call} is {got:.6g}, and should be {want:.6g}"
                for name, value in _conversion_suspects(theirs, unit, groups).items():
                    if abs(got - value) <= 1e-9 * abs(value):
                        raise Wrong(f"{shown}: {name}")
                raise Wrong(f"{shown}: lam_ours * R / N, with R in bits, must be the very number that they add to their loss")
        return f"{len(UNITS) * len(shapes)} multipliers, for networks with one to four groups"

    return judge(check)
