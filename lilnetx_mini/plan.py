"""From a graph to a table of instructions: where every value lies, what is fused, and every weight in the kernel's order.

All of this is done once. Then a run copies the input into the arena, executes the table, and copies the output out.

* Values that are read or written by the same stride-1 convolution, or added, share a *geometry*: row stride, plane pitch, and the
  zeros around planes that their convolutions look into. So nothing is copied between such layers, whatever their padding.
* A strided convolution reads planes of every s-th row and column, copied from its input just before.
* An addition is the starting value of the convolution that ends before it, and a clamp (ReLU, ReLU6) is its last operation.
* Memory is given out from first need to last use; the sum of a residual overwrites the branch that is read last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import execute as ex
from .graph import Graph, Node, attributes, infer_shapes
from .sparse import BLOCK, KERNELS, LANES, NONE, OUTPUTS, ROW, TRIPLES, Lists, make_lists

Array = NDArray[np.float32]
CLAMPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
ELEMENTWISE = ("relu", "relu6", *ex.ACTIVATIONS, "scale_shift", "add", "mul")
SPARSE_ROWS = 0.4  # density below which rows of a dense layer are stored with column numbers: these take as much as a weight


class NotPlannable(Exception):
    """Why a graph cannot be planned; the reference operations of `lilnetx_mini.conv` still run it."""


@dataclass
class Geometry:
    """How a class of values lies in memory: distance of rows, of planes, and zeros before the first plane."""

    stride: int = 1
    rows: int = 1
    above: int = 0
    left: int = 0
    flat: bool = True

    @property
    def pitch(self) -> int:
        """Distance of planes."""
        return 1 if self.flat else _plane(self.rows * self.stride)

    @property
    def lead(self) -> int:
        """Zeros before the first plane."""
        return 0 if self.flat else _up(self.above * self.stride + self.left)


@dataclass
class Step:
    """What one node of the graph became: its instructions start .. stop - 1.

    weight  the position of its weight among the tensors, -1 if it has none
    macs    multiply-adds with weights that are not zero, one image
    """

    op: str
    start: int
    stop: int = 0
    weight: int = -1
    macs: int = 0


class Memory(NamedTuple):
    """Of one run: all values, float32, and how often threads have arrived at the end of an instruction."""

    arena: Array
    arrived: NDArray[np.int64]


@dataclass
class _Arena:
    """First fit on a line of free intervals."""

    free: list[list[int]] = field(default_factory=lambda: [[0, 1 << 40]])
    top: int = 0

    def take(self, n: int) -> int:
        n = _up(n)
        for hole in self.free:
            if hole[1] - hole[0] >= n:
                at = hole[0]
                hole[0] += n
                self.top = max(self.top, at + n)
                return at
        raise MemoryError

    def give(self, at: int, n: int) -> None:
        self.free = sorted([*self.free, [at, at + _up(n)]])
        merged = [self.free[0]]
        for a, b in self.free[1:]:
            if a <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], b)
            else:
                merged.append([a, b])
        self.free = merged


def _up(n: int) -> int:
    return -(-n // LANES) * LANES


def _plane(n: int) -> int:
    """Distance of planes of n values: whole vectors, and no number that puts all planes into the same sets of a cache."""
    lines = -(-n // LANES)
    return (lines + 4 * (lines % 8 == 0)) * LANES


def _aligned(n: int) -> Array:
    """n zeros, the first at an address that is a multiple of a cache line's length."""
    zeros = np.zeros(n + LANES, np.float32)
    skip = -zeros.ctypes.data // zeros.itemsize % LANES
    return zeros[skip : skip + n]


