"""Adaptive coding of trained latents: probabilities that are learned while coding, by both sides alike.

A trained layer is not a bag of independent numbers: some output channels are nearly dead, some inputs hardly read, and
a slice with one non-zero weight tends to have several. A static table per group cannot say so. Here every yes-or-no
decision ("is this slice zero?", "is this coefficient zero?", "negative?", "larger than m?") is predicted from several
contexts at once, each a counter that has seen the decisions made in its situation; a small online mixer weighs their
opinions (logistic mixing, as in Mahoney's PAQ), and a binary arithmetic coder turns prediction and outcome into bytes.

What each context buys: bytes that the latents of trained files take more when it says nothing any more
(`benchmarks/contexts.py`).

                                digits   LeNet5   ResNet-20
    all of them                  2,575    2,035      34,017
    for flags
      row                           +9       -5         +69
      column                       +17       +4         +97
      row and column               +24       +5        +159
      layer before, for the outline +2      +57         +11
    for zeros
      place and count              +17       +2        +153
      neighbours in the kernel      -2       +8        +288
      layer                         +8      +23          +3
    for signs
      neighbours' signs, row        -1      +22      +1,532
    for magnitudes
      neighbours' sizes             -1       +2        +245
      layer                         -1      +10         +17

The ResNet-20 was compressed from trained weights, where neighbours resemble each other; the digits network learned its own
decoder, and has nothing left between neighbours. The static coder takes 2,948, 2,686 and 38,064.

Encoder and decoder run the very same kernel on integers alone, so they cannot disagree on any platform. The pure-Python
twin is the kernel itself with ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, LnxError
from .jit import njit
from .latent import LARGEST, IntArray

# -- fixed tables, built in integer arithmetic ------------------------------------------------------------------------

STEPS = 256  # stretched probabilities are in units of 1/256: log-odds between -8 and 8
HALF = 8 * STEPS


def _squash_table() -> NDArray[np.int32]:
    """65536 / (1 + exp(-x / 256)) for x = -2048 .. 2047, from powers of exp(-1/256) in 64-bit fixed point."""
    step, power, out = 18374827034086858296, 1 << 64, []  # floor(exp(-1/256) * 2**64)
    for _ in range(HALF + 1):
        out.append((1 << 81) // ((1 << 64) + power) + 1 >> 1)
        power = power * step >> 64
    upper = np.array(out, np.int64)
    return np.clip(np.concatenate([65536 - upper[:0:-1], upper[:-1]]), 24, 65536 - 24).astype(np.int32)


SQUASH = _squash_table().astype(np.uint16)
STRETCH = np.searchsorted(SQUASH, np.arange(4096) * 16 + 8, side="right") - 1 - HALF
STRETCH = np.clip(STRETCH, -HALF, HALF - 1).astype(np.int16)
# A counter is one integer: its probability of a one in 65536ths, and in the low byte how many decisions it has seen.
FRESH = 32768 << 8
LIMIT = 255  # it stops slowing down after this many
RATE = (2 * 65536 // (2 * np.arange(LIMIT + 1) + 3)).astype(np.int32)  # 1 / (n + 1.5), in 65536ths
_twice = 2 * np.arange(LIMIT + 1)
TRUST = (256 * (_twice + 1) // (_twice + 4)).astype(np.int32)  # in 256ths: new counters speak softly
LEARN = 15  # the mixer's learning rate is 2**-LEARN in its units
START_WEIGHT = 20000  # of 65536, for each context

# -- the arithmetic coder ---------------------------------------------------------------------------------------------
# Its state `ac` is (lowest, highest, code, position): an interval of 32-bit numbers, the number being decoded and the place
# in the buffer. Leading bytes that both ends share are settled and leave the interval. The state is a tuple that every
# function takes and returns, never an array: so it stays in registers. `io` is (buffer, decoding or not).


@njit(forceinline=True)
def _split(bit, p, ac, io):
    """Divide the interval by p / 65536, the probability of a 1: (whether the outcome is 1, last number of the lower part).

    Encoding, the outcome is `bit`; decoding, it is where the code lies. Invariant: lowest < highest, the code in between.
    """
    lowest, highest, code, _ = ac
    middle = lowest + ((highest - lowest) * p >> 16)
    return code <= middle if io[1] else bit != 0, middle


@njit(forceinline=True)
def _narrow(lowest, highest, ac, io):
    """The coder's state after its interval became lowest .. highest: bytes that both ends share leave it."""
    _, _, code, at = ac
    buf, decoding = io
    while (lowest ^ highest) & 0xFF000000 == 0:
        if decoding:
            following = np.int64(buf[at]) if at < buf.size else 0
            code = (code << 8 | following) & 0xFFFFFFFF
        elif at < buf.size:
            buf[at] = highest >> 24
        at += 1
        lowest = lowest << 8 & 0xFFFFFFFF
        highest = highest << 8 & 0xFFFFFFFF | 0xFF
    return lowest, highest, code, at


