"""The checkers of notebook 02 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import numpy as np
from verdicts import accepted, refused

from lilnetx_mini.checks import bits
from lilnetx_mini.density import sigmoid, softplus


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def entropy_masked(counts):
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log2(p)).sum()


def entropy_loop(counts):
    n = sum(int(c) for c in counts)
    return sum(int(c) / n * np.log2(n / int(c)) for c in counts if c)


def entropy_expanded(counts):
    n = float(counts.sum())
    c = counts[counts > 0].astype(float)
    return np.array([np.log2(n) - (c * np.log2(c)).sum() / n])


def entropy_where(counts):
    p = counts / counts.sum()
    return float(-np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum())


def p_of(counts):
    return counts[counts > 0] / counts.sum()


ENTROPY_WRONG = {
    "natural logarithm": (lambda c: -(p_of(c) * np.log(p_of(c))).sum(), "log2"),
    "zeros not left out": (lambda c: -(c / c.sum() * np.log2(c / c.sum())).sum(), "nan"),
    "mean over distinct values": (lambda c: -np.log2(p_of(c)).mean(), "weighted"),
    "divided by the number of distinct values": (lambda c: entropy_masked(c) / (c > 0).sum(), "distinct"),
    "divided by the length": (lambda c: entropy_masked(c) / len(c), "distinct"),
    "all values together": (lambda c: entropy_masked(c) * c.sum(), "divide"),
    "minus forgotten": (lambda c: (p_of(c) * np.log2(p_of(c))).sum(), "sign"),
    "fixed length": (lambda c: np.log2((c > 0).sum()), "fixed"),
    "one added to every count": (lambda c: entropy_masked(c + 1), "should be"),
    "small number inside the logarithm": (lambda c: -(c / c.sum() * np.log2(c / c.sum() + 1e-3)).sum(), "should be"),
    "an array": (lambda c: -p_of(c) * np.log2(p_of(c)), "one number"),
    "no return": (lambda c: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_entropies_are_accepted = accepted(bits.bits_per_value, [entropy_masked, entropy_loop, entropy_expanded, entropy_where])
test_wrong_entropies_are_refused_with_a_reason = refused(bits.bits_per_value, ENTROPY_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def cross_masked(counts, table):
    used = counts > 0
    return -(counts[used] / counts.sum() * np.log2(table[used])).sum()


def cross_loop(counts, table):
    total = 0.0
    for c, p in zip(counts, table, strict=True):
        if c:
            total += c * (-np.log2(p) if p > 0 else np.inf)
    return total / counts.sum()


def cross_as_average(counts, table):
    return np.average(-np.log2(table[counts > 0]), weights=counts[counts > 0])


def kl(counts, table):
    return cross_masked(counts, table) - entropy_masked(counts)


CROSS_WRONG = {
    "natural logarithm": (lambda c, t: cross_masked(c, t) * np.log(2), "log2"),
    "own entropy": (lambda c, t: entropy_masked(c), "own entropy"),
    "divergence only": (kl, "Kullback"),
    "swapped": (lambda c, t: -(t * np.log2(c / c.sum())).sum(), "wrong way round"),
    "weighted by the table": (lambda c, t: -(t[t > 0] * np.log2(t[t > 0])).sum(), "table"),
    "mean over distinct values": (lambda c, t: -np.log2(t).mean(), "weight"),
    "total": (lambda c, t: cross_masked(c, t) * c.sum(), "divide"),
    "zero times infinity": (lambda c, t: -(c / c.sum() * np.log2(t)).sum(), "nan"),
    "impossible values made possible": (lambda c, t: -(c / c.sum() * np.log2(np.maximum(t, 1e-12))).sum(), "inf"),
    "impossible values left out": (lambda c, t: -(c[t > 0] / c.sum() * np.log2(t[t > 0])).sum(), "inf"),
    "any zero in the table is infinite": (lambda c, t: np.inf if (t == 0).any() else cross_masked(c, t), "no harm"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_cross_entropies_are_accepted = accepted(bits.wrong_table, [cross_masked, cross_loop, cross_as_average])
test_wrong_cross_entropies_are_refused_with_a_reason = refused(bits.wrong_table, CROSS_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def table_by_edges(cdf, low, high):
    edges = np.concatenate([[-np.inf], np.arange(low, high) + 0.5, [np.inf]])
    return np.diff(cdf(edges))


def table_by_ends(cdf, low, high):
    q = np.arange(low, high + 1)
    p = cdf(q + 0.5) - cdf(q - 0.5)
    p[0] += cdf(low - 0.5)
    p[-1] += 1 - cdf(high + 0.5)
    return p


def table_by_list(cdf, low, high):
    if low == high:
        return [1.0]
    middle = [float(cdf(q + 0.5) - cdf(q - 0.5)) for q in range(low + 1, high)]
    return [float(cdf(low + 0.5)), *middle, float(1 - cdf(high - 0.5))]


def inside(cdf, low, high):
    q = np.arange(low, high + 1)
    return cdf(q + 0.5) - cdf(q - 0.5)


def slope(cdf, low, high):
    q = np.arange(low, high + 1)
    return (cdf(q + 1e-4) - cdf(q - 1e-4)) / 2e-4


TABLE_WRONG = {
    "tails missing": (inside, "beyond is missing"),
    "tails shared out": (lambda *a: inside(*a) / inside(*a).sum(), "sharing"),
    "half-steps missing, upwards": (lambda f, a, b: f(np.arange(a, b + 1) + 1) - f(np.arange(a, b + 1)), "cdf(q + 1)"),
    "half-steps missing, downwards": (lambda f, a, b: f(np.arange(a, b + 1)) - f(np.arange(a, b + 1) - 1), "cdf(q - 1)"),
    "half-steps missing, tails there": (
        lambda f, a, b: np.diff(np.concatenate([[0], f(np.arange(a, b)), [1]])), "where each interval begins"),
    "slope at the integer": (slope, "sum to"),
    "the CDF itself": (lambda f, a, b: f(np.arange(a, b + 1)), "CDF itself"),
    "high left out": (lambda f, a, b: table_by_ends(f, a, b)[:-1], "both ends count"),
    "backwards": (lambda f, a, b: table_by_ends(f, a, b)[::-1], "should be"),
    "only the lower tail": (lambda f, a, b: np.diff(np.concatenate([[0], f(np.arange(a, b + 1) + 0.5)])), "sum to"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_tables_are_accepted = accepted(bits.table_from_cdf, [table_by_edges, table_by_ends, table_by_list])
test_wrong_tables_are_refused_with_a_reason = refused(bits.table_from_cdf, TABLE_WRONG)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def log_sigmoid(x):
    return -softplus(-x)


def mirrored(hi, lo):
    flip = hi + lo > 0
    hi, lo = np.where(flip, -lo, hi), np.where(flip, -hi, lo)
    return log_sigmoid(hi) + np.log1p(-np.exp(log_sigmoid(lo) - log_sigmoid(hi)))


def mirrored_expm1(hi, lo):
    sign = np.where(hi + lo >= 0, -1, 1)
    small, large = np.sort([sign * hi, sign * lo], axis=0)
    return log_sigmoid(large) + np.log(-np.expm1(log_sigmoid(small) - log_sigmoid(large)))


def as_product(hi, lo):
    return log_sigmoid(hi) + log_sigmoid(-lo) + np.log(-np.expm1(lo - hi))


def by_torch(hi, lo):
    import torch
    from torch.nn.functional import logsigmoid

    hi, lo = torch.from_numpy(hi), torch.from_numpy(lo)
    flip = hi + lo > 0
    hi, lo = torch.where(flip, -lo, hi), torch.where(flip, -hi, lo)
    return (logsigmoid(hi) + torch.log1p(-torch.exp(logsigmoid(lo) - logsigmoid(hi)))).numpy()


def naive(hi, lo):
    return np.log(sigmoid(hi) - sigmoid(lo))


def mirrored_not_log(hi, lo):
    flip = hi + lo > 0
    return naive(np.where(flip, -lo, hi), np.where(flip, -hi, lo))


def sign_of_zero(hi, lo):
    s = -np.sign(hi + lo)
    a, b = log_sigmoid(s * hi), log_sigmoid(s * lo)
    big, small = np.maximum(a, b), np.minimum(a, b)
    return big + np.log1p(-np.exp(small - big))


LOG_WRONG = {
    "naive": (naive, "mirror"),
    "naive with a floor": (lambda h, lo: np.log(np.maximum(sigmoid(h) - sigmoid(lo), 1e-9)), "should be"),
    "mirrored, but not in logarithms": (mirrored_not_log, "logarithms"),
    "log space, but not mirrored": (
        lambda h, lo: log_sigmoid(h) + np.log1p(-np.exp(log_sigmoid(lo) - log_sigmoid(h))),
        "mirror",
    ),
    "sign of zero": (sign_of_zero, "symmetric"),
    "overflowing sigmoid": (lambda h, lo: np.log(1 / (1 + np.exp(-h)) - 1 / (1 + np.exp(-lo))), "should be"),
    "log2": (lambda h, lo: as_product(h, lo) / np.log(2), "log2"),
    "no logarithm": (lambda h, lo: np.exp(as_product(h, lo)), "not its logarithm"),
    "minus sign": (lambda h, lo: -as_product(h, lo), "sign"),
    "difference of logarithms": (lambda h, lo: log_sigmoid(h) - log_sigmoid(lo), "should be"),
    "clipped logits": (lambda h, lo: as_product(np.clip(h, -30, 30), np.clip(lo, -30.5, 29.5)), "should be"),
    "one number": (lambda h, lo: as_product(h, lo).sum(), "numbers in one row"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_log_probabilities_are_accepted = accepted(bits.log_probability, [mirrored, mirrored_expm1, as_product, by_torch])
test_wrong_log_probabilities_are_refused_with_a_reason = refused(bits.log_probability, LOG_WRONG)
