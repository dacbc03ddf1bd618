"""The checkers of notebook 03 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from verdicts import accepted, refused

from lilnetx_mini.checks import coding
from lilnetx_mini.frequency import TOTAL, quantise_pmf

LOW = 1 << 16


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def slots_repeat(counts):
    counts = counts.astype(int)
    return np.cumsum(counts) - counts, np.repeat(np.arange(len(counts)), counts)


def slots_loop(counts):
    start, owner = [], []
    for s, c in enumerate(counts):
        start.append(len(owner))
        owner += [s] * int(c)
    return start, owner


def slots_search(counts):
    ends = np.cumsum(counts)
    return np.concatenate([[0], ends[:-1]]), np.searchsorted(ends, np.arange(ends[-1]), side="right")


def start_of(counts):
    return slots_repeat(counts)[0]


SLOTS_WRONG = {
    "ends for starts": (lambda c: (np.cumsum(c), slots_repeat(c)[1]), "end"),
    "all ends, with a zero in front": (lambda c: (np.append(0, np.cumsum(c)), slots_repeat(c)[1]), "integers in one row"),
    "searched on the wrong side": (
        lambda c: (start_of(c), np.searchsorted(np.cumsum(c), np.arange(c.sum()), side="left")), "first slot"),
    "zero counts own their start": (
        lambda c: (start_of(c), [start_of(c).tolist().index(max(b for b in start_of(c) if b <= i)) for i in range(c.sum())]),
        "count 0"),
    "zero counts dropped": (lambda c: (start_of(c), np.repeat(np.arange((c > 0).sum()), c[c > 0])), "owner of slot"),
    "every symbol has one slot at least": (lambda c: slots_repeat(np.maximum(c, 1)), "should be"),
    "only the owners": (lambda c: slots_repeat(c)[1], "two things"),
    "floats": (lambda c: (start_of(c) / 1.0, slots_repeat(c)[1]), "integers"),
    "no return": (lambda c: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_slot_tables_are_accepted = accepted(coding.slots, [slots_repeat, slots_loop, slots_search])
test_wrong_slot_tables_are_refused_with_a_reason = refused(coding.slots, SLOTS_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def push_plain(x, s, counts):
    return x // counts[s] * sum(counts) + sum(counts[:s]) + x % counts[s]


def pop_plain(x, counts):
    slot, start = x % sum(counts), 0
    for s, f in enumerate(counts):
        if slot < start + f:
            return s, x // sum(counts) * f + slot - start
        start += f


def push_divmod(x, s, counts):
    whole, rest = divmod(x, counts[s])
    return whole * sum(counts) + rest + sum(c for i, c in enumerate(counts) if i < s)


def pop_divmod(x, counts):
    whole, slot = divmod(x, sum(counts))
    start = [sum(counts[:s]) for s in range(len(counts))]
    s = max(s for s in range(len(counts)) if counts[s] and start[s] <= slot)
    return [np.int64(s), counts[s] * whole + slot - start[s]]


def pop_le(x, counts):
    slot, start = x % sum(counts), 0
    for s, f in enumerate(counts):
        if slot <= start + f:
            return s, x // sum(counts) * f + slot - start
        start += f


def pop_zero_owner(x, counts):
    slot = x % sum(counts)
    start = [sum(counts[:s]) for s in range(len(counts))]
    s = start.index(max(b for b in start if b <= slot))
    return s, x // sum(counts) * counts[s] + slot - start[s]


def pop_float(x, counts):
    s, _ = pop_plain(x, counts)
    return s, int(x / sum(counts)) * counts[s] + x % sum(counts) - sum(counts[:s])


def push_numpy(x, s, counts):
    f, total, start = np.int64(counts[s]), np.int64(sum(counts)), np.int64(sum(counts[:s]))
    x = np.int64(x & (2**63 - 1))
    with np.errstate(over="ignore"):
        return x // f * total + start + x % f


PUSH_POP_WRONG = {
    "start missing": (lambda x, s, c: x // c[s] * sum(c) + x % c[s], pop_plain, "start is missing"),
    "remainder missing": (lambda x, s, c: x // c[s] * sum(c) + sum(c[:s]), pop_plain, "remainder"),
    "multiplies first": (lambda x, s, c: x * sum(c) // c[s] + sum(c[:s]), pop_plain, "before it divides"),
    "starts are ends": (lambda x, s, c: push_plain(x, s, c) + c[s], pop_plain, "ends"),
    "total is 8": (lambda x, s, c: x // c[s] * 8 + sum(c[:s]) + x % c[s], pop_plain, "8 of the first table"),
    "float division": (lambda x, s, c: x / c[s] * sum(c) + sum(c[:s]) + x % c[s], pop_plain, "float"),
    "float division, floored": (lambda x, s, c: int(x / c[s]) * sum(c) + sum(c[:s]) + x % c[s], pop_plain, ""),
    "64 bits": (push_numpy, pop_plain, ""),
    "bit masks: total a power of two": (
        lambda x, s, c: (x // c[s] << (sum(c).bit_length() - 1)) + sum(c[:s]) + x % c[s], pop_plain, "should be"),
    "pop: one slot too far": (push_plain, pop_le, ""),
    "pop: zero counts own slots": (push_plain, pop_zero_owner, "count 0"),
    "pop: state and symbol swapped": (push_plain, lambda x, c: pop_plain(x, c)[::-1], "symbol comes first"),
    "pop: start not subtracted": (
        push_plain, lambda x, c: (pop_plain(x, c)[0], x // sum(c) * c[pop_plain(x, c)[0]] + x % sum(c)), "counted from 0"),
    "pop: floats": (push_plain, pop_float, ""),
    "pop: symbol only": (push_plain, lambda x, c: pop_plain(x, c)[0], "two things"),
    "pop: no return": (push_plain, lambda x, c: None, "return"),
    "push not attempted": (not_attempted, pop_plain, "not attempted"),
    "pop not attempted": (push_plain, not_attempted, "not attempted"),
}  # fmt: skip


@pytest.mark.parametrize("right", [(push_plain, pop_plain), (push_divmod, pop_divmod), (push_plain, pop_divmod)])
def test_right_pushes_and_pops_are_accepted(right):
    verdict = coding.push_pop(*right)
    assert verdict, verdict


@pytest.mark.parametrize("name", PUSH_POP_WRONG)
def test_wrong_pushes_and_pops_are_refused_with_a_reason(name):
    push, pop, reason = PUSH_POP_WRONG[name]
    verdict = coding.push_pop(push, pop)
    assert not verdict and reason in verdict.message, verdict


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def counts_from_ones(w, total):
    p = w / w.sum()
    c = (p > 0).astype(int)
    while c.sum() < total:
        with np.errstate(divide="ignore", invalid="ignore"):
            c[np.where(p > 0, p * np.log2((c + 1) / c), -1).argmax()] += 1
    return c


def counts_by_moves(w, total):
    p = w / w.sum()
    used = p > 0
    c = np.where(used, np.maximum(np.round(p * total), 1), 0)
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(used, p * np.log2((c + 1) / c), -np.inf)
            loss = np.where(c > 1, p * np.log2(c / (c - 1)), np.inf)
        if c.sum() < total:
            c[gain.argmax()] += 1
        elif c.sum() > total:
            c[loss.argmin()] -= 1
        elif gain.max() > loss.min() + 1e-15:
            c[gain.argmax()] += 1
            c[loss.argmin()] -= 1
        else:
            return [int(x) for x in c]


def rounded(w, total):
    return np.rint(w / w.sum() * total).astype(int)


def quick(w, total):
    c = np.where(w > 0, 1 + np.floor(w / w.sum() * (total - (w > 0).sum())), 0).astype(int)
    c[w.argmax()] += total - c.sum()
    return c


def clipped(w, total):
    c = np.where(w > 0, np.maximum(rounded(w, total), 1), 0)
    c[c.argmax()] += total - c.sum()
    return c


def largest_remainder(w, total):
    share = w / w.sum() * (total - (w > 0).sum())
    c = np.where(w > 0, 1 + np.floor(share), 0).astype(int)
    for i in np.argsort(-(share - np.floor(share)))[: total - c.sum()]:
        c[i] += 1
    return c


def greedy_on_weight(w, total):
    c = (w > 0).astype(int)
    while c.sum() < total:
        c[(w / w.sum() * total - c).argmax()] += 1
    return c


COUNTS_WRONG = {
    "plain rounding": (rounded, "no slot"),
    "rounding, at least one": (lambda w, n: np.where(w > 0, np.maximum(rounded(w, n), 1), 0), "sum to"),
    "a slot for everyone": (lambda w, n: counts_from_ones(w + 1e-12, n), "weight 0"),
    "one each, rest in proportion": (quick, "dearer"),
    "clipped, largest settles": (clipped, "dearer"),
    "largest remainder": (largest_remainder, "dearer"),
    "greedy on the shortfall": (greedy_on_weight, "dearer"),
    "equal shares": (
        lambda w, n: np.where(w > 0, n // (w > 0).sum(), 0) + (np.arange(len(w)) == w.argmax()) * (n % (w > 0).sum()), "dearer"),
    "total ignored": (lambda w, n: quantise_pmf(w), "sum to"),
    "one slot too many": (lambda w, n: counts_from_ones(w, n + 1), "sum to"),
    "weights taken as probabilities": (lambda w, n: np.where(w > 0, np.maximum(np.rint(w * n), 1), 0).astype(int), "sum to"),
    "floats": (lambda w, n: counts_from_ones(w, n) * 1.0, "integers"),
    "no return": (lambda w, n: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_counts_are_accepted = accepted(coding.best_counts, [counts_from_ones, counts_by_moves, coding._best_counts])
test_wrong_counts_are_refused_with_a_reason = refused(coding.best_counts, COUNTS_WRONG)


def test_the_checkers_optimum_costs_what_the_packages_does():
    rng = np.random.default_rng(0)
    for k in (1, 2, 7, 40, 256):
        w = rng.dirichlet(np.full(k, 0.4)) + 1e-9
        best, package = coding._best_counts(w, TOTAL), quantise_pmf(w).astype(int)
        assert best.sum() == package.sum() == TOTAL
        assert abs(coding._cost(w, best) - coding._cost(w, package)) < 1e-11


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def decode_by(
    data, n, counts, order="little", refill=LOW, reverse=False, backwards=False, guard=True, end=True, zero=False
):
    """A decoder with switches: as it stands it is right, and each switch makes a usual mistake."""
    counts = [int(c) for c in counts]
    start = [sum(counts[:s]) for s in range(len(counts))]
    owner = [s for s, c in enumerate(counts) for _ in range(c)]
    if zero:
        owner = [start.index(start[s]) for s in owner]
    if guard and (len(data) < 4 or len(data) % 2):
        raise ValueError("truncated")
    x = int.from_bytes(data[:4], order)
    if guard and x < LOW:
        raise ValueError("state")
    words = [int.from_bytes(data[i : i + 2], order) for i in range(4, len(data), 2)]
    words = words if reverse else words[::-1]
    out = []
    for _ in range(n):
        slot = x % TOTAL
        s = owner[slot]
        x = counts[s] * (x // TOTAL) + slot - start[s]
        if x < refill:
            if not words and guard:
                raise ValueError("out of words")
            x = x << 16 | words.pop()
        out.append(s)
    if end and (x != LOW or words):
        raise ValueError("the stream does not end where the encoder began")
    return out[::-1] if backwards else out


def decode_with_numpy(data, n, counts):
    if len(data) < 4:
        raise ValueError("no state")
    x, words, at = int(np.frombuffer(data, "<u4", 1)[0]), np.frombuffer(data[4:], "<u2").astype(int), 0
    counts = np.asarray(counts)
    ends, out = np.cumsum(counts), np.zeros(n, np.uint8)
    if x < LOW:
        raise ValueError("state too small")
    for i in range(n):
        s = int(np.searchsorted(ends, x & (TOTAL - 1), side="right"))
        x = int(counts[s]) * (x >> 14) + (x & (TOTAL - 1)) - int(ends[s] - counts[s])
        while x < LOW:
            if at == len(words):
                raise ValueError("no word left")
            x, at = (x << 16) + int(words[at]), at + 1
        out[i] = s
    if at < len(words) or x != LOW:
        raise ValueError("does not end")
    return out


def decode_checked_by_assert(data, n, counts):
    try:
        return decode_by(data, n, counts)
    except ValueError as e:
        raise AssertionError(e) from None


def decode_ending_in(*tests):
    def decode(data, n, counts):
        """Right, but for an end check that looks at one thing only."""
        counts = [int(c) for c in counts]
        start, owner = coding._starts(counts), [s for s, c in enumerate(counts) for _ in range(c)]
        if len(data) < 4 or len(data) % 2:
            raise ValueError
        x, words, out = int.from_bytes(data[:4], "little"), np.frombuffer(data[4:], "<u2").tolist()[::-1], []
        for _ in range(n):
            s = owner[x % TOTAL]
            x = counts[s] * (x // TOTAL) + x % TOTAL - start[s]
            if x < LOW:
                if not words:
                    raise ValueError
                x = x << 16 | words.pop()
            out.append(s)
        if ("state" in tests and x != LOW) or ("words" in tests and words):
            raise ValueError
        return out

    return decode


def switched(**how):
    return lambda data, n, counts: decode_by(data, n, counts, **how)


DECODE_WRONG = {
    "words from the far end": (switched(reverse=True), "intact"),
    "big-endian": (switched(order="big"), "intact"),
    "message backwards": (switched(backwards=True), "backwards"),
    "never takes a word": (switched(refill=0, end=False), "symbol number"),
    "takes a word too early": (switched(refill=LOW + 1), "intact"),
    "takes a word at 2**14": (switched(refill=1 << 14, end=False), ""),
    "zero counts own slots": (switched(zero=True), ""),
    "no checks at all": (switched(guard=False, end=False), "ValueError"),
    "no check at the end": (switched(end=False), "as if nothing were wrong"),
    "end check looks at the state only": (decode_ending_in("state"), "as if nothing were wrong"),
    "end check looks at the words only": (decode_ending_in("words"), "as if nothing were wrong"),
    "IndexError when words run out": (switched(guard=False), "IndexError"),
    "AssertionError for damage": (decode_checked_by_assert, "AssertionError"),
    "the last symbol is forgotten": (lambda d, n, c: decode_by(d, n, c)[:-1], "integers in one row"),
    "no return": (lambda d, n, c: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_decoders_are_accepted = accepted(coding.decode_stream, [decode_by, decode_with_numpy, decode_ending_in("state", "words")])
test_wrong_decoders_are_refused_with_a_reason = refused(coding.decode_stream, DECODE_WRONG)
