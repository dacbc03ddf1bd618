"""Adaptive coding of trained latents: probabilities that are learned while coding, by both sides alike.

A trained layer is not a bag of independent numbers: some output channels are nearly dead, some inputs hardly read, and
a slice with one non-zero weight tends to have several. A static table per group cannot say so. Here every yes-or-no
decision ("is this slice zero?", "is this coefficient zero?", "negative?", "larger than m?") is predicted from several
contexts at once, each a counter that has seen the decisions made in its situation; a small online mixer weighs their
opinions (logistic mixing, as in Mahoney's PAQ), and a binary arithmetic coder turns prediction and outcome into bytes.

Encoder and decoder run the very same kernel on integers alone, so they cannot disagree on any platform. The pure-Python
twin is the kernel itself with ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .errors import InputError, LnxError
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


SQUASH = _squash_table()
STRETCH = (
    np.clip(np.searchsorted(SQUASH, np.arange(4096) * 16 + 8, side="right") - 1, 0, 2 * HALF - 1).astype(np.int64)
    - HALF
)
LIMIT = 255  # a counter stops slowing down after this many decisions
RATE = (2 * 65536 // (2 * np.arange(LIMIT + 1) + 3)).astype(np.int64)  # 1 / (n + 1.5)
TRUST = (256 * (2 * np.arange(LIMIT + 1) + 1) // (2 * np.arange(LIMIT + 1) + 4)).astype(
    np.int64
)  # a new counter speaks softly
COST = -np.log2((np.arange(4096) + 0.5) / 4096)  # for reports only: no coded bit depends on it

LEARN = 14  # the mixer's learning rate is 2**-LEARN in its units
START_WEIGHT = 20000  # of 65536, for each context

# -- the arithmetic coder ---------------------------------------------------------------------------------------------
# Its state `ac` is (lowest, highest, code, position): an interval of 32-bit numbers, the number being decoded and the place
# in the buffer. Leading bytes that both ends share are settled and leave the interval. The state is a tuple that every
# function takes and returns, never an array: so it stays in registers. `io` is (buffer, decoding or not, bits by line).


@njit(cache=True, forceinline=True)
def _code(bit, p, ac, io):
    """One decision with probability p / 65536 of being 1. Invariant: lowest < highest, and code lies between them."""
    lowest, highest, code, at = ac
    buf, decoding, _ = io
    middle = lowest + ((highest - lowest) * p >> 16)
    if decoding:
        bit = np.int64(code <= middle)
    if bit:
        highest = middle
    else:
        lowest = middle + 1
    while (lowest ^ highest) & 0xFF000000 == 0:
        if decoding:
            following = np.int64(buf[at]) if at < buf.size else 0
            code = (code << 8 | following) & 0xFFFFFFFF
        elif at < buf.size:
            buf[at] = highest >> 24
        at += 1
        lowest = lowest << 8 & 0xFFFFFFFF
        highest = highest << 8 & 0xFFFFFFFF | 0xFF
    return bit, (lowest, highest, code, at)


@njit(cache=True, forceinline=True)
def _decide(bit, ctx, weights, counters, ac, io, line):
    """One decision predicted by the counters that the tuple ctx names, mixed with `weights`; both learn from it."""
    prob, seen, stretched = counters
    dot = 0
    for j in range(len(ctx)):  # indices are made unsigned: Numba then leaves out its check for negative ones
        c = np.uint64(ctx[j])
        s = np.int64(STRETCH[np.uint64(prob[c] >> 4)]) * TRUST[np.uint64(seen[c])] >> 8
        stretched[j] = s
        dot += weights[j] * s
    x = min(max(dot >> 16, -HALF), HALF - 1)
    p = np.int64(SQUASH[np.uint64(x + HALF)])
    bit, ac = _code(bit, p, ac, io)
    cost = io[2]
    if cost.size:
        cost[line] += COST[p >> 4] if bit else COST[4095 - (p >> 4)]
    error = (bit << 16) - p
    target = (bit << 16) - bit
    for j in range(len(ctx)):
        c = np.uint64(ctx[j])
        weights[j] += stretched[j] * error >> LEARN
        n = seen[c]
        prob[c] += (target - prob[c]) * RATE[np.uint64(n)] >> 16
        seen[c] = min(n + 1, LIMIT)
    return bit, ac


@njit(cache=True)
def _counters(size):
    """So many counters at one half, none of which has seen anything, and room for the mixer's inputs."""
    return np.full(size, 32768, np.int64), np.zeros(size, np.int64), np.zeros(6, np.int64)


