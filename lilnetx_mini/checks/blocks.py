"""Checkers for notebook 06, zeros in blocks: norms and their gradients, the proximal step, channels that can go."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import prior
from . import Verdict, Wrong, judge
from . import row as as_text

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def _array(x: Any, shape: tuple[int, ...], what: str) -> Array:
    """The answer as floats of that shape, or Wrong."""
    if x is None:
        raise Wrong(f"{what} is None: is there a return?")
    x = np.asarray(x)
    if x.shape != shape or x.dtype.kind not in "fiu":
        raise Wrong(f"{what} should be numbers of shape {shape}, and is {x.dtype} of shape {x.shape}")
    return x.astype(np.float64)


def _unchanged(before: NDArray, after: NDArray, name: str) -> None:
    if not np.array_equal(before, after):
        raise Wrong(f"your function changed its argument {name}: work on a copy")


def _wrong_row(got: Array, want: Array) -> int | None:
    """The first row in which the answer differs, None if there is none."""
    bad = ~np.isclose(got, want, rtol=1e-6, atol=1e-12)
    return int(np.nonzero(bad.reshape(len(bad), -1).any(axis=1))[0][0]) if bad.any() else None


# -- exercise 1: norms and gradients ----------------------------------------------------------------------------------


def _slices(rng: np.random.Generator) -> list[Array]:
    """Slices for exercises 1 and 2: plain ones, zero ones, ties, tiny and large ones."""
    fixed = np.array([[3, -4], [0, 0], [-2, 2], [0, -5], [1e-9, 0], [-6e5, 8e5], [0.3, 0.4], [-1.5, -0.5]])
    one = np.array([[2.0], [-3.0], [0.0], [-0.5]])
    many = rng.normal(0, 1.5, (25, 9)) * (rng.random((25, 9)) < 0.7)
    many[[0, 7, 24]] = 0
    whole = rng.integers(-2, 3, (25, 9)).astype(float)
    return [fixed, one, many, 1e-7 * many[:9], whole, rng.normal(size=(6, 25)), np.zeros((3, 9)), np.zeros((0, 9))]


def _norm_suspects(z: Array, order: float) -> dict[str, Array]:
    size = np.abs(z)
    square = np.square(z).sum(1)
    out = {
        "that is the square of the norm: take the root": square,
        "that is the sum of the signed entries: take absolute values first": z.sum(1),
        "take absolute values first: an entry of -5 is larger than one of 2": z.max(1),
        "that is the norm divided by the number of entries": prior.slice_norms(z, order) / z.shape[1],
        "that is the root of the mean square, not of the sum": np.sqrt(square / z.shape[1]),
        "that is the norm of all slices together, and one a slice is asked for": np.full(len(z), np.linalg.norm(z)),
        "a small number has been added under the root: that moves every norm, and tiny ones most": np.sqrt(square + 1e-8),
    }
    names = {1.0: "the sum of absolute values (order 1)", 2.0: "the root of the sum of squares (order 2)",
             np.inf: "the largest absolute value (order inf)"}  # fmt: skip
    others = {f"that is {names[o]}": f for o, f in ((1.0, size.sum(1)), (2.0, np.sqrt(square)), (np.inf, size.max(1))) if o != order}
    return others | out


def _gradient_suspects(z: Array, order: float) -> dict[str, Array]:
    norm = prior.slice_norms(z, order)[:, None]
    safe = np.where(norm == 0, 1, norm)
    largest = (np.abs(z) == norm) & (norm > 0)
    first = np.arange(z.shape[1]) == np.abs(z).argmax(1)[:, None]
    return {
        "that is the gradient of the squared norm, which shrinks with the slice": 2 * z,
        "that is the slice itself, not divided by its norm": z,
        "divide by the norm, not by its square": z / safe**2,
        "a small number has been added to the norm in the denominator: test for zero instead": z / (norm + 1e-8),
        "the sign is missing: the norm grows with the distance from zero, on either side": np.abs(z / safe),
        "the sign of the entry is missing": largest.astype(float),
        "only the largest entry moves the norm of order inf; the others have gradient 0":
            np.sign(z) if order == np.inf else np.full_like(z, np.nan),
        "of several largest entries each got the whole gradient; they must share 1 between them": np.sign(z) * largest,
        "that is the gradient for order 1": np.sign(z),
        "that is the gradient for order 2": prior.slice_norms_gradient(z, 2.0),
        "that is the gradient for order inf": prior.slice_norms_gradient(z, np.inf),
        "at a slice of zeros the gradient should be 0": first.astype(float) * np.where(z == 0, 1, np.sign(z)),
    }  # fmt: skip


def _valid_for_inf(got: Array, z: Array) -> bool:
    """Is it a gradient of order inf, with the 1 shared among ties in any way?"""
    size = np.abs(z)
    largest = (size == size.max(initial=0.0)) & (size > 0)
    shares = got * np.sign(z)
    return bool(not got[~largest].any() and (shares >= -1e-12).all() and (not largest.any() or abs(shares.sum() - 1) < 1e-6))


def norm_and_gradient(answer: Callable[[Array, float], tuple[Array, Array]]) -> Verdict:
    """Exercise 1: ``answer(z, order)`` is (norms (S,), gradient of their sum (S, d)) for order 1, 2 or inf."""

    def check() -> str:
        for z in _slices(np.random.default_rng()):
            for order in prior.ORDERS:
                given = z.copy()
                with np.errstate(all="ignore"):
                    result = answer(given, order)
                _unchanged(z, given, "z")
                _norms_and_gradients(result, z, order)
        return "orders 1, 2 and inf: slices of zeros, ties, single zeros, tiny and large ones"

    return judge(check)


def _norms_and_gradients(result: Any, z: Array, order: float) -> None:
    about = f"order {order:g}, {len(z)} slices of {z.shape[1]}"
    if not isinstance(result, tuple | list) or len(result) != 2:
        found = "None: is there a return?" if result is None else f"a {type(result).__name__}"
        raise Wrong(f"{about}: two arrays are asked for, norms and gradient, and not {found}")
    got, want = _array(result[0], (len(z),), f"{about}: norms"), prior.slice_norms(z, order)
    row = _wrong_row(got, want)
    if row is not None:
        suspects = _norm_suspects(z, order).items() if z.shape[1] else ()
        why = next((f": {w}" for w, bad in suspects if np.allclose(got, bad, rtol=1e-9, atol=1e-15)), "")
        raise Wrong(f"{about}: the norm of {as_text(z[row])} should be {want[row]:.6g}, and is {got[row]:.6g}{why}")
    got, want = _array(result[1], z.shape, f"{about}: gradient"), prior.slice_norms_gradient(z, order)
    bad = [s for s in range(len(z)) if not (np.allclose(got[s], want[s], rtol=1e-6, atol=1e-9)
                                            or (order == np.inf and _valid_for_inf(got[s], z[s])))]  # fmt: skip
    if not bad:
        return
    row = bad[0]
    shown = f"{about}: the gradient at {as_text(z[row])} should be {as_text(want[row])}, and is {as_text(got[row])}"
    if np.isnan(got).any():
        row = int(np.nonzero(np.isnan(got).any(1))[0][0])
        raise Wrong(
            f"{about}: the gradient at {as_text(z[row])} is nan, and should be {as_text(want[row])}: 0 / 0. One nan ends a training; "
            "divide only where the norm is not zero"
        )
    suspects = _gradient_suspects(z, order).items()
    why = next((f": {w}" for w, wrong in suspects if np.allclose(got, wrong, rtol=1e-9, atol=1e-15)), "")
    raise Wrong(shown + why)


# -- exercise 2: the proximal step ------------------------------------------------------------------------------------


def _proximal(z: Array, length: float) -> Array:
    norm = prior.slice_norms(z)[:, None]
    return z * np.where(norm > length, 1 - length / np.where(norm == 0, 1, norm), 0)


def objective(x: Array, z: Array, length: float) -> Array:
    """What the proximal step makes smallest, (S,): half the squared distance from z, and `length` times the norm of x."""
    return 0.5 * np.square(x - z).sum(1) + length * prior.slice_norms(x)


def _proximal_suspects(z: Array, length: float) -> dict[str, Array]:
    norm = prior.slice_norms(z)[:, None]
    safe = np.where(norm == 0, 1, norm)
    return {
        "the slice has gone through zero and out at the other side: where it is shorter than the length, it stops at zero":
            z * (1 - length / safe),
        "every entry was shrunk by itself, which is the step of order 1; here the slice keeps its direction":
            np.sign(z) * np.maximum(np.abs(z) - length, 0),
        "slices that are kept must become shorter too": np.where(norm > length, z, 0),
        "that is the step of the squared norm: a factor for all, and never zero": z / (1 + 2 * length),
        "that is the step of half the squared norm: a factor for all, and never zero": z / (1 + length),
        "the slice should become shorter by the length, not by that share of itself": z * max(0.0, 1 - length),
        "that is one step along the gradient; it passes zero and comes back": z - length * prior.slice_norms_gradient(z),
        "that is what is taken away, not what is left": z - _proximal(z, length),
        "only the direction is left: multiply by the new length": z / safe * (norm > length),
        "all slices were shrunk as one; each has a norm of its own":
            z * max(0.0, 1 - length / max(float(np.linalg.norm(z)), 1e-300)),
        "the slice became shorter by half of the length": _proximal(z, length / 2),
        "the slice became shorter by twice the length": _proximal(z, length * 2),
        "that uses the square of the norm": z * np.maximum(0, 1 - length / np.where(norm == 0, 1, norm**2)),
    }  # fmt: skip


def proximal_step(answer: Callable[[Array, float], Array]) -> Verdict:
    """Exercise 2: ``answer(z, length)`` is, for every row of z, the x that minimises ``|x - z|**2 / 2 + length * |x|``."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(z, length) for z in _slices(rng) for length in (0.0, 0.6, float(rng.uniform(0.2, 3)), 5.0, 1e7)]
        for z, length in cases:
            given = z.copy()
            with np.errstate(all="ignore"):
                got = answer(given, length)
            _unchanged(z, given, "z")
            about = f"{len(z)} slices of {z.shape[1]}, length {length:.4g}"
            got, want = _array(got, z.shape, f"{about}: the result"), _proximal(z, length)
            row = _wrong_row(got, want)
            if row is not None:
                _explain_step(got, want, z, length, row, about)
            if got[~want.any(1)].any():
                raise Wrong(f"{about}: a slice no longer than that must become exactly zero, not nearly")
        return f"{len(cases)} cases: shorter, longer and just as long as the step, tiny ones, zeros"

    return judge(check)


