"""The convolution kernel: it touches only weights that are not zero.

**One list.** Write an input plane as one flat vector, row after row, with zeros between the rows and the planes wherever a
neighbour may look past an edge. A weight w of tap (ky, kx) that leads from input channel c to output channel o then means: add
w times *the whole plane c, moved by a fixed offset*, to the whole plane o. So an output plane is

    out[p] = bias + sum over its weights of w * x[offset + p]        for every position p at once

and a weight that is zero has no entry in the output's list: it costs nothing. Dilation, groups and padding change offsets
alone; a stride s splits the plane into s * s planes of every s-th row and column, each tap reads one of them, and the stride is
gone.

**In registers.** A block of positions of one output stays in vector registers while its whole list is added to it. An entry is
one multiply-add for each of them, whose input comes straight from the cache. Four such lists of equal length are walked in step
where that hides how long one addition waits for the one before.

**Three taps.** A row of a 3x3 kernel would read the same inputs three times, moved by one. Instead the block has three sums,
one for each tap: an entry loads its inputs once and adds them to all three, and only the finished sums are moved and added up.
The block loses its last two positions.

**Four outputs.** Without taps in threes, loading is what takes the time. Where few weights are zero, four outputs share a list,
zeros included, and every input is loaded once for the four.

Which kernel a layer gets is decided by `expected`, from what each was measured to take on this machine. Numba would keep the
sums in memory, so the kernels are written in LLVM's own language, `_walker`; `walk` says the same in Python.
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .jit import njit

Array = NDArray[np.float32]


def _machine() -> tuple[int, int]:
    """Floats in a vector register, and how many registers there are."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 32
    return (8 if features.get("avx") else 4), (32 if platform.machine().lower() in ("arm64", "aarch64") else 16)


WIDTH, REGISTERS = _machine()
LANES = 16  # distances of planes are multiples of this, so that vectors begin where cache lines do
BLOCK = 128  # the most positions at a time, on any machine
TAPS = (3, 2, 1)  # of an entry, in this order
OUTPUTS = len(TAPS) + 2
ROW = OUTPUTS + 4  # numbers in the table for a walk: first entry, last of each number of taps, first weight, four outputs
NONE = 1 << 40  # where no residual is added
WORTH = 2  # outputs that want a shared entry, on average, before sharing lists is considered: it saves loads, not sums
FILLED = 8  # entries that a list should have in a pass; with fewer, it costs more to begin it than the near cache saves
DENSITIES = 0.2, 0.8  # of the layers on which kernels are measured


@dataclass(frozen=True)
class Kernel:
    """One of the kernels.

    members  outputs that are walked together
    shared   whether they have one list, or each its own, as long as the others'
    vectors  of each output that stay in registers, at most
    taps     of an entry, at most; each has a sum of its own
    near     bytes of input that a pass over the channels may touch for a block, and
    far      for all blocks that one list is walked on before the next: what fits into the first-level cache, or the second
    """

    members: int
    shared: bool
    vectors: int
    taps: int
    near: int
    far: int

    @property
    def lost(self) -> int:
        """Positions at the end of a block that are not computed."""
        return self.taps - 1

    @property
    def late(self) -> bool:
        """Whether a pass adds at its end what was there: so that it need not wait for that, or because it has several sums."""
        return self.taps > 1 or (self.members > 1 and not self.shared)


TRIPLES, SINGLE, STEP, SHARED = range(4)
KERNELS = (
    Kernel(1, False, 8 if REGISTERS == 32 else 4, 3, 64 * 1024, 384 * 1024),
    Kernel(1, False, 8, 1, 384 * 1024, 384 * 1024),
    Kernel(4, False, 5 if REGISTERS == 32 else 2, 1, 20 * 1024, 20 * 1024),
    Kernel(4, True, 4 if REGISTERS == 32 else 2, 1, 20 * 1024, 20 * 1024),
)


