"""A convolution that touches only the weights that are not zero.

Every convolution becomes one list. Write each zero-padded input plane as one flat vector, row after row. A weight w of tap
(ky, kx) that leads from input channel c to output channel o then means: add w times *the whole plane c, moved by a fixed
offset*, to the whole plane o. So an output channel is a list of pairs (offset, weight), and its plane is

    out[p] = bias + sum over its pairs of weight * x[offset + p]        for every position p at once

The columns past the end of each row hold garbage that is skipped on reading. A stride s splits the padded plane into s * s
planes of every s-th row and column; each tap reads one of them, and the stride is gone. Dilation and groups change offsets
alone. A zero weight has no pair: it costs nothing at all, and a zero slice leaves out its k * k pairs at once.

The kernel keeps 64 positions of one output plane in vector registers while it walks through the pairs: one load and one
multiply-add for 16 results, and no store until the list ends. Numba cannot be talked into that from Python (it would keep
the sums in memory), so the walk is written in LLVM's own language, in `_walk`; `walk` says the same in Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .errors import InputError
from .jit import njit

Array = NDArray[np.float32]

LANES = 16  # floats a vector; processors with shorter ones use two or four
BLOCK = 4 * LANES  # positions of an output plane that stay in registers
NEAR = 24 * 1024  # bytes of input that one pass may touch, so that they stay in the first-level cache


def walk(x: Array, base: int, offsets: NDArray, weights: Array, start: int, end: int, out: Array, at: int, n: int) -> None:
    """The kernel's specification: add pairs start .. end - 1 to n positions of a flat output plane.

    x, out  flat float32; positions base .. base + n - 1 of the input's geometry go to at .. at + n - 1 of the output's
    """
    for i in range(start, end):
        source = base + offsets[i]
        out[at : at + n] += weights[i] * x[source : source + n]


def _walk(vectors: int):
    """`walk` for n = LANES * vectors positions, all held in registers, as an intrinsic for compiled functions."""

    def signature_of(x, offsets, weights, out):
        i8 = types.int64
        return types.void(x, i8, offsets, weights, i8, i8, out, i8)

    def generate(context, builder, signature, arguments):
        _, base, _, _, start, end, _, at = arguments
        number, index = ir.FloatType(), ir.IntType(64)
        vector = ir.VectorType(number, LANES)

        def data(position):
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        def element(pointer, i, kind):
            return builder.gep(pointer, [i], source_etype=kind)

        def vector_at(pointer, i):
            return builder.bitcast(element(pointer, i, number), vector.as_pointer())

        def moved(i, k):
            return builder.add(i, ir.Constant(index, k * LANES))

        def everywhere(value):
            lanes = ir.VectorType(ir.IntType(32), LANES)
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(lanes, [0] * LANES))

        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        x_data, offset_data, weight_data, out_data = data(0), data(2), data(3), data(6)
        targets = [vector_at(out_data, moved(at, k)) for k in range(vectors)]
        before = [builder.load(t, align=4, typ=vector) for t in targets]
        entry, loop, done = builder.block, builder.append_basic_block("pair"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", start, end), loop, done)

        builder.position_at_end(loop)
        i = builder.phi(index)
        sums = [builder.phi(vector) for _ in range(vectors)]
        offset = builder.load(element(offset_data, i, ir.IntType(32)), typ=ir.IntType(32))
        weight = everywhere(builder.load(element(weight_data, i, number), typ=number))
        source = builder.add(base, builder.sext(offset, index))
        inputs = [builder.load(vector_at(x_data, moved(source, k)), align=4, typ=vector) for k in range(vectors)]
        after = [builder.call(multiply_add, [a, weight, b]) for a, b in zip(inputs, sums, strict=True)]
        following = builder.add(i, ir.Constant(index, 1))
        for phi, first, next_ in zip([i, *sums], [start, *before], [following, *after], strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(next_, loop)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)

        builder.position_at_end(done)
        results = [builder.phi(vector) for _ in range(vectors)]
        for phi, first, last in zip(results, before, after, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(last, loop)
        for phi, target in zip(results, targets, strict=True):
            builder.store(phi, target, align=4)
        return context.get_dummy_value()

    if config.DISABLE_JIT:
        return lambda *arguments: walk(*arguments, LANES * vectors)

    @intrinsic
    def walked(typing, x, base, offsets, weights, start, end, out, at):
        return signature_of(x, offsets, weights, out), generate

    return walked


_walk1, _walk2, _walk3, _walk4 = (_walk(n) for n in (1, 2, 3, 4))


@njit(nogil=True)
def _convolve(x, offsets, weights, first, passes, bias, length, out):
    """All output planes (outputs * length, flat) of one image; `first` has the pairs of every (pass, output channel)."""
    outputs = bias.size
    for o in range(outputs):
        out[o * length : (o + 1) * length] = bias[o]
    p = 0
    while p < length:
        n = min(64, length - p)
        for k in range(passes):
            for o in range(outputs):
                start, end, at = first[k * outputs + o], first[k * outputs + o + 1], o * length + p
                if n == 64:
                    _walk4(x, p, offsets, weights, start, end, out, at)
                elif n == 48:
                    _walk3(x, p, offsets, weights, start, end, out, at)
                elif n == 32:
                    _walk2(x, p, offsets, weights, start, end, out, at)
                else:
                    _walk1(x, p, offsets, weights, start, end, out, at)
        p += n


@njit(forceinline=True)
def _copy(source, start, target, at, n):
    """n numbers from one flat array to another; indices are unsigned, so that the loop becomes vector moves."""
    for i in range(n):
        target[np.uint64(at + i)] = source[np.uint64(start + i)]


@njit(nogil=True)
def _spread(image, shape, phases, stride, pad, rows, columns, plane, flat):
    """One image, flat (C * H * W), into the planes of every phase; the padding is zero already and stays so."""
    channels, height, width = shape
    for n in range(phases.shape[0]):
        shift = phases[n, 1] - pad[1]
        low = max(0, -(shift // stride[1]))
        high = min(columns, (width - 1 - shift) // stride[1] + 1)
        for c in range(channels):
            for y in range(rows):
                row = y * stride[0] + phases[n, 0] - pad[0]
                if 0 <= row < height:
                    source = (c * height + row) * width + shift + low * stride[1]
                    at = (n * channels + c) * plane + y * columns + low
                    if stride[1] == 1:
                        _copy(image, source, flat, at, high - low)
                    else:
                        for i in range(high - low):
                            flat[np.uint64(at + i)] = image[np.uint64(source + i * stride[1])]


@njit(nogil=True)
def _gather(planes, columns, length, size, out):
    """The valid part of the flat output planes, as flat (O * H * W)."""
    outputs, height, width = size
    for o in range(outputs):
        for y in range(height):
            _copy(planes, o * length + y * columns, out, (o * height + y) * width, width)


class SparseConv:
    """A planned two-dimensional convolution for inputs of one size.

    layer = SparseConv(w, bias, (C, H, W), stride=(2, 2), padding=(1, 1))
    y = layer(x)                     # (N, C, H, W) float32 -> (N, O, *layer.size)

    w         (O, C / groups, kh, kw) float32; zeros cost nothing
    bias      (O,) or None
    shape     (C, H, W) of one input
    raises    InputError if the shapes do not fit together
    """

    def __init__(
        self,
        w: Array,
        bias: Array | None,
        shape: tuple[int, int, int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> None:
        w, (channels, height, width) = np.asarray(w, np.float32), shape
        if w.ndim != 4 or groups < 1 or w.shape[1] * groups != channels or w.shape[0] % groups:
            raise InputError(f"weights of shape {w.shape} in {groups} groups do not fit {channels} input channels")
        outputs, kernel = w.shape[0], w.shape[2:]
        padded = [n + 2 * p for n, p in zip((height, width), padding, strict=True)]
        span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        self.size = tuple((n - s) // t + 1 for n, s, t in zip(padded, span, stride, strict=True))
        if min(self.size) < 1:
            raise InputError(f"a kernel that spans {span} does not fit into {padded} pixels")
        bias = np.zeros(outputs) if bias is None else np.asarray(bias)
        if bias.shape != (outputs,):
            raise InputError(f"a bias of shape {bias.shape} for {outputs} output channels")
        self.shape, self.stride, self.pad = tuple(shape), np.array(stride), np.array(padding)
        self.bias = np.ascontiguousarray(bias, np.float32)
        taps = [(y * dilation[0], x * dilation[1]) for y in range(kernel[0]) for x in range(kernel[1])]
        phases = sorted({(y % stride[0], x % stride[1]) for y, x in taps})
        self.phases = np.array(phases, np.int64)
        self.rows, self.columns = (-(-n // s) for n, s in zip(padded, stride, strict=True))
        self.plane = -(-self.rows * self.columns // LANES) * LANES
        self.length = -(-self.size[0] * self.columns // LANES) * LANES
        step = [y // stride[0] * self.columns + x // stride[1] for y, x in taps]
        at = [phases.index((y % stride[0], x % stride[1])) * channels * self.plane for y, x in taps]
        self._list_pairs(w, np.add(step, at), groups, channels, len(phases))
        # the last block of the last tap may look past the last plane
        self._input = np.zeros(len(phases) * channels * self.plane + max(step) + self.length, np.float32)
        self._output = np.empty(outputs * self.length, np.float32)

    def _list_pairs(self, w: Array, tap_offsets: NDArray, groups: int, channels: int, phases: int) -> None:
        """Pairs sorted by pass, output channel, input channel and tap; a pass reads few enough channels to stay near."""
        reach = BLOCK + int(tap_offsets.max()) % (channels * self.plane)
        self.passes = max(1, math.ceil(channels * phases * min(reach, self.plane) * 4 / NEAR))
        each = math.ceil(channels / self.passes)
        o, c, y, x = np.nonzero(w)
        weights, tap = w[o, c, y, x], y * w.shape[3] + x
        c = c + o // (len(w) // groups) * w.shape[1]
        order = np.lexsort((tap, c, o, c // each))
        self.offsets = (c * self.plane + tap_offsets[tap])[order].astype(np.int32)
        self.weights = weights[order]
        counts = np.bincount((c // each) * len(w) + o, minlength=self.passes * len(w))
        self.first = np.concatenate([[0], np.cumsum(counts)])

    @property
    def macs(self) -> int:
        """Multiply-adds that one image really takes, zeros left out."""
        return len(self.weights) * math.prod(self.size)

    def __call__(self, x: Array) -> Array:
        """(N, C, H, W) to (N, O, *size)."""
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise InputError(f"input of shape {x.shape}: this layer was planned for (N, {', '.join(map(str, self.shape))})")
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(x), len(self.bias), *self.size), np.float32)
        geometry = self.rows, self.columns, self.plane
        for image, result in zip(x, out, strict=True):
            _spread(image.ravel(), self.shape, self.phases, self.stride, self.pad, *geometry, self._input)
            lists = self.offsets, self.weights, self.first, self.passes
            _convolve(self._input, *lists, self.bias, self.length, self._output)
            _gather(self._output, self.columns, self.length, result.shape, result.ravel())
        return out
