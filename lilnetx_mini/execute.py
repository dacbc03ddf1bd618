"""The instructions of a planned network: one compiled function runs them all, on one array, without allocation.

The *arena* is a flat float32 array that holds every input, output and scratch plane; a plan is a table of integers, one row an
instruction. `lilnetx_mini.plan` writes the rows and says what they mean; nothing is checked here.

A value of shape (C, H, W) lies in the arena as C planes, `pitch` apart; in a plane, rows are `stride` apart, and what is
between W and the stride, and behind the last row, is zero. A vector is a value with one position a plane and pitch 1.
"""

from __future__ import annotations

import math
import os

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import njit
from .sparse import convolve

ZERO, COPY, CONV, LINEAR, POOL, MEAN, ACTIVATE, SCALE, ADD, MULTIPLY, GATE = range(11)
WIDTH = 21  # columns of the table
PATIENCE = 2000  # looks at the counter before a waiting thread gives way
CLAMP, HARDSWISH, HARDSIGMOID, SIGMOID, SILU, TANH = range(6)
ACTIVATIONS = {"hardswish": HARDSWISH, "hardsigmoid": HARDSIGMOID, "sigmoid": SIGMOID, "silu": SILU, "tanh": TANH}


def _counter(op: str):
    """Atomic access to array[0] from compiled functions: "add" one to it, or "load" it."""
    if config.DISABLE_JIT:  # then there is one thread
        return lambda array: array[0]

    @intrinsic
    def counted(typing, array):
        def generate(context, b, signature, arguments):
            pointer, one = context.make_array(array)(context, b, arguments[0]).data, ir.Constant(ir.IntType(64), 1)
            return b.atomic_rmw("add", pointer, one, "seq_cst") if op == "add" else b.load_atomic(pointer, "seq_cst", 8)

        return types.int64(array), generate

    return counted


def _yielder():
    """Let another thread have the processor, from compiled functions."""
    if config.DISABLE_JIT:
        return lambda: None

    @intrinsic
    def yielded(typing):
        def generate(context, b, signature, arguments):
            name = "SwitchToThread" if os.name == "nt" else "sched_yield"
            b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.IntType(32), []), name), [])
            return context.get_dummy_value()

        return types.void(), generate

    return yielded


_arrive, _arrivals, _yield = _counter("add"), _counter("load"), _yielder()


@njit(nogil=True)
def _meet(arrived, count):
    """Wait until `count` threads have arrived: without a break at first, as that is soonest, then letting others work."""
    _arrive(arrived)
    turns = 0
    while _arrivals(arrived) < count:
        turns += 1
        if turns > PATIENCE:
            _yield()


@njit(nogil=True)
def _share(n, part, parts):
    """First and last + 1 of n things that one of several threads takes."""
    return part * n // parts, (part + 1) * n // parts


@njit(nogil=True)
def _zero(arena, at, n, count, pitch):
    for c in range(count):
        for i in range(at + c * pitch, at + c * pitch + n):
            arena[np.uint64(i)] = 0


@njit(forceinline=True)
def _strided(arena, source, step, target, n):
    for i in range(n):
        arena[np.uint64(target + i)] = arena[np.uint64(source + i * step)]


@njit(nogil=True)
def _copy(arena, source, target, channels, rows, columns, step):
    """Planes to planes; source and target are (first position, pitch, between rows); step is between source columns."""
    for c in range(channels):
        for y in range(rows):
            a, b = source[0] + c * source[1] + y * source[2], target[0] + c * target[1] + y * target[2]
            if step == 1:  # steps that are constants make vectors
                _strided(arena, a, 1, b, columns)
            elif step == 2:
                _strided(arena, a, 2, b, columns)
            else:
                _strided(arena, a, step, b, columns)


@njit(nogil=True)
def _put(arena, x, place):
    """Planes from a contiguous array, zeros wherever they have room for more. `place` is (first, pitch, stride, C, H, W)."""
    at, pitch, stride, channels, rows, columns = place
    if stride == columns:
        rows, columns, stride = 1, rows * columns, rows * stride
    i = 0
    for c in range(channels):
        start = at + c * pitch
        for y in range(rows):
            for j in range(columns):
                arena[np.uint64(start + y * stride + j)] = x[np.uint64(i + j)]
            for j in range(columns, stride):
                arena[np.uint64(start + y * stride + j)] = 0
            i += columns
        for j in range(rows * stride, pitch):
            arena[np.uint64(start + j)] = 0


@njit(nogil=True)
def _get(arena, x, place):
    """Planes into a contiguous array."""
    at, pitch, stride, channels, rows, columns = place
    if stride == columns:
        rows, columns, stride = 1, rows * columns, rows * stride
    i = 0
    for c in range(channels):
        for y in range(rows):
            for j in range(columns):
                x[np.uint64(i + j)] = arena[np.uint64(at + c * pitch + y * stride + j)]
            i += columns


