"""Checkers for notebook 07, from zeros to speed: tap offsets, lists of weights, the sparse convolution, constant channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import conv
from . import Verdict, Wrong, judge

Array = NDArray[np.float32]
Pair = tuple[int, int]


def _array(x: Any, shape: tuple[int, ...], kinds: str, what: str) -> NDArray:
    """The answer as an array of that shape whose type is one of these kinds, or Wrong. -1 in a shape fits any size."""
    if x is None:
        raise Wrong(f"{what}: your function returned None; is there a return?")
    x = np.asarray(x)
    if x.ndim != len(shape) or any(b not in (-1, a) for a, b in zip(x.shape, shape, strict=True)):
        wanted = "(" + ", ".join("n" if n < 0 else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise Wrong(f"{what} should be of shape {wanted}, and is of shape {x.shape}")
    if x.size and x.dtype.kind not in kinds:
        raise Wrong(f"{what} should hold {'integers' if kinds == 'iu' else 'floats'}, and holds {x.dtype}")
    return x


def _parts(x: Any, names: tuple[str, ...], call: str) -> tuple[Any, ...]:
    """The answer as so many things, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    if not isinstance(x, tuple | list) or len(x) != len(names):
        raise Wrong(f"{call} should return {len(names)} things, {', '.join(names)}, and returned a {type(x).__name__}")
    return tuple(x)


def _unchanged(before: NDArray, after: NDArray, name: str) -> None:
    if not np.array_equal(before, after, equal_nan=True):
        raise Wrong(f"your function changed its argument {name}: work on a copy")


# -- exercise 1: tap offsets ------------------------------------------------------------------------------------------


def _tap_offsets(kernel: Pair, padding: Pair, dilation: Pair, row: int) -> NDArray[np.int64]:
    down, right = (np.arange(k) * d - p for k, p, d in zip(kernel, padding, dilation, strict=True))
    return down[:, None] * row + right


