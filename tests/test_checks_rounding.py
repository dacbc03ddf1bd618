"""The checkers of notebook 01 accept right answers, however they are written, and reject plausible wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lilnetx_mini import latent
from lilnetx_mini.checks import rounding
from lilnetx_mini.nn.latent import ste_round


def unanswered(*_):
    raise NotImplementedError


def accept(check, answer):
    verdict = check(answer)
    assert verdict, verdict
    assert repr(verdict).startswith("right: ")


def reject(check, answer):
    verdict = check(answer)
    assert not verdict, "a wrong answer passed"
    assert repr(verdict).startswith("not yet: ") and len(verdict.message) > 20


CHECKS = [rounding.uniform_quantiser, rounding.largest_exponent, rounding.straight_through, rounding.decode_weight]


@pytest.mark.parametrize("check", CHECKS)
def test_an_unanswered_exercise_is_said_to_be_unanswered(check):
    verdict = check(unanswered)
    assert not verdict and "not attempted" in verdict.message


@pytest.mark.parametrize("check", CHECKS)
def test_an_answer_that_raises_or_returns_nothing_is_reported(check):
    assert "ZeroDivisionError" in check(lambda *a: 1 / 0).message
    reject(check, lambda *a: None)


# -- uniform_quantiser ------------------------------------------------------------------------------------------------


def limit(bits):
    return 2 ** (bits - 1) - 1


def half_away(v):
    return np.sign(v) * np.floor(np.abs(v) + 0.5)


def clipped(v, bits):
    return np.clip(v, -limit(bits), limit(bits)).astype(int)


def overwrites(x, step, bits):
    x /= step
    return clipped(np.rint(x), bits)


RIGHT_QUANTISERS = {
    "rint": lambda x, step, bits: clipped(np.rint(x / step), bits),
    "clip before rounding": lambda x, step, bits: np.rint(np.clip(x / step, -limit(bits), limit(bits))).astype(
        np.int16
    ),
    "Python's round": lambda x, step, bits: np.array(
        [max(-limit(bits), min(limit(bits), round(v / step))) for v in x.ravel().tolist()], dtype=np.int64
    ).reshape(x.shape),
    "torch": lambda x, step, bits: torch.round(torch.tensor(x) / step).clamp(-limit(bits), limit(bits)).long().numpy(),
}

WRONG_QUANTISERS = {
    "floor": lambda x, step, bits: clipped(np.floor(x / step), bits),
    "towards zero": lambda x, step, bits: clipped(np.trunc(x / step), bits),
    "half away from zero": lambda x, step, bits: clipped(half_away(x / step), bits),
    "half up": lambda x, step, bits: clipped(np.floor(x / step + 0.5), bits),
    "no clipping": lambda x, step, bits: np.rint(x / step).astype(np.int64),
    "clipped above only": lambda x, step, bits: np.minimum(np.rint(np.maximum(x / step, -1e9)), limit(bits)).astype(
        int
    ),
    "one more below": lambda x, step, bits: np.clip(np.rint(x / step), -limit(bits) - 1, limit(bits)).astype(int),
    "one more on both sides": lambda x, step, bits: np.clip(
        np.rint(x / step), -limit(bits) - 1, limit(bits) + 1
    ).astype(int),
    "range twice as wide": lambda x, step, bits: clipped(np.rint(x / step), bits + 1),
    "unsigned": lambda x, step, bits: np.clip(np.rint(x / step), 0, 2**bits - 1).astype(int),
    "times the step": lambda x, step, bits: clipped(np.rint(x * step), bits),
    "step forgotten": lambda x, step, bits: clipped(np.rint(x), bits),
    "values instead of integers": lambda x, step, bits: step * clipped(np.rint(x / step), bits),
    "float type": lambda x, step, bits: np.clip(np.rint(x / step), -limit(bits), limit(bits)),
    "eight-bit type": lambda x, step, bits: clipped(np.rint(x / step), bits).astype(np.int8),
    "type before clip": lambda x, step, bits: np.clip(np.rint(x / step).astype(np.int64), -limit(bits), limit(bits)),
    "flattened": lambda x, step, bits: clipped(np.rint(x / step), bits).ravel(),
    "overwrites x": overwrites,
}


@pytest.mark.parametrize("name", RIGHT_QUANTISERS)
def test_right_quantisers_pass(name):
    accept(rounding.uniform_quantiser, RIGHT_QUANTISERS[name])


@pytest.mark.parametrize("name", WRONG_QUANTISERS)
def test_wrong_quantisers_fail(name):
    reject(rounding.uniform_quantiser, WRONG_QUANTISERS[name])


# -- largest_exponent -------------------------------------------------------------------------------------------------

EXPONENTS = range(-40, 21)


def error(x, e, p=2, nearest=np.rint):
    return (np.abs(x - 2.0**e * nearest(x / 2.0**e)) ** p).mean()


def climbing(x, budget):
    e = -40
    while e < 20 and error(x, e + 1) <= budget:
        e += 1
    return e


def bisecting(x, budget):
    low, high = -40, 21  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if error(x, middle) <= budget else (low, middle)
    return np.int64(low)


def by_the_law(x, budget):
    return int(np.clip(np.floor(np.log2(np.sqrt(12 * budget) + 1e-30)), -40, 20))


RIGHT_EXPONENTS = {
    "downwards": lambda x, b: next(e for e in reversed(EXPONENTS) if error(x, e) <= b),
    "upwards": climbing,
    "bisection": bisecting,
    "all of them": lambda x, b: max(
        e for e in EXPONENTS if np.square(x - np.ldexp(np.round(np.ldexp(x, -e)), e)).mean() <= b
    ),
}

WRONG_EXPONENTS = {
    "only the 1/12 law": by_the_law,
    "strictly less": lambda x, b: max((e for e in EXPONENTS if error(x, e) < b), default=-40),
    "largest error instead of the mean": lambda x, b: max(
        (e for e in EXPONENTS if np.square(x - 2.0**e * np.rint(x / 2.0**e)).max() <= b), default=-40
    ),
    "absolute error": lambda x, b: max((e for e in EXPONENTS if error(x, e, p=1) <= b), default=-40),
    "root of the mean": lambda x, b: max((e for e in EXPONENTS if error(x, e) ** 0.5 <= b), default=-40),
    "sum instead of the mean": lambda x, b: max((e for e in EXPONENTS if error(x, e) * x.size <= b), default=-40),
    "floor": lambda x, b: max((e for e in EXPONENTS if error(x, e, nearest=np.floor) <= b), default=-40),
    "the smallest": lambda x, b: min(e for e in EXPONENTS if error(x, e) <= b),
    "one too far": lambda x, b: climbing(x, b) + 1,
    "no lower end": lambda x, b: min(climbing(x, b), 0),
    "the step": lambda x, b: 2.0 ** climbing(x, b),
    "an array": lambda x, b: np.array([climbing(x, b)]),
}


@pytest.mark.parametrize("name", RIGHT_EXPONENTS)
def test_right_exponents_pass(name):
    accept(rounding.largest_exponent, RIGHT_EXPONENTS[name])


@pytest.mark.parametrize("name", WRONG_EXPONENTS)
def test_wrong_exponents_fail(name):
    reject(rounding.largest_exponent, WRONG_EXPONENTS[name])


# -- straight_through -------------------------------------------------------------------------------------------------


def function(forward, backward):
    """An autograd function as an exercise's answer would define it."""

    class Answer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return forward(z)

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

    return Answer.apply


