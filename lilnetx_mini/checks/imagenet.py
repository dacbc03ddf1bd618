"""Checkers for notebook 10, ImageNet: random resized crops, an epoch shared out among processes, the price of a ring all-reduce."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge

SMALLEST, NARROWEST, WIDEST = 0.08, 3 / 4, 4 / 3
Box = tuple[float, float, float, float]


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def _box(x: Any, call: str) -> Box:
    """Four finite numbers, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    try:
        box = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"{call} should be (left, top, right, bottom), and is {x!r}") from None
    if box.shape != (4,):
        raise Wrong(f"{call} should be four numbers (left, top, right, bottom), and has shape {box.shape}")
    if not np.isfinite(box).all():
        raise Wrong(f"{call} is {tuple(box)}: not finite")
    return tuple(float(v) for v in box)


def _many(answer: Callable, width: int, height: int, count: int, seed: int) -> NDArray[np.float64]:
    """(count, 4) boxes of one photograph, all of them inside it."""
    rng, boxes = np.random.default_rng(seed), []
    for _ in range(count):
        left, top, right, bottom = box = _box(answer(width, height, rng), f"crop_box({width}, {height}, rng)")
        shown = f"crop_box({width}, {height}, rng) gave ({', '.join(f'{v:.6g}' for v in box)})"
        if right <= left or bottom <= top:
            extent = left + right <= width + 1e-6 and top + bottom <= height + 1e-6
            hint = "; is that (left, top, width, height)? right and bottom are asked for" if extent else ""
            raise Wrong(f"{shown}: right must lie beyond left, and bottom beyond top{hint}")
        if left < -1e-6 or top < -1e-6 or right > width + 1e-6 or bottom > height + 1e-6:
            swapped = right <= height + 1e-6 and bottom <= width + 1e-6 and min(left, top) >= -1e-6
            hint = ": are width and height swapped?" if swapped else ": draw again where the box is too wide or too high"
            raise Wrong(f"{shown}, which sticks out of the photograph{hint}")
        boxes.append(box)
    return np.array(boxes)


def _aspects(boxes: NDArray, width: int, height: int) -> None:
    """Wrong if a box is wider or higher than is asked for."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    aspect = w / h
    bad = (aspect < NARROWEST - 1e-6) | (aspect > WIDEST + 1e-6)
    if bad.any():
        i = int(bad.argmax())
        whole = np.allclose((w[i], h[i]), (width, height))
        hint = "; where no draw fits, the largest square in the middle takes its place" if whole else ""
        raise Wrong(f"in a photograph of {width} x {height} a box has an aspect (width / height) of {aspect[i]:.4f}: between 3/4 and 4/3 "
                    f"are asked for, whatever the photograph; what does not fit is drawn again, not cut{hint}")  # fmt: skip


def _differs(values: NDArray, want: NDArray) -> float:
    """Kolmogorov's distance between two samples, in units at which 2.3 comes by chance once in 20,000 times."""
    points = np.concatenate([values, want])
    a, b = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (values, want))
    return float(np.abs(a - b).max() * math.sqrt(len(values) * len(want) / (len(values) + len(want))))


def _reference(width: int, height: int, count: int, rng: np.random.Generator, root: bool = False) -> NDArray[np.float64]:
    """Area share and log aspect, (count, 2), of boxes that fit. root: the share's square root is uniform, a usual mistake."""
    share = rng.uniform(math.sqrt(SMALLEST), 1, 12 * count) ** 2 if root else rng.uniform(SMALLEST, 1, 12 * count)
    aspect = np.exp(rng.uniform(math.log(NARROWEST), math.log(WIDEST), 12 * count))
    area = width * height * share
    fits = (np.sqrt(area * aspect) <= width) & (np.sqrt(area / aspect) <= height)
    return np.stack([share, np.log(aspect)], 1)[fits][:count]