def _explain_step(got: Array, want: Array, z: Array, length: float, row: int, about: str) -> None:
    if np.isnan(got).any():
        row = int(np.nonzero(np.isnan(got).any(1))[0][0])
        raise Wrong(f"{about}: {as_text(z[row])} becomes nan, and should become {as_text(want[row])}: 0 / 0")
    suspects = _proximal_suspects(z, length).items()
    why = next((f": {w}" for w, bad in suspects if np.allclose(got, bad, rtol=1e-9, atol=1e-15)), "")
    have, best = (float(objective(x[row : row + 1], z[row : row + 1], length)[0]) for x in (got, want))
    raise Wrong(
        f"{about}: {as_text(z[row])} should become {as_text(want[row])}, where distance and norm come to {best:.6g}, and becomes "
        f"{as_text(got[row])}, where they come to {have:.6g}{why}"
    )


# -- exercise 3: channels that can go ---------------------------------------------------------------------------------


def _kept(alive: list[Flags]) -> list[Flags]:
    """Channels on a way from the input to the output: reached from the front, and from the back."""
    front, back = [np.ones(alive[0].shape[1], bool)], [np.ones(len(alive[-1]), bool)]
    for a in alive[:-1]:
        front.append(a[:, front[-1]].any(1))
    for a in alive[:0:-1]:
        back.append(a[back[-1]].any(0))
    return [f & b for f, b in zip(front[1:], back[:0:-1], strict=True)]