def half_up_straight_through(z):
    return z + (torch.floor(z + 0.5) - z).detach()


RIGHT_STE = {
    "autograd function": function(torch.round, lambda g, z: g),
    "detach": lambda z: z + (torch.round(z) - z).detach(),
    "detach, subtracted": lambda z: z - (z - torch.round(z)).detach(),
    "a copied gradient": function(lambda z: z.round(), lambda g, z: g.clone()),
    "the package's": ste_round,
}

WRONG_STE = {
    "torch.round": torch.round,
    "zero gradient": function(torch.round, lambda g, z: torch.zeros_like(g)),
    "cut off": lambda z: torch.round(z).detach(),
    "through NumPy": lambda z: torch.from_numpy(np.rint(z.detach().numpy())),
    "not rounded": lambda z: z * 1.0,
    "a hair off the integers": lambda z: torch.round(z).detach() + z - z.detach(),
    "floor": function(torch.floor, lambda g, z: g),
    "half up": half_up_straight_through,
    "towards zero": function(torch.trunc, lambda g, z: g),
    "gradient of one": function(torch.round, lambda g, z: torch.ones_like(g)),
    "sign of the gradient": function(torch.round, lambda g, z: torch.sign(g)),
    "gradient times z": function(torch.round, lambda g, z: g * z),
    "gradient only within -1 .. 1": function(torch.round, lambda g, z: g * (z.abs() <= 1)),
    "gradient reversed": function(torch.round, lambda g, z: -g),
    "gradient doubled": lambda z: z + torch.round(z).detach() - z.detach() + z - z.detach(),
    "single precision": lambda z: z.float() + (torch.round(z.float()) - z.float()).detach(),
}