@njit(nogil=True, fastmath={"reassoc", "contract"})
def _linear(arena, x, y, rows, columns, weights, w0, bias, b0, lo, hi):
    """Some rows of weights times a vector."""
    for o in range(*rows):
        total = bias[b0 + o]
        at = w0 + o * columns
        for i in range(columns):
            total += weights[np.uint64(at + i)] * arena[np.uint64(x + i)]
        arena[y + o] = min(max(total, lo), hi)


@njit(nogil=True, fastmath={"contract"})
def _sparse_linear(arena, x, y, rows, weights, w0, index, i0, starts, r0, bias, b0, lo, hi):
    """The same where weights are stored with column numbers. Four sums, as each addition waits for the one before.

    They may not be reordered: the compiler would gather, which takes longer than single loads.
    """
    for o in range(*rows):
        begin, end = starts[r0 + o], starts[r0 + o + 1]
        a, b, c, d = bias[b0 + o], np.float32(0), np.float32(0), np.float32(0)
        for n in range(begin, end - 3, 4):
            w, i = w0 + n, i0 + n
            a += weights[np.uint64(w)] * arena[np.uint64(x + index[np.uint64(i)])]
            b += weights[np.uint64(w + 1)] * arena[np.uint64(x + index[np.uint64(i + 1)])]
            c += weights[np.uint64(w + 2)] * arena[np.uint64(x + index[np.uint64(i + 2)])]
            d += weights[np.uint64(w + 3)] * arena[np.uint64(x + index[np.uint64(i + 3)])]
        for n in range(end - (end - begin) % 4, end):
            a += weights[np.uint64(w0 + n)] * arena[np.uint64(x + index[np.uint64(i0 + n)])]
        arena[y + o] = min(max(a + b + c + d, lo), hi)


@njit(forceinline=True)
def _gather(arena, source, step, target, begin, end, largest):
    """target[i] becomes the larger of itself and source[step * i], or their sum; a step that is a constant makes vectors."""
    for i in range(begin, end):
        one, two = arena[np.uint64(target + i)], arena[np.uint64(source + step * i)]
        arena[np.uint64(target + i)] = max(one, two) if largest else one + two


