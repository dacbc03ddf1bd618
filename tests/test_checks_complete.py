"""The checkers of notebook 08 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from verdicts import accepted, refused

from lilnetx_mini.checks import complete


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def penalty_by_sums(groups, lam_rate, lam_group, lam_l2):
    count = sum(z.size for z, _ in groups)
    bits = sum(b.sum() for _, b in groups)
    norms = sum(np.linalg.norm(z, axis=1).sum() for z, _ in groups if z.shape[1] > 1)
    return (lam_rate * bits + lam_group * norms + lam_l2 * sum((z**2).sum() for z, _ in groups)) / count


def penalty_by_loops(groups, lam_rate, lam_group, lam_l2):
    total, count = 0.0, 0
    for z, bits in groups:
        for row, cost in zip(z, bits, strict=True):
            total += lam_rate * sum(cost) + lam_l2 * sum(v * v for v in row)
            total += lam_group * sum(v * v for v in row) ** 0.5 if len(row) > 1 else 0.0
            count += len(row)
    return total / count


def penalty_by_weights(groups, lam_rate, lam_group, lam_l2):
    """Every group's mean, weighted by its share of the weights; an array of one number."""
    n = np.array([z.size for z, _ in groups])
    means = [lam_rate * b.mean() + lam_l2 * (z**2).mean() + lam_group * (z.shape[1] > 1) * np.sqrt((z**2).sum(1)).sum() / z.size
             for z, b in groups]  # fmt: skip
    return np.array([np.average(means, weights=n)])


def parts(groups):
    """N, bits, norms, squares."""
    blocks = [z for z, _ in groups if z.shape[1] > 1]
    return (sum(z.size for z, _ in groups), sum(b.sum() for _, b in groups), sum(np.linalg.norm(z, axis=1).sum() for z in blocks),
            sum((z**2).sum() for z, _ in groups))  # fmt: skip


def slices(groups):
    return sum(len(z) for z, _ in groups)


def with_dense(groups, r, g, q):
    n, bits, _, squares = parts(groups)
    return (r * bits + g * sum(np.linalg.norm(z, axis=1).sum() for z, _ in groups) + q * squares) / n


def with_norm(norm):
    def answer(groups, r, g, q):
        n, bits, _, squares = parts(groups)
        return (r * bits + g * sum(norm(z) for z, _ in groups if z.shape[1] > 1) + q * squares) / n

    return answer


def rate_alone_divided(groups, r, g, q):
    n, bits, norms, squares = parts(groups)
    return r * bits / n + g * norms + q * squares


def group_by_slices(groups, r, g, q):
    n, bits, norms, squares = parts(groups)
    return (r * bits + q * squares) / n + g * norms / max(sum(len(z) for z, _ in groups if z.shape[1] > 1), 1)