@njit(forceinline=True)
def _code(bit, p, ac, io):
    """One decision with probability p / 65536 of being 1: (outcome, state)."""
    one, middle = _split(bit, p, ac, io)
    if one:
        return 1, _narrow(ac[0], middle, ac, io)
    return 0, _narrow(middle + 1, ac[1], ac, io)


@njit(forceinline=True)
def _opinion(c, counters):
    """What counter c says: its log-odds in units of 1 / STEPS, softened while it has seen little; and its state."""
    state = np.int64(counters[np.uint64(c)])  # unsigned indices: Numba then leaves out its check for negative ones
    return np.int64(STRETCH[np.uint64(state >> 12)]) * np.int64(TRUST[np.uint64(state & 255)]) >> 8, state


@njit(forceinline=True)
def _one(c, state, counters):
    """Counter c has seen a one: it moves up from `state`, by less the more it has seen."""
    n = state & 255
    counters[np.uint64(c)] = state + ((65535 - (state >> 8)) * np.int64(RATE[np.uint64(n)]) >> 16 << 8) + (n < LIMIT)


@njit(forceinline=True)
def _zero(c, state, counters):
    """Counter c has seen a zero."""
    n = state & 255
    counters[np.uint64(c)] = state - ((state >> 8) * np.int64(RATE[np.uint64(n)]) >> 16 << 8) + (n < LIMIT)


@njit(forceinline=True)
def _predict(mixed):
    """The probability of a one, in 65536ths, for mixed log-odds."""
    return np.int64(SQUASH[np.uint64(min(max(mixed >> 16, -HALF), HALF - 1) + HALF)])


# One decision predicted by the counters that ctx names, mixed with the weights w; then both learn. Returns (outcome,
# weights, coder state). Two contexts each, and the learning is written out for either outcome: behind the branch the
# processor may start on it before the outcome is certain, and with weights in registers that decodes twice as fast.


@njit(forceinline=True)
def _decide(bit, ctx, w, counters, ac, io):
    c0, c1 = ctx
    w0, w1 = w
    s0, n0 = _opinion(c0, counters)
    s1, n1 = _opinion(c1, counters)
    p = _predict(w0 * s0 + w1 * s1)
    one, middle = _split(bit, p, ac, io)
    if one:
        error = 65536 - p
        _one(c0, n0, counters)
        _one(c1, n1, counters)
        return 1, (w0 + (s0 * error >> LEARN), w1 + (s1 * error >> LEARN)), _narrow(ac[0], middle, ac, io)
    _zero(c0, n0, counters)
    _zero(c1, n1, counters)
    return 0, (w0 - (s0 * p >> LEARN), w1 - (s1 * p >> LEARN)), _narrow(middle + 1, ac[1], ac, io)


