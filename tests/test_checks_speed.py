"""Checkers of notebook 07: right answers pass, plausible wrong ones are refused with a reason."""

import itertools

import numpy as np
from scipy.signal import correlate2d
from verdicts import accepted, refused

from lilnetx_mini import conv
from lilnetx_mini.checks import speed


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def offsets_loop(kernel, padding, dilation, row):
    out = np.zeros(kernel, int)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            out[i, j] = (i * dilation[0] - padding[0]) * row + j * dilation[1] - padding[1]
    return out


def offsets_lists(kernel, padding, dilation, row):
    down = [i * dilation[0] - padding[0] for i in range(kernel[0])]
    return [[y * row + j * dilation[1] - padding[1] for j in range(kernel[1])] for y in down]


def offsets_grid(kernel, padding, dilation, row):
    i, j = np.indices(kernel)
    return (i * dilation[0] - padding[0]) * row + (j * dilation[1] - padding[1])


OFFSETS_WRONG = {
    "no padding": (lambda k, p, d, r: offsets_grid(k, (0, 0), d, r), "padding is missing"),
    "padding added": (lambda k, p, d, r: offsets_grid(k, (-p[0], -p[1]), d, r), "added"),
    "no dilation": (lambda k, p, d, r: offsets_grid(k, p, (1, 1), r), "dilation is missing"),
    "padding dilated": (lambda k, p, d, r: offsets_grid(k, (p[0] * d[0], p[1] * d[1]), d, r), "padding too"),
    "from the middle": (lambda k, p, d, r: offsets_grid(k, (k[0] // 2, k[1] // 2), d, r), "middle"),
    "from the middle, dilated": (
        lambda k, p, d, r: offsets_grid(k, (k[0] // 2 * d[0], k[1] // 2 * d[1]), d, r), "middle"),
    "turned round": (lambda k, p, d, r: -offsets_grid(k, p, d, r), "turned round"),
    "padding's axes swapped": (lambda k, p, d, r: offsets_grid(k, p[::-1], d, r), "padding are swapped"),
    "dilation's axes swapped": (lambda k, p, d, r: offsets_grid(k, p, d[::-1], r), "dilation are swapped"),
    "rows as wide as the kernel": (lambda k, p, d, r: offsets_grid(k, p, d, k[1]), "in memory"),
    "rows and columns swapped": (lambda k, p, d, r: offsets_grid(k[::-1], p[::-1], d[::-1], r).T, "rows and columns"),
    "row forgotten": (lambda k, p, d, r: offsets_grid(k, p, d, 1), "in memory"),
    "only for 3x3, padding 1": (lambda k, p, d, r: offsets_grid((3, 3), (1, 1), (1, 1), r), "shape"),
    "in one row": (lambda k, p, d, r: offsets_grid(k, p, d, r).ravel(), "shape"),
    "floats": (lambda k, p, d, r: offsets_grid(k, p, d, r) / 1, "integers"),
    "no return": (lambda k, p, d, r: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_offsets_are_accepted = accepted(speed.tap_offsets, [offsets_loop, offsets_lists, offsets_grid])
test_wrong_offsets_are_refused_with_a_reason = refused(speed.tap_offsets, OFFSETS_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def lists_loop(w, at, plane, groups):
    offsets, weights, starts = [], [], [0]
    outputs, into = w.shape[:2]
    for o in range(outputs):
        first = o // (outputs // groups) * into
        for c in range(into):
            for ky, kx in np.ndindex(*w.shape[2:]):
                if w[o, c, ky, kx]:
                    offsets.append((first + c) * plane + at[ky, kx])
                    weights.append(w[o, c, ky, kx])
        starts.append(len(weights))
    return np.array(offsets, int), np.array(weights, np.float32), np.array(starts)


def lists_numpy(w, at, plane, groups):
    o, c, ky, kx = np.nonzero(w)
    c = c + o // (len(w) // groups) * w.shape[1]
    return c * plane + at[ky, kx], w[w != 0], np.searchsorted(o, np.arange(len(w) + 1))


def lists_backwards(w, at, plane, groups):
    """In another order within every list."""
    offsets, weights, starts = lists_loop(w, at, plane, groups)
    for a, b in itertools.pairwise(starts):
        offsets[a:b], weights[a:b] = offsets[a:b][::-1].copy(), weights[a:b][::-1].copy()
    return [offsets.tolist(), weights.tolist(), starts.tolist()]


def wrong_lists(change):
    def answer(w, at, plane, groups):
        return change(*lists_loop(w, at, plane, groups), w)

    return answer


def lists_with_zeros(w, at, plane, groups):
    return (
        lists_numpy(np.where(w == 0, np.float32(7), w), at, plane, groups)[0],
        w.ravel(),
        np.arange(len(w) + 1) * w[0].size,
    )


def lists_by_slice(w, at, plane, groups):
    offsets, weights, starts = [], [], [0]
    for o in range(len(w)):
        for c in range(w.shape[1]):
            if w[o, c].any():
                offsets += (c * plane + at).ravel().tolist()
                weights += w[o, c].ravel().tolist()
        starts.append(len(weights))
    return np.array(offsets, int), np.array(weights), np.array(starts)


def lists_rounded(w, at, plane, groups):
    return lists_numpy(np.where(np.isclose(w, 0), np.float32(0), w), at, plane, groups)


def lists_in_place(w, at, plane, groups):
    out = lists_numpy(w, at, plane, groups)
    w[:] = 0
    return out


def lists_of_silent_outputs_lost(w, at, plane, groups):
    offsets, weights, _ = lists_numpy(w, at, plane, groups)
    o = np.nonzero(w)[0]
    return offsets, weights, np.append(np.unique(o, return_index=True)[1], len(o))


def lists_sorted_by_channel(w, at, plane, groups):
    """A walk over channels first: entries of one output are not together."""
    c, o, ky, kx = np.nonzero(w.swapaxes(0, 1))
    starts = lists_numpy(w, at, plane, groups)[2]
    return (c + o // (len(w) // groups) * w.shape[1]) * plane + at[ky, kx], w[o, c, ky, kx], starts


LISTS_WRONG = {
    "zeros listed": (lists_with_zeros, "weight 0"),
    "whole slices listed": (lists_by_slice, "weight 0"),
    "nearly zero dropped": (lists_rounded, "is missing"),
    "groups ignored": (lambda w, at, plane, groups: lists_numpy(w, at, plane, 1), "another group"),
    "plane forgotten": (lambda w, at, plane, groups: lists_numpy(w, at, 0, groups), "plane is missing"),
    "without the last start": (wrong_lists(lambda o, v, s, w: (o, v, s[:-1])), "one more"),
    "ends instead": (wrong_lists(lambda o, v, s, w: (o, v, s[1:])), "one more"),
    "lengths instead": (wrong_lists(lambda o, v, s, w: (o, v, np.append(np.diff(s), s[-1]))), "lengths"),
    "begins with the first end": (wrong_lists(lambda o, v, s, w: (o, v, np.append(s[1:], s[-1]))), "begins at 0"),
    "silent outputs lost": (lists_of_silent_outputs_lost, "starts"),
    "channels first": (lists_sorted_by_channel, "other outputs"),
    "taps turned round": (lambda w, at, plane, groups: lists_loop(w, at[::-1, ::-1], plane, groups), "reads it at"),
    "offsets shifted": (wrong_lists(lambda o, v, s, w: (o + 1, v, s)), "reads it at"),
    "weights in another order": (wrong_lists(lambda o, v, s, w: (o, v[::-1], s)), ""),
    "the last entry missing": (wrong_lists(lambda o, v, s, w: (o[:-1], v[:-1], s)), "is missing"),
    "an offset too many": (wrong_lists(lambda o, v, s, w: (np.append(o, 0), v, s)), "offsets, but"),
    "float offsets": (wrong_lists(lambda o, v, s, w: (o * 1.0, v, s)), "integers"),
    "two things": (wrong_lists(lambda o, v, s, w: (o, v)), "3 things"),
    "w spoilt": (lists_in_place, "argument w"),
    "no return": (lambda w, at, plane, groups: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_lists_are_accepted = accepted(speed.make_lists, [lists_loop, lists_numpy, lists_backwards])
test_wrong_lists_are_refused_with_a_reason = refused(speed.make_lists, LISTS_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def conv_loop(x, offsets, weights, starts, bias, length):
    out = np.zeros((len(bias), length), np.float32)
    for o in range(len(bias)):
        out[o] = bias[o]
        for e in range(starts[o], starts[o + 1]):
            out[o] += weights[e] * x[offsets[e] : offsets[e] + length]
    return out


def conv_gather(x, offsets, weights, starts, bias, length):
    rows = []
    for o, (a, b) in enumerate(itertools.pairwise(starts)):
        rows.append(bias[o] + weights[a:b] @ x[offsets[a:b, None] + np.arange(length)])
    return np.stack(rows).astype(np.float32)


def conv_by_blocks(x, offsets, weights, starts, bias, length, block=16):
    out = np.empty((len(bias), length), np.float32)
    for b in range(0, length, block):
        n = min(block, length - b)
        for o in range(len(bias)):
            total = np.full(n, bias[o], np.float32)
            for e in range(starts[o], starts[o + 1]):
                total = total + weights[e] * x[offsets[e] + b : offsets[e] + b + n]
            out[o, b : b + n] = total
    return out


def switched_conv(start=None, each=None, sign=1, to=None, last=0, keep=False):
    """A convolution with switches: each makes a usual mistake."""

    def answer(x, offsets, weights, starts, bias, length):
        out = np.zeros((len(bias), length), np.float32)
        for o in range(len(bias)):
            out[o] = bias[o] if start is None else start
            for e in range(starts[o], starts[o + 1] + last):
                at = offsets[e] if sign > 0 else x.size - length - offsets[e]
                term = weights[e] * x[at : at + length] + (bias[o] if each else 0)
                out[o] = term if keep else out[o] + term
        return out.astype(to) if to else out

    return answer


def conv_in_place(x, *rest):
    out = conv_loop(x, *rest)
    x *= 2
    return out


def conv_reduceat(x, offsets, weights, starts, bias, length):
    """np.add.reduceat gives an empty list the entry that follows it."""
    terms = weights[:, None] * x[offsets[:, None] + np.arange(length)]
    if not len(terms):
        return conv_loop(x, offsets, weights, starts, bias, length)
    at = np.minimum(starts[:-1], len(terms) - 1)
    return (bias[:, None] + np.add.reduceat(terms, at, axis=0)).astype(np.float32)


CONV_WRONG = {
    "no bias": (switched_conv(start=0), "bias is missing"),
    "bias with every entry": (switched_conv(start=0, each=True), "once"),
    "replaces": (switched_conv(keep=True), "do not replace"),
    "replaces, with bias": (switched_conv(start=None, each=True, keep=True), "do not replace"),
    "one entry too many": (switched_conv(last=1), ""),
    "one entry too few": (switched_conv(last=-1), ""),
    "offsets turned round": (switched_conv(sign=-1), ""),
    "float64": (switched_conv(to=np.float64), "float32"),
    "one place further on": (
        lambda x, a, *rest: conv_loop(np.append(x, x[:1]), a + 1, *rest), ""),
    "empty lists take the next entry": (conv_reduceat, "no entry"),
    "empty outputs are zero": (
        lambda x, a, w, s, b, n: conv_loop(x, a, w, s, np.where(np.diff(s) > 0, b, np.float32(0)), n), "should be the bias"),
    "integers": (lambda *c: conv_loop(*c).astype(np.int32), "float32"),
    "transposed": (lambda *c: conv_loop(*c).T, "shape"),
    "x spoilt": (conv_in_place, "argument x"),
    "no return": (lambda *c: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_convolutions_are_accepted = accepted(speed.sparse_conv, [conv_loop, conv_gather, conv_by_blocks, switched_conv()])
test_wrong_convolutions_are_refused_with_a_reason = refused(speed.sparse_conv, CONV_WRONG)


def test_the_three_answers_together_are_a_convolution():
    rng = np.random.default_rng(0)
    x = rng.integers(-5, 6, (2, 6, 7)).astype(np.float32)
    w = (rng.integers(-3, 4, (3, 2, 3, 3)) * (rng.random((3, 2, 3, 3)) < 0.4)).astype(np.float32)
    bias = np.array([1, -2, 0], np.float32)
    row, plane = 8, 7 * 8
    flat = np.zeros(row + 1 + 2 * plane + 1, np.float32)
    flat[row + 1 : -1].reshape(2, 7, row)[:, :6, :7] = x
    lists = speed._make_lists(w, row + 1 + speed._tap_offsets((3, 3), (1, 1), (1, 1), row), plane, 1)
    out = speed._sparse_conv(flat, *lists, bias, 6 * row).reshape(3, 6, row)[:, :, :7]
    want = [sum(correlate2d(x[c], w[o, c], "same") for c in range(2)) + bias[o] for o in range(3)]
    assert np.array_equal(out, want) and np.array_equal(out, conv.conv(x[None], w, bias, (1, 1), (1, 1), (1, 1))[0])


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def fold(w, bias, u, padding):
    w, bias = w.astype(np.float64), bias.astype(np.float64)
    constant = np.isfinite(u)
    if not any(padding):
        bias = bias + w[:, constant].sum((2, 3)) @ u[constant]
        w[:, constant] = 0
        return w, bias
    w[:, u == 0] = 0
    others = np.flatnonzero(constant & (u != 0) & w.any((0, 2, 3)))
    if len(others):
        kept = others[np.abs(u[others]).argmax()]
        w[:, kept] = sum(w[:, c] * (u[c] / u[kept]) for c in others)
        w[:, others[others != kept]] = 0
    return w, bias


def fold_by_loops(w, bias, u, padding):
    w, bias, kept = w.copy(), bias.copy(), None
    for c in range(len(u)):
        if np.isnan(u[c]) or not w[:, c].any():
            continue
        if u[c] == 0:
            w[:, c] = 0
        elif padding == (0, 0):
            bias += w[:, c].sum(axis=(1, 2)) * np.float32(u[c])
            w[:, c] = 0
        elif kept is None:
            kept = c
        else:
            w[:, kept] += w[:, c] * np.float32(u[c] / u[kept])
            w[:, c] = 0
    return w, bias


def fold_always(w, bias, u, padding):
    return fold(w, bias, u, (0, 0))


def fold_never(w, bias, u, padding):
    return w, bias


def fold_rows_only(w, bias, u, padding):
    return fold(w, bias, u, (padding[0], 0) if padding[0] else (0, 0))


def fold_dropping(w, bias, u, padding):
    return np.where(np.isnan(u)[:, None, None], w, np.float32(0)), bias


def fold_middle(w, bias, u, padding):
    new, shift = fold(w, bias, u, padding)
    if not any(padding):
        steady = np.isfinite(u)
        shift = bias + w[:, steady, w.shape[2] // 2, w.shape[3] // 2] @ u[steady]
    return new, shift


def fold_subtracting(w, bias, u, padding):
    new, shift = fold(w, bias, u, padding)
    return new, 2 * bias - shift


def fold_with(factor):
    def answer(w, bias, u, padding):
        if not any(padding):
            return fold(w, bias, u, padding)
        w = w.copy()
        w[:, u == 0] = 0
        others = np.flatnonzero(np.isfinite(u) & (u != 0) & w.any((0, 2, 3)))
        for c in others[1:]:
            w[:, others[0]] += w[:, c] * np.float32(factor(u[c], u[others[0]]))
            w[:, c] = 0
        return w, bias

    return answer


def fold_dividing_by_zero(w, bias, u, padding):
    if not any(padding):
        return fold(w, bias, u, padding)
    w, others = w.copy(), np.flatnonzero(np.isfinite(u))
    if len(others) == 1:
        return fold(w, bias, u, padding)
    for c in others[1:]:
        w[:, others[0]] += w[:, c] * np.float32(u[c] / u[others[0]])
        w[:, c] = 0
    return w, bias


def fold_nan(w, bias, u, padding):
    new, shift = fold(w, bias, u, padding)
    return new, shift if any(padding) else bias + w.sum((2, 3)) @ u


def fold_varying_too(w, bias, u, padding):
    return fold(w, bias, np.nan_to_num(u), padding)


def fold_merging_only(w, bias, u, padding):
    return fold(w, bias, u, (1, 1))


def fold_leaving_zeros(w, bias, u, padding):
    return fold(w, bias, np.where((u == 0) & any(padding), np.nan, u), padding)


def fold_into_unread(w, bias, u, padding):
    """The largest constant is chosen, also where nobody reads it: but only when others are merged into it."""
    new, shift = fold(w, bias, u, padding)
    if any(padding) and np.isfinite(u).any():
        new = new.copy()
        steady = np.flatnonzero(np.isfinite(u) & (u != 0))
        if len(steady) and not new[:, steady].any():
            new[:, steady[0]] = 1e-7
    return new, shift


def fold_in_place(w, bias, u, padding):
    new, shift = fold(w, bias, u, padding)
    bias += 1
    return new, shift


def fold_and_cut(w, bias, u, padding):
    new, shift = fold(w, bias, u, padding)
    return new[:, new.any((0, 2, 3))], shift


FOLD_WRONG = {
    "padding ignored": (fold_always, "border"),
    "padding of the columns ignored": (fold_rows_only, "border"),
    "nothing done": (fold_never, "still read"),
    "dropped without a trace": (fold_dropping, "stands for"),
    "middle tap only": (fold_middle, "all 9 taps"),
    "subtracted": (fold_subtracting, "subtracted"),
    "merged without a factor": (fold_with(lambda u, kept: 1), "ratio"),
    "factor turned round": (fold_with(lambda u, kept: kept / u), "ratio"),
    "factor of the constant alone": (fold_with(lambda u, kept: u), "ratio"),
    "merged into a zero": (fold_dividing_by_zero, "not all finite"),
    "NaN in the bias": (fold_nan, "finite"),
    "varying channels removed": (fold_varying_too, "varies have changed"),
    "merged where the bias would do": (fold_merging_only, "without padding"),
    "zeros left": (fold_leaving_zeros, "is zero everywhere"),
    "not merged": (lambda w, b, u, p: fold(w, b, u, p) if not any(p) else (
        np.where((u == 0)[:, None, None], np.float32(0), w), b), "one can stand for all"),
    "an unread channel read": (fold_into_unread, "was not read"),
    "bias spoilt": (fold_in_place, "argument bias"),
    "channels cut off": (fold_and_cut, "shape"),
    "only the weight": (lambda w, b, u, p: w, "2 things"),
    "no return": (lambda w, b, u, p: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_folding_is_accepted = accepted(speed.fold_constants, [fold, fold_by_loops], times=5)
test_wrong_folding_is_refused_with_a_reason = refused(speed.fold_constants, FOLD_WRONG)