@njit(cache=True)
def _past_end(ac, io):
    """A decoder that has read more than the zeros behind its stream: there is nothing to decode any more."""
    return io[1] and ac[3] > io[0].size + 4


@njit(cache=True)
def _flags(flags, rows, cols, ac, io):
    """Significance of every slice, layer by layer, row by row; `flags` is read or filled.

    Contexts: the layer, the row (output channel), the column (input channel), the three neighbours before this slice,
    and how alive row and column have been so far, jointly.
    """
    layers, most_rows, most_cols = rows.size, rows.max(), cols.max()
    base_row = layers
    base_col = base_row + most_rows
    base_near = base_col + most_cols
    base_joint = base_near + 8 * layers
    counters = _counters(base_joint + 256)
    prob, seen, _ = counters
    at = 0
    for layer in range(layers):
        prob[base_row:base_near] = 32768
        seen[base_row:base_near] = 0
        weights = np.full(5, START_WEIGHT)
        for o in range(rows[layer]):
            if _past_end(ac, io):
                return ac
            for i in range(cols[layer]):
                left = flags[at - 1] if i > 0 else 0
                left2 = flags[at - 2] if i > 1 else 0
                up = flags[at - cols[layer]] if o > 0 else 0
                row, col = base_row + o, base_col + i
                near = base_near + 8 * layer + 4 * left + 2 * left2 + up
                joint = base_joint + 16 * (prob[row] >> 12) + (prob[col] >> 12)
                flags[at], ac = _decide(flags[at], (layer, row, col, near, joint), weights, counters, ac, io, layer)
                at += 1
    return ac


@njit(cache=True)
def _magnitude(value, near, layer, place, weights, counters, ac, io, line):
    """A magnitude of at least 1: up to 14 "is it larger?" decisions, each with the next counters, then Exp-Golomb."""
    m = 1
    while m < 15:
        more, ac = _decide(np.int64(value > m), (near + m, layer + m, place + m), weights, counters, ac, io, line)
        if more == 0:
            return m, ac
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
    if io[2].size:
        io[2][line] += 2 * bits + 1
    return 14 + low, ac