def _one_round(alive: list[Flags]) -> list[Flags]:
    return [a.any(1) & b.any(0) for a, b in itertools.pairwise(alive)]


def _channel_suspects(alive: list[Flags]) -> dict[str, list[Flags]]:
    pairs = list(itertools.pairwise(alive))
    right = _kept(alive)
    front = [np.ones(alive[0].shape[1], bool)]
    for a in alive[:-1]:
        front.append(a[:, front[-1]].any(1))
    back = [np.ones(len(alive[-1]), bool)]
    for a in alive[:0:-1]:
        back.append(a[back[-1]].any(0))
    return {
        "that marks the channels that go; mark those that stay": [~k for k in right],
        "one round is not enough: a channel that goes takes its slices along, and others may then have no writer or no reader":
            _one_round(alive),
        "a channel must be written and read; you keep it if it is one of the two": [a.any(1) | b.any(0) for a, b in pairs],
        "channels that no slice writes have stayed": [b.any(0) for _, b in pairs],
        "channels that no slice reads have stayed": [a.any(1) for a, _ in pairs],
        "that follows the channels from the input on, but not back from the output as well": front[1:],
        "that follows the channels back from the output, but not from the input on as well": back[:0:-1],
        "a channel goes if it has no slice at all; one zero row or column is not all": [a.all(1) & b.all(0) for a, b in pairs],
    }  # fmt: skip


