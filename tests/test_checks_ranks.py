"""The checkers of notebook 12 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import numpy as np
from verdicts import accepted, refused

from lilnetx_mini import grid
from lilnetx_mini.checks import ranks


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def svd(w, rank, left=1.0, right=0.0):
    """Powers of the singular values go to either side."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return s[:rank, None] ** right * v[:rank], u[:, :rank] * s[:rank] ** left


def by_eigenvectors(w, rank):
    second = np.linalg.eigh(w @ w.T)[1][:, ::-1][:, :rank]
    return second.T @ w, second


def smallest(w, rank):
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return v[-rank:], u[:, -rank:] * s[-rank:]


def columns_of_v(w, rank):
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return (v[:, :rank] if len(v) == v.shape[1] else v[:rank].T).T, u[:, :rank] * s[:rank]


def random_subspace(w, rank):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(len(w), rank)))[0]
    return basis.T @ w, basis


def in_place(w, rank):
    out = svd(w, rank)
    w *= 2
    return out


test_factors = accepted(ranks.factors, [svd, lambda w, r: svd(w, r, 0.0, 1.0), lambda w, r: list(svd(w, r, 0.5, 0.5)), by_eigenvectors], 3)
test_wrong_factors = refused(
    ranks.factors,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "one": (lambda w, r: svd(w, r)[0], "two matrices are asked for"),
        "none": (lambda w, r: (None, None), "first should be"),
        "in place": (in_place, "changed its argument"),
        "swapped": (lambda w, r: svd(w, r)[::-1], "changed places"),
        "no values": (lambda w, r: svd(w, r, 0.0, 0.0), "the singular values are missing"),
        "twice": (lambda w, r: svd(w, r, 1.0, 1.0), "in it twice"),
        "half": (lambda w, r: svd(w, r, 0.5, 0.0), "half of the values"),
        "smallest": (smallest, "these are the smallest"),
        "full": (lambda w, r: svd(w, min(w.shape)), "first should be"),
        "columns of v": (columns_of_v, "misses w by"),
        "any subspace": (random_subspace, "the best of this rank"),
    },
)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def largest(out, into, k):
    rank = 0
    while (rank + 1) * (into * k * k + out) < out * into * k * k:
        rank += 1
    return rank


test_largest_rank = accepted(
    ranks.largest_rank, [largest, lambda o, i, k: (o * i * k * k - 1) // (o + i * k * k), lambda o, i, k: float(largest(o, i, k))], 3
)
test_wrong_largest_rank = refused(
    ranks.largest_rank,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda o, i, k: None, "returned None"),
        "break-even": (lambda o, i, k: o * i * k * k // (o + i * k * k), "as much as one"),
        "fraction": (lambda o, i, k: o * i * k * k / (o + i * k * k), "not "),
        "no kernel": (lambda o, i, k: (o * i - 1) // (o + i), "k * k positions"),
        "one too many": (lambda o, i, k: largest(o, i, k) + 1, "that is one too many"),
        "half": (lambda o, i, k: min(o, i) // 2, "not "),
    },
)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def nested(w, radius, bits, cut=True, residual=True, factors=(3, 5, 17, 257), more=0):
    left, step, out = np.clip(w, -radius, radius) if cut else w.copy(), 2 * radius, np.zeros(len(w))
    for finer in factors[: grid.LEVELS.index(bits) + 1 + more]:
        step = step / finer
        part = step * np.clip(np.rint(left / step), -(finer // 2), finer // 2)
        out += part
        left = left - part if residual else left
    return out


def at_once(w, radius, bits):
    step = 2 * radius / (2**bits - 1)
    return np.clip(np.rint(w / step), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step


def changes(w, radius, bits):
    out = nested(w, radius, bits)
    np.clip(w, -radius / 2, radius / 2, out=w)
    return out


def powers_of_two(w, radius, bits):
    step = 2 * radius / 2**bits
    return step * np.rint(np.clip(w, -radius, radius) / step)


test_on_grid = accepted(ranks.on_grid, [nested, at_once, lambda w, r, b: nested(w, r, b).astype(np.float32)], 3)
test_wrong_on_grid = refused(
    ranks.on_grid,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda w, r, b: None, "a number for each weight"),
        "one": (lambda w, r, b: nested(w, r, b)[0], "a number for each weight"),
        "in place": (changes, "changed its argument"),
        "not cut": (lambda w, r, b: np.rint(w * (2**b - 1) / (2 * r)) * 2 * r / (2**b - 1), "is right, not"),
        "weight again": (lambda w, r, b: nested(w, r, b, residual=False), "rounds what is left"),
        "too few": (lambda w, r, b: nested(w, r, b, more=-1), "is right, not"),
        "too many": (lambda w, r, b: nested(w, r, b, more=1), "one grid too many"),
        "powers of two": (powers_of_two, "2**b - 1"),
        "half the range": (lambda w, r, b: nested(w, r / 2, b), "the first step is"),
        "numbers": (lambda w, r, b: nested(w, r, b) * (2**b - 1) / (2 * r), "multiplied by the step"),
    },
)
