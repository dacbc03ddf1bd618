"""Checkers for notebook 08, LilNetX complete: the penalty of a whole network, the step of a controller, runs that none beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge, number

Array = NDArray[np.float64]
Groups = Sequence[tuple[Array, Array]]
Change = Callable[[float, float], float]


def _finite(x: Any, call: str) -> float:
    """The answer as a float, or Wrong if it is not one finite number."""
    value = number(x, call)
    if not math.isfinite(value):
        raise Wrong(f"{call} is {value}: a finite number is needed")
    return value


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(b))


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def _penalty(groups: Groups, lam_rate: float, lam_group: float, lam_l2: float) -> float:
    count = sum(z.size for z, _ in groups)
    bits = sum(float(b.sum()) for _, b in groups)
    norms = sum(float(np.sqrt((z**2).sum(1)).sum()) for z, _ in groups if z.shape[1] > 1)
    squares = sum(float((z**2).sum()) for z, _ in groups)
    return (lam_rate * bits + lam_group * norms + lam_l2 * squares) / count


def _penalty_suspects(groups: Groups, lam_rate: float, lam_group: float, lam_l2: float) -> dict[str, float]:
    want, count = _penalty(groups, lam_rate, lam_group, lam_l2), sum(z.size for z, _ in groups)
    blocks, slices = [z for z, _ in groups if z.shape[1] > 1], sum(len(z) for z, _ in groups)
    bits, squares = sum(float(b.sum()) for _, b in groups), sum(float((z**2).sum()) for z, _ in groups)
    norms = sum(float(np.linalg.norm(z, axis=1).sum()) for z in blocks)
    numbers = sum(float(np.abs(z).sum()) for z, _ in groups if z.shape[1] == 1)
    own = [_penalty([g], lam_rate, lam_group, lam_l2) for g in groups]
    rate, group, l2 = lam_rate * bits / count, lam_group * norms / count, lam_l2 * squares / count
    return {
        "nothing is divided by N: a network twice as large would be pressed twice as hard": want * count,
        "that divides by the number of slices; N counts weights": want * count / slices,
        "only the rate is divided by N; the three terms share it": rate + (group + l2) * count,
        "the group term is divided by the number of slices; N counts weights": rate + l2
        + lam_group * norms / max(sum(len(z) for z in blocks), 1),
        "every group is divided by its own size; N is that of the whole network": float(sum(own)),
        "that is the mean of the groups' penalties; a large group must count for more": float(np.mean(own)),
        "the group prior charges rows with a single latent too; it is for slices, d > 1": want + lam_group * numbers / count,
        "the group prior squares the norms; it is their sum": rate + l2 + lam_group / count * sum(float((z**2).sum()) for z in blocks),
        "the group prior takes absolute values; the norm of a slice is the root of its sum of squares":
            rate + l2 + lam_group / count * sum(float(np.abs(z).sum()) for z in blocks),
        "the group prior takes one norm of a whole group; there is one for every slice": rate + l2
        + lam_group / count * sum(float(np.linalg.norm(z)) for z in blocks),
        "the norms run along the wrong axis: a slice is a row": rate + l2
        + lam_group / count * sum(float(np.linalg.norm(z, axis=0).sum()) for z in blocks),
        "lam_l2 multiplies the sum of squares, without a root": rate + group + lam_l2 / count * math.sqrt(squares),
        "there is a factor 1/2 before the squares; this objective has none": want - l2 / 2,
        "lam_rate and lam_group have changed places": lam_group * bits / count + lam_rate * norms / count + l2,
    }  # fmt: skip


def _network(rng: np.random.Generator, shapes: Sequence[tuple[int, int]]) -> list[tuple[Array, Array]]:
    """Latents and bits of groups; some slices are zero."""
    groups = []
    for s, d in shapes:
        z = rng.laplace(0, 0.8, (s, d)) * (rng.random((s, 1)) < 0.7)
        groups.append((z, rng.gamma(0.5, 2.0, (s, d))))
    return groups


def penalty(answer: Callable[[Groups, float, float, float], float]) -> Verdict:
    """Exercise 1: ``answer(groups, lam_rate, lam_group, lam_l2)`` is the sum of the three penalties of a network."""

    def check() -> str:
        rng = np.random.default_rng()
        fixed = [[(2, 9)], [(5, 9), (7, 1)], [(3, 1)], [(1, 25), (40, 9), (6, 1)], [(4, 9), (4, 4), (300, 1)]]
        drawn = [[(int(rng.integers(1, 50)), int(d)) for d in rng.choice([1, 3, 9, 25], 3)] for _ in range(15)]
        multipliers = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.7, 1.7, 0.1)]
        mistakes = None  # the usual ones that explain every answer so far
        failed = ""
        for shapes in fixed + drawn:
            groups = _network(rng, shapes)
            for lam in [*multipliers, tuple(rng.uniform(0, 3, 3).round(2).tolist())]:
                call = f"penalty(groups of shapes {shapes}, {', '.join(f'{v:g}' for v in lam)})"
                got = _finite(answer([(z.copy(), b.copy()) for z, b in groups], *lam), call)
                want, suspects = _penalty(groups, *lam), _penalty_suspects(groups, *lam)
                if not failed and not _close(got, want):
                    failed = f"{call} is {got:.8g}, and should be {want:.8g}"
                mistakes = [name for name in (suspects if mistakes is None else mistakes) if _close(got, suspects[name])]
        if failed:
            raise Wrong(": ".join([failed, *mistakes[:1]]))
        return "20 networks of one to three groups, with single terms and all together"

    return judge(check)


# -- exercise 2 -------------------------------------------------------------------------------------------------------

LOOKS = 100
FIRST, ASKED = 13_000.0, 3_000.0  # bytes at the first look, and at the end of the path
GAINS, LAGS, DELAYS, DEAD = (0.5, 0.8, 1.2), (3, 5, 8), (0, 1, 2), (0.0, 1.0)
BACK = 0.02  # share of its speed at which a size grows again
NEAR, LOW = 0.06, 0.92  # the end within 6 % of what was asked; never below 92 % of it


def path(looks: int = LOOKS, first: float = FIRST, asked: float = ASKED) -> Array:
    """(looks,) logarithms of the size that the path asks for: flat for a tenth, then as fast as a cosine of rates allows."""
    rates = 0.5 * (1 + np.cos(np.pi * np.arange(looks) / looks))
    pace = np.concatenate([[0.0], np.cumsum(rates)[:-1]]) / rates.sum()
    return math.log(first) + (math.log(asked) - math.log(first)) * np.maximum(0.0, (pace - 0.1) / 0.9)


def walk(
    change: Change, gain: float, lag: float, delay: int, dead: float, noise: float = 0.0, seed: int = 0, asked: Array | None = None
) -> tuple[Array, Array]:
    """Sizes and multipliers, (LOOKS,) each, of a simulated training under a controller.

    gain   logarithm of the size that one unit of the multiplier's logarithm takes away, once
    dead   the logarithm of the multiplier has passed this value
    lag    looks in which the size goes about two thirds of the way; fifty times as many on the way back
    delay  looks before a multiplier is felt
    asked  (LOOKS,) logarithms of sizes; `path()` if None
    """
    rng, asked, size = np.random.default_rng(seed), path() if asked is None else asked, math.log(FIRST)
    log_multiplier, before, past, sizes = math.log(0.3), None, [], []
    for n in range(LOOKS):
        error = size - float(asked[n]) + float(rng.uniform(-noise, noise))
        log_multiplier += float(change(error, error if before is None else before))
        before = error
        log_multiplier = min(max(log_multiplier, -12.0), 12.0)
        past.append(log_multiplier)
        end = math.log(FIRST) - gain * max(0.0, past[max(0, n - delay)] - dead)
        size += (end - size) / lag * (1.0 if end < size else BACK)
        sizes.append(size)
    return np.exp(sizes), np.exp(past)


def controller(answer: Change) -> Verdict:
    """Exercise 2: ``answer(error, before)`` is what to add to a multiplier's logarithm; judged by where it leads."""

    def check() -> str:
        rng = np.random.default_rng()
        samples = [(0.0, 0.0), (9.0, 0.0), (-9.0, 0.0), (0.0, 9.0), (0.0, -9.0), (0.05, 0.05), (-0.05, -0.05)]
        samples += [tuple(pair) for pair in rng.normal(0, [0.3, 0.3], (60, 2)).tolist()]
        given = {pair: _finite(answer(*pair), f"change({pair[0]:.4g}, {pair[1]:.4g})") for pair in samples}
        if given[0.0, 0.0]:
            raise Wrong(f"change(0, 0) is {given[0.0, 0.0]:.4g}: on the path and not moving, leave the multiplier as it is")
        if given[0.05, 0.05] <= 0 or given[-0.05, -0.05] >= 0:
            up, down = given[0.05, 0.05], given[-0.05, -0.05]
            if up < 0 < down:
                raise Wrong(f"change(0.05, 0.05) is {up:.4g}: the file is too large, so the multiplier must rise")
            raise Wrong(
                f"change(0.05, 0.05) is {up:.4g} and change(-0.05, -0.05) is {down:.4g}: an error that does not go away must keep moving "
                "the multiplier (the integral part)"
            )
        for pair, value in given.items():
            if abs(value) > 1 + 1e-12:
                raise Wrong(f"change({pair[0]:.4g}, {pair[1]:.4g}) is {value:.4g}: at most 1 up or down in a look is allowed")
        ups, downs = (abs(answer(e, e)) for e in (0.01, -0.01))
        if downs < 2 * ups:
            raise Wrong(
                f"change(0.01, 0.01) is {ups:.4g} up, and change(-0.01, -0.01) is {downs:.4g} down: what has become zero seldom comes "
                "back, so a file that is too small needs an answer at least twice as fast"
            )
        worst: tuple[float, str] = (0.0, "")
        for gain, lag, delay, dead in itertools.product(GAINS, LAGS, DELAYS, DEAD):
            sizes, _ = walk(answer, gain, lag, delay, dead, noise=0.003, seed=int(rng.integers(2**31)))
            end, lowest = sizes[-1] / ASKED, sizes.min() / ASKED
            where = f"in a simulated training (gain {gain:g}, lag {lag}, delay {delay}, dead up to a multiplier of {math.exp(dead):.2g})"
            if lowest < LOW and LOW - lowest > worst[0]:
                worst = (LOW - lowest, f"{where} the file fell to {lowest:.0%} of what was asked: too strong for that, or not damped by "
                         "how the error changes")  # fmt: skip
            elif abs(math.log(end)) > NEAR and abs(math.log(end)) > worst[0]:
                how = "the controller is too slow, or swings" if end > 1 else "the controller swings"
                worst = (abs(math.log(end)), f"{where} the file ended at {end:.0%} of what was asked: {how}")
        if worst[0]:
            raise Wrong(worst[1])
        plants = len(GAINS) * len(LAGS) * len(DELAYS) * len(DEAD)
        return f"{plants} simulated trainings, weak and strong, prompt and late: all ended within 6 %, none fell below 92 %"

    return judge(check)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def _unbeaten(runs: Array) -> NDArray[np.bool_]:
    cost = runs * np.array([1.0, 1.0, -1.0])
    no_worse = (cost[:, None] <= cost[None]).all(2)  # [i, j]: i is no worse than j in anything
    better = (cost[:, None] < cost[None]).any(2)
    return ~(no_worse & better).any(0)