@njit
def _spent(ac):
    """Bits that the coder has spent so far, but for a constant: for reports only, no coded bit depends on it."""
    lowest, highest, _, at = ac
    return 8.0 * at - np.log2(highest - lowest + 1.0)


@njit
def _charge(cost, line, before, ac):
    """Put what was spent since `before` on a line of the bill; none is kept where `cost` is empty."""
    if cost.size:
        cost[line] += _spent(ac) - before


@njit(forceinline=True)
def _past_end(ac, io):
    """A decoder that has read more than the zeros behind its stream: there is nothing to decode any more."""
    return io[1] and ac[3] > io[0].size + 4


@njit
def _alive(alive, fed, kind, counters, ac, io):
    """Which rows (kind 0) or columns (kind 1) of a layer hold anything. At least one does, so the last may be known.

    Contexts: the two flags before this one, and whether the layer before wrote the channel that this one reads (`fed`).
    """
    w = np.int64(START_WEIGHT), np.int64(START_WEIGHT)
    before, some = 3, 0
    for i in range(alive.size):
        flag = np.int64(1)
        if some or i + 1 < alive.size:
            ctx = 4 * kind + before, 8 + 3 * kind + fed[i]
            flag, w, ac = _decide(np.int64(alive[i]), ctx, w, counters, ac, io)
        alive[i] = flag
        before, some = 2 * before & 2 | flag, some | flag
    return ac


@njit
def _flags(flags, rows, cols, ac, io, cost):
    """Significance of every slice, layer by layer; `flags` is read or filled.

    First which columns (input channels) and rows (output channels) hold anything at all; a network trained with a slice
    prior has many that do not, and none of their slices is looked at again. Then the slices that are left, row by row.
    Contexts: the row, and the column. A slice that must be there, or its row or column would be empty after all, needs no
    flag.
    """
    layers, most_rows, most_cols = rows.size, rows.max(), cols.max()
    counters = np.full(most_rows + most_cols, FRESH, np.int32)
    outline = np.full(17, FRESH, np.int32)
    row_alive, col_alive = np.zeros(most_rows, np.int64), np.zeros(most_cols, np.int64)
    fed, unknown = np.full(most_cols, 2), np.full(most_rows, 2)
    seen = np.zeros(most_cols, np.int64)
    w = np.int64(START_WEIGHT)
    start, something = 0, 1
    for layer in range(layers):
        r, c = rows[layer], cols[layer]
        fed[:] = 2
        if layer and rows[layer - 1] == c:
            fed[:c] = row_alive[:c]
        here = flags[start : start + r * c].reshape(r, c)
        start += r * c
        before = _spent(ac)
        something, _, ac = _decide(np.int64(here.any()), (14, 15 + something), (w, w), outline, ac, io)
        row_alive[:] = 0
        if not something:
            _charge(cost, layer, before, ac)
            continue
        for i in range(c):
            col_alive[i] = here[:, i].any()
        for o in range(r):
            row_alive[o] = here[o].any()
        ac = _alive(col_alive[:c], fed, 1, outline, ac, io)
        ac = _alive(row_alive[:r], unknown, 0, outline, ac, io)
        last_row, last_col = r - 1, c - 1
        while not row_alive[last_row]:
            last_row -= 1
        while not col_alive[last_col]:
            last_col -= 1
        counters[:] = FRESH
        seen[:] = 0
        mixer = w, w
        for o in range(r):
            if not row_alive[o]:
                continue
            if _past_end(ac, io):
                return ac
            found = 0
            for i in range(c):
                if not col_alive[i]:
                    continue
                flag = np.int64(1)
                if (found or i < last_col) and (seen[i] or o < last_row):
                    flag, mixer, ac = _decide(here[o, i], (o, most_rows + i), mixer, counters, ac, io)
                here[o, i] = flag
                found, seen[i] = found | flag, seen[i] | flag
        _charge(cost, layer, before, ac)
    return ac