def crop_box(answer: Callable[[int, int, np.random.Generator], Box]) -> Verdict:
    """Exercise 1: ``answer(width, height, rng)`` is a random part of a photograph, as (left, top, right, bottom).

    Area 8 to 100 % (uniform), aspect 3/4 to 4/3 (uniform in its logarithm), place uniform; drawn again where it does not fit, at most
    ten times, and then the largest square in the middle.
    """

    def check() -> str:
        for width, height in ((1000, 100), (100, 1000), (4000, 30), (1, 1), (3, 2), (300, 200)):
            boxes = _many(answer, width, height, 60, 0)
            _aspects(boxes, width, height)
        first, again = (_many(answer, 500, 333, 20, 1) for _ in range(2))
        if not np.array_equal(first, again):
            raise Wrong("the same rng gave two different rows of boxes: draw every random number from rng, or runs cannot be repeated")
        if np.array_equal(first[0], first[1]):
            raise Wrong("two boxes in a row are the same: draw from rng, and make no generator of your own")
        width, height, count = 500, 333, 6000
        boxes = _many(answer, width, height, count, int(np.random.default_rng().integers(2**31)))
        _aspects(boxes, width, height)
        left, top, right, bottom = boxes.T
        w, h = right - left, bottom - top
        share, aspect = w * h / (width * height), w / h
        if share.min() < SMALLEST - 1e-6:
            raise Wrong(f"a box covers {100 * share.min():.2f} % of the photograph: at least 8 % are asked for")
        want = _reference(width, height, 10 * count, np.random.default_rng())
        off = _differs(share, want[:, 0]), _differs(np.log(aspect), want[:, 1])  # what is wrong with one moves the other a little
        if off[0] > 2.3 and off[0] > off[1]:
            if _differs(share, _reference(width, height, 10 * count, np.random.default_rng(), root=True)[:, 0]) < 2.3:
                raise Wrong(f"the median box covers {np.median(share):.3f} of the photograph: the area is uniform, not its square root")
            raise Wrong(f"the median box covers {np.median(share):.3f} of the photograph, and should cover {np.median(want[:, 0]):.3f}: "
                        "the area is uniform between 8 and 100 %, and what does not fit is drawn again, both numbers")  # fmt: skip
        if off[1] > 2.3:
            raise Wrong(f"the mean of log(width / height) is {np.log(aspect).mean():.4f}, and should be {want[:, 1].mean():.4f}: draw the "
                        "logarithm of the aspect uniformly, so that 3/4 and 4/3 are equally likely")  # fmt: skip
        uniform = np.random.default_rng(0).random(4 * count)
        for name, at, room in (("left", left, width - w), ("top", top, height - h)):
            free = room > 5
            if _differs(at[free] / room[free], uniform) > 2.3:
                raise Wrong(f"{name} is on average at {np.mean(at[free] / room[free]):.3f} of the room that there is, and should be "
                            "uniform between 0 and all of it")  # fmt: skip
        tall = _many(answer, 60, 1200, 400, 2)  # hardly anything fits: area 8 % of it at 3/4 is 65.7 wide
        square = np.isclose(tall, (0, 570, 60, 630), atol=1e-6).all(1)
        if not square.all():
            got = tuple(round(float(v), 2) for v in tall[~square][0])
            raise Wrong(f"in a photograph of 60 x 1200 no draw fits, and the largest square in the middle, (0, 570, 60, 630), takes its "
                        f"place; you gave {got}")  # fmt: skip
        calls = _Counted(3)
        answer(60, 1200, calls)
        if calls.drawn < 20:
            raise Wrong(f"in a photograph of 60 x 1200 you drew {calls.drawn} random numbers before giving up: ten draws of area and "
                        "aspect are asked for")  # fmt: skip
        return "boxes in eight shapes of photographs: inside, 8 to 100 % of the area, aspects, places, the fall back"

    return judge(check)


class _Counted(np.random.Generator):
    """A generator that counts the numbers that it has given."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.drawn = 0

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        values = super().uniform(low, high, size)
        self.drawn += np.size(values)
        return values

    def random(self, size: Any = None, *rest: Any) -> Any:
        values = super().random(size, *rest)
        self.drawn += np.size(values)
        return values


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def _steps(x: Any, accumulate: int, call: str) -> list[list[list[int]]]:
    """An answer as plain lists: steps of pieces of image numbers."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    steps = []
    for number, step in enumerate(x):
        try:
            pieces = [[int(i) for i in piece] for piece in step]
        except TypeError:
            raise Wrong(f"{call}: step {number} should be a list of {accumulate} pieces, each with the numbers of its images") from None
        if len(pieces) != accumulate:
            raise Wrong(f"{call}: step {number} has {len(pieces)} pieces, and should have {accumulate}, even if some are empty: "
                        "the other processes wait for each")  # fmt: skip
        steps.append(pieces)
    return steps


