"""The checkers of notebook 05 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import heapq
from itertools import count as counter

import numpy as np
from verdicts import accepted, refused

from lilnetx_mini.checks import size


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def by_members(counts):
    lengths, ticket = np.zeros(len(counts), int), counter()
    heap = [(int(c), next(ticket), [i]) for i, c in enumerate(counts) if c > 0]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, next(ticket), left + right))
    return lengths


def by_parents(counts):
    parent, heap = {}, [(int(c), -i) for i, c in enumerate(counts) if c > 0]  # ties the other way round
    heapq.heapify(heap)
    fresh = len(counts)
    while len(heap) > 1:
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)
        parent[-i] = parent[-j] = fresh
        heapq.heappush(heap, (a + b, -fresh))
        fresh += 1

    def depth(i):
        return 1 + depth(parent[i]) if i in parent else 0

    return [depth(i) for i in range(len(counts))]


def as_floats(counts):
    return by_members(counts).astype(float)


def shannon(counts):
    with np.errstate(divide="ignore"):
        exact = -np.log2(counts / counts.sum())
    return np.where(counts > 0, np.ceil(np.where(counts > 0, exact, 0) - 1e-12), 0).astype(int)


def fixed_length(counts):
    used = int((counts > 0).sum())
    return np.where(counts > 0, int(np.ceil(np.log2(used))) if used > 1 else 0, 0)


def unary(counts):
    """1, 2, 3 ... bits by rank."""
    used = int((counts > 0).sum())
    lengths = np.zeros(len(counts), int)
    lengths[np.argsort(-counts, kind="stable")[:used]] = np.minimum(np.arange(1, used + 1), max(used - 1, 0))
    return lengths


def joins_leaves_only(counts):
    """Sums go to the end of a queue instead of onto the heap."""
    lengths = np.zeros(len(counts), int)
    queue = [[i] for i in np.argsort(counts, kind="stable") if counts[i] > 0]
    while len(queue) > 1:
        joined = queue[0] + queue[1]
        lengths[joined] += 1
        queue = [*queue[2:], joined]
    return lengths


def joins_largest(counts):
    lengths, ticket = np.zeros(len(counts), int), counter()
    heap = [(-int(c), next(ticket), [i]) for i, c in enumerate(counts) if c > 0]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, next(ticket), left + right))
    return lengths


def zeros_in_the_heap(counts):
    return by_members(np.maximum(counts, 0) * 1000 + (counts == 0))


def empties_the_counts(counts):
    out = by_members(counts)
    counts[:] = 0
    return out


LENGTHS_WRONG = {
    "Shannon's lengths": (shannon, "Shannon"),
    "all equally long": (fixed_length, "equally long"),
    "unary by rank": (unary, "smallest"),
    "sums go to the end": (joins_leaves_only, "smallest"),
    "the largest are joined": (joins_largest, "best code"),
    "nodes counted, not branches": (lambda c: np.where(by_members(c) > 0, by_members(c) + 1, 0), "one bit too long"),
    "one bit too short": (lambda c: np.maximum(by_members(c) - 1, 0), "shorter than one bit"),
    "one bit for all": (lambda c: (c > 0).astype(int), "no code"),
    "not whole": (lambda c: shannon_exact(c), "whole"),
    "sorted": (lambda c: np.sort(by_members(c)), "wrong values"),
    "backwards": (lambda c: by_members(c)[::-1], "wrong values"),
    "one bit for a single value": (lambda c: np.where((c > 0) & ((c > 0).sum() == 1), 1, by_members(c)), "no bit is needed"),
    "codewords for values that never come": (zeros_in_the_heap, "never occurs"),
    "empty entries left out": (lambda c: by_members(c[c > 0]), "one for every count"),
    "the mean": (lambda c: float((by_members(c) * c).sum() / c.sum()), "in one row"),
    "no return": (lambda c: None, "return"),
    "the argument is used up": (empties_the_counts, "copy"),
    "not attempted": (not_attempted, "not attempted"),
}


def shannon_exact(counts):
    p = counts / counts.sum()
    return np.where(counts > 0, -np.log2(np.where(counts > 0, p, 1)), 0)


test_right_code_lengths_are_accepted = accepted(size.huffman_lengths, [by_members, by_parents, as_floats, size.code_lengths])
test_wrong_code_lengths_are_refused_with_a_reason = refused(size.huffman_lengths, LENGTHS_WRONG)


def test_the_checkers_own_code_is_as_short_as_one_from_a_heap_and_within_a_bit_of_the_entropy():
    rng = np.random.default_rng()
    for _ in range(100):
        counts = np.append(rng.integers(0, 6, rng.integers(0, 30)) * rng.integers(1, 99), rng.integers(1, 99))
        mine, heap = size.code_lengths(counts), by_members(counts)
        assert (mine * counts).sum() == (heap * counts).sum()
        p = counts[counts > 0] / counts.sum()
        entropy, mean = -(p * np.log2(p)).sum(), (mine * counts).sum() / counts.sum()
        assert entropy - 1e-9 <= mean < entropy + 1
        if (counts > 0).sum() > 1:
            assert sum(2.0 ** -mine[counts > 0]) == 1 and (mine[counts == 0] == 0).all()


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def chosen(losses, probabilities, lam, count):
    with np.errstate(divide="ignore"):
        return int(np.argmin(losses - lam / count * np.log2(probabilities)))


def chosen_by_loop(losses, probabilities, lam, count):
    best, least = None, float("inf")
    for k, (loss, p) in enumerate(zip(losses, probabilities, strict=True)):
        bits = -np.log2(p) if p > 0 else float("inf")
        objective = loss + (lam * bits / count if lam else 0.0)
        if objective < least:
            best, least = k, objective
    return best


def chosen_as_numpy(losses, probabilities, lam, count):
    return np.argmin(losses * count - lam * np.log2(probabilities))


VALUE_WRONG = {
    "the loss alone": (lambda t, p, lam, n: np.argmin(t), "a price too"),
    "the bits alone": (lambda t, p, lam, n: np.argmax(p), "what the task loses"),
    "not divided by N": (lambda t, p, lam, n: np.argmin(t - lam * np.log2(p)), "lam / count"),
    "nats": (lambda t, p, lam, n: np.argmin(t - lam / n * np.log(p)), "log2"),
    "wrong sign": (lambda t, p, lam, n: np.argmin(t + lam / n * np.log2(p)), "sign"),
    "largest": (lambda t, p, lam, n: np.argmax(t - lam / n * np.log2(p)), "largest"),
    "one minus P": (lambda t, p, lam, n: np.argmin(t + lam / n * (1 - p)), "1 - P"),
    "multiplied by N": (lambda t, p, lam, n: np.argmin(t - lam * n * np.log2(p)), "should be"),
    "half the bits": (lambda t, p, lam, n: np.argmin(t - lam / n * np.log2(p) / 2), "should be"),
    "a floor under P": (lambda t, p, lam, n: np.argmin(t - lam / n * np.log2(np.maximum(p, 0.2))), "should be"),
    "the objective": (lambda t, p, lam, n: np.min(t - lam / n * np.log2(p)), "index"),
    "counted from one": (lambda t, p, lam, n: 1 + np.argmin(t - lam / n * np.log2(p)), "index"),
    "always zero": (lambda t, p, lam, n: 0, "should be"),
    "no return": (lambda *_: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_choices_are_accepted = accepted(size.best_value, [chosen, chosen_by_loop, chosen_as_numpy])
test_wrong_choices_are_refused_with_a_reason = refused(size.best_value, VALUE_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def weights_of(groups):
    return sum(s * d for s, d in groups)


def slices_of(groups):
    return sum(s for s, _ in groups)


def by_factor(theirs, unit, groups):
    n = weights_of(groups)
    if unit == "bits":
        return theirs * n
    return theirs * (n / slices_of(groups) if unit == "bits a slice" else np.log(2))


def by_numpy(theirs, unit, groups):
    slices, d = np.array(groups).T
    factor = {"bits": slices @ d, "bits a slice": np.average(d, weights=slices), "nats a weight": 1 / np.log2(np.e)}
    return np.array([theirs * factor[unit]])


def instead(unit, other):
    """Right but for one unit."""
    return lambda theirs, u, groups: other(theirs, groups) if u == unit else by_factor(theirs, u, groups)


CONVERT_WRONG = {
    "bits: upside down": (instead("bits", lambda t, g: t / weights_of(g)), "upside down"),
    "bits: slices": (instead("bits", lambda t, g: t * slices_of(g)), "number of slices"),
    "bits: left alone": (instead("bits", lambda t, g: t), "not divided"),
    "slices: upside down": (instead("bits a slice", lambda t, g: t * slices_of(g) / weights_of(g)), "upside down"),
    "slices: plain mean of d": (instead("bits a slice", lambda t, g: t * np.mean([d for _, d in g])), "mean"),
    "slices: first d": (instead("bits a slice", lambda t, g: t * g[0][1]), "first group"),
    "slices: largest d": (instead("bits a slice", lambda t, g: t * max(d for _, d in g)), "d"),
    "slices: always nine": (instead("bits a slice", lambda t, g: 9 * t), "d"),
    "slices: dense left out": (
        instead("bits a slice", lambda t, g: t * sum(s * d for s, d in g if d > 1) / max(sum(s for s, d in g if d > 1), 1)), "d"),
    "slices: times N": (instead("bits a slice", lambda t, g: t * weights_of(g)), "divided too"),
    "slices: divided by slices": (instead("bits a slice", lambda t, g: t / slices_of(g)), "alone"),
    "slices: left alone": (instead("bits a slice", lambda t, g: t), "leaves the multiplier"),
    "nats: upside down": (instead("nats a weight", lambda t, g: t / np.log(2)), "upside down"),
    "nats: left alone": (instead("nats a weight", lambda t, g: t), "in nats"),
    "nats: times N": (instead("nats a weight", lambda t, g: t * weights_of(g) * np.log(2)), "by N already"),
    "nats: log10": (instead("nats a weight", lambda t, g: t * np.log10(2)), "should be"),
    "nats: no return": (instead("nats a weight", lambda t, g: None), "every unit"),
    "a text": (lambda t, u, g: str(by_factor(t, u, g)), "one number"),
    "one for each group": (lambda t, u, g: [t * d for _, d in g], "be"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_conversions_are_accepted = accepted(size.to_ours, [by_factor, by_numpy])
test_wrong_conversions_are_refused_with_a_reason = refused(size.to_ours, CONVERT_WRONG)