@njit(forceinline=True)
def _magnitude(value, near, layer, w, counters, ac, io):
    """A magnitude of at least 1: up to 14 "is it larger?" decisions, each with the next counters, then Exp-Golomb."""
    m = 1
    while m < 15:
        more, w, ac = _decide(np.int64(value > m), (near + m, layer + m), w, counters, ac, io)
        if more == 0:
            return m, w, ac
        m += 1
    rest = value - 15
    bits = 0
    while bits < 15:  # how many bits rest + 1 has beyond its first
        more, ac = _code(np.int64((rest + 1) >> (bits + 1) > 0), 32768, ac, io)
        if more == 0:
            break
        bits += 1
    low = 1
    for b in range(bits - 1, -1, -1):
        bit, ac = _code((rest + 1) >> b & 1, 32768, ac, io)
        low = low << 1 | bit
    return 14 + low, w, ac


@njit
def _coefficients(q, flags, rows, cols, width, ac, io, cost):
    """Values of the non-zero slices, position by position: zero or not, sign, magnitude. `q` is read or filled.

    Contexts of "is it zero?": the position, how many non-zeros came before it in this slice, and the neighbours to the left
    and above inside the kernel; the layer and the position. Of the sign: those neighbours' signs; the row with the left
    one's. Of the magnitude: those neighbours' sizes; the layer. The last position of a slice with nothing before it needs no
    flag: the slice is known not to be zero.
    """
    d = q.shape[1]
    layers, most_rows = rows.size, rows.max()
    z_layer = 36 * d
    s_near = z_layer + d * layers
    s_row = s_near + 9
    m_near = s_row + 3 * most_rows - 1  # a magnitude's first decision uses the counter one further on
    m_layer = m_near + 16 * 9
    counters = np.full(m_layer + 16 * layers + 1, FRESH, np.int32)
    w = np.int64(START_WEIGHT)
    w_zero, w_sign, w_size = (w, w), (w, w), (w, w)
    at = 0
    for layer in range(layers):
        paid = _spent(ac)
        counters[s_row : s_row + 3 * most_rows] = FRESH
        for o in range(rows[layer]):
            for _ in range(cols[layer]):
                if flags[at]:
                    if _past_end(ac, io):
                        return ac
                    count = column = 0
                    value = np.int64(0)
                    for j in range(d):
                        left = value if column else 0
                        up = q[at, np.uint64(j - width)] if j >= width else 0
                        column = column + 1 if column + 1 < width else 0
                        near = 3 * min(abs(left), 2) + min(abs(up), 2)
                        value = q[at, j]
                        nonzero, few = 1, min(count, 3)
                        if j < d - 1 or count > 0:
                            ctx = 9 * (4 * j + few) + near, z_layer + d * layer + j
                            nonzero, w_zero, ac = _decide(np.int64(value != 0), ctx, w_zero, counters, ac, io)
                        if nonzero:
                            count += 1
                            side, above = np.sign(left) + 1, np.sign(up) + 1
                            signs = (s_near + 3 * side + above, s_row + 3 * o + side)
                            negative, w_sign, ac = _decide(np.int64(value < 0), signs, w_sign, counters, ac, io)
                            sizes = (m_near + 16 * near, m_layer + 16 * layer)
                            size, w_size, ac = _magnitude(abs(value), *sizes, w_size, counters, ac, io)
                            value = -size if negative else size
                        else:
                            value = 0
                        q[at, j] = value
                at += 1
        _charge(cost, layer, paid, ac)
    return ac


@njit
def _decide_kind(bit, here, joint, weights, at, counters, ac, io):
    """`_decide` with weights kept in an array, one pair for every kind of number."""
    bit, w, ac = _decide(bit, (here, joint), (weights[at, 0], weights[at, 1]), counters, ac, io)
    weights[at, 0], weights[at, 1] = w
    return bit, ac