def walk(kernel, arena, base, lists, t0, t1, b0, to, pitch, start, end, m0, v, n) -> None:
    """The kernels' specification: the entries of one row of the table, added to n positions of its outputs.

    arena    flat float32: inputs, outputs, everything
    base     where the first of the positions lies in the input's first plane
    lists    (offsets, weights, table, bias, masks)
    t0       table[t0:] is the row, see ROW. An entry has an offset, or one for each output where they have lists of their own;
             then weights, first by tap, then by output. Tap t reads arena[base + offset + t : ... + n]
    t1       the next row, whose outputs the processor may fetch already
    b0       bias[b0 + o] is that of output o
    to       where the first of the positions lies in the first output plane; planes are `pitch` apart
    start    (residual, first): start from the bias, and from what lies `residual` further on (NONE: nothing), if this
             is the first pass, or else from what is there
    end      (last, lo, hi): if this is the last pass, clamp to [lo, hi] and put zeros where masks[m0:] is zero
    v        vectors that hold n positions and those that are lost
    """
    (offsets, weights, table, bias, masks), (residual, first), (last, lo, hi) = lists, start, end
    k = KERNELS[kernel]
    outputs = table[t0 + OUTPUTS : t0 + OUTPUTS + k.members]
    at = [to + o * pitch for o in outputs]
    total = [np.full(n, bias[b0 + o], np.float32) if first else arena[a : a + n].copy() for o, a in zip(outputs, at, strict=True)]
    if first and residual != NONE:
        total = [x + arena[a + residual : a + residual + n] for x, a in zip(total, at, strict=True)]
    entry, weight, each = table[t0], table[t0 + OUTPUTS - 1], 1 if k.shared else k.members
    for loop, taps in enumerate(TAPS):
        while entry < table[t0 + loop + 1]:
            for t in range(taps):
                for j in range(k.members):
                    source = base + offsets[entry * each + j % each] + t
                    total[j] = total[j] + weights[weight] * arena[source : source + n]
                    weight += 1
            entry += 1
    for x, a in zip(total, at, strict=True):
        arena[a : a + n] = np.where(masks[m0 : m0 + n], np.clip(x, lo, hi), 0) if last else x


def _walker(kernel: int):
    """`walk` of one kernel as an intrinsic for compiled functions.

    n is what the kernel computes of the vectors' positions; of the last vector it may be fewer, where positions are lost.
    """
    if config.DISABLE_JIT:
        return functools.partial(walk, kernel)

    @intrinsic
    def walked(typing, arena, base, lists, t0, t1, b0, to, pitch, start, end, m0, v, n):
        given = (arena, base, lists, t0, t1, b0, to, pitch, start, end, m0, v, n)
        return types.void(*given), lambda *context: _choose(KERNELS[kernel], *context)

    return walked


def _choose(kernel: Kernel, context, b, signature, arguments):
    """LLVM code of a call: a switch between the sizes that v may have."""
    after, v = b.append_basic_block(), arguments[11]
    blocks = {n: b.append_basic_block() for n in range(1, kernel.vectors + 1)}
    switch = b.switch(v, blocks[1])
    for n in range(2, kernel.vectors + 1):
        switch.add_case(ir.Constant(v.type, n), blocks[n])
    for n, block in blocks.items():
        b.position_at_end(block)
        _generate(kernel, n, context, b, signature, arguments)
        b.branch(after)
    b.position_at_end(after)
    return context.get_dummy_value()