def _front_suspects(runs: Array) -> dict[str, NDArray[np.bool_]]:
    want, cost = _unbeaten(runs), runs * np.array([1.0, 1.0, -1.0])
    strictly = (cost[:, None] < cost[None]).all(2).any(0)
    no_worse = (cost[:, None] <= cost[None]).all(2)
    self_beaten, others = no_worse.any(0), (no_worse & ~np.eye(len(runs), dtype=bool)).any(0)
    first = np.zeros(len(runs), bool)
    first[np.unique(runs, axis=0, return_index=True)[1]] = True
    two = {"bytes": (1, 2), "multiply-adds": (0, 2), "accuracy": (0, 1)}
    suspects = {
        "a run is beaten by one that is as good in everything and better in *one* thing; it need not be better in all": ~strictly,
        "every run is as good as itself: to beat takes being better in something": ~self_beaten,
        "runs with the same three numbers do not beat each other: keep both": ~others,
        "of runs with the same three numbers only the first is kept; none of them beats another": want & first,
        "the answer is the wrong way round: True for runs that no other beats": ~want,
        "accuracy is better when it is *higher*": _unbeaten(runs * np.array([1.0, 1.0, -1.0])),
        "a run must be the best in one of the three to be kept; a good compromise is unbeaten too": (cost == cost.min(0)).any(1),
    }
    for name, columns in two.items():
        part = cost[:, columns]
        beaten = ((part[:, None] <= part[None]).all(2) & (part[:, None] < part[None]).any(2)).any(0)
        suspects[f"{name} must count too: a run may be unbeaten because of it"] = ~beaten
    return suspects