PENALTY_WRONG = {
    "not divided": (lambda gs, *lam: penalty_by_sums(gs, *lam) * parts(gs)[0], "nothing is divided"),
    "divided by slices": (lambda gs, *lam: penalty_by_sums(gs, *lam) * parts(gs)[0] / slices(gs), "N counts weights"),
    "only the rate divided": (rate_alone_divided, "only the rate"),
    "group term by slices": (group_by_slices, "N counts weights"),
    "each group by its own size": (lambda gs, *lam: sum(penalty_by_sums([g], *lam) for g in gs), "its own size"),
    "mean of the groups": (lambda gs, *lam: np.mean([penalty_by_sums([g], *lam) for g in gs]), "mean of the groups"),
    "dense layers in the group prior": (with_dense, "d > 1"),
    "squared norms": (with_norm(lambda z: (z**2).sum()), "squares the norms"),
    "absolute values": (with_norm(lambda z: np.abs(z).sum()), "absolute"),
    "one norm a group": (with_norm(np.linalg.norm), "one norm of a whole group"),
    "wrong axis": (with_norm(lambda z: np.linalg.norm(z, axis=0).sum()), "wrong axis"),
    "root of the squares": (lambda gs, r, g, q: penalty_by_sums(gs, r, g, 0) + q * parts(gs)[3] ** 0.5 / parts(gs)[0], "without a root"),
    "half the squares": (lambda gs, r, g, q: penalty_by_sums(gs, r, g, q / 2), "1/2"),
    "multipliers swapped": (lambda gs, r, g, q: penalty_by_sums(gs, g, r, q), "changed places"),
    "the last group only": (lambda gs, *lam: penalty_by_sums(gs[-1:], *lam), "should be"),
    "nats": (lambda gs, r, g, q: penalty_by_sums(gs, r * np.log(2), g, q), "should be"),
    "an array": (lambda gs, *lam: [penalty_by_sums([g], *lam) for g in [*gs, gs[0]]], "one number"),
    "not a number": (lambda gs, *lam: float("nan"), "finite"),
    "no return": (lambda *_: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_penalties_are_accepted = accepted(complete.penalty, [penalty_by_sums, penalty_by_loops, penalty_by_weights])
test_wrong_penalties_are_refused_with_a_reason = refused(complete.penalty, PENALTY_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def clip(x, most=1.0):
    return max(-most, min(most, x))


def as_in_the_package(error, before, proportional=3.0, integral=0.3, sticky=6.0):
    scaled, was = (e * (sticky if e < 0 else 1) for e in (error, before))
    return clip(proportional * (scaled - was) + integral * scaled)


def gentler(error, before):
    return as_in_the_package(error, before, 2.0, 0.2, 4.0)


def only_the_integral_hurries(error, before):
    return float(np.clip(3 * (error - before) + 0.3 * error * (5 if error < 0 else 1), -1, 1))


CONTROL_WRONG = {
    "wrong sign": (lambda e, b: -as_in_the_package(e, b), "must rise"),
    "no integral part": (lambda e, b: clip(3 * (e - b)), "integral"),
    "nothing": (lambda e, b: 0.0, "integral"),
    "not clipped": (lambda e, b: (3 * (e - b) + 0.3 * e) * (6 if e < 0 else 1), "at most 1"),
    "clipped on one side": (lambda e, b: min(1.0, 3 * (e - b) + 0.3 * e * (6 if e < 0 else 1)), "at most 1"),
    "symmetric": (lambda e, b: as_in_the_package(e, b, sticky=1.0), "twice as fast"),
    "hurries the other way": (lambda e, b: clip(3 * (e - b) + 0.3 * e * (6 if e > 0 else 1)), "twice as fast"),
    "undamped": (lambda e, b: clip(0.3 * e * (6 if e < 0 else 1)), "in a simulated training"),
    "the change the wrong way round": (lambda e, b: clip(3 * (b - e) + 0.3 * e * (6 if e < 0 else 1)), "in a simulated training"),
    "the error as the change": (lambda e, b: clip(3 * e * (6 if e < 0 else 1)), "in a simulated training"),
    "far too strong": (lambda e, b: as_in_the_package(e, b, 30.0, 3.0), "in a simulated training"),
    "far too weak": (lambda e, b: as_in_the_package(e, b, 0.1, 0.01), "too slow"),
    "full speed or nothing": (lambda e, b: 0.2 * (e > 0) - 1.0 * (e < 0), "in a simulated training"),
    "drifts": (lambda e, b: clip(as_in_the_package(e, b) + 0.01), "change(0, 0)"),
    "not a number": (lambda e, b: float("nan"), "finite"),
    "no return": (lambda e, b: None, "return"),
    "two numbers": (lambda e, b: (e, b), "one number"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_controllers_are_accepted_whatever_is_drawn = accepted(
    complete.controller, [as_in_the_package, gentler, only_the_integral_hurries], times=3
)
test_wrong_controllers_are_refused_with_a_reason = refused(complete.controller, CONTROL_WRONG)


def test_the_path_starts_at_the_first_size_and_ends_near_what_was_asked():
    sizes = np.exp(complete.path())
    assert sizes[0] == pytest.approx(complete.FIRST) and sizes[-1] == pytest.approx(complete.ASKED, rel=0.001)
    assert (np.diff(sizes) <= 0).all()


def test_a_simulated_size_falls_with_a_large_multiplier_and_hardly_grows_again():
    down, _ = complete.walk(lambda e, b: 0.1, 0.8, 3, 0, 0.0)
    there, factors = complete.walk(lambda e, b: -1.0 if e < -1 else 0.1, 0.8, 3, 0, 0.0, asked=np.full(complete.LOOKS, np.log(12_000)))
    assert down[-1] < 100 and factors[-1] < factors.max() / 2
    assert there[-1] < 1.5 * there.min() < 12_000


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def costs(runs):
    return np.array([[b, m, -a] for b, m, a in runs])


def by_broadcasting(runs):
    c = costs(runs)
    return ~((c[:, None] <= c[None]).all(2) & (c[:, None] != c[None]).any(2)).any(0)


def by_loops(runs):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2] and tuple(a) != tuple(b)

    return [not any(beats(other, run) for other in runs) for run in runs]


def by_sorting(runs):
    """In lexicographic order only an earlier run can beat a later one."""
    kept, keep = [], np.zeros(len(runs), bool)
    c = costs(runs)
    for i in np.lexsort(c.T[::-1]):
        keep[i] = not any((c[j] <= c[i]).all() and (c[j] < c[i]).any() for j in kept)
        kept += [i] if keep[i] else []
    return keep


def front_of(columns):
    def answer(runs):
        c = costs(runs)[:, columns]
        return ~((c[:, None] <= c[None]).all(2) & (c[:, None] < c[None]).any(2)).any(0)

    return answer


def no_worse(runs):
    c = costs(runs)
    return (c[:, None] <= c[None]).all(2)


def first_of_equals(runs):
    seen, keep = set(), by_broadcasting(runs)
    for i, run in enumerate(map(tuple, runs)):
        keep[i] &= run not in seen
        seen.add(run)
    return keep


def neighbours(runs):
    """A walk along the files by size, as in two dimensions."""
    keep, best = np.zeros(len(runs), bool), -1.0
    for i in np.argsort(runs[:, 0], kind="stable"):
        keep[i] = runs[i, 2] > best
        best = max(best, runs[i, 2])
    return keep


def by_convex_hull(runs):
    """Those that are best for some weights of the three: misses unbeaten runs between them."""
    c = costs(runs)
    c = (c - c.min(0)) / np.maximum(np.ptp(c, axis=0), 1e-12)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    values = weights @ c.T
    return (np.isclose(values, values.min(1, keepdims=True))).any(0)


def in_place(runs):
    runs[:, 2] *= -1
    return by_broadcasting(runs)


FRONT_WRONG = {
    "better in all": (lambda r: ~(costs(r)[:, None] < costs(r)[None]).all(2).any(0), "in *one* thing"),
    "beaten by itself": (lambda r: ~no_worse(r).any(0), "as good as itself"),
    "duplicates beat each other": (lambda r: ~(no_worse(r) & ~np.eye(len(r), dtype=bool)).any(0), "keep both"),
    "first of equals": (first_of_equals, "only the first"),
    "inverted": (lambda r: ~by_broadcasting(r), "wrong way round"),
    "accuracy as a cost": (lambda r: by_broadcasting(r * [1, 1, -1]), "higher"),
    "best in something": (lambda r: (costs(r) == costs(r).min(0)).any(1), "compromise"),
    "bytes and accuracy": (front_of([0, 2]), "multiply-adds must count"),
    "multiply-adds and accuracy": (front_of([1, 2]), "bytes must count"),
    "accuracy left out": (front_of([0, 1]), "accuracy must count"),
    "walk by size": (neighbours, "should be"),
    "best for some weights": (by_convex_hull, "should be"),
    "everything": (lambda r: np.ones(len(r), bool), "should be"),
    "indices": (lambda r: np.flatnonzero(by_broadcasting(r)), "True or False"),
    "in place": (in_place, "changes the runs"),
    "no return": (lambda r: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_fronts_are_accepted = accepted(complete.unbeaten, [by_broadcasting, by_loops, by_sorting])
test_wrong_fronts_are_refused_with_a_reason = refused(complete.unbeaten, FRONT_WRONG)