@dataclass
class Plan:
    """A graph made ready to run, one image at a time.

    plan = Plan(graph, tensors)       # threads=2, if two will run it together
    plan.run(plan.memory(), x, out)   # one image, float32; `out` has the output's shape

    threads  may run it together, no other number of them than one
    steps    what each node became, with its multiply-adds
    raises  NotPlannable for what `_check` names: transposed convolutions, values that are neither (C,) nor (C, H, W), ...
    """

    graph: Graph
    tensors: list[Array]
    threads: int = 1

    def __post_init__(self) -> None:
        self.graph = _ordered(self.graph)
        self.shapes = infer_shapes(self.graph, [t.shape for t in self.tensors])
        self.readers: list[list[int]] = [[] for _ in self.shapes]
        for n, node in enumerate(self.graph.nodes):
            _check(node, [self.shapes[i] for i in node.inputs], self.shapes[n + 1])
            for i in node.inputs:
                self.readers[i].append(n)
        self._tie()
        self._fuse()
        self._emit()

    # -- geometry -----------------------------------------------------------------------------------------------------

    def _tie(self) -> None:
        """One geometry for every class of values that must lie alike."""
        parent = list(range(len(self.shapes)))

        def root(v: int) -> int:
            while parent[v] != v:
                v = parent[v]
            return v

        for n, node in enumerate(self.graph.nodes):
            if node.op in ELEMENTWISE or (node.op == "conv" and max(self._attributes(n)["stride"]) == 1):
                for i in node.inputs:
                    if len(self.shapes[i]) == 3 and (node.op != "mul" or self.shapes[i] == self.shapes[n + 1]):
                        parent[root(i)] = root(n + 1)
        geometries: dict[int, Geometry] = {}
        self.geometry = [geometries.setdefault(root(v), Geometry()) for v in range(len(self.shapes))]
        for shape, g in zip(self.shapes, self.geometry, strict=True):
            if len(shape) == 3:
                g.flat &= shape[1:] == (1, 1)
        for n, node in enumerate(self.graph.nodes):
            if node.op == "conv" and not self._is_linear(n):
                self.geometry[node.inputs[0]].flat = self.geometry[n + 1].flat = False
            elif node.op in ("max_pool", "avg_pool"):
                self.geometry[node.inputs[0]].flat = self.geometry[n + 1].flat = False
        for shape, g in zip(self.shapes, self.geometry, strict=True):
            if len(shape) == 3 and not g.flat:
                g.rows, g.stride = max(g.rows, shape[1]), max(g.stride, shape[2])
        wanted: dict[int, list[int]] = {}
        for n, node in enumerate(self.graph.nodes):
            if node.op != "conv" or self._is_linear(n):
                continue
            a = self._attributes(n)
            v = node.inputs[0] if max(a["stride"]) == 1 else n + 1
            g, (_, height, width) = self.geometry[v], self.shapes[v]
            if max(a["stride"]) == 1:
                above, left = a["padding"]
                more = wanted.setdefault(id(g), [0, 0])
                g.above, g.left = max(g.above, above), max(g.left, left)
                more[0], more[1] = max(more[0], height + above), max(more[1], width + left)
            else:
                across = (self._weight(n).shape[3] - 1) * a["dilation"][1] // a["stride"][1]
                more = wanted.setdefault(id(g), [0, 0])
                more[1] = max(more[1], width + across)
        for g in {id(g): g for g in self.geometry}.values():
            rows, stride = wanted.get(id(g), (0, 0))
            g.rows, g.stride = max(g.rows, rows), max(g.stride, stride)

    def _attributes(self, n: int) -> dict:
        node = self.graph.nodes[n]
        axes = len(self.shapes[node.inputs[0]]) - (node.op != "pad")
        return attributes(node, axes)

    def _weight(self, n: int) -> Array:
        return self.tensors[self._attributes(n)["weight"] - 1]

    def _is_linear(self, n: int) -> bool:
        """A dense layer, or a 1x1 convolution of a value that is one pixel large."""
        node = self.graph.nodes[n]
        if node.op != "conv":
            return node.op == "linear"
        a, g = self._attributes(n), self.geometry[node.inputs[0]]
        whole = a["groups"] == 1 and self._weight(n).shape[2:] == (1, 1) and a["padding"] == (0, 0)
        return whole and g.flat and self.geometry[n + 1].flat

    # -- fusion and life times ----------------------------------------------------------------------------------------

    def _fuse(self) -> None:
        """`final[n]` is the value that node n's instruction really writes; `residual[n]` what it starts from."""
        nodes, last = self.graph.nodes, len(self.graph.nodes)
        self.final, self.residual = {n: n + 1 for n in range(last)}, {}
        self.clamp = {n: (-math.inf, math.inf) for n in range(last)}
        self.fused: set[int] = set()
        for n, node in enumerate(nodes):
            if node.op not in ("conv", "linear") or n in self.fused:
                continue
            plane = not self._is_linear(n)
            while self.final[n] != last and len(self.readers[self.final[n]]) == 1:
                reader = self.readers[self.final[n]][0]
                op = nodes[reader].op
                clamped = self.clamp[n] != (-math.inf, math.inf)
                if op == "add" and plane and n not in self.residual and not clamped and reader not in self.fused:
                    other = sum(nodes[reader].inputs) - self.final[n]
                    if other > n or self.shapes[other] != self.shapes[reader + 1]:
                        break  # not computed yet: the other branch will take this one
                    self.residual[n] = other
                elif op in CLAMPS and not clamped:
                    self.clamp[n] = CLAMPS[op]
                else:
                    break
                self.fused.add(reader)
                self.final[n] = reader + 1
        self.work = [n for n in range(last) if n not in self.fused]
        self.last_use = {last: len(nodes)}
        for n in self.work:
            for v in [*nodes[n].inputs, *([self.residual[n]] if n in self.residual else [])]:
                self.last_use[v] = n

    # -- instructions -------------------------------------------------------------------------------------------------

    def _emit(self) -> None:
        self._arena, self._at, self._owner = _Arena(), {}, {}
        self._rows: list[list[int]] = []
        self._limits: list[tuple[float, float]] = []
        self._parts: dict[str, list] = {k: [] for k in ("offsets", "weights", "table", "bias", "masks")}
        self._length = Counter()
        self._mask_at: dict[tuple, int] = {}
        self.steps: list[Step] = []
        self._place(0)
        self._input = self._flat_view(0)
        for n in self.work:
            node = self.graph.nodes[n]
            step = Step(node.op, len(self._rows))
            if node.op in ("conv", "linear"):
                step.weight = self._attributes(n)["weight"] - 1
                step.macs = int(np.count_nonzero(self._weight(n))) * (math.prod(self.shapes[n + 1][1:]))
            getattr(self, f"_{_HANDLERS.get(node.op, 'activation')}")(n)
            step.stop = len(self._rows)
            self.steps.append(step)
            for v in {*node.inputs, self.final[n], self.residual.get(n, node.inputs[0])}:
                if v in self._at and self.last_use.get(v, -1) <= n:
                    self._release(v)
        self._output = self._flat_view(len(self.shapes) - 1)
        self._finish()

    def _size(self, v: int) -> int:
        g = self.geometry[v]
        return g.lead + (math.prod(self.shapes[v]) if g.flat else self.shapes[v][0] * g.pitch)

    def _place(self, v: int, over: int | None = None) -> int:
        """Where value v begins: in memory of its own, or over a value that nobody needs any more."""
        g = self.geometry[v]
        if over is None:
            block = self._arena.take(self._size(v))
            self._owner[v] = block
            self._at[v] = block + g.lead
            if g.lead:
                self._add(ex.ZERO, block, g.lead, 1, 0)
        else:
            self._owner[v], self._at[v] = self._owner.pop(over), self._at.pop(over)
        return self._at[v]

    def _release(self, v: int) -> None:
        self._at.pop(v)
        self._arena.give(self._owner.pop(v), self._size(v))

    def _reusable(self, n: int, v: int) -> bool:
        """Whether node n may overwrite value v with its own result."""
        same = self.geometry[v] is self.geometry[self.final[n]] and self.shapes[v] == self.shapes[self.final[n]]
        return same and self.last_use[v] == n and v in self._owner

    def _add(self, kind: int, *numbers: int, limits: tuple[float, float] = (-math.inf, math.inf)) -> None:
        self._rows.append([kind, *map(int, numbers), *[0] * (ex.WIDTH - 1 - len(numbers))])
        self._limits.append(limits)

    def _store(self, kind: str, array: NDArray) -> int:
        """Append to one of the constant arrays; returns where it begins, a multiple of LANES."""
        at = self._length[kind]
        self._parts[kind] += [array, np.zeros(-len(array) % LANES, array.dtype)]
        self._length[kind] += _up(len(array))
        return at

    def _instruct_copy(self, source: int | tuple, target: int | tuple, **part: tuple) -> None:
        """Copy values, or ("array", position, shape) contiguous ones: channels from/to, rows and columns with a step."""
        (a, shape, pitch, stride), (b, to, to_pitch, to_stride) = self._view(source), self._view(target)
        channels, rows, columns = part.get("count", tuple(min(x, y) for x, y in zip(shape, to, strict=True)))
        c, y, x = part.get("start", (0, 0, 0))
        tc, ty, tx = part.get("into", (0, 0, 0))
        sy, sx = part.get("step", (1, 1))
        if min(channels, rows, columns) < 1:
            return
        a += c * pitch + y * stride + x
        b += tc * to_pitch + ty * to_stride + tx
        self._add(ex.COPY, a, pitch, stride * sy, b, to_pitch, to_stride, channels, rows, columns, sx)

    def _view(self, v: int | tuple) -> tuple[int, tuple, int, int]:
        if isinstance(v, tuple):
            _, at, shape = v
            shape = shape if len(shape) == 3 else (math.prod(shape), 1, 1)
            return at, shape, shape[1] * shape[2], shape[2]
        shape, g = self.shapes[v], self.geometry[v]
        if len(shape) == 3 and not g.flat:
            return self._at[v], shape, g.pitch, g.stride
        return self._at[v], (math.prod(shape), 1, 1), 1, 1

    def _flat_view(self, v: int) -> tuple[int, ...]:
        """First position, pitch, stride, C, H, W."""
        at, shape, pitch, stride = self._view(v)
        return at, pitch, stride, *shape

    def _clear(self, v: int) -> None:
        """Zeros everywhere in a value that is about to be filled piece by piece."""
        if not self.geometry[v].flat:
            self._add(ex.ZERO, self._at[v], self.shapes[v][0] * self.geometry[v].pitch, 1, 0)

    def _conv(self, n: int) -> None:
        if self._is_linear(n):
            return self._linear(n)
        node, a, w = self.graph.nodes[n], self._attributes(n), self._weight(n)
        v, y = node.inputs[0], self.final[n]
        out_shape, g = self.shapes[y], self.geometry[y]
        taps = [(i * a["dilation"][0], j * a["dilation"][1]) for i in range(w.shape[2]) for j in range(w.shape[3])]
        scratch = None
        if max(a["stride"]) == 1:
            base, pitch = self._at[v], self.geometry[v].pitch
            tap_at = [(i - a["padding"][0]) * g.stride + j - a["padding"][1] for i, j in taps]
        else:
            used = w.reshape(*w.shape[:2], -1).any((0, 1))
            scratch, pitch, tap_at = self._phases(n, v, g.stride, taps, used)
            base = scratch[0]
        residual = self.residual.get(n)
        at = self._place(y, residual if residual is not None and v != residual and self._reusable(n, residual) else None)
        delta = NONE
        if residual is not None:
            delta = (self._at[residual] if residual in self._at else at) - at
        flat = np.ascontiguousarray(w.reshape(*w.shape[:2], -1), np.float32)
        length = (out_shape[1] - 1) * g.stride + out_shape[2]  # what is behind the last position stays zero
        fours = len(w) // 4 * 4 if a["groups"] == 1 else len(w)
        done = length
        for begin, end in ((0, fours), (fours, len(w))):  # those that are left over make no group of four
            if begin < end:
                lists = make_lists(flat[begin:end], a["groups"], np.array(tap_at), pitch, length, parts=self.threads)
                done = length if lists.kernel == TRIPLES else _up(length)
                part = self._conv_part(lists, begin, end, a["bias"])
                m0 = self._mask(out_shape[1], out_shape[2], g.stride)
                numbers = *part, at + begin * g.pitch, g.pitch, done, delta, m0
                self._add(ex.CONV, base, *numbers, limits=self.clamp[n])
        if g.pitch > done:
            self._add(ex.ZERO, at + done, g.pitch - done, len(w), g.pitch)
        if scratch:
            self._arena.give(*scratch)

    def _phases(self, n: int, v: int, stride: int, taps: list, used: NDArray) -> tuple[tuple[int, int], int, list[int]]:
        """Copy the input's every s-th row and column, for the phases that some weight needs."""
        a, (channels, height, width) = self._attributes(n), self.shapes[v]
        s, pad = a["stride"], a["padding"]
        phases = sorted({(i % s[0], j % s[1]) for (i, j), u in zip(taps, used, strict=True) if u}) or [(0, 0)]
        rows = self.shapes[n + 1][1] + max(i // s[0] for i, _ in taps)
        pitch = _plane(rows * stride)
        size = len(phases) * channels * pitch + 2 * BLOCK
        at = self._arena.take(size)
        self._add(ex.ZERO, at, size, 1, 0)
        base, source_pitch, source_stride = self._at[v], self.geometry[v].pitch, self.geometry[v].stride
        for k, (py, px) in enumerate(phases):
            top, left = (-(-max(0, p - q) // t) for p, q, t in zip(pad, (py, px), s, strict=True))
            y, x = top * s[0] + py - pad[0], left * s[1] + px - pad[1]
            down = min(rows - top, -(-(height - y) // s[0]))
            across = min(stride - left, -(-(width - x) // s[1]))
            if down > 0 and across > 0:
                self._add(
                    ex.COPY, base + y * source_stride + x, source_pitch, source_stride * s[0],
                    at + k * channels * pitch + top * stride + left, pitch, stride, channels, down, across, s[1],
                )  # fmt: skip
        tap_at = []
        for i, j in taps:
            phase = (i % s[0], j % s[1])
            k = phases.index(phase) if phase in phases else 0
            tap_at.append(k * channels * pitch + i // s[0] * stride + j // s[1])
        return (at, size), pitch, tap_at

    def _conv_part(self, lists: Lists, begin: int, end: int, bias: int) -> tuple[int, ...]:
        """Store what the kernel reads of output channels begin .. end - 1: table, kernel, rows, passes, span, bias."""
        e0, w0 = self._store("offsets", lists.offsets), self._store("weights", lists.weights)
        kernel = KERNELS[lists.kernel]
        e0 //= 1 if kernel.shared else kernel.members
        shift = np.array([*[e0] * (OUTPUTS - 1), w0, 0, 0, 0, 0], np.int32)
        t0 = self._store("table", (lists.table.reshape(-1, ROW) + shift).ravel())
        b0 = self._store("bias", self.tensors[bias - 1][begin:end] if bias else np.zeros(end - begin, np.float32))
        return t0, lists.kernel, end - begin, lists.passes, lists.span, b0

    def _mask(self, rows: int, columns: int, stride: int) -> int:
        """Where the zeros between the rows of such planes are marked."""
        key = rows, columns, stride
        if key not in self._mask_at:
            mask = np.zeros((rows, stride), np.int32)
            mask[:, :columns] = -1
            self._mask_at[key] = self._store("masks", np.concatenate([mask.ravel(), np.zeros(2 * BLOCK, np.int32)]))
        return self._mask_at[key]

    def _linear(self, n: int) -> None:
        node, a, y = self.graph.nodes[n], self._attributes(n), self.final[n]
        w = self._weight(n).reshape(len(self._weight(n)), -1)
        rows, columns = w.shape
        bias = self.tensors[a["bias"] - 1] if a["bias"] else np.zeros(rows, np.float32)
        b0, i0, r0 = self._store("bias", bias), 0, 0
        sparse = np.count_nonzero(w) < SPARSE_ROWS * w.size
        if sparse:
            o, i = np.nonzero(w)
            w0, i0 = self._store("weights", w[o, i]), self._store("offsets", i.astype(np.int32))
            r0 = self._store("table", np.concatenate([[0], np.cumsum(np.bincount(o, minlength=rows))]).astype(np.int32))
        else:
            w0 = self._store("weights", w.ravel())
        at = self._place(y)
        numbers = (self._at[node.inputs[0]], at, rows, 0 if sparse else columns, w0, i0, r0, b0)
        self._add(ex.LINEAR, *numbers, limits=self.clamp[n])

    def _activation(self, n: int) -> None:
        node, y = self.graph.nodes[n], self.final[n]
        v = node.inputs[0]
        source = self._at[v]
        at = self._place(y, v if self._reusable(n, v) else None)
        _, (channels, rows, columns), pitch, stride = self._view(y)
        kind = ex.CLAMP if node.op in CLAMPS else ex.ACTIVATIONS[node.op]
        limits = CLAMPS.get(node.op, (0.0, 0.0))
        self._fresh(y, v)
        self._add(ex.ACTIVATE, source, at, pitch, stride, channels, rows, columns, kind, limits=limits)

    def _fresh(self, y: int, v: int) -> None:
        """Zeros between rows and planes, unless y took the place of v, which had them."""
        if v in self._at:
            self._clear(y)

    def _scale(self, n: int) -> None:
        node, y, a = self.graph.nodes[n], self.final[n], self._attributes(n)
        v = node.inputs[0]
        source = self._at[v]
        at = self._place(y, v if self._reusable(n, v) else None)
        numbers = [self._store("bias", self.tensors[a[k] - 1].astype(np.float32)) for k in ("scale", "shift")]
        _, (channels, rows, columns), pitch, stride = self._view(y)
        self._fresh(y, v)
        self._add(ex.SCALE, source, at, pitch, stride, channels, rows, columns, *numbers)

    def _combine(self, n: int) -> None:
        node, y = self.graph.nodes[n], self.final[n]
        one, two = node.inputs
        if self.shapes[one] != self.shapes[two]:
            return self._gate(n)
        a, b = self._at[one], self._at[two]
        over = next((v for v in (one, two) if self._reusable(n, v)), None)
        at = self._place(y, over)
        g = self.geometry[y]
        size = math.prod(self.shapes[y]) if g.flat else self.shapes[y][0] * g.pitch
        self._add(ex.ADD if node.op == "add" else ex.MULTIPLY, a, b, at, size)

    def _gate(self, n: int) -> None:
        node, y = self.graph.nodes[n], self.final[n]
        wide = next(i for i in node.inputs if self.shapes[i] == self.shapes[n + 1])
        gate = sum(node.inputs) - wide
        source = self._at[wide]
        at = self._place(y, wide if self._reusable(n, wide) else None)
        pitch = self.geometry[y].pitch
        self._add(ex.GATE, source, self._at[gate], self.geometry[gate].pitch, at, pitch, self.shapes[y][0])

    def _pool(self, n: int) -> None:
        node, y, a = self.graph.nodes[n], self.final[n], self._attributes(n)
        v = node.inputs[0]
        self._place(y)
        self._clear(y)
        (a0, shape, pitch, stride), (b0, to, to_pitch, to_stride) = self._view(v), self._view(y)
        largest, scratch = node.op == "max_pool", self._arena.take(shape[2])
        self._add(
            ex.POOL, a0, pitch, stride, shape[1], shape[2], b0, to_pitch, to_stride, to[1], to[2], shape[0],
            *a["kernel"], *a["stride"], *a["padding"], largest, a.get("count_padding", 0), scratch,
        )  # fmt: skip
        self._arena.give(scratch, shape[2])

    def _mean(self, n: int) -> None:
        v, y = self.graph.nodes[n].inputs[0], self.final[n]
        at, (channels, height, width), pitch, stride = self._view(v)
        if len(self.shapes[v]) == 3 and self.geometry[v].flat:
            height = width = stride = 1
        self._place(y)
        if not self.geometry[y].flat:  # the mean goes on as an image of one pixel
            self._clear(y)
            target = self._arena.take(channels)
            self._add(ex.MEAN, at, pitch, height * stride, channels, target, height * width)
            self._instruct_copy(("array", target, (channels, 1, 1)), y)
            self._arena.give(target, channels)
        else:
            self._add(ex.MEAN, at, pitch, height * stride, channels, self._at[y], height * width)

    def _pieces(self, n: int) -> None:
        """Everything that only moves values: flatten, subsample, concat, pad."""
        node, y, a = self.graph.nodes[n], self.final[n], self._attributes(n)
        v = node.inputs[0]
        self._place(y)
        if node.op == "flatten":
            shape = self.shapes[v] if len(self.shapes[v]) == 3 else (math.prod(self.shapes[v]), 1, 1)
            self._instruct_copy(v, ("array", self._at[y], shape))
        elif node.op == "subsample":
            self._clear(y)
            self._instruct_copy(v, y, step=a["step"], count=self.shapes[y])
        elif node.op == "pad":
            if self.geometry[y].flat:
                self._add(ex.ZERO, self._at[y], math.prod(self.shapes[y]), 1, 0)
            self._clear(y)
            wide = len(self.shapes[v]) == 3
            self._instruct_copy(v, y, into=a["before"] if wide else (a["before"][0], 0, 0), count=self._view(v)[1])
        else:
            self._clear(y)
            done = 0
            for i in node.inputs:
                self._instruct_copy(i, y, into=(done, 0, 0), count=self._view(i)[1])
                done += self._view(i)[1][0]

    def _finish(self) -> None:
        kinds = {"offsets": np.int32, "weights": np.float32, "table": np.int32, "bias": np.float32, "masks": np.int32}
        self.lists = tuple(
            np.concatenate([*self._parts[k], np.zeros(LANES, kind)]).astype(kind) for k, kind in kinds.items()
        )
        self.rows = np.array(self._rows, np.int64).reshape(-1, ex.WIDTH)
        self.limits = np.array(self._limits, np.float32).reshape(-1, 2)
        self.arena_size = self._arena.top + 2 * BLOCK + max(g.pitch for g in self.geometry)
        del self._parts, self._rows, self._limits

    # -- running ------------------------------------------------------------------------------------------------------

    def memory(self) -> Memory:
        """What one run at a time needs."""
        return Memory(_aligned(self.arena_size), np.zeros(1, np.int64))

    def run(self, memory: Memory, x: Array, out: Array, team: Callable | None = None, step: Step | None = None) -> None:
        """One image, (C, H, W) or (C,), into `out`, contiguous float32 both.

        team  team(work) calls work(part, parts) in as many threads at once as were planned for
        step  run only this one, on what the last run left
        """
        memory.arrived[0] = 0
        fixed = x.reshape(-1), self._input, self.rows, self.limits, self.lists, out.reshape(-1), self._output
        begin, end = (step.start, step.stop) if step else (0, len(self.rows))
        if team is None:
            ex.run(*memory, *fixed, begin, end, 0, 1)
        else:
            team(lambda part, parts: ex.run(*memory, *fixed, begin, end, part, parts))


_HANDLERS = {
    "conv": "conv", "linear": "linear", "scale_shift": "scale", "add": "combine", "mul": "combine", "max_pool": "pool",
    "avg_pool": "pool", "global_avg_pool": "mean", "flatten": "pieces", "subsample": "pieces", "pad": "pieces",
    "concat": "pieces",
}  # fmt: skip


def _ordered(graph: Graph) -> Graph:
    """The same in an order that suits additions: of two summands the shortcut comes first, then the last convolution can add it.

    The shortcut is the one that fewer operations with weights lead to.
    """
    nodes, weights = graph.nodes, [0]
    for node in nodes:
        weights.append(max(weights[i] for i in node.inputs) + (node.op in ("conv", "linear")))
    number, out = {0: 0}, []
    stack = [len(nodes)]
    while stack:
        v = stack[-1]
        if v in number:
            stack.pop()
            continue
        node = nodes[v - 1]
        missing = [i for i in node.inputs if i not in number]
        if missing:
            stack += sorted(missing, key=lambda i: -weights[i]) if node.op == "add" else missing[::-1]
            continue
        stack.pop()
        out.append(Node(node.op, tuple(number[i] for i in node.inputs), node.attrs))
        number[v] = len(out)
    return Graph(graph.input_shape, tuple(out))


def _check(node: Node, inputs: list[tuple], output: tuple) -> None:
    """NotPlannable for what only the reference operations can do."""
    if node.op == "conv_transpose":
        raise NotPlannable("a transposed convolution")
    for shape in (*inputs, output):
        if len(shape) not in (1, 3):
            raise NotPlannable(f"{node.op} of a value of shape {shape}: only (C,) and (C, H, W) are planned")
    if node.op == "linear" and len(inputs[0]) != 1:
        raise NotPlannable(f"a dense layer over the last axis of {inputs[0]}")
    if node.op == "concat" and len({len(s) for s in inputs}) > 1:
        raise NotPlannable("a concatenation of unlike values")
    if node.op == "add" and inputs[0] != inputs[1]:
        raise NotPlannable(f"an addition of shapes {inputs[0]} and {inputs[1]}")
    if node.op == "mul" and inputs[0] != inputs[1]:
        wide, gate = sorted(inputs, key=math.prod, reverse=True)
        if len(wide) != 3 or wide != output or gate != (wide[0], 1, 1):
            raise NotPlannable(f"a product of shapes {inputs[0]} and {inputs[1]}")
    if node.op == "subsample" and len(inputs[0]) != 3:
        raise NotPlannable("subsampling of a vector")