def _run_lists(rng: np.random.Generator) -> list[Array]:
    fixed: list[list[list[float]]] = [
        [[3000, 0.5, 0.95]],
        [[3000, 0.5, 0.95]] * 3,
        [[3000, 0.5, 0.95], [3000, 0.5, 0.96]],
        [[2000, 0.5, 0.9], [3000, 0.4, 0.9], [3000, 0.5, 0.9], [2000, 0.4, 0.9]],
        [[1000, 0.9, 0.8], [9000, 0.1, 0.8], [9000, 0.9, 0.99], [5000, 0.5, 0.9]],
        [[1000, 0.1, 0.5], [2000, 0.2, 0.6], [3000, 0.3, 0.7], [4000, 0.4, 0.8]],
        [[1000, 0.1, 0.9], [2000, 0.2, 0.8], [3000, 0.3, 0.7], [4000, 0.4, 0.6]],
        [[3000, 0.5, 0.95], [2000, 0.6, 0.94], [3000, 0.5, 0.95], [2000, 0.6, 0.95]],
        [[3000, 0.3, 0.9], [2000, 0.5, 0.9], [3000, 0.3, 0.8]],
        [[2000, 0.3, 0.9], [2000, 0.4, 0.95], [2000, 0.3, 0.95]],
    ]
    lists = [np.array(f) for f in fixed]
    for _ in range(40):
        n, levels = int(rng.integers(2, 25)), int(rng.integers(2, 9))
        cells = rng.integers(0, levels, (n, 3))
        lists.append(np.stack([2000.0 + 500 * cells[:, 0], 0.2 + 0.1 * cells[:, 1], 0.8 + 0.02 * cells[:, 2]], 1))
    lists += [np.stack([rng.uniform(1e3, 2e4, n), rng.uniform(0, 1, n), rng.uniform(0.5, 1, n)], 1) for n in (2, 5, 60)]
    return lists