def _offset_suspects(kernel: Pair, padding: Pair, dilation: Pair, row: int) -> dict[str, NDArray]:
    """What usual mistakes give instead."""
    own, none, once = _tap_offsets, (0, 0), (1, 1)
    centre = tuple(k // 2 for k in kernel)
    wide = tuple(p * d for p, d in zip(padding, dilation, strict=True))
    good = own(kernel, padding, dilation, row)
    return {
        "the signs are turned round: the first tap looks up and to the left, so it is negative": -good,
        "padding is missing: the first tap looks `padding` rows up and columns to the left": own(
            kernel, none, dilation, row
        ),
        "padding is added, and should be subtracted": own(kernel, (-padding[0], -padding[1]), dilation, row),
        "dilation is missing: taps are `dilation` pixels apart": own(kernel, padding, once, row),
        "dilation has been applied to the padding too, which is in pixels already": own(kernel, wide, dilation, row),
        "taps are counted from the kernel's middle; what says where the first one looks is the padding": own(
            kernel, centre, once, row
        ),
        "taps are counted from the kernel's middle, which here is not where the padding begins": own(
            kernel, tuple(c * d for c, d in zip(centre, dilation, strict=True)), dilation, row
        ),
        "the two axes of the padding are swapped: rows come first": own(kernel, padding[::-1], dilation, row),
        "the two axes of the dilation are swapped: rows come first": own(kernel, padding, dilation[::-1], row),
        "one row down is `row` places further on in memory, not as many as the kernel is wide": own(
            kernel, padding, dilation, kernel[1]
        ),
        "one row down is `row` places further on in memory": own(kernel, padding, dilation, 1),
        "rows and columns are swapped: down is `row` places, right is one": own(
            kernel[::-1], padding[::-1], dilation[::-1], row
        ).T,
    }


def tap_offsets(answer: Callable[[Pair, Pair, Pair, int], NDArray]) -> Verdict:
    """Exercise 1: ``answer(kernel, padding, dilation, row)`` are the offsets of all taps, (kh, kw) integers."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [
            ((3, 3), (1, 1), (1, 1), 33), ((1, 1), (0, 0), (1, 1), 7), ((3, 3), (0, 0), (1, 1), 10), ((5, 5), (2, 2), (1, 1), 9),
            ((3, 3), (2, 2), (2, 2), 20), ((2, 2), (0, 0), (1, 1), 8), ((2, 2), (1, 1), (1, 1), 8), ((1, 3), (0, 1), (1, 1), 12),
            ((3, 1), (1, 0), (1, 1), 12), ((3, 3), (1, 1), (3, 3), 30), ((3, 5), (1, 2), (1, 1), 40), ((3, 3), (2, 1), (1, 1), 15),
            ((3, 3), (1, 1), (2, 1), 16), ((1, 1), (2, 3), (1, 1), 11),
        ]  # fmt: skip
        for _ in range(30):
            kernel, padding, dilation = (tuple(rng.integers(*span, 2).tolist()) for span in ((1, 6), (0, 4), (1, 4)))
            cases.append((kernel, padding, dilation, int(rng.integers(20, 60))))
        for case in cases:
            call = f"tap_offsets(kernel={case[0]}, padding={case[1]}, dilation={case[2]}, row={case[3]})"
            got, want = _array(answer(*case), case[0], "iu", call), _tap_offsets(*case)
            if np.array_equal(got, want):
                continue
            why = next((f": {w}" for w, bad in _offset_suspects(*case).items() if np.array_equal(got, bad)), "")
            at = tuple(int(i) for i in np.argwhere(got != want)[0])
            raise Wrong(f"{call}: tap {at} should read at {want[at]:+d}, and reads at {int(got[at]):+d}{why}")
        return f"{len(cases)} kernels: even and odd, flat and tall, padded and not, dilated and not"

    return judge(check)


# -- exercise 2: lists ------------------------------------------------------------------------------------------------


def _make_lists(w: Array, at: NDArray, plane: int, groups: int) -> tuple[NDArray, Array, NDArray]:
    """Offsets, weights and starts; within a list in the order of the weight."""
    o, c, ky, kx = np.nonzero(w)
    first = o // (len(w) // groups) * w.shape[1]
    starts = np.concatenate([[0], np.cumsum(np.bincount(o, minlength=len(w)))])
    return (first + c) * plane + at[ky, kx], w[o, c, ky, kx], starts


def _list_cases(rng: np.random.Generator) -> list[tuple[str, Array, int]]:
    """(what it is, weight, groups)."""

    def weight(shape: tuple[int, ...], zero: float) -> Array:
        return (rng.standard_normal(shape) * (rng.random(shape) >= zero)).astype(np.float32)

    out = [("a weight without zeros", weight((2, 3, 3, 3), 0), 1), ("a weight", weight((4, 3, 3, 3), 0.7), 1)]
    for name, silent in (("first", [0]), ("last", [3]), ("second and third", [1, 2])):
        w = weight((4, 3, 3, 3), 0.6)
        w[silent] = 0
        out.append((f"a weight whose {name} output reads nothing", w, 1))
    out.append(("a weight of zeros", np.zeros((3, 2, 3, 3), np.float32), 1))
    signed = weight((2, 2, 3, 3), 0.5)
    signed[0, 0], signed[1, 1, 1, 1] = -0.0, 1e-12
    out.append(("a weight with -0.0, which is zero, and 1e-12, which is not", signed, 1))
    out.append(("a 1x1 weight", weight((5, 8, 1, 1), 0.5), 1))
    out.append(("a weight with a kernel of 2 x 4", weight((3, 2, 2, 4), 0.5), 1))
    out.append(("a weight of one output and one input", weight((1, 1, 3, 3), 0.3), 1))
    out += [
        ("a weight in two groups", weight((4, 3, 3, 3), 0.5), 2),
        ("a depthwise weight", weight((6, 1, 3, 3), 0.5), 6),
    ]
    out += [("a weight in three groups of unlike sizes in and out", weight((6, 4, 1, 3), 0.6), 3)]
    out += [("a random weight", weight((*rng.integers(1, 6, 2), *rng.integers(1, 5, 2)), 0.7), 1) for _ in range(10)]
    return out


def make_lists(answer: Callable[[Array, NDArray, int, int], tuple[NDArray, NDArray, NDArray]]) -> Verdict:
    """Exercise 2: ``answer(w, at, plane, groups)`` are offsets (n,), weights (n,) and starts (O + 1,) of all lists."""

    def one(name: str, w: Array, groups: int, at: NDArray, plane: int) -> None:
        call = f"{name}, w of shape {w.shape}" + (f" with groups={groups}" if groups > 1 else "")
        given, places = w.copy(), at.copy()
        parts = _parts(answer(given, places, plane, groups), ("offsets", "weights", "starts"), call)
        _unchanged(w, given, "w")
        _unchanged(at, places, "at")
        outputs, want = len(w), _make_lists(w, at, plane, groups)
        starts = np.asarray(parts[2])
        if starts.shape == (outputs,):
            raise Wrong(
                f"{call}: starts has {outputs} numbers, and needs one more: the last says where the last list ends"
            )
        starts = _array(starts, (outputs + 1,), "iu", f"{call}: starts").tolist()
        offsets = _array(parts[0], (-1,), "iu", f"{call}: offsets")
        weights = _array(parts[1], (-1,), "f", f"{call}: weights")
        if len(offsets) != len(weights):
            raise Wrong(f"{call}: {len(offsets)} offsets, but {len(weights)} weights")
        if (weights == 0).any():
            raise Wrong(f"{call}: entry {int(np.argmax(weights == 0))} has weight 0; that is what should cost nothing")
        if len(weights) != len(want[1]):
            lost = np.setdiff1d(want[1], weights)
            why = f"; {lost[0]:g} is missing" if lost.size else ""
            raise Wrong(f"{call}: {len(weights)} entries for {len(want[1])} weights that are not zero{why}")
        if starts != want[2].tolist():
            why = ""
            if starts == [*np.bincount(np.nonzero(w)[0], minlength=outputs).tolist(), len(weights)]:
                why = ": these are lengths"
            elif starts[0] != 0:
                why = ": the first list begins at 0"
            raise Wrong(f"{call}: starts is {starts}, and should be {want[2].tolist()}{why}")
        for o, (a, b) in enumerate(itertools.pairwise(starts)):
            have, need = (
                sorted(zip(x[a:b].tolist(), v[a:b].tolist(), strict=True)) for x, v in ((offsets, weights), want[:2])
            )
            if have != need:
                differ(call, o, have, need, at, plane, groups)

    def differ(call: str, o: int, have: list, need: list, at: NDArray, plane: int, groups: int) -> None:
        """The reason why a list is not right."""
        if sorted(v for _, v in have) != sorted(v for _, v in need):
            raise Wrong(f"{call}: the list of output {o} has weights that belong to other outputs")
        by_weight = {v: x for x, v in need}
        x, v = next((x, v) for x, v in have if by_weight[v] != x)
        why = ""
        if groups > 1 and (by_weight[v] - x) % plane == 0 and by_weight[v] > x:
            why = f": it reads a channel of another group; output {o} is not in the first one"
        elif by_weight[v] > x and (by_weight[v] - x) % plane == 0:
            why = ": the channel's plane is missing from it"
        raise Wrong(f"{call}: output {o} should read weight {v:g} at {by_weight[v]}, and reads it at {x}{why}")

    def check() -> str:
        rng = np.random.default_rng()
        cases = _list_cases(rng)
        for name, w, groups in cases:
            kernel = w.shape[2:]
            padding = tuple(int(rng.integers(0, k)) for k in kernel)
            row = int(rng.integers(8, 20))
            one(name, w, groups, _tap_offsets(kernel, padding, (1, 1), row), row * int(rng.integers(8, 12)))
        return f"{len(cases)} weights: dense, sparse, of zeros only, with outputs that read nothing, and in groups"

    return judge(check)


# -- exercise 3: the convolution --------------------------------------------------------------------------------------


def _sparse_conv(x: Array, offsets: NDArray, weights: Array, starts: NDArray, bias: Array, length: int) -> Array:
    out = np.repeat(bias.astype(np.float32)[:, None], length, axis=1)
    for o in range(len(bias)):
        for e in range(starts[o], starts[o + 1]):
            out[o] += weights[e] * x[offsets[e] : offsets[e] + length]
    return out


def _conv_case(rng: np.random.Generator, counts: list[int], length: int, places: int, twice: bool = False) -> dict:
    """Lists of so many entries with whole numbers, so that sums are exact; NaN wherever no entry reads."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n = int(starts[-1])
    offsets = rng.integers(0, places, n)
    if n:
        offsets[rng.integers(n)] = places - 1  # reads up to the very end
    if twice and n > 1:
        offsets[:] = offsets[0]
    x = np.full(places - 1 + length, np.nan, np.float32)
    for a in offsets:
        x[a : a + length] = 1
    x *= rng.integers(-9, 10, x.size)
    weights = rng.choice([-3, -2, -1, 1, 2, 3], n).astype(np.float32)
    bias = rng.integers(1, 6, len(counts)).astype(np.float32)
    return {"x": x, "offsets": offsets, "weights": weights, "starts": starts, "bias": bias, "length": length}


def _conv_suspects(c: dict) -> dict[str, Array]:
    """What usual mistakes give instead."""
    x, offsets, weights, starts, bias, n = c.values()
    no_bias = _sparse_conv(x, offsets, weights, starts, np.zeros_like(bias), n)
    last = np.repeat(bias[:, None], n, axis=1)
    for o in range(len(bias)):
        if starts[o + 1] > starts[o]:
            e = starts[o + 1] - 1
            last[o] = weights[e] * x[offsets[e] : offsets[e] + n]
    return {
        "the bias is missing": no_bias,
        "the bias has been added with every entry; it belongs to an output once": no_bias
        + bias[:, None] * np.diff(starts)[:, None],
        "only the last entry is left: add to the plane, do not replace it": last,
        "that is the last entry and the bias: add to the plane, do not replace it": np.where(
            np.diff(starts)[:, None] > 0, last + bias[:, None], last
        ),
    }


def _telling_case(rng: np.random.Generator) -> dict:
    """One output of three entries, of which no two usual mistakes make the same, nor what is right."""
    while True:
        case = _conv_case(rng, [3], 8, 5)
        outputs = [_sparse_conv(**case), *_conv_suspects(case).values()]
        if len({np.asarray(out, np.float32).tobytes() for out in outputs}) == len(outputs):
            return case


def sparse_conv(answer: Callable[[Array, NDArray, Array, NDArray, Array, int], Array]) -> Verdict:
    """Exercise 3: ``answer(x, offsets, weights, starts, bias, length)`` are all output planes, (O, length) float32."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [
            ("one output, three entries", _telling_case(rng)),
            ("one output, one entry", _conv_case(rng, [1], 8, 5)),
            ("three outputs", _conv_case(rng, [2, 4, 3], 12, 30)),
            ("an output without entries in the middle", _conv_case(rng, [2, 0, 3], 12, 30)),
            ("outputs without entries at both ends", _conv_case(rng, [0, 5, 0, 0], 7, 9)),
            ("no entries at all", _conv_case(rng, [0, 0], 5, 4)),
            ("a plane of one position", _conv_case(rng, [3, 2], 1, 40)),
            ("two entries that read the same place", _conv_case(rng, [2, 2], 6, 3, twice=True)),
            ("many entries", _conv_case(rng, [60, 1, 0, 200], 1100, 300)),
        ]
        cases += [
            (
                "random lists",
                _conv_case(rng, rng.integers(0, 6, rng.integers(1, 8)).tolist(), int(rng.integers(2, 50)), 60),
            )
            for _ in range(10)
        ]
        for name, case in cases:
            given = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in case.items()}
            want, shape = _sparse_conv(**case), (len(case["bias"]), case["length"])
            with np.errstate(all="ignore"):
                got = _array(answer(*given.values()), shape, "fiu", name)
            for k in ("x", "offsets", "weights", "starts", "bias"):
                _unchanged(case[k], given[k], k)
            if got.dtype != np.float32:
                raise Wrong(f"{name}: the planes are {got.dtype}, and should be float32, which the next layer reads")
            if np.array_equal(got, want):
                continue
            for why, bad in _conv_suspects(case).items():
                if np.array_equal(got, bad):
                    raise Wrong(f"{name}: {why}")
            o, p = (int(i) for i in np.argwhere(got != want)[0])
            if np.isnan(got[o, p]):
                raise Wrong(f"{name}: output {o} has read where none of its entries points (there lies NaN)")
            where = f"out[{o}, {p}]"
            if case["starts"][o] == case["starts"][o + 1]:
                raise Wrong(
                    f"{name}: {where} should be the bias {want[o, p]:g}, since output {o} has no entry; it is {got[o, p]:g}"
                )
            raise Wrong(f"{name}: {where} should be {want[o, p]:g}, and is {got[o, p]:g}")
        return f"{len(cases)} sets of lists: empty, long, out of order, and up to the last number of x"

    return judge(check)


# -- exercise 4: constant channels ------------------------------------------------------------------------------------


def _reads(w: NDArray) -> NDArray[np.bool_]:
    """(C,) input channels for which there are weights."""
    return (w != 0).any(axis=(0, 2, 3))


def _image(rng: np.random.Generator, u: NDArray, size: Pair) -> NDArray:
    """Two images whose channel c is u[c] everywhere, or varies where that is NaN."""
    x = rng.standard_normal((2, len(u), *size))
    return np.where(np.isnan(u)[:, None, None], x, np.nan_to_num(u)[:, None, None])


def _constant_cases(rng: np.random.Generator) -> list[tuple[Array, Array, NDArray, Pair]]:
    """(w, bias, u, padding)."""
    v, out = np.nan, []
    for u, kernel, padding in (
        ([v, 2.0, v], (3, 3), (0, 0)), ([v, 0.0, v], (3, 3), (1, 1)), ([v, 0.0, v, 3.0], (3, 3), (0, 0)), ([v, v], (3, 3), (1, 1)),
        ([v, 2.0, v], (3, 3), (1, 1)), ([v, 2.0, v, -0.5], (3, 3), (1, 1)), ([0.0, 2.0, v, 0.5, 1.0], (3, 3), (1, 1)),
        ([1.0, 2.0, 3.0], (3, 3), (0, 0)), ([1.0, 2.0, 3.0], (3, 3), (1, 1)), ([0.0, 0.0], (3, 3), (1, 1)),
        ([v, 1.5, 0.5], (1, 1), (0, 0)), ([v, 1.5, 0.5], (1, 1), (1, 1)), ([v, 1.5, 0.5], (1, 3), (0, 1)), ([v, 1.5, 0.5], (3, 1), (1, 0)),
        ([v, 1.5, 0.5, v], (5, 5), (1, 1)), ([0.25, 4.0, v], (2, 2), (1, 1)),
    ):  # fmt: skip
        w = rng.standard_normal((4, len(u), *kernel)).astype(np.float32)
        out.append((w, rng.standard_normal(4).astype(np.float32), np.array(u), padding))
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[:, 1:] = 0  # constants that nobody reads
    out.append((w, rng.standard_normal(4).astype(np.float32), np.array([v, 2.0, 0.5]), (1, 1)))
    for _ in range(12):
        u = np.where(rng.random(6) < 0.4, v, rng.choice([0.0, 0.5, 1.0, -2.0, 3.0], 6))
        w = rng.standard_normal((3, 6, 3, 3)) * (rng.random((3, 6)) < 0.5)[:, :, None, None]
        padding = (0, 0) if rng.random() < 0.4 else tuple(rng.integers(0, 3, 2).tolist())
        out.append((w.astype(np.float32), rng.standard_normal(3).astype(np.float32), u, padding))
    return out


def fold_constants(answer: Callable[[Array, Array, NDArray, Pair], tuple[Array, Array]]) -> Verdict:
    """Exercise 4: ``answer(w, bias, u, padding)`` are a weight and a bias that read as few constant channels as possible."""

    def one(w: Array, bias: Array, u: NDArray, padding: Pair) -> None:
        shown = "[" + ", ".join("varies" if np.isnan(c) else f"{c:g}" for c in u) + "]"
        call = f"a {w.shape[2]}x{w.shape[3]} kernel, padding {padding}, channels {shown}"
        given = w.copy(), bias.copy(), u.copy()
        with np.errstate(all="ignore"):
            new, shift = _parts(answer(*given, padding), ("w", "bias"), call)
        for before, after, name in zip((w, bias, u), given, ("w", "bias", "u"), strict=True):
            _unchanged(before, after, name)
        new = _array(new, w.shape, "f", f"{call}: the new w (removing channels comes later)").astype(np.float64)
        shift = _array(shift, bias.shape, "f", f"{call}: the new bias").astype(np.float64)
        if not (np.isfinite(new).all() and np.isfinite(shift).all()):
            why = (
                "; a factor has been divided by a channel that is 0"
                if (u == 0).any()
                else "; u is NaN where a channel varies"
            )
            raise Wrong(f"{call}: the new numbers are not all finite{why}")
        same_function(call, (w, bias), (new, shift), u, padding)
        few_channels(call, w, new, u, padding)

    def same_function(call: str, old: tuple, new: tuple, u: NDArray, padding: Pair) -> None:
        x = _image(np.random.default_rng(), u, (8, 9))
        once = (1, 1)
        want, got = (conv.conv(x, a.astype(np.float64), b, once, padding, once) for a, b in (old, new))
        wrong = np.abs(got - want).max(axis=(0, 1)) > 1e-4 * max(1.0, float(np.abs(want).max()))
        if not wrong.any():
            return
        kernel = old[0].shape[2:]
        inner = tuple(slice(p, n - p) for p, n in zip(padding, wrong.shape, strict=True))
        if any(padding) and wrong[inner].size and not wrong[inner].any():
            raise Wrong(
                f"{call}: right inside, wrong in the {int(wrong.sum())} pixels at the border, where the kernel reads the padding's "
                "zeros and not the constant; no bias can say that"
            )
        varying, steady = np.isnan(u), ~np.isnan(u)
        if not np.allclose(new[0][:, varying], old[0][:, varying]):
            raise Wrong(f"{call}: weights of a channel that varies have changed")
        if np.array_equal(new[1], old[1]) and not new[0][:, steady].any() and (u[steady] != 0).any():
            raise Wrong(f"{call}: the constants are dropped, but nothing stands for what they contributed")
        middle = old[0].astype(np.float64)[:, steady, kernel[0] // 2, kernel[1] // 2] @ u[steady]
        if kernel != (1, 1) and np.allclose(new[1], old[1] + middle, atol=1e-5):
            raise Wrong(
                f"{call}: the bias counts one tap; a constant is seen by all {kernel[0] * kernel[1]} taps of a slice"
            )
        if np.allclose(
            new[1] - old[1], -(old[0].astype(np.float64).sum((2, 3))[:, steady] @ u[steady]), atol=1e-5
        ) and (not np.array_equal(new[1], old[1])):
            raise Wrong(f"{call}: subtracted from the bias, and should be added")
        why = "; where one channel stands for another, its weight takes the other's, times their constants' ratio"
        raise Wrong(f"{call}: the outputs differ, also inside{why if any(padding) else ''}")

    def few_channels(call: str, w: Array, new: NDArray, u: NDArray, padding: Pair) -> None:
        kept = np.flatnonzero(_reads(new) & ~np.isnan(u)).tolist()
        zeros = [c for c in kept if u[c] == 0]
        if zeros:
            raise Wrong(f"{call}: channel {zeros[0]} is zero everywhere, padding included, and is still read")
        if kept and not any(padding):
            raise Wrong(
                f"{call}: channel {kept[0]} is constant and still read; without padding the bias can say what it adds"
            )
        if len(kept) > 1:
            raise Wrong(
                f"{call}: channels {kept} are constant and all still read; at the border too they look alike but for a factor, so "
                "one can stand for all"
            )
        if kept and not (_reads(w) & ~np.isnan(u) & (u != 0)).any():
            raise Wrong(f"{call}: channel {kept[0]} was not read before, and is now")

    def check() -> str:
        rng = np.random.default_rng()
        cases = _constant_cases(rng)
        for case in cases:
            one(*case)
        return (
            f"{len(cases)} layers, with and without padding, on one axis or both; outputs equal and no channel too many"
        )

    return judge(check)