@njit
def _ints(values, kinds, kind_count, ac, io, cost):
    """Plain integers: zero or not, sign, number of bits, then the bits below the first. Contexts: the kind of number,
    and the kind together with the size of the number before."""
    per = 2 + 20 + 20
    counters = np.full(kind_count * per * 19, FRESH, np.int32)
    weights = np.full((kind_count * 3, 2), START_WEIGHT * 3 // 2, np.int64)
    size_before = 0
    for n in range(values.size):
        if _past_end(ac, io):
            return ac
        kind, value, before = kinds[n], values[n], _spent(ac)
        here = per * kind
        joint = per * (kind_count + kind * 18 + size_before)
        size_before = 0
        w = 3 * kind
        nonzero, ac = _decide_kind(np.int64(value != 0), here, joint, weights, w, counters, ac, io)
        if nonzero:
            negative, ac = _decide_kind(np.int64(value < 0), here + 1, joint + 1, weights, w + 1, counters, ac, io)
            size = abs(value)
            bits = 0
            while bits < 16:
                more = np.int64(size >> (bits + 1) > 0)
                more, ac = _decide_kind(more, here + 2 + bits, joint + 2 + bits, weights, w + 2, counters, ac, io)
                if more == 0:
                    break
                bits += 1
            out = 1
            for b in range(bits - 1, -1, -1):
                bit = size >> b & 1
                if b == bits - 1:  # the bit below the first is still worth a prediction
                    bit, ac = _decide_kind(bit, here + 22 + bits, joint + 22 + bits, weights, w + 1, counters, ac, io)
                else:
                    bit, ac = _code(bit, 32768, ac, io)
                out = out << 1 | bit
            values[n] = -out if negative else out
            size_before = bits + 1
        else:
            values[n] = 0
        _charge(cost, kind, before, ac)
    return ac


# -- bytes in, bytes out ----------------------------------------------------------------------------------------------


def _tail(ac: tuple[int, int, int, int]) -> bytes:
    """The shortest ending that the decoder, which reads zeros after it, takes for a number inside the interval."""
    lowest, highest = int(ac[0]), int(ac[1])
    for n in range(4):
        number = -(-lowest >> 8 * (4 - n)) << 8 * (4 - n)
        if number <= highest:
            return number.to_bytes(4, "big")[:n]
    return lowest.to_bytes(4, "big")


def _start(code: int, at: int) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    return np.int64(0), np.int64(0xFFFFFFFF), np.int64(code), np.int64(at)


def _encode(kernel, args: tuple, lines: int, guess: int) -> tuple[bytes, NDArray[np.float64]]:
    """Run a kernel as encoder; if the buffer was too small, once more with the size that it turned out to need."""
    while True:
        buf, cost = np.zeros(guess, np.uint8), np.zeros(lines)
        ac = kernel(*args, _start(0, 0), (buf, False), cost)
        if ac[3] <= guess:
            return buf[: ac[3]].tobytes() + _tail(ac), cost
        guess = int(ac[3])


def _decode(kernel, args: tuple, lines: int, data: bytes) -> NDArray[np.float64]:
    """Run a kernel as decoder, accounting bits to so many lines (0: not at all).

    Every sequence of decisions has exactly one stream; LnxError for bytes that are not it.
    """
    buf, cost = np.frombuffer(data, np.uint8).copy(), np.zeros(lines)
    head = (data[:4] + b"\0\0\0\0")[:4]
    ac = kernel(*args, _start(int.from_bytes(head, "big"), 4), (buf, True), cost)
    end = int(ac[3]) - 4
    if end > len(data):
        raise LnxError("stream", f"decoding went on past the end of the stream's {len(data)} bytes (damaged?)")
    if data[end:] != _tail(ac):
        raise LnxError(
            "stream",
            f"{len(data)} bytes, but what they decode to takes {end + len(_tail(ac))} or other ones (damaged?)",
        )
    return cost


def _shapes(shapes: list[tuple[int, int]], slices: int) -> tuple[NDArray, NDArray]:
    rows, cols = (np.array(x, np.int64) for x in zip(*shapes, strict=True))
    if int((rows * cols).sum()) != slices:
        raise InputError(f"layers of {shapes} slices do not make up {slices}")
    return rows, cols


def encode_flags(flags: NDArray, shapes: list[tuple[int, int]]) -> tuple[bytes, NDArray[np.float64]]:
    """Significance flags (S,) of layers with the given (rows, columns): returns the stream and the bits of each layer."""
    rows, cols = _shapes(shapes, len(flags))
    return _encode(_flags, (np.array(flags, np.int64), rows, cols), len(shapes), len(flags) // 4 + 64)


def decode_flags(
    data: bytes, shapes: list[tuple[int, int]], slices: int, account: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The inverse of `encode_flags`: (S,) zeros and ones, and the bits of each layer unless `account` is off."""
    rows, cols = _shapes(shapes, slices)
    flags = np.zeros(slices, np.int64)
    return flags, _decode(_flags, (flags, rows, cols), len(shapes) if account else 0, data)


def encode_coefficients(q: IntArray, shapes: list[tuple[int, int]], width: int) -> tuple[bytes, NDArray[np.float64]]:
    """Values (S, d) of the slices that are not zero; `width` is the kernel's last extent. Returns stream and bits a layer."""
    rows, cols = _shapes(shapes, len(q))
    q = np.array(q, np.int64)
    if np.abs(q).max(initial=0) > LARGEST:
        raise InputError(f"latents up to {np.abs(q).max()}: at most {LARGEST} can be coded")
    flags = q.any(1).astype(np.int64)
    return _encode(_coefficients, (q, flags, rows, cols, width), len(shapes), 2 * int(flags.sum()) * q.shape[1] + 64)


def decode_coefficients(
    data: bytes, flags: NDArray, shapes: list[tuple[int, int]], d: int, width: int, account: bool = True
) -> tuple[IntArray, NDArray[np.float64]]:
    """The inverse of `encode_coefficients`, given the flags: (S, d) integers, and the bits of each layer."""
    rows, cols = _shapes(shapes, len(flags))
    q = np.zeros((len(flags), d), np.int64)
    args = (q, np.asarray(flags, np.int64), rows, cols, width)
    cost = _decode(_coefficients, args, len(shapes) if account else 0, data)
    if np.abs(q).max(initial=0) > LARGEST:
        raise LnxError("stream", f"a latent of {np.abs(q).max()} is beyond {LARGEST} (damaged?)")
    return q, cost


def count_decisions(q: IntArray) -> int:
    """How many yes-or-no decisions the latents (S, d) take: flags, then zero, sign and magnitude of every coefficient."""
    q = np.abs(np.asarray(q, np.int64))
    alive = q[q.any(1)]
    forced = ~alive[:, :-1].any(1)  # the last position of such a slice needs no flag
    return len(q) + alive.size - int(forced.sum()) + int((alive > 0).sum() + np.minimum(alive, 14).sum())


def encode_ints(values: IntArray, kinds: IntArray) -> tuple[bytes, NDArray[np.float64]]:
    """Integers (n,) below 2**17 with a small non-negative kind each: returns the stream and the bits of each kind."""
    values, kinds = np.array(values, np.int64), np.asarray(kinds, np.int64)
    if np.abs(values).max(initial=0) >= 1 << 17:
        raise InputError(f"integers up to {np.abs(values).max()}: below {1 << 17} is needed")
    count = int(kinds.max(initial=0)) + 1
    return _encode(_ints, (values, kinds, count), count, 4 * values.size + 64)


def decode_ints(data: bytes, kinds: IntArray) -> tuple[IntArray, NDArray[np.float64]]:
    """The inverse of `encode_ints`."""
    kinds = np.asarray(kinds, np.int64)
    count = int(kinds.max(initial=0)) + 1
    values = np.zeros(kinds.size, np.int64)
    return values, _decode(_ints, (values, kinds, count), count, data)