@njit(cache=True)
def _coefficients(q, flags, rows, cols, width, ac, io):
    """Values of the non-zero slices, position by position: zero or not, sign, magnitude. `q` is read or filled.

    Contexts: the position and how many non-zeros came before it in this slice, the neighbours to the left and above
    inside the kernel, the layer, the row, and the same position of the row's last non-zero slice. The last position of a
    slice with nothing before it needs no flag: the slice is known not to be zero.
    """
    d = q.shape[1]
    layers, most_rows = rows.size, rows.max()
    z_near = 4 * d
    z_layer = z_near + 9
    z_row = z_layer + 4 * layers
    z_last = z_row + most_rows
    s_near = z_last + 3 * d
    s_last = s_near + 9
    s_layer = s_last + 3 * d
    s_row = s_layer + layers
    m_near = s_row + 3 * most_rows - 1  # a magnitude's first decision uses the counter one further on
    m_layer = m_near + 16 * 9
    m_place = m_layer + 16 * layers
    counters = _counters(m_place + 16 * d + 1)
    prob, seen, _ = counters
    w_zero, w_sign, w_size = np.full(5, START_WEIGHT), np.full(4, START_WEIGHT), np.full(3, START_WEIGHT)
    last = np.zeros(d, np.int64)
    at = 0
    for layer in range(layers):
        prob[z_row:z_last], seen[z_row:z_last] = 32768, 0
        prob[s_row : s_row + 3 * most_rows], seen[s_row : s_row + 3 * most_rows] = 32768, 0
        for o in range(rows[layer]):
            last[:] = 0
            for _ in range(cols[layer]):
                if flags[at]:
                    if _past_end(ac, io):
                        return ac
                    count = 0
                    for j in range(d):
                        left = q[at, j - 1] if j % width else 0
                        up = q[at, j - width] if j >= width else 0
                        near = 3 * min(abs(left), 2) + min(abs(up), 2)
                        value = q[at, j]
                        nonzero, few = 1, min(count, 3)
                        if j < d - 1 or count > 0:
                            here, before = z_layer + 4 * layer + few, z_last + 3 * j + min(abs(last[j]), 2)
                            ctx = (4 * j + few, z_near + near, here, z_row + o, before)
                            nonzero, ac = _decide(np.int64(value != 0), ctx, w_zero, counters, ac, io, layer)
                        if nonzero:
                            count += 1
                            side, above, before = np.sign(left) + 1, np.sign(up) + 1, np.sign(last[j]) + 1
                            signs = (
                                s_near + 3 * side + above,
                                s_last + 3 * j + before,
                                s_layer + layer,
                                s_row + 3 * o + side,
                            )
                            negative, ac = _decide(np.int64(value < 0), signs, w_sign, counters, ac, io, layer)
                            sizes = (m_near + 16 * near, m_layer + 16 * layer, m_place + 16 * j)
                            size, ac = _magnitude(abs(value), *sizes, w_size, counters, ac, io, layer)
                            value = -size if negative else size
                        else:
                            value = 0
                        q[at, j] = value
                        last[j] = value
                at += 1
    return ac


@njit(cache=True)
def _ints(values, kinds, kind_count, ac, io):
    """Plain integers: zero or not, sign, number of bits, then the bits below the first. Contexts: the kind of number,
    and the kind together with the size of the number before."""
    per = 2 + 20 + 40
    counters = _counters(kind_count * per * 19)
    weights = np.full((kind_count, 3, 6), START_WEIGHT * 3 // 2, np.int64)
    size_before = 0
    for n in range(values.size):
        if _past_end(ac, io):
            return ac
        kind, value = kinds[n], values[n]
        here = per * kind
        joint = per * (kind_count + kind * 18 + size_before)
        size_before = 0
        nonzero, ac = _decide(np.int64(value != 0), (here, joint), weights[kind, 0], counters, ac, io, kind)
        if nonzero:
            negative, ac = _decide(np.int64(value < 0), (here + 1, joint + 1), weights[kind, 1], counters, ac, io, kind)
            size = abs(value)
            bits = 0
            while bits < 16:
                ctx = (here + 2 + bits, joint + 2 + bits)
                more, ac = _decide(np.int64(size >> (bits + 1) > 0), ctx, weights[kind, 2], counters, ac, io, kind)
                if more == 0:
                    break
                bits += 1
            out = 1
            for b in range(bits - 1, -1, -1):
                bit = size >> b & 1
                if b == bits - 1:
                    bit, ac = _decide(bit, (here + 22 + bits,), weights[kind, 1], counters, ac, io, kind)
                else:
                    bit, ac = _code(bit, 32768, ac, io)
                    if io[2].size:
                        io[2][kind] += 1
                out = out << 1 | bit
            values[n] = -out if negative else out
            size_before = bits + 1
        else:
            values[n] = 0
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
        ac = kernel(*args, _start(0, 0), (buf, False, cost))
        if ac[3] <= guess:
            return buf[: ac[3]].tobytes() + _tail(ac), cost
        guess = int(ac[3])


def _decode(kernel, args: tuple, lines: int, data: bytes) -> NDArray[np.float64]:
    """Run a kernel as decoder, accounting bits to so many lines (0: not at all).

    Every sequence of decisions has exactly one stream; LnxError for bytes that are not it.
    """
    buf, cost = np.frombuffer(data, np.uint8).copy(), np.zeros(lines)
    head = (data[:4] + b"\0\0\0\0")[:4]
    ac = kernel(*args, _start(int.from_bytes(head, "big"), 4), (buf, True, cost))
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
