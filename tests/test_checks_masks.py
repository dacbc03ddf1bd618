"""The checkers of notebook 11 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import itertools

import numpy as np
from verdicts import accepted, refused

from lilnetx_mini import prior
from lilnetx_mini.checks import masks


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def count(alpha):
    l1, square = alpha.sum(), np.square(alpha).sum()
    return l1**2 / square, 2 * l1 / square * (1 - alpha * l1 / square)


def count_torch(alpha):
    import torch

    from lilnetx_mini.nn.prior import soft_count

    t = torch.tensor(alpha, requires_grad=True)
    n = soft_count(t)
    n.backward()
    return n.detach(), t.grad.numpy()


def count_package(alpha):
    return [prior.soft_count(alpha), prior.soft_count_gradient(alpha)]


def with_count(change):
    return lambda alpha: (change(alpha), count(alpha)[1])


def with_slope(change):
    return lambda alpha: (count(alpha)[0], change(alpha))


def in_place(alpha):
    out = count(alpha)
    alpha /= 2
    return out


def l1(a):
    return a.sum()


def l2(a):
    return np.linalg.norm(a)


test_soft_counts = accepted(masks.soft_count, [count, count_torch, count_package], 3)
test_wrong_soft_counts = refused(
    masks.soft_count,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "one thing": (lambda a: count(a)[0], "two things"),
        "none": (lambda a: (None, None), "returned None"),
        "in place": (in_place, "changed its argument"),
        "not squared": (with_count(lambda a: l1(a) / l2(a)), "not yet squared"),
        "root": (with_count(lambda a: np.sqrt(len(a)) * l1(a) / l2(a)), "the other form"),
        "hard": (with_count(np.count_nonzero), "it has no gradient"),
        "l1": (with_count(l1), "l1 alone"),
        "upside down": (with_count(lambda a: (l2(a) / l1(a)) ** 2), "upside down"),
        "no gradient": (lambda a: (count(a)[0], None), "a number for each"),
        "sign": (with_slope(lambda a: -count(a)[1]), "the sign is wrong"),
        "half": (with_slope(lambda a: count(a)[1] / 2), "factor 2"),
        "of the ratio": (with_slope(lambda a: (1 - a * l1(a) / l2(a) ** 2) / l2(a)), "2 l1 / l2 besides"),
        "l2 fixed": (with_slope(lambda a: np.full(len(a), 2 * l1(a) / l2(a) ** 2)), "l2 held fixed"),
        "of the other form": (with_slope(lambda a: prior.soft_count_gradient(a, "root")), "of the other form"),
    },
)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def macs(widths, layers, deep=True, power=2, used=True):
    total = 0
    for reads, makes, k, pixels, depthwise in layers:
        total += k**power * (pixels if used else 1) * widths[makes] * (1 if depthwise and deep else widths[reads])
    return total


test_macs = accepted(masks.multiply_adds, [macs, lambda w, x: float(macs(w, x)), lambda w, x: np.int64(macs(w, x))], 3)
test_wrong_macs = refused(
    masks.multiply_adds,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda w, x: None, "returned None"),
        "depthwise": (lambda w, x: macs(w, x, deep=False), "reads one channel"),
        "k": (lambda w, x: macs(w, x, power=1), "k * k positions"),
        "weights": (lambda w, x: macs(w, x, used=False), "number of weights"),
        "twice": (lambda w, x: 2 * macs(w, x), "together count once"),
    },
)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def stay(scores, sizes, cost, target, best_first=True, over=False, slack=0):
    ends = np.cumsum([0, *sizes])
    keep = np.zeros(len(scores), bool)
    if best_first:
        keep[[a + scores[a:b].argmax() for a, b in itertools.pairwise(ends)]] = True
    order = [u for u in np.argsort(-scores) if not keep[u]]
    for u in order[: len(order) - slack]:
        keep[u] = True
        if cost([int(keep[a:b].sum()) for a, b in itertools.pairwise(ends)]) > target:
            keep[u] = over
            break
    return keep


def stay_from_above(scores, sizes, cost, target):
    """All of them, and then the worst go."""
    ends, keep = np.cumsum([0, *sizes]), np.ones(len(scores), bool)
    for u in np.argsort(scores):
        counts = [int(keep[a:b].sum()) for a, b in itertools.pairwise(ends)]
        if cost(counts) <= target:
            break
        group = np.searchsorted(ends, u, "right") - 1
        keep[u] = counts[group] == 1
    return keep


def every_that_fits(scores, sizes, cost, target):
    """Goes on after the first that is too dear."""
    ends, keep = np.cumsum([0, *sizes]), stay(scores, sizes, cost, 0.0)
    for u in np.argsort(-scores):
        before = keep[u]
        keep[u] = True
        if cost([int(keep[a:b].sum()) for a, b in itertools.pairwise(ends)]) > target:
            keep[u] = before
    return keep


def the_same_share(scores, sizes, cost, target):
    ends, keep = np.cumsum([0, *sizes]), np.zeros(len(scores), bool)
    for share in np.linspace(0, 1, 50):
        trial = np.zeros(len(scores), bool)
        for a, b in itertools.pairwise(ends):
            trial[a + np.argsort(-scores[a:b])[: max(1, int(share * (b - a)))]] = True
        if cost([int(trial[a:b].sum()) for a, b in itertools.pairwise(ends)]) <= target:
            keep = trial
    return keep


test_choices = accepted(masks.channels_that_stay, [stay, stay_from_above], 3)
test_wrong_choices = refused(
    masks.channels_that_stay,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda *_: None, "booleans are asked for"),
        "numbers": (lambda s, *_: np.flatnonzero(s > 1), "booleans are asked for"),
        "empty groups": (lambda *a: stay(*a, best_first=False), "has lost all of its channels"),
        "one too many": (lambda *a: stay(*a, over=True), "was the most"),
        "the same share": (the_same_share, "across groups"),
        "every that fits": (every_that_fits, "across groups"),
        "all": (lambda s, *_: np.ones(len(s), bool), "was the most"),
        "the fewest": (lambda s, n, c, t: stay(s, n, c, 0.0), "still fits"),
    },
)