def _chains(rng: np.random.Generator) -> list[list[Flags]]:
    """Layers' maps: (outputs, inputs), the inputs of each being the outputs of the one before."""
    eye = np.eye(3, dtype=bool)
    down = np.eye(5, k=-1, dtype=bool)
    unread, unwritten = eye.copy(), eye.copy()
    unread[:, 1], unwritten[1] = False, False
    chains = [[eye, eye], [eye, unread, eye], [eye, unwritten, eye, eye], [down] * 5, [down.T] * 4, [eye, eye, eye, unread],
              [unwritten, eye, eye, eye], [np.ones((4, 2), bool), np.zeros((3, 4), bool), np.ones((2, 3), bool)],
              [np.ones((2, 5), bool), np.ones((4, 2), bool)], [eye]]  # fmt: skip
    for share in (0.08, 0.12, 0.2, 0.3, 0.6):
        for _ in range(6):
            sizes = rng.integers(2, 14, rng.integers(3, 8))
            chains.append([rng.random((o, i)) < share for i, o in itertools.pairwise(sizes)])
    return chains


def kept_channels(answer: Callable[[list[Flags]], list[Flags]]) -> Verdict:
    """Exercise 3: ``answer(alive)``: for each value between two layers, (channels,) True for those that must stay."""

    def check() -> str:
        chains = _chains(np.random.default_rng())
        have = [_answer_for(answer, alive) for alive in chains]
        wrong = [n for n, alive in enumerate(chains) if not _same(have[n], _kept(alive))]
        if wrong:
            suspects = [_channel_suspects(alive) for alive in chains]
            why = next((f": {w}" for w in suspects[0] if all(_same(h, s[w]) for h, s in zip(have, suspects, strict=True))), "")
            raise Wrong(_one_channel(have[wrong[0]], chains[wrong[0]]) + why)
        return f"{len(chains)} chains: long ones, where one removal leads to the next, dense and almost empty ones"

    return judge(check)


def _same(a: list[Flags], b: list[Flags]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _answer_for(answer: Callable[[list[Flags]], list[Flags]], alive: list[Flags]) -> list[Flags]:
    """The answer to one chain, if it has the right form and its argument is as it was."""
    given = [a.copy() for a in alive]
    got = answer(given)
    if len(given) != len(alive):
        raise Wrong("your function changed its argument, the list: work on a copy")
    for a, b in zip(alive, given, strict=True):
        _unchanged(a, b, "alive")
    return _flags(got, _kept(alive), _sizes(alive))


def _sizes(alive: list[Flags]) -> str:
    return "layers " + ", ".join(f"{a.shape[1]} -> {a.shape[0]}" for a in alive)


def _one_channel(got: list[Flags], alive: list[Flags]) -> str:
    """The first channel that is wrong, and why."""
    want = _kept(alive)
    k = next(k for k, (g, w) in enumerate(zip(got, want, strict=True)) if not np.array_equal(g, w))
    c = int(np.nonzero(got[k] != want[k])[0][0])
    stays = "must stay: it lies on a way from the input to the output"
    goes = "can go: no way from the input to the output leads through it"
    return f"{_sizes(alive)}: channel {c} between layers {k} and {k + 1} {stays if want[k][c] else goes}"


def _flags(got: Any, want: list[Flags], sizes: str) -> list[Flags]:
    """The answer as a list of boolean arrays, or Wrong."""
    if got is None:
        raise Wrong("your function returned None: is there a return?")
    if not isinstance(got, tuple | list) or len(got) != len(want):
        found = f"{len(got)} things" if isinstance(got, tuple | list) else f"a {type(got).__name__}"
        raise Wrong(f"{sizes}: a list of {len(want)} arrays is asked for, one for each value between two layers, and not {found}")
    out = []
    for k, (g, w) in enumerate(zip(got, want, strict=True)):
        g = np.asarray(g)
        if g.shape != w.shape or (g.size and g.dtype != bool):
            raise Wrong(
                f"{sizes}: between layers {k} and {k + 1} there are {len(w)} channels, so {len(w)} True or False are asked "
                f"for, and not {g.dtype} of shape {g.shape}"
            )
        out.append(g.astype(bool))
    return out
