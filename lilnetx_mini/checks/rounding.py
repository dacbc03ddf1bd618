"""Checkers of notebook 01: rounding, steps, the straight-through estimator, decoding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import Verdict, Wrong, judge

LOWEST, HIGHEST = -40, 20  # exponents that largest_exponent may return


def _array(answer: object, expected: np.ndarray, kind: str) -> np.ndarray:
    """The answer as an array, once its type and shape are right. kind: "integer" or "floating"."""
    if answer is None:
        raise Wrong("your function returned None: is there a return statement?")
    answer = np.asarray(answer)
    if answer.shape != expected.shape:
        raise Wrong(f"the result has shape {answer.shape}, but {expected.shape} is expected")
    if not np.issubdtype(answer.dtype, getattr(np, kind)):
        raise Wrong(
            f"the result has type {answer.dtype}, but {'an integer' if kind == 'integer' else 'a float'} type is expected"
        )
    return answer


def _same_input(before: np.ndarray, after: np.ndarray, name: str) -> None:
    if not np.array_equal(before, after):
        raise Wrong(f"your function changed its input {name}: work on a copy")


# -- uniform quantisation ---------------------------------------------------------------------------------------------


def uniform_quantiser(answer: Callable, seed: int = 0) -> Verdict:
    """Check ``answer(x, step, bits)``: round(x / step), halves to even, clipped to -L .. L, L = 2**(bits - 1) - 1."""

    def body() -> str:
        rng = np.random.default_rng(seed)
        cases = [
            (np.array([-3.5, -2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.5]), 1.0, 8, "halves go to the even integer"),
            (
                np.array([-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]),
                0.25,
                8,
                "halves go to the even integer",
            ),
            (np.array([-0.4, 0.4, -0.6, 0.6, -1.7, 1.7]), 1.0, 8, "take the nearest integer, on both sides of zero"),
            (np.array([1.0, -1.0, 3.0]), 2.0**-4, 8, "divide by the step"),
            (
                np.array([6.4, 7.4, 8.0, 100.0, -6.4, -7.4, -8.0, -100.0]),
                1.0,
                4,
                "L = 2**(bits - 1) - 1 = 7 on both sides",
            ),
            (np.array([1.4, 2.0, -2.0, 0.2]), 1.0, 2, "two bits hold -1, 0 and 1"),
            (
                np.array([200.0, -200.0, 2047.0, 2048.0, -4000.0]),
                1.0,
                12,
                "twelve bits hold -2047 .. 2047: wider than 8-bit integers",
            ),
            (np.array([1e30, -1e30, 1e12]), 1.0, 8, "clip before the type changes"),
            (np.zeros((2, 3)), 0.1, 8, "zeros stay zero"),
            (np.zeros((0, 4)), 0.1, 8, "an empty array stays empty"),
        ]
        for shape in ((50,), (7, 3), (2, 3, 4, 5)):
            bits = int(rng.integers(3, 11))
            step = float(rng.uniform(0.01, 2))
            cases.append(
                (rng.normal(size=shape) * step * 2 ** (bits - 1), step, bits, "nearest integer, then the clip")
            )
        for x, step, bits, why in cases:
            limit = 2 ** (bits - 1) - 1
            expected = np.clip(np.rint(x / step), -limit, limit).astype(np.int64)
            given = x.copy()
            with np.errstate(all="ignore"):
                q = _array(answer(given, step, bits), expected, "integer")
            _same_input(x, given, "x")
            if (q != expected).any():
                at = tuple(int(i) for i in np.argwhere(q != expected)[0])
                raise Wrong(
                    f"x = {x[at]:g} with step {step:g} and {bits} bits must become {expected[at]}, not {q[at]} ({why})"
                )
        return "nearest integers, halves to even, clipped on both sides, at any shape"

    return judge(body)


# -- the coarsest step within a budget --------------------------------------------------------------------------------


def rounding_error(x: np.ndarray, exponent: int) -> float:
    """Mean squared error of rounding x to multiples of ``2**exponent``."""
    step = 2.0**exponent
    return float(np.square(x - step * np.rint(x / step)).mean())


def _largest_exponent(x: np.ndarray, budget: float) -> int:
    return next(e for e in range(HIGHEST, LOWEST - 1, -1) if rounding_error(x, e) <= budget)


def largest_exponent(answer: Callable, seed: int = 0) -> Verdict:
    """Check ``answer(x, budget)``: the largest e in -40 .. 20 whose mean squared rounding error is at most the budget."""

    def body() -> str:
        rng = np.random.default_rng(seed)
        cases = [
            (rng.normal(0, 10.0 ** rng.uniform(-3, 1), shape), relative)
            for shape in ((500,), (40, 9), (8, 4, 3, 3))
            for relative in (1e-6, 1e-4, 1e-2, 0.3)
        ]
        cases = [(x, relative * float(np.square(x).mean())) for x, relative in cases]
        cases += [
            (rng.normal(0, 0.1, (30, 9)), 1.0),  # larger than the weights' own mean square: any step will do
            (np.zeros(5), 0.0),
            (np.array([12.0, -20.0, 4.0, 0.0]), 0.0),  # on the grid of 4 already
            (np.array([3.0, 4.0, -8.0, 16.0]), 0.25),  # the error at step 2 is 0.25 exactly: "at most" includes it
            (np.array([0.75, -1.25, 100.0]), 0.0),
            (np.where(rng.random(400) < 0.95, 0.0, rng.normal(size=400)), 1e-3),  # mostly zeros: far from the 1/12 law
            (np.full(10, 0.6), 0.2),
            (np.full(6, 3.0) + 2.0**-30, 2.0**-58),
        ]
        for x, budget in cases:
            expected = _largest_exponent(x, budget)
            given = x.copy()
            e = answer(given, budget)
            _same_input(x, given, "x")
            if e is None:
                raise Wrong("your function returned None: is there a return statement?")
            if np.ndim(e) != 0 or isinstance(e, bool | np.bool_) or not float(e).is_integer():
                raise Wrong(f"the exponent must be one integer, not {e!r}: return e, not the step 2**e")
            e = int(e)
            about = f"x of shape {x.shape} with mean square {np.square(x).mean():.3g}, and a budget of {budget:.3g}"
            if not LOWEST <= e <= HIGHEST:
                raise Wrong(f"{about}: e = {e} is not within {LOWEST} .. {HIGHEST}")
            if e > expected:
                raise Wrong(
                    f"{about}: with e = {e} the mean squared error is {rounding_error(x, e):.3g}, more than the budget"
                )
            if e < expected:
                raise Wrong(
                    f"{about}: you returned e = {e}, but e = {expected} is larger and its mean squared error of "
                    f"{rounding_error(x, expected):.3g} is within the budget"
                )
        return "the coarsest power of two within the budget, for dense, sparse and gridded weights"

    return judge(body)


# -- the straight-through estimator -----------------------------------------------------------------------------------


def straight_through(answer: Callable, seed: int = 0) -> Verdict:
    """Check ``answer(z)`` on torch tensors: the value of round(z), the gradient of the identity."""
    import torch

    def body() -> str:
        generator = torch.Generator().manual_seed(seed)
        cases = [
            torch.tensor([-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5]),
            torch.tensor([-0.4, 0.4, -0.6, 0.6, -1.7, 1.7]),
            torch.zeros(2, 3),
            torch.zeros(0, 9),
            torch.tensor(1.3),
            30 * torch.randn(5, 9, generator=generator),
            torch.randn(3, 2, 3, 3, generator=generator).double(),
        ]
        for start in cases:
            z = start.clone().requires_grad_()
            value = answer(z)
            _check_value(value, z, start)
            upstream = torch.randn(z.shape, generator=generator).to(z)
            gradient = torch.autograd.grad(value, z, upstream, allow_unused=True)[0] if value.requires_grad else None
            if gradient is None:
                raise Wrong(
                    "no gradient reaches z: the result is cut off from it (a detach too many, or a trip through NumPy?)"
                )
            bad = ~torch.isclose(gradient, upstream, rtol=1e-5, atol=1e-6)
            if bad.any():
                at = tuple(bad.nonzero()[0].tolist())
                raise Wrong(
                    f"at z = {start[at].item():g} the gradient that arrives is {upstream[at].item():.4f}, but "
                    f"{gradient[at].item():.4f} was passed on: the identity passes it on unchanged"
                )
        z = cases[5].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(answer(z).square().sum(), z)
        if not torch.allclose(gradient, 2 * torch.round(cases[5])):
            raise Wrong("the gradient of (round(z)**2).sum() must be 2 * round(z): pass on the gradient that arrives")
        return "the value of round(z), and every gradient passed on unchanged"

    def _check_value(value: object, z: torch.Tensor, start: torch.Tensor) -> None:
        if not isinstance(value, torch.Tensor):
            raise Wrong(f"a torch tensor is expected, not {type(value).__name__}")
        if not torch.equal(z.detach(), start):
            raise Wrong("your function changed its input z: work on a copy")
        if value.shape != start.shape or value.dtype != start.dtype:
            raise Wrong(
                f"the result is {value.dtype} of shape {tuple(value.shape)}, "
                f"but z is {start.dtype} of shape {tuple(start.shape)}"
            )
        bad = value.detach() != torch.round(start)
        if bad.any():
            at = tuple(bad.nonzero()[0].tolist())
            got, expected = value[at].item(), torch.round(start[at]).item()
            if abs(got - expected) < 1e-3:
                raise Wrong(
                    f"z = {start[at].item():.9g} becomes {got:.9g}, a hair off the integer {expected:g}: a sum was rounded "
                    "on the way. round(z) - z is exact in floating point, round(z) + z is not"
                )
            raise Wrong(
                f"z = {start[at].item():g} must become {expected:g}, not {got:g} (nearest integer, halves to even)"
            )

    return judge(body)


# -- decoding ---------------------------------------------------------------------------------------------------------


def decode_weight(answer: Callable, seed: int = 0) -> Verdict:
    """Check ``answer(q, psi, shape)``: the rows of ``q @ psi`` as a weight of shape (out, in, kh, kw)."""

    def body() -> str:
        rng = np.random.default_rng(seed)
        shapes = [
            (1, 1, 2, 2),
            (4, 3, 3, 3),
            (3, 4, 3, 3),
            (2, 5, 1, 3),
            (3, 2, 2, 3),
            (5, 5, 1, 1),
            (2, 3, 5, 5),
            (0, 3, 3, 3),
        ]
        for shape in shapes:
            rows, d = shape[0] * shape[1], shape[2] * shape[3]
            q = rng.integers(-4, 5, (rows, d))
            q[1::3] = 0  # slices of zeros
            psi = rng.normal(size=(d, d))  # far from symmetric
            _check_decoded(answer, q, psi, shape)
        _check_decoded(answer, np.eye(4, dtype=np.int32), np.arange(16.0).reshape(4, 4), (2, 2, 2, 2))
        _check_decoded(answer, np.zeros((6, 9), np.int32), rng.normal(size=(9, 9)), (2, 3, 3, 3))
        _check_decoded(answer, rng.integers(-2, 3, (6, 9)).astype(np.int8), 100 * rng.normal(size=(9, 9)), (3, 2, 3, 3))
        return "values, shape and order, for square and oblong kernels; slices of zeros stay zero"

    return judge(body)


def _check_decoded(answer: Callable, q: np.ndarray, psi: np.ndarray, shape: tuple[int, ...]) -> None:
    rows = q.astype(np.float64) @ psi
    expected = rows.reshape(shape)
    given = q.copy(), psi.copy()
    w = _array(answer(*given, shape), expected, "floating")
    _same_input(q, given[0], "q")
    _same_input(psi, given[1], "psi")
    tolerance = 1e-5 * max(1.0, float(np.abs(rows).max(initial=0.0)))
    bad = ~(np.abs(w - expected) <= tolerance)
    if not bad.any():
        zero = ~q.any(axis=1).reshape(shape[:2])
        if w[zero].any():
            raise Wrong("a slice whose integers are all zero must decode to exact zeros: is there a shift?")
        return
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    hint = ""
    if np.allclose(w, (q @ psi.T).reshape(shape), atol=tolerance):
        hint = ": that is q @ psi.T, but row j of psi belongs to latent j"
    elif not q.any():
        hint = ": integers that are all zero decode to zeros, without a shift"
    elif np.allclose(np.sort(w, axis=None), np.sort(rows, axis=None), atol=tolerance):
        hint = ": the values are right but in another order"
    raise Wrong(f"for shape {shape}, w{list(at)} must be {expected[at]:.4f}, not {w[at]:.4f}{hint}")