@njit(nogil=True)
def _pool(arena, source, size, target, out_size, channels, kernel, stride, pad, largest, count_padding, scratch):
    """Largest or mean of every window: first over the window's rows, a whole row at a time, then along it, tap by tap."""
    (height, width), (kh, kw), (sh, sw), (ph, pw) = size, kernel, stride, pad
    start = np.float32(-np.inf) if largest else np.float32(0)
    for c in range(channels):
        for y in range(out_size[0]):
            top, bottom = max(0, y * sh - ph), min(height, y * sh - ph + kh)
            to = target[0] + c * target[1] + y * target[2]
            for i in range(width):
                arena[np.uint64(scratch + i)] = start
            for row in range(top, bottom):
                _gather(arena, source[0] + c * source[1] + row * source[2], 1, scratch, 0, width, largest)
            for x in range(out_size[1]):
                arena[np.uint64(to + x)] = start
            for k in range(kw):
                begin, end = max(0, -((k - pw) // sw)), min(out_size[1], (width - 1 - k + pw) // sw + 1)
                if sw == 2:
                    _gather(arena, scratch + k - pw, 2, to, begin, end, largest)
                else:
                    _gather(arena, scratch + k - pw, sw, to, begin, end, largest)
            if not largest:
                for x in range(out_size[1]):
                    left, right = max(0, x * sw - pw), min(width, x * sw - pw + kw)
                    if count_padding:  # windows may hang over the padding's far end, which does not count
                        down = min(y * sh + kh, height + 2 * ph) - y * sh
                        across = min(x * sw + kw, width + 2 * pw) - x * sw
                        arena[to + x] /= down * across
                    else:
                        arena[to + x] /= (bottom - top) * (right - left)


@njit(nogil=True, fastmath={"reassoc", "contract"})
def _mean(arena, source, pitch, n, channels, target, count):
    for c in range(channels):
        total = np.float32(0)
        for i in range(n):
            total += arena[np.uint64(source + c * pitch + i)]
        arena[target + c] = total / count


@njit(nogil=True)
def _activate(arena, source, target, pitch, stride, channels, rows, columns, kind, lo, hi):
    for c in range(channels):
        for y in range(rows):
            a = c * pitch + y * stride
            for i in range(columns):
                x = arena[np.uint64(source + a + i)]
                if kind == CLAMP:
                    x = min(max(x, lo), hi)
                elif kind == HARDSWISH:
                    x = x * min(max(x + np.float32(3), np.float32(0)), np.float32(6)) / np.float32(6)
                elif kind == HARDSIGMOID:
                    x = min(max(x + np.float32(3), np.float32(0)), np.float32(6)) / np.float32(6)
                elif kind == TANH:
                    x = np.float32(math.tanh(x))
                else:
                    e = np.float32(math.exp(-abs(x)))
                    gate = (np.float32(1) if x >= 0 else e) / (np.float32(1) + e)
                    x = gate if kind == SIGMOID else x * gate
                arena[np.uint64(target + a + i)] = x


@njit(nogil=True)
def _scale(arena, source, target, pitch, stride, channels, rows, columns, numbers, scale, shift):
    for c in range(channels):
        m, a = numbers[scale + c], numbers[shift + c]
        for y in range(rows):
            at = c * pitch + y * stride
            for i in range(columns):
                arena[np.uint64(target + at + i)] = arena[np.uint64(source + at + i)] * m + a


@njit(nogil=True)
def _combine(arena, one, two, target, n, multiply):
    for i in range(n):
        x, y = arena[np.uint64(one + i)], arena[np.uint64(two + i)]
        arena[np.uint64(target + i)] = x * y if multiply else x + y


@njit(nogil=True)
def _gate(arena, source, gate, gate_pitch, target, pitch, channels):
    for c in range(channels):
        m = arena[gate + c * gate_pitch]
        for i in range(pitch):
            arena[np.uint64(target + c * pitch + i)] = arena[np.uint64(source + c * pitch + i)] * m


@njit(nogil=True)
def run(arena, arrived, image, image_at, steps, limits, lists, result, result_at, begin, end, part, parts):
    """Instructions begin .. end - 1, of which each of `parts` threads does its part. `arrived` counts them at every end.

    Before the first of all, `image` comes in, a contiguous array; after the last, `result` is filled: where `_put` and `_get` say.
    """
    if begin == 0 and part == 0:
        _put(arena, image, image_at)
    if parts > 1:
        _meet(arrived, parts)
    weights, numbers = lists[1], lists[3]
    for n in range(begin, end):
        s = steps[n]
        lo, hi = limits[n, 0], limits[n, 1]
        kind = s[0]
        if kind == CONV:
            t0, kernel, rows, passes, span, b0 = s[2], s[3], s[4], s[5], s[6], s[7]
            to, pitch, length, residual, m0 = s[8], s[9], s[10], s[11], s[12]
            convolve(
                arena, s[1], lists, t0, kernel, rows, passes, span, b0, to, pitch, length, residual, lo, hi, m0, part, parts
            )
        elif kind == ZERO:
            first, last = _share(s[3], part, parts)
            _zero(arena, s[1] + first * s[4], s[2], last - first, s[4])
        elif kind == COPY:
            first, last = _share(s[7], part, parts)
            source, target = (s[1] + first * s[2], s[2], s[3]), (s[4] + first * s[5], s[5], s[6])
            _copy(arena, source, target, last - first, s[8], s[9], s[10])
        elif kind == LINEAR:
            rows = _share(s[3], part, parts)
            if s[4]:
                _linear(arena, s[1], s[2], rows, s[4], weights, s[5], numbers, s[8], lo, hi)
            else:
                _sparse_linear(arena, s[1], s[2], rows, weights, s[5], lists[0], s[6], lists[2], s[7], numbers, s[8], lo, hi)
        elif kind == POOL:
            size, out = (s[4], s[5]), (s[9], s[10])
            kernel, stride, pad = (s[12], s[13]), (s[14], s[15]), (s[16], s[17])
            source, target = (s[1], s[2], s[3]), (s[6], s[7], s[8])
            if part == 0:  # there is one scratch row
                _pool(arena, source, size, target, out, s[11], kernel, stride, pad, s[18] > 0, s[19] > 0, s[20])
        elif kind == MEAN:
            first, last = _share(s[4], part, parts)
            _mean(arena, s[1] + first * s[2], s[2], s[3], last - first, s[5] + first, s[6])
        elif kind == ACTIVATE:
            first, last = _share(s[5], part, parts)
            at = first * s[3]
            _activate(arena, s[1] + at, s[2] + at, s[3], s[4], last - first, s[6], s[7], s[8], lo, hi)
        elif kind == SCALE:
            first, last = _share(s[5], part, parts)
            at = first * s[3]
            _scale(arena, s[1] + at, s[2] + at, s[3], s[4], last - first, s[6], s[7], numbers, s[8] + first, s[9] + first)
        elif kind == GATE:
            first, last = _share(s[6], part, parts)
            at = first * s[5]
            _gate(arena, s[1] + at, s[2] + first * s[3], s[3], s[4] + at, s[5], last - first)
        else:
            first, last = _share(s[4], part, parts)
            _combine(arena, s[1] + first, s[2] + first, s[3] + first, last - first, kind == MULTIPLY)
        if parts > 1:
            _meet(arrived, parts * (n + 2 - begin))  # one meeting was before the first
    if end == len(steps) and part == 0:
        _get(arena, result, result_at)