def my_steps(answer: Callable[[NDArray, int, int, int, int], list]) -> Verdict:
    """Exercise 2: ``answer(order, batch, rank, size, accumulate)`` is what process `rank` of `size` works on in an epoch.

    A list of ceil(N / batch) steps, each of `accumulate` pieces, each the numbers of some images. Together the processes work on
    order[0:batch] in the first step, and so on; pieces of a step differ in length by one at most.
    """

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(24, 8, 2, 1), (24, 8, 1, 2), (24, 8, 2, 2), (25, 8, 2, 1), (23, 8, 2, 2), (9, 8, 4, 1), (9, 8, 2, 2), (5, 8, 2, 1),
                 (1, 8, 3, 2), (10, 10, 3, 1), (11, 10, 3, 1), (100, 7, 3, 2), (7, 7, 7, 1), (30, 1, 2, 1)]  # fmt: skip
        cases += [tuple(int(rng.integers(1, m)) for m in (200, 40, 6, 4)) for _ in range(30)]
        for n, batch, size, accumulate in cases:
            order = rng.permutation(n) + 1000  # not 0 .. n - 1: numbers of images, not places in the order
            said = f"{n} images, batches of {batch}, {size} processes, {accumulate} pieces each"
            ranks = [_steps(answer(order.copy(), batch, r, size, accumulate), accumulate, f"rank {r} ({said})") for r in range(size)]
            count, counts = math.ceil(n / batch), [len(steps) for steps in ranks]
            if len(set(counts)) > 1:
                raise Wrong(f"{said}: the processes have {counts} steps; the one with fewer is gone while the others wait for its "
                            "gradients for ever")  # fmt: skip
            used = sorted(i for steps in ranks for step in steps for piece in step for i in piece)
            strange = set(used) - set(order.tolist())
            if strange:
                raise Wrong(f"{said}: number {min(strange)} is not in the order; pieces hold entries of order, not places in it")
            twice, missing = len(used) - len(set(used)), n - len(set(used))
            if twice or missing:
                hint = ": is the last, smaller batch there?" if missing and not twice else ""
                hint = ": does every process have its own part?" if twice else hint
                raise Wrong(f"{said}: {missing} images are never used and {twice} uses are one too many{hint}")
            if counts[0] != count:
                raise Wrong(f"{said}: there are {counts[0]} steps, and should be {count}: `batch` counts the images of "
                            "all processes together")  # fmt: skip
            for s in range(count):
                here = [piece for steps in ranks for piece in steps[s]]
                if sorted(i for piece in here for i in piece) != sorted(order[s * batch : (s + 1) * batch].tolist()):
                    raise Wrong(f"{said}: in step {s} the processes together work on other images than "
                                f"order[{s * batch}:{(s + 1) * batch}]; cut the order into batches first, and then each batch "
                                "into pieces")  # fmt: skip
                lengths = [len(piece) for piece in here]
                if max(lengths) - min(lengths) > 1:
                    raise Wrong(f"{said}: the pieces of step {s} have {lengths} images; they may differ by one, or all "
                                "wait for the longest")  # fmt: skip
        return f"{len(cases)} epochs, among them batches that do not divide and steps with fewer images than pieces"

    return judge(check)


# -- exercises 3 and 4 ------------------------------------------------------------------------------------------------


def _number(x: Any, call: str) -> float:
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    value = np.asarray(x)
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise Wrong(f"{call} should be one number, and is {x!r}")
    return float(value.reshape(()))


def ring_seconds(answer: Callable[[float, int, float], float]) -> Verdict:
    """Exercise 3: ``answer(size, processes, bandwidth)`` is the time of a ring all-reduce of `size` bytes.

    bandwidth  bytes a second that every process can send while it receives
    """

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(100e6, 1, 1e9), (100e6, 2, 1e9), (100e6, 4, 1e9), (0, 8, 1e9), (1, 1000, 1.0)]
        cases += [(float(rng.integers(1, 10**9)), int(rng.integers(2, 300)), 10 ** rng.uniform(6, 11)) for _ in range(20)]
        for size, p, bandwidth in cases:
            call, want = f"ring_seconds({size:g}, {p}, {bandwidth:.4g})", 2 * (p - 1) / p * size / bandwidth
            got = _number(answer(size, p, bandwidth), call)
            if abs(got - want) <= 1e-9 * want + 1e-300:
                continue
            suspects = {
                "that is one round of p - 1 steps; after the sums are made they must go round once more": want / 2,
                "that is every process sending everything to one, and back; in a ring a step moves a p-th of it": want * p,
                "a single process sends nothing; with p of them there are p - 1 steps to a round, not p": 2 * size / bandwidth,
                "that is right for bits a second; the bandwidth is in bytes": 8 * want,
                "that is the number of bytes; divide by the bandwidth": want * bandwidth,
                "that is what all processes send together; they send at the same time": want * p,
            }
            for name, value in suspects.items():
                if abs(got - value) <= 1e-9 * abs(value):
                    raise Wrong(f"{call} is {got:.6g} s, and should be {want:.6g}: {name}")
            raise Wrong(f"{call} is {got:.6g} s, and should be {want:.6g}")
        return f"{len(cases)} rings of 1 to 1,000 processes"

    return judge(check)