def _generate(kernel: Kernel, vectors: int, context, b, signature, arguments) -> None:
    """LLVM code of one size. Sums live in stack slots that LLVM turns into registers."""
    _, base, lists, t0, t1, b0, to, pitch, begin, final, m0, _, n = arguments
    residual, first = cgutils.unpack_tuple(b, begin)
    last, lo, hi = cgutils.unpack_tuple(b, final)
    real, index, small = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector, flags = ir.VectorType(real, WIDTH), ir.VectorType(small, WIDTH)
    nothing = ir.Constant(vector, ir.Undefined)
    arrays = zip((signature.args[0], *signature.args[2]), (arguments[0], *cgutils.unpack_tuple(b, lists)), strict=True)
    arena, offsets, weights, table, bias, mask = (context.make_array(t)(context, b, x).data for t, x in arrays)
    tile = [(j, k) for j in range(kernel.members) for k in range(vectors)]
    fma = cgutils.get_or_insert_function(b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32")

    def moved(i, by):
        return b.add(i, ir.Constant(index, by))

    def scalar(pointer, i, kind=real):
        return b.load(b.gep(pointer, [i], source_etype=kind), typ=kind)

    def number(pointer, i):
        return b.sext(scalar(pointer, i, small), index)

    def place(pointer, i, k, kind=vector):
        return b.bitcast(b.gep(pointer, [moved(i, k * WIDTH)], source_etype=kind.element), kind.as_pointer())

    def load(pointer, i, k, kind=vector):
        return b.load(place(pointer, i, k, kind), align=4, typ=kind)

    def shuffled(one, two, lanes):
        return b.shuffle_vector(one, two, ir.Constant(ir.VectorType(small, WIDTH), lanes))

    def everywhere(x):
        unknown = ir.Constant(ir.VectorType(x.type, WIDTH), ir.Undefined)
        return shuffled(b.insert_element(unknown, x, ir.Constant(small, 0)), unknown, [0] * WIDTH)

    def position(t, j):
        return b.add(to, b.mul(number(table, moved(t, OUTPUTS + j)), pitch))

    def slots(value=None):
        new = {jk: cgutils.alloca_once(b, vector) for jk in tile}
        for slot in new.values() if value is not None else ():
            b.store(value, slot)
        return new

    def begun(slot, add=False):
        """Put into the slots what the sums start from, or add it to what they hold."""

        def change(j, k, x, add):
            b.store(b.fadd(b.load(slot[j, k], typ=vector), x) if add else x, slot[j, k])

        with b.if_else(first) as (starting, going_on):
            with starting:
                for j, k in tile:
                    change(j, k, everywhere(scalar(bias, b.add(b0, number(table, moved(t0, OUTPUTS + j))))), add)
                with b.if_then(b.icmp_signed("!=", residual, ir.Constant(index, NONE))):
                    for j, k in tile:
                        change(j, k, load(arena, b.add(at[j], residual), k), True)
            with going_on:
                for j, k in tile:
                    change(j, k, load(arena, at[j], k), add)

    def put(j, k, x):
        if not kernel.lost or k + 1 < vectors:
            b.store(x, place(arena, at[j], k), align=4)
            return
        lanes = ir.Constant(flags, [k * WIDTH + i for i in range(WIDTH)])
        inside = b.icmp_signed("<", lanes, everywhere(b.trunc(n, small)))
        pointer = place(arena, at[j], k)
        store = ir.FunctionType(ir.VoidType(), [vector, pointer.type, small, inside.type])
        masked = cgutils.get_or_insert_function(b.module, store, f"llvm.masked.store.v{WIDTH}f32.p0")
        b.call(masked, [x, pointer, ir.Constant(small, 4), inside])

    def fetch(i):
        for k in range(0, vectors, max(1, LANES // WIDTH)):
            arguments = [place(arena, i, k), *(ir.Constant(small, c) for c in (1, 3, 1))]  # to write to, soon, data
            kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), arguments)

    at = [position(t0, j) for j in range(kernel.members)]
    soon = [position(t1, j) for j in range(kernel.members)]
    with b.if_then(first):
        for i in soon:
            fetch(i)
    with b.if_then(b.and_(first, b.icmp_signed("!=", residual, ir.Constant(index, NONE)))):
        for i in soon:
            fetch(b.add(i, residual))
    zero = ir.Constant(vector, [0.0] * WIDTH)
    sums = [slots(zero) for _ in range(kernel.taps)]
    if not kernel.late:
        begun(sums[0])
    entry = cgutils.alloca_once_value(b, number(table, t0))
    weight = cgutils.alloca_once_value(b, number(table, moved(t0, OUTPUTS - 1)))
    each = 1 if kernel.shared else kernel.members  # offsets of an entry
    for loop, taps in enumerate(TAPS):
        if taps > kernel.taps:
            continue
        end = number(table, moved(t0, loop + 1))
        body, done = b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", b.load(entry, typ=index), end), body, done)
        b.position_at_end(body)
        i, w = b.load(entry, typ=index), b.load(weight, typ=index)
        offset = b.mul(i, ir.Constant(index, each))
        sources = [b.add(base, number(offsets, moved(offset, j))) for j in range(each)]
        factors = [everywhere(scalar(weights, moved(w, f))) for f in range(taps * kernel.members)]
        for k in range(vectors):
            x = [load(arena, source, k) for source in sources]
            for f, factor in enumerate(factors):
                slot = sums[f // kernel.members][f % kernel.members, k]
                b.store(b.call(fma, [x[f % each], factor, b.load(slot, typ=vector)]), slot)
        b.store(moved(w, taps * kernel.members), weight)
        b.store(moved(i, 1), entry)
        b.cbranch(b.icmp_signed("<", moved(i, 1), end), body, done)
        b.position_at_end(done)
    for t in range(1, kernel.taps):
        part = [b.load(sums[t][0, k], typ=vector) for k in range(vectors)] + [nothing]
        for k in range(vectors):
            more = shuffled(part[k], part[k + 1], list(range(t, t + WIDTH)))
            b.store(b.fadd(b.load(sums[0][0, k], typ=vector), more), sums[0][0, k])
    if kernel.late:
        begun(sums[0], add=True)
    total = {jk: b.load(sums[0][jk], typ=vector) for jk in tile}
    with b.if_else(last) as (ending, not_yet):
        with ending:
            low, high = everywhere(lo), everywhere(hi)
            keep = [load(mask, m0, k, flags) for k in range(vectors)]
            for (j, k), x in total.items():
                x = b.select(b.fcmp_ordered("<", x, low), low, x)
                x = b.select(b.fcmp_ordered(">", x, high), high, x)
                put(j, k, b.bitcast(b.and_(b.bitcast(x, flags), keep[k]), vector))
        with not_yet:
            for (j, k), x in total.items():
                put(j, k, x)


_triples, _single, _step, _shared = (_walker(k) for k in range(len(KERNELS)))
_MOST = np.array([WIDTH * k.vectors for k in KERNELS])
_LOST = np.array([k.lost for k in KERNELS])
_MEMBERS = np.array([k.members for k in KERNELS])


@njit(nogil=True)
def _block(kernel, left):
    """Vectors and positions of the next block: as many as there may be, but the last two share what is left."""
    most, lost = _MOST[kernel] // WIDTH, _LOST[kernel]
    v = (left + lost + WIDTH - 1) // WIDTH
    if v > most:
        v = (v + 1) // 2 if v < 2 * most else most
    elif left < (v - 1) * WIDTH:  # only the last vector is stored in part
        v -= 1
    return v, min(v * WIDTH - lost, left)


@njit(nogil=True)
def convolve(arena, base, lists, t0, kernel, rows, passes, span, b0, to, pitch, length, residual, lo, hi, m0, part, parts):
    """A number of output planes, or a thread's part of them. `lists` is (offsets, weights, table, bias, masks).

    span    positions to go through with one list before the next, see `Lists`
    length  positions of a plane, a multiple of LANES but for the kernel that loses some
    """
    walks = rows // _MEMBERS[kernel] * ROW
    for begin in range(0, length, span):
        stop = min(begin + span, length)
        for k in range(passes):
            start, end, first = (residual, k == 0), (k == passes - 1, lo, hi), t0 + k * walks
            for t in range(first + part * ROW, first + walks, parts * ROW):
                p, t1 = begin, min(t + parts * ROW, first + walks - ROW)
                while p < stop:
                    v, n = _block(kernel, stop - p)
                    x, y, m = base + p, to + p, m0 + p
                    if kernel == TRIPLES:
                        _triples(arena, x, lists, t, t1, b0, y, pitch, start, end, m, v, n)
                    elif kernel == SINGLE:
                        _single(arena, x, lists, t, t1, b0, y, pitch, start, end, m, v, n)
                    elif kernel == STEP:
                        _step(arena, x, lists, t, t1, b0, y, pitch, start, end, m, v, n)
                    else:
                        _shared(arena, x, lists, t, t1, b0, y, pitch, start, end, m, v, n)
                    p += n


@dataclass(frozen=True)
class Lists:
    """What the kernel reads for some outputs of a layer.

    offsets  (entries,) int32, weights (n,) float32, table (passes * lists * ROW,) int32: see `walk`
    kernel   which
    passes   over the input channels, and
    span     positions at a time, so that what a pass reads stays in the cache
    """

    offsets: NDArray[np.int32]
    weights: Array
    table: NDArray[np.int32]
    kernel: int
    passes: int
    span: int


@njit
def _list(w, groups, members, runs, tap_at, pitch, each, counts, cursor, stride, offsets, weights):
    """Count the entries of every (pass, list, loop) if `cursor` is empty, else write them where it points.

    w (O, C / groups, taps), `members` outputs share a list; runs (n, 3) taps whose offsets follow one another, filled up with -1
    where they are fewer than three. Entries of a list are `stride` apart, and their weights.
    """
    outputs, into = w.shape[0], w.shape[1]
    filling = cursor.size > 0
    for row in range(0, outputs, members):
        first = row // (outputs // groups) * into
        for c in range(into):
            k, g = (first + c) // each, row // members
            for r in range(len(runs)):
                loop = (runs[r] < 0).sum()
                taps = runs[r, : 3 - loop]
                wanted = False
                for o in range(row, row + members):
                    for t in taps:
                        wanted |= w[o, c, t] != 0
                if not wanted:
                    continue
                if not filling:
                    counts[k, g, loop] += 1
                    continue
                entry, at = cursor[k, g, loop, 0], cursor[k, g, loop, 1]
                offsets[entry] = (first + c) * pitch + tap_at[taps[0]]
                for t in taps:
                    for o in range(row, row + members):
                        weights[at] = w[o, c, t]
                        at += stride
                cursor[k, g, loop, 0], cursor[k, g, loop, 1] = entry + stride, at


def _runs(tap_at: NDArray) -> NDArray[np.int64]:
    """Taps in threes and twos where their offsets follow one another, the others alone: (n, 3), filled up with -1."""
    sequence, runs = list(np.argsort(tap_at, kind="stable")), []
    while sequence:
        n = next(n for n in TAPS if len(sequence) >= n and (np.diff(tap_at[sequence[:n]]) == 1).all())
        runs.append([*sequence[:n], -1, -1][:3])
        del sequence[:n]
    return np.array(runs, np.int64)


def make_lists(
    w: Array,
    groups: int,
    tap_at: NDArray,
    pitch: int,
    length: int,
    kernel: int | None = None,
    near: int | None = None,
    parts: int = 1,
) -> Lists:
    """Sort a layer's weights for a kernel.

    w        (O, C / groups, taps) float32
    tap_at   (taps,) where a tap looks, from the position that it contributes to; groups * C planes further on, if it reads
             other ones than the first
    pitch    distance of input planes
    length   positions of a plane
    kernel   one of KERNELS; by default what should take less time
    near     bytes of input that one pass may touch, if not what the kernel says
    parts    threads that may divide the outputs among them; in all passes, an output is the same thread's
    """
    tap_at = np.asarray(tap_at, np.int64)
    runs = _runs(tap_at)
    if kernel is not None:
        choice = [kernel]
    elif (runs[:, 1] >= 0).any():
        choice = [TRIPLES]
    else:
        choice = [STEP, *[SHARED] * (len(w) // groups % 4 == 0)] if len(w) % 4 == 0 else [SINGLE]
    counted = {k: _count(w, groups, KERNELS[k], runs, tap_at, pitch, near) for k in choice}
    kernel = choice[0]
    if len(choice) > 1:
        alone, shared = (counted[k][0] for k in (STEP, SHARED))
        if alone.sum() >= WORTH * shared.sum() and expected(SHARED, shared) < expected(STEP, alone):
            kernel = SHARED
    counts, arguments = counted[kernel]
    k, passes = KERNELS[kernel], len(counts)
    together = 1 if k.shared else k.members  # lists that are walked in step
    sequence = _sequence(counts.sum(-1), together, parts)
    longest = np.take_along_axis(counts, sequence[..., None], 1).reshape(passes, -1, together, len(TAPS)).max(2)
    numbers = longest * k.members * np.array(TAPS)
    ends, heaps = np.cumsum(longest).reshape(longest.shape), np.cumsum(numbers).reshape(longest.shape)
    starts = np.stack([ends - longest, heaps - numbers], -1)  # (passes, walks, loops, 2)
    cursor = np.repeat(starts * np.array([together, 1]), together, 1)
    cursor += np.tile(np.arange(together), starts.shape[1])[:, None, None]
    ordered = np.zeros_like(cursor)
    np.put_along_axis(ordered, sequence[..., None, None], cursor, 1)
    offsets, weights = np.zeros(ends.flat[-1] * together, np.int32), np.zeros(heaps.flat[-1], np.float32)
    _list(*arguments, counts, ordered, together, offsets, weights)
    outputs = sequence.reshape(passes, -1, together)
    outputs = outputs * k.members + np.arange(k.members) if k.shared else outputs
    table = np.zeros((*longest.shape[:2], ROW), np.int32)
    table[..., 0], table[..., OUTPUTS - 1] = starts[..., 0, 0], starts[..., 0, 1]
    table[..., 1 : OUTPUTS - 1] = ends
    table[..., OUTPUTS : OUTPUTS + k.members] = outputs
    block = int(_MOST[kernel] - _LOST[kernel])
    planes = w.shape[1] * groups * (1 + max(0, int(tap_at.max())) // (w.shape[1] * groups * pitch)) // passes
    span = max(1, (near or k.far) // (4 * planes) // block) * block
    return Lists(offsets, weights, table.ravel(), kernel, passes, span)


def _sequence(lengths: NDArray, together: int, parts: int) -> NDArray[np.int64]:
    """In what order to walk the lists of every pass, (passes, lists): equal lengths in a row, so that branches are foreseen.

    Walk k is done by thread k % parts. Passes do not wait for one another, so the lists of an output must be one thread's.
    """
    passes, lists = lengths.shape
    owner = np.arange(lists) // together % parts
    out = np.empty((passes, lists // together, together), np.int64)
    for part in range(min(parts, lists // together)):
        mine = np.flatnonzero(owner == part)
        order = np.argsort(lengths[:, mine], axis=1, kind="stable")
        out[:, part::parts] = mine[order].reshape(passes, -1, together)
    return out.reshape(passes, lists)


def _count(
    w: Array, groups: int, kernel: Kernel, runs: NDArray, tap_at: NDArray, pitch: int, near: int | None
) -> tuple[NDArray, tuple]:
    """Entries of every (pass, list, loop), and the arguments of `_list` that led to them."""
    channels, members = w.shape[1] * groups, kernel.members if kernel.shared else 1
    span = min(int(tap_at.max() - tap_at.min()), pitch) + WIDTH * kernel.vectors
    each = max(1, min(channels, (near or kernel.near) // (4 * span)))
    if not near and not kernel.shared:
        density = np.count_nonzero(w) / w.size
        each = max(each, min(channels, int(FILLED / max(density, 1e-9)), KERNELS[SINGLE].far // (4 * span)))
    each = -(-channels // -(-channels // each))
    counts = np.zeros((-(-channels // each), len(w) // members, len(TAPS)), np.int64)
    arguments = w, groups, members, runs, tap_at, pitch, each
    _list(*arguments, counts, np.zeros((0, 0, 0, 0), np.int64), 1, np.zeros(0, np.int32), np.zeros(0, np.float32))
    return counts, arguments


def expected(kernel: int, counts: NDArray) -> float:
    """Nanoseconds a position that STEP or SHARED should take here for a layer: counts (passes, lists, loops) of entries."""
    entry, fixed = measured()[kernel]
    return (counts.sum() * entry + counts[..., 0].size * fixed) / float(_MOST[kernel])


@functools.cache
def measured() -> dict[int, tuple[float, float]]:
    """Nanoseconds of an entry and of a list, of each kernel for single taps, timed here and now on two made-up layers.

    One round counts, the fastest: a machine that does other things as well is slow now and then, for longer than a round.
    """
    if config.DISABLE_JIT:  # nothing to tell apart
        return {STEP: (1.0, 1.0), SHARED: (1.0, 1.0)}
    calls = {(kernel, density): _trial(kernel, density) for kernel in (STEP, SHARED) for density in DENSITIES}
    best = dict.fromkeys(calls, math.inf)
    for _ in range(40):
        times = {}
        for key, (call, _, _) in calls.items():
            start = time.perf_counter_ns()
            call()
            times[key] = time.perf_counter_ns() - start
        best = min(best, times, key=lambda t: sum(t.values()))
    out = {}
    for kernel in (STEP, SHARED):
        rows = [(*calls[kernel, density][1:], best[kernel, density]) for density in DENSITIES]
        (e0, l0, t0), (e1, l1, t1) = rows
        entry = max(0.01, (t1 / l1 - t0 / l0) / (e1 / l1 - e0 / l0))
        out[kernel] = entry, max(0.01, (t0 - e0 * entry) / l0)
    return out


def _trial(kernel: int, density: float) -> tuple[Callable[[], None], int, int]:
    """A layer of so many of 64 x 512 weights on four blocks, and the numbers of entries and lists, times blocks."""
    k, outputs, channels, length = KERNELS[kernel], 64, 512, 4 * int(_MOST[kernel])
    pitch = length + 4 * LANES
    rng = np.random.default_rng(0)
    w = (rng.random((outputs, channels, 1)) < density).astype(np.float32)
    made = make_lists(w, 1, np.zeros(1, np.int64), pitch, length, kernel)
    counts = _count(w, 1, k, np.array([[0, -1, -1]]), np.zeros(1, np.int64), pitch, None)[0]
    arena = np.zeros((channels + outputs) * pitch + BLOCK, np.float32)
    numbers = made.offsets, made.weights, made.table, np.zeros(outputs, np.float32), np.full(length + BLOCK, -1, np.int32)
    low, high, to = np.float32(-np.inf), np.float32(np.inf), channels * pitch

    def call() -> None:
        convolve(
            arena, 0, numbers, 0, kernel, outputs, made.passes, made.span, 0, to, pitch, length, NONE, low, high, 0, 0, 1
        )  # fmt: skip

    return call, 4 * int(counts.sum()), 4 * counts[..., 0].size