def unbeaten(answer: Callable[[Array], NDArray[np.bool_]]) -> Verdict:
    """Exercise 3: ``answer(runs)``, of rows bytes, multiply-adds, accuracy, is True for the runs that no other run beats."""

    def check() -> str:
        lists, failed, mistakes = _run_lists(np.random.default_rng()), "", None
        for runs in lists:
            shown = "[" + ", ".join(f"({b:.0f} B, {m:.3g}, {a:.4g})" for b, m, a in runs[:6]) + (", ...]" if len(runs) > 6 else "]")
            given = runs.copy()
            result = answer(given)
            if not np.array_equal(given, runs):
                raise Wrong("your function changes the runs that it is given: work on a copy")
            if result is None:
                raise Wrong(f"unbeaten({shown}) returned None: is there a return?")
            got, want = np.asarray(result), _unbeaten(runs)
            if got.shape != want.shape or got.dtype.kind != "b":
                raise Wrong(f"unbeaten({shown}) should be {len(runs)} times True or False, and is {got.dtype} of shape {got.shape}")
            suspects = _front_suspects(runs)
            mistakes = [name for name in (suspects if mistakes is None else mistakes) if np.array_equal(got, suspects[name])]
            if not failed and not np.array_equal(got, want):
                i = int(np.flatnonzero(got != want)[0])
                run = f"run {i}, ({runs[i, 0]:.0f} B, {runs[i, 1]:.3g}, {runs[i, 2]:.4g})"
                failed = f"of {shown}, {run} is {got[i]} in your answer, and should be {want[i]}"
        if failed:
            raise Wrong(": ".join([failed, *mistakes[:1]]))
        return f"{len(lists)} lists of runs, with ties, duplicates, chains and single runs"

    return judge(check)