def _most(size: Fraction, bandwidth: Fraction, alone: Fraction, share: Fraction) -> Fraction:
    """Real p at which 2 (p - 1) / p * size / bandwidth is just that share of the step with alone / p of computing."""
    return 1 + share / (1 - share) * alone * bandwidth / (2 * size)


def most_processes(answer: Callable[[float, float, float, float], int]) -> Verdict:
    """Exercise 4: ``answer(size, bandwidth, alone, share)`` is the largest number of processes whose communication pays.

    alone  seconds that one process computes for a step; p of them take alone / p, and then the ring
    share  of the whole step that the ring may take, at most; below 1
    """

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(1e8, 1e9, 4.03, 0.5), (1e8, 1e9, 1e-4, 0.1),
                 (2.0**20, 2.0**21, 1.0, 0.5), (2.0**20, 2.0**20, 4.0, 0.5), (2.0**30, 2.0**32, 2.0, 0.5),  # exactly at the limit
                 (2.0**20, 2.0**20, 2.0, 0.75), (2.0**20, 2.0**20, 16.0, 0.2), (1e8, 1e9, 1.0, 0.0)]  # fmt: skip
        while len(cases) < 40:
            case = (10 ** rng.uniform(6, 9), 10 ** rng.uniform(7, 10), 10 ** rng.uniform(-1, 2), rng.uniform(0.02, 0.9))
            real = float(_most(*map(Fraction, case)))
            if real < 3000 and abs(real - round(real)) > 1e-6:
                cases.append(tuple(float(x) for x in case))
        for size, bandwidth, alone, share in cases:
            call = f"most_processes({size:g}, {bandwidth:g}, {alone:.6g}, {share:.6g})"
            got = _number(answer(size, bandwidth, alone, share), call)
            exact = share if share not in (0.2, 0.1) else Fraction(str(share))
            real = _most(Fraction(size), Fraction(bandwidth), Fraction(alone), Fraction(exact))
            want, at_limit = math.floor(real), real.denominator == 1
            if got == want or (got == want - 1 and at_limit and share not in (0.0, 0.5, 0.75)):  # a limit that floats cannot meet
                continue
            shown = f"{call} is {got:g}, and should be {want}"
            if got != round(got):
                raise Wrong(f"{shown}: a whole number of processes is asked for")
            if got < 1:
                raise Wrong(f"{shown}: one process alone sends nothing, and is always possible")
            if got == want - 1 and at_limit and want > 1:
                raise Wrong(f"{shown}: with {want} the ring takes just that share, and \"at most\" includes it")
            suspects = {
                "that compares the ring with the computing; the share is of the whole step, both together": 1 + share * real_k(real, share),
                "that leaves the computing at its time for one process; p of them take alone / p": _fixed(size, bandwidth, alone, share),
            }
            for name, value in suspects.items():
                if got == math.floor(value):
                    raise Wrong(f"{shown}: {name}")
            if got == want + 1:
                raise Wrong(f"{shown}: with {want + 1} the ring would take more than the share; round down")
            raise Wrong(f"{shown}; with {want} processes the ring takes {float(_part(want, size, bandwidth, alone)):.4f} of a step, "
                        f"with {want + 1} {float(_part(want + 1, size, bandwidth, alone)):.4f}")  # fmt: skip
        return f"{len(cases)} networks and connections, among them limits that are met exactly"

    return judge(check)


def real_k(real: Fraction, share: float) -> float:
    """(real - 1) without its factor share / (1 - share)."""
    return float((real - 1) * (1 - Fraction(share)) / Fraction(share)) if share else 0.0


def _part(p: int, size: float, bandwidth: float, alone: float) -> float:
    ring = 2 * (p - 1) / p * size / bandwidth
    return ring / (ring + alone / p)


def _fixed(size: float, bandwidth: float, alone: float, share: float) -> float:
    """The largest p if computing took `alone` whatever p is; no limit, so infinity, is given as -1."""
    x = share / (1 - share) * alone * bandwidth / (2 * size)  # (p - 1) / p <= x
    return 1 / (1 - x) if x < 1 else -1