@pytest.mark.parametrize("name", RIGHT_STE)
def test_right_straight_through_estimators_pass(name):
    accept(rounding.straight_through, RIGHT_STE[name])


@pytest.mark.parametrize("name", WRONG_STE)
def test_wrong_straight_through_estimators_fail(name):
    reject(rounding.straight_through, WRONG_STE[name])


# -- decode_weight ----------------------------------------------------------------------------------------------------


def overwrites_q(q, psi, shape):
    q[:] = np.abs(q)
    return (q @ psi).reshape(shape)


RIGHT_DECODERS = {
    "matmul": lambda q, psi, shape: (q @ psi).reshape(shape),
    "the package's": lambda q, psi, shape: latent.decode(q, psi).reshape(shape),
    "einsum": lambda q, psi, shape: np.einsum("oij,jk->oik", q.reshape(*shape[:2], shape[2] * shape[3]), psi).reshape(
        shape
    ),
    "transposed twice": lambda q, psi, shape: (psi.T @ q.T).T.reshape(shape),
    "float32": lambda q, psi, shape: (q.astype(np.float32) @ psi.astype(np.float32)).reshape(shape),
}

WRONG_DECODERS = {
    "psi transposed": lambda q, psi, shape: (q @ psi.T).reshape(shape),
    "no reshape": lambda q, psi, shape: q @ psi,
    "Fortran order": lambda q, psi, shape: (q @ psi).reshape(shape, order="F"),
    "in before out": lambda q, psi, shape: (q @ psi).reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1),
    "kernel transposed": lambda q, psi, shape: (q @ psi).reshape(*shape[:2], shape[3], shape[2]).swapaxes(2, 3),
    "with a shift": lambda q, psi, shape: (q @ psi + 0.1).reshape(shape),
    "with a tiny shift": lambda q, psi, shape: (q @ psi + 1e-7).reshape(shape),
    "elementwise": lambda q, psi, shape: (q * np.diag(psi)).reshape(shape),
    "inverse": lambda q, psi, shape: (q @ np.linalg.pinv(psi)).reshape(shape),
    "rounded": lambda q, psi, shape: np.rint(q @ psi).reshape(shape),
    "psi as integers": lambda q, psi, shape: (q @ psi.astype(int)).astype(float).reshape(shape),
    "integers returned": lambda q, psi, shape: (q @ psi).astype(int).reshape(shape),
    "overwrites q": overwrites_q,
}


@pytest.mark.parametrize("name", RIGHT_DECODERS)
def test_right_decoders_pass(name):
    accept(rounding.decode_weight, RIGHT_DECODERS[name])


@pytest.mark.parametrize("name", WRONG_DECODERS)
def test_wrong_decoders_fail(name):
    reject(rounding.decode_weight, WRONG_DECODERS[name])


def test_messages_name_the_value_that_is_wrong():
    assert "must become -4, not -3" in rounding.uniform_quantiser(lambda x, s, b: clipped(np.ceil(x / s), b)).message
    assert "psi.T" in rounding.decode_weight(WRONG_DECODERS["psi transposed"]).message
    assert "unchanged" in rounding.straight_through(torch.round).message
    assert "a hair off" in rounding.straight_through(WRONG_STE["a hair off the integers"]).message
    assert "larger and its mean squared error" in rounding.largest_exponent(WRONG_EXPONENTS["the smallest"]).message
