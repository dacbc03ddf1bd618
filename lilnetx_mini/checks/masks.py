"""Checkers for notebook 11, multiply-adds with a gradient: soft counts, counting a network, choosing the channels that stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import prior
from . import Verdict, Wrong, judge, number, row

Array = NDArray[np.float64]
Layer = tuple[str, str, int, int, bool]


# -- exercise 1: soft counts ------------------------------------------------------------------------------------------


def _masks(rng: np.random.Generator) -> list[Array]:
    plain = [1, 2, 4], [1, 1, 1, 1], [3, 0, 0], [2, 1], [0.5, 0.5, 0], [5], [1e-3, 2e-3, 4e-3], [4e4, 1e4, 0, 0]
    fixed = [np.array(alpha, float) for alpha in plain]
    return [*fixed, rng.random(9), rng.random(64) * (rng.random(64) < 0.6) + 0.01 * (np.arange(64) == 5)]


def _count_suspects(alpha: Array) -> dict[str, float]:
    l1, l2 = alpha.sum(), np.sqrt(np.square(alpha).sum())
    return {
        "that is l1 / l2, not yet squared": l1 / l2,
        "that is the other form, sqrt(d) l1 / l2: for k entries of d it is sqrt(d k)": np.sqrt(len(alpha)) * l1 / l2,
        "that is how many entries are not zero: it has no gradient": float(np.count_nonzero(alpha)),
        "that is l1 alone, which a smaller mask makes smaller without anything going": l1,
        "that is upside down: the square of l1 is divided by that of l2": (l2 / l1) ** 2,
        "square the sum, not the entries: l1 is the sum of the entries": float(np.square(alpha).sum() / l2),
    }


def _slope_suspects(alpha: Array) -> dict[str, Array]:
    l1, l2 = alpha.sum(), np.sqrt(np.square(alpha).sum())
    right = prior.soft_count_gradient(alpha)
    return {
        "the sign is wrong: entries above l2**2 / l1 make the count smaller when they grow": -right,
        "half of it: the square gives a factor 2": right / 2,
        "that is the gradient of l1 / l2; the square gives a factor 2 l1 / l2 besides": (1 - alpha * l1 / l2**2) / l2,
        "l2 depends on the entries too: that is the gradient with l2 held fixed": np.full(len(alpha), 2 * l1 / l2**2),
        "that is the gradient of the other form": prior.soft_count_gradient(alpha, "root"),
    }


def soft_count(answer: Callable[[Array], tuple[float, Array]]) -> Verdict:
    """Exercise 1: ``answer(alpha)`` is (the count (l1 / l2)**2, its gradient (d,)) of a mask with at least one positive entry."""

    def check() -> str:
        for alpha in _masks(np.random.default_rng()):
            given = alpha.copy()
            result = answer(given)
            if not np.array_equal(given, alpha):
                raise Wrong("your function changed its argument: work on a copy")
            if not isinstance(result, tuple | list) or len(result) != 2:
                raise Wrong("two things are asked for, the count and its gradient")
            _count(number(result[0], f"the count of {row(alpha)}"), alpha)
            _slope(result[1], alpha)
        return "single entries, zeros, equal entries, tiny and large masks"

    return judge(check)


def _count(got: float, alpha: Array) -> None:
    want = prior.soft_count(alpha)
    if np.isclose(got, want, rtol=1e-6):
        return
    reasons = [why for why, x in _count_suspects(alpha).items() if np.isclose(got, x, rtol=1e-6) and not np.isclose(x, want, rtol=1e-6)]
    raise Wrong(f"the count of {row(alpha)} is {want:.6g}, not {got:.6g}" + (f": {reasons[0]}" if reasons else ""))


def _slope(got: Any, alpha: Array) -> None:
    got = np.asarray(np.nan if got is None else got, float)
    if got.shape != alpha.shape:
        raise Wrong(f"the gradient should have a number for each of the {len(alpha)} entries, and has shape {got.shape}")
    want = prior.soft_count_gradient(alpha)

    def same(a: Array, b: Array) -> bool:
        return np.allclose(a, b, rtol=1e-5, atol=1e-7 / alpha.max())

    if same(got, want):
        return
    reasons = [why for why, x in _slope_suspects(alpha).items() if same(got, x) and not same(x, want)]
    raise Wrong(f"the gradient at {row(alpha)} is {row(want)}, not {row(got)}" + (f": {reasons[0]}" if reasons else ""))


# -- exercise 2: the multiply-adds of a network ------------------------------------------------------------------------


def _networks(rng: np.random.Generator) -> list[tuple[dict[str, int], list[Layer]]]:
    fixed: list[Layer] = [
        ("image", "a", 3, 64, False),
        ("a", "a", 3, 64, True),
        ("a", "b", 1, 16, False),
        ("b", "b", 3, 16, False),
        ("b", "classes", 1, 1, False),
    ]
    out = [({"image": 3, "a": 8, "b": 5, "classes": 10}, fixed)]
    for _ in range(20):
        names = [f"g{n}" for n in range(rng.integers(2, 6))]
        widths = {name: int(rng.integers(1, 40)) for name in names}
        layers = []
        for _ in range(rng.integers(1, 7)):
            reads, makes = rng.choice(names, 2)
            deep = bool(rng.random() < 0.3)
            layers.append((str(reads), str(reads if deep else makes), int(rng.choice([1, 3, 5])), int(rng.choice([1, 16, 49, 256])), deep))
        out.append((widths, layers))
    return out


def _macs(widths: dict[str, int], layers: list[Layer], power: int = 2, depthwise: bool = True, pixels: bool = True) -> int:
    total = 0
    for reads, makes, k, places, deep in layers:
        total += k**power * (places if pixels else 1) * widths[makes] * (1 if deep and depthwise else widths[reads])
    return total


def multiply_adds(answer: Callable[[dict[str, int], list[Layer]], int]) -> Verdict:
    """Exercise 2: ``answer(widths, layers)`` is how many multiply-adds one image costs; see the notebook for what a layer is."""

    def check() -> str:
        for widths, layers in _networks(np.random.default_rng()):
            want, call = _macs(widths, layers), f"multiply_adds({widths}, {layers})"
            got = number(answer(dict(widths), list(layers)), call)
            if got == want:
                continue
            suspects = {
                "a depthwise convolution reads one channel for each that it makes": _macs(widths, layers, depthwise=False),
                "a kernel of size k has k * k positions": _macs(widths, layers, power=1),
                "that is the number of weights: each is used at every pixel of the output": _macs(widths, layers, pixels=False),
                "a multiplication and an addition together count once here": 2 * want,
            }
            reasons = [why for why, x in suspects.items() if x == got]
            raise Wrong(f"{call} is {want:,}, not {got:,.6g}" + (f": {reasons[0]}" if reasons else ""))
        return "plain, 1x1 and depthwise convolutions, groups that several layers share"

    return judge(check)


# -- exercise 3: the channels that stay --------------------------------------------------------------------------------


def channels_that_stay(answer: Callable[[Array, list[int], Callable[[list[int]], float], float], Any]) -> Verdict:
    """Exercise 3: ``answer(scores, sizes, cost, target)`` is (units,) booleans: which of them stay."""

    def check() -> str:
        rng = np.random.default_rng()
        for n in range(200):
            sizes = [int(n) for n in rng.integers(1, 12, rng.integers(1, 5))] if n else [6, 6]
            weights = rng.integers(1, 9, len(sizes) + 1)
            order = rng.permutation(sum(sizes)) if n else np.arange(12)[::-1]  # first a group that is better throughout
            scores = order + rng.random(sum(sizes))

            def cost(counts: list[int], w: Array = weights) -> float:
                chain = [1, *map(int, counts), 1]
                return float(sum(c * a * b for c, a, b in zip(w, chain, chain[1:], strict=False)))

            least, most = cost([1] * len(sizes)), cost(sizes)
            target = float(rng.choice([least, most, *rng.uniform(least, most, 4)])) if n else (least + most) / 2
            _judge_choice(answer(scores.copy(), list(sizes), cost, target), scores, sizes, cost, target)
        return "chains of layers, targets from one channel a group to all of them"

    return judge(check)


def _judge_choice(got: Any, scores: Array, sizes: list[int], cost: Callable, target: float) -> None:
    about = f"scores {row(scores, 12)} in groups of {sizes}"
    got = np.asarray(False if got is None else got)
    if got.shape != scores.shape or got.dtype != bool:
        raise Wrong(f"{len(scores)} booleans are asked for, and {got.dtype} of shape {got.shape} came")
    ends = np.cumsum([0, *sizes])
    group = np.repeat(np.arange(len(sizes)), sizes)
    best = np.array([a + scores[a:b].argmax() for a, b in itertools.pairwise(ends)])

    def counts(keep: NDArray[np.bool_]) -> list[int]:
        return np.bincount(group[keep], minlength=len(sizes)).tolist()

    if min(counts(got)) == 0:
        raise Wrong(f"{about}: group {counts(got).index(0)} has lost all of its channels, and the network is cut in two")
    if not got[best].all():
        raise Wrong(f"{about}: a group keeps at least one channel, and that is its best, whatever the others in the network score")
    if cost(counts(got)) > target:
        raise Wrong(f"{about}: what stays costs {cost(counts(got)):g}, and {target:g} was the most")
    others = np.setdiff1d(np.arange(len(scores)), best)
    dropped, kept = others[~got[others]], others[got[others]]
    if dropped.size and kept.size and scores[dropped].max() > scores[kept].min():
        text = f"{about}: a channel that scores {scores[dropped].max():.4g} goes, and one with {scores[kept].min():.4g} stays"
        raise Wrong(text + "; scores are compared across groups, the best of each group aside")
    if dropped.size:
        more = got.copy()
        more[dropped[scores[dropped].argmax()]] = True
        if cost(counts(more)) <= target:
            raise Wrong(f"{about}: the next channel still fits: {cost(counts(more)):g} of {target:g}")
