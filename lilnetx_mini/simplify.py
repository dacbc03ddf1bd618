"""Fewer channels, the same function: what a trained network's zeros allow to leave out of its graph.

A group prior leaves filters that are zero and filters that nobody reads. Both can go, and every channel that the
operations between them keep one to one goes with them:

    nobody reads it   no layer has a weight for it that is not zero: it is removed from every value that carries it
    it is constant    a filter of zeros yields its bias, a norm layer and an activation another constant. The next layer
                      takes the constant into its bias, and then nobody reads the channel

A zero-padded convolution reads zeros, not the constant, at the border: no bias says that. But all constant channels look
alike there, up to a factor. So one of them stays, and the weights of the others are added to its own, times that factor.

Channels are tied: where an addition joins two values, their channels go together or not at all. `_sources` says which
channel of its inputs an operation carries on; the classes that follow from it are what is kept or removed.

All arithmetic is in float64 and is rounded to float32 once, at the end. Sums are taken in another order than before, so
outputs agree to float32's accuracy, not bit by bit.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .conv import ACTIVATIONS
from .graph import Graph, Node, attributes, infer_shapes

Array = NDArray[np.float32]
Exact = NDArray[np.float64]
Flags = NDArray[np.bool_]
Shapes = list[tuple[int, ...]]

LAYERS = ("conv", "conv_transpose", "linear")
SMALLEST = 1e-3  # a constant that stands for others is at least this part of the largest


@dataclass(frozen=True)
class Kept:
    """What is left of one layer: its weight's position among the given tensors and among the new ones (-1 if the layer
    is gone), its output channels, and its input channels (of one group), numbered as they were."""

    tensor: int
    now: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Removed:
    """Before and after, as pairs: output channels, weights (without biases) and multiplications of all layers."""

    channels: tuple[int, int]
    weights: tuple[int, int]
    macs: tuple[int, int]
    layers: tuple[Kept, ...]


@dataclass(frozen=True)
class _Step:
    """A node that owns its tensors: (weight, bias) or (scale, shift), weights of all layers as (out, in / groups, *kernel).

    node     tensor attributes are 0
    origin   which node of the given graph this layer was, -1 for other operations
    rows, columns  numbers that a layer's channels had there
    """

    node: Node
    tensors: tuple[Exact | None, ...] = ()
    origin: int = -1
    rows: NDArray[np.intp] | None = None
    columns: NDArray[np.intp] | None = None

    @property
    def groups(self) -> int:
        return self.node.attrs[2] if self.node.op != "linear" else 1

    @property
    def bias(self) -> Exact:
        """(out,), zeros if there is none."""
        weight, bias = self.tensors
        return np.zeros(len(weight)) if bias is None else bias


@dataclass(frozen=True)
class _Net:
    """A graph as steps; step n computes value n + 1."""

    input_shape: tuple[int, ...]
    steps: tuple[_Step, ...]

    def shapes(self) -> Shapes:
        graph, tensors = _pack(self)
        return infer_shapes(graph, [t.shape for t in tensors])


def simplify(graph: Graph, tensors: list[Array], fold: bool = True) -> tuple[Graph, list[Array], Removed]:
    """The same function with fewer channels.

    graph, tensors  as a file holds them; outputs must be finite for all inputs of interest
    fold            let layers take in the norm layers that follow them
    returns         the smaller graph, its own tensors (tied ones are repeated), and what went

    Repeats until nothing changes. The network's input and output keep all their channels, every other value at least one.
    Convolutions of several groups are left as they are, except depthwise ones.
    """
    net = given = _unpack(graph, tensors)
    while True:
        before = net
        net = _reachable(_fold(net) if fold else net)
        net = _cut(_absorb(_bypass(net)))
        if _equal(before, net):
            return *_rounded(net), _removed(graph, given, net)


def fold_norms(graph: Graph, tensors: list[Array]) -> tuple[Graph, list[Array]]:
    """The same function, where every scale_shift that alone reads a layer has become part of its weights and bias."""
    return _rounded(_reachable(_fold(_unpack(graph, tensors))))


def quieted(graph: Graph, tensors: list[Array]) -> list[Array]:
    """The same function with tensors of the same shapes, where what has no effect is zero: for a file, in which zeros are cheap.

    Biases that read constants take them in, as in `simplify`; filters and biases that nobody reads are zero. No slice is
    anything but what it was, or zero. Tensors of several nodes stay as they are.
    """
    net = _unpack(graph, tensors)
    shapes, uses = net.shapes(), Counter(i for node in graph.nodes for i in _owned(node))
    own = [bool(_owned(node)) and all(uses[i] == 1 for i in _owned(node)) for node in graph.nodes]
    own = [mine and not (s.node.op == "linear" and len(shapes[s.node.inputs[0]]) > 1) for mine, s in zip(own, net.steps, strict=True)]
    while True:
        before, known, steps = net, _constants(net, shapes), list(net.steps)
        for n, step in enumerate(steps):
            i = step.node.inputs[0]
            if own[n] and _kind(step, shapes[i]):
                into = known[i] if step.tensors[1] is not None else np.where(known[i] == 0, 0.0, np.nan)
                steps[n] = _absorb_constants(step, into)
        net = replace(net, steps=tuple(steps))
        labels = _labels(net, shapes)
        needed = _needed(net, shapes, labels)
        net = replace(net, steps=tuple(_silent(s, needed[c]) if mine else s for s, c, mine in zip(steps, labels[1:], own, strict=True)))
        if _equal(before, net):
            break
    renumbered, quiet = _rounded(net)
    out = list(tensors)
    for node, same in zip(graph.nodes, renumbered.nodes, strict=True):
        for i, j in zip(_owned(node), _owned(same), strict=True):
            out[i - 1] = quiet[j - 1]
    return out


def _owned(node: Node) -> tuple[int, ...]:
    """Numbers of the tensors of a layer or norm layer, from 1."""
    return tuple(i for i in node.attrs[:2] if i) if node.op in (*LAYERS, "scale_shift") else ()


def _silent(step: _Step, needed: Flags) -> _Step:
    """A step without weights, biases and shifts for the channels that are not needed; a scale stays."""
    first, second = step.tensors
    if step.node.op != "scale_shift":
        first = np.where(needed.reshape(-1, *[1] * (first.ndim - 1)), first, 0.0)
    return replace(step, tensors=(first, None if second is None else np.where(needed, second, 0.0)))


def layer_macs(graph: Graph, tensors: list[Array]) -> list[int]:
    """Multiply-adds of every convolution and dense layer, in order, for one input; zero weights included."""
    shapes, out = infer_shapes(graph, [t.shape for t in tensors]), []
    for n, node in enumerate(graph.nodes):
        if node.op in LAYERS:
            positions = {"conv": shapes[n + 1][1:], "linear": shapes[n + 1][:-1]}
            out.append(tensors[node.attrs[0] - 1].size * math.prod(positions.get(node.op, shapes[node.inputs[0]][1:])))
    return out


# ---- between the graph and steps


def _turned(w: Exact, groups: int) -> Exact:
    """(in, out / groups, *kernel) as (out, in / groups, *kernel); its own inverse."""
    w = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)
    return w.reshape(-1, *w.shape[2:])


def _unpack(graph: Graph, tensors: list[Array]) -> _Net:
    infer_shapes(graph, [t.shape for t in tensors])  # complains about everything that does not fit
    steps = []
    for n, node in enumerate(graph.nodes):
        if node.op not in (*LAYERS, "scale_shift"):
            steps.append(_Step(node))
            continue
        own = [tensors[i - 1].astype(np.float64) if i else None for i in node.attrs[:2]]
        if node.op == "conv_transpose":
            own[0] = _turned(own[0], node.attrs[2])
        step = _Step(replace(node, attrs=(0, 0, *node.attrs[2:])), tuple(own))
        if node.op in LAYERS:
            step = replace(step, origin=n, rows=np.arange(len(own[0])), columns=np.arange(own[0].shape[1]))
        steps.append(step)
    return _Net(tuple(graph.input_shape), tuple(steps))


def _pack(net: _Net) -> tuple[Graph, list[Exact]]:
    nodes, tensors = [], []
    for step in net.steps:
        own, numbers = list(step.tensors), []
        if step.node.op == "conv_transpose":
            own[0] = _turned(own[0], step.groups)
        for t in own:
            if t is not None:
                tensors.append(t)
            numbers.append(0 if t is None else len(tensors))
        nodes.append(replace(step.node, attrs=(*numbers, *step.node.attrs[len(own) :])))
    return Graph(net.input_shape, tuple(nodes)), tensors


def _rounded(net: _Net) -> tuple[Graph, list[Array]]:
    graph, tensors = _pack(net)
    return graph, [np.ascontiguousarray(t, np.float32) for t in tensors]


def _equal(a: _Net, b: _Net) -> bool:
    (graph_a, a_tensors), (graph_b, b_tensors) = _pack(a), _pack(b)
    return graph_a == graph_b and all(
        np.array_equal(s, t, equal_nan=True) for s, t in zip(a_tensors, b_tensors, strict=True)
    )


def _removed(graph: Graph, given: _Net, net: _Net) -> Removed:
    new, tensors = _pack(net)
    left = {s.origin: (s, node) for s, node in zip(net.steps, new.nodes, strict=True) if s.origin >= 0}
    layers = []
    for n, node in enumerate(graph.nodes):
        if n in left:
            step, now = left[n]
            layers.append(
                Kept(node.attrs[0] - 1, now.attrs[0] - 1, tuple(step.rows.tolist()), tuple(step.columns.tolist()))
            )
        elif node.op in LAYERS:
            layers.append(Kept(node.attrs[0] - 1, -1, (), ()))
    counts = [[s.tensors[0] for s in x.steps if s.origin >= 0] for x in (given, net)]
    channels, weights = ([f(w) for w in counts] for f in (lambda w: sum(map(len, w)), lambda w: sum(t.size for t in w)))
    return Removed(tuple(channels), tuple(weights), (sum(layer_macs(*_pack(given))), sum(layer_macs(new, tensors))), tuple(layers))


# ---- which channels belong together


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _kind(step: _Step, x: tuple[int, ...]) -> str:
    """How a layer treats the channels of its input, of shape x: "dense", "depthwise" or "fixed"; "" if it is none."""
    if step.node.op not in LAYERS:
        return ""
    if step.node.op == "linear":
        return "dense" if len(x) == 1 else "fixed"  # of sequences: channels, the first axis, are not what it mixes
    return "dense" if step.groups == 1 else "depthwise" if step.groups == x[0] else "fixed"


def _sources(step: _Step, n: int, shapes: Shapes) -> list[NDArray[np.intp]]:
    """For every input, (channels of value n + 1,): which of the input's channels it carries on, -1 for none."""
    out = _channels(shapes[n + 1])
    into = [_channels(shapes[i]) for i in step.node.inputs]
    none, op = np.full(out, -1), step.node.op
    if op == "concat":
        ends, at = np.cumsum(into), np.arange(out)
        return [np.where((at >= e - c) & (at < e), at - e + c, -1) for c, e in zip(into, ends, strict=True)]
    if op == "pad":
        at = np.arange(out) - step.node.attrs[0]
        return [np.where((at >= 0) & (at < into[0]), at, -1)]
    if op == "flatten" or _kind(step, shapes[step.node.inputs[0]]) == "depthwise":
        return [np.repeat(np.arange(into[0]), out // into[0])]
    return [np.arange(out) if op not in LAYERS and c == out else none for c in into]


def _labels(net: _Net, shapes: Shapes) -> list[NDArray[np.intp]]:
    """For every value, (channels,): the class of each channel, named by the first channel of all values that is in it."""
    ends = np.cumsum([_channels(s) for s in shapes])
    starts, ties = [0, *ends[:-1]], [np.zeros((2, 0), np.intp)]
    for n, step in enumerate(net.steps):
        for i, source in zip(step.node.inputs, _sources(step, n, shapes), strict=True):
            (at,) = np.nonzero(source >= 0)
            ties.append(np.stack([starts[i] + source[at], starts[n + 1] + at]))
    a, b = np.concatenate(ties, axis=1)
    label = np.arange(ends[-1])
    while True:  # every tie hangs the larger name under the smaller one, then all paths are halved
        new, low = label.copy(), np.minimum(label[a], label[b])
        np.minimum.at(new, label[a], low)
        np.minimum.at(new, label[b], low)
        new = new[new]
        if (new == label).all():
            return np.split(label, ends[:-1])
        label = new


def _needed(net: _Net, shapes: Shapes, labels: list[NDArray[np.intp]], known: list[Exact] | None = None) -> Flags:
    """By class: does it hold a channel that must stay, or that a layer reads? Channels with a known constant aside."""
    needed = np.zeros(sum(map(len, labels)), bool)
    for v in (0, len(net.steps)):
        needed[labels[v]] = True
    for n, step in enumerate(net.steps):
        for i in step.node.inputs:
            kind = _kind(step, shapes[i])
            if kind == "fixed":
                needed[labels[i]] = needed[labels[n + 1]] = True
            elif kind == "dense":
                read = _reads(step)
                needed[labels[i][read if known is None else read & np.isnan(known[i])]] = True
            elif step.node.op in ("add", "mul") and len(labels[i]) != len(labels[n + 1]):
                needed[labels[i]] = True  # one channel for all
    return needed


def _reads(step: _Step) -> Flags:
    """(in,) which input channels a dense layer has weights for."""
    w = step.tensors[0]
    return (w != 0).any(axis=(0, *range(2, w.ndim)))


# ---- what is constant


def _constants(net: _Net, shapes: Shapes) -> list[Exact]:
    """For every value, (channels,): what the channel is everywhere and for every input, NaN where that varies."""
    known = [np.full(_channels(shapes[0]), np.nan)]
    for n, step in enumerate(net.steps):
        u = [known[i] for i in step.node.inputs]
        kind = _kind(step, shapes[step.node.inputs[0]])
        if step.node.op == "linear" and kind == "fixed":
            value = np.full(_channels(shapes[n + 1]), np.nan)
        elif kind:
            value = _layer_constant(step, u[0])
        else:
            value = _constant(step, u, _sources(step, n, shapes), len(shapes[step.node.inputs[0]]))
        known.append(np.where(np.isfinite(value), value, np.nan))
    return known


def _constant(step: _Step, u: list[Exact], sources: list[NDArray[np.intp]], rank: int) -> Exact:
    """The same for one operation that is no layer; `rank` is that of its input."""
    op = step.node.op
    if op == "add":
        return u[0] + u[1]
    if op == "mul":
        return np.where((u[0] == 0) | (u[1] == 0), 0.0, u[0] * u[1])
    if op == "scale_shift":
        scale, shift = step.tensors
        return np.where(scale == 0, shift, u[0] * scale + shift)
    if op in ACTIVATIONS:
        return ACTIVATIONS[op](u[0])
    value = sum(np.where(s >= 0, c[s], 0.0) for c, s in zip(u, sources, strict=True))  # padded channels are zero
    a = attributes(step.node, rank if op == "pad" else rank - 1)
    edges = (*a["before"][1:], *a["after"][1:]) if op == "pad" else ()
    if op == "avg_pool" and a["count_padding"]:
        edges = a["padding"]
    return np.where(value == 0, 0.0, np.nan) if any(edges) else value


def _borderless(step: _Step) -> bool:
    """Does a layer see its input alone, and no zeros around or between?"""
    op, attrs = step.node.op, step.node.attrs
    axes = (len(attrs) - 3) // 3
    return op == "linear" or (op == "conv" and not any(attrs[3 + axes : 3 + 2 * axes]))


def _foldable(step: _Step, u: Exact) -> tuple[Flags, Exact]:
    """For every slice of a layer with constants u (in,) at its input, (out, in / groups): does it contribute a constant,
    and which (0 where it does not)?"""
    w = step.tensors[0].reshape(*step.tensors[0].shape[:2], -1)
    per = np.repeat(u.reshape(step.groups, -1), len(w) // step.groups, axis=0)
    fits = (per == 0) | (np.isfinite(per) & _borderless(step)) | ~(w != 0).any(axis=2)
    return fits, w.sum(axis=2) * np.where(fits & np.isfinite(per), per, 0.0)


def _layer_constant(step: _Step, u: Exact) -> Exact:
    fits, part = _foldable(step, u)
    return np.where(fits.all(axis=1), step.bias + part.sum(axis=1), np.nan)


# ---- the passes


def _fold(net: _Net) -> _Net:
    """Put a layer with the norm layer's factors in the norm layer's place; the layer before it is then read by nobody."""
    shapes, steps = net.shapes(), list(net.steps)
    uses = Counter(i for s in steps for i in s.node.inputs)
    for n, step in enumerate(steps):
        i = step.node.inputs[0]
        if step.node.op != "scale_shift" or i == 0 or uses[i] != 1:
            continue
        layer = steps[i - 1]
        if layer.node.op not in (*LAYERS, "scale_shift") or (layer.node.op == "linear" and len(shapes[i]) > 1):
            continue
        scale, shift = step.tensors
        w = layer.tensors[0] * scale.reshape(-1, *[1] * (layer.tensors[0].ndim - 1))
        steps[n] = replace(layer, tensors=(w, layer.bias * scale + shift))
    return replace(net, steps=tuple(steps))


def _bypass(net: _Net) -> _Net:
    """Sums and products with a constant become scale_shifts, and what changes nothing is no longer read."""
    shapes, steps, same = net.shapes(), [], [0]
    known = _constants(net, shapes)
    for n, step in enumerate(net.steps):
        step = _without_constant(step, shapes[n + 1], shapes, known)
        step = replace(step, node=replace(step.node, inputs=tuple(same[i] for i in step.node.inputs)))
        steps.append(step)
        last = n + 1 == len(net.steps)  # the output is the last value: it cannot be another one
        same.append(step.node.inputs[0] if _idle(step) and not last else n + 1)
    return _reachable(replace(net, steps=tuple(steps)))


def _without_constant(step: _Step, out: tuple[int, ...], shapes: Shapes, known: list[Exact]) -> _Step:
    """A sum or product, a value of shape out, as a scale_shift if one operand is constant in all its channels."""
    if step.node.op in ("add", "mul"):
        for x, c in (step.node.inputs, step.node.inputs[::-1]):
            if np.isfinite(known[c]).all() and shapes[x] == out:
                u = np.broadcast_to(known[c], _channels(out))
                pair = (np.ones_like(u), u) if step.node.op == "add" else (u, np.zeros_like(u))
                return _Step(Node("scale_shift", (x,), (0, 0)), pair)
    return step


def _idle(step: _Step) -> bool:
    """Is its value its input?"""
    if step.node.op == "scale_shift":
        scale, shift = step.tensors
        return bool((scale == 1).all() and (shift == 0).all())
    return step.node.op == "concat" and len(step.node.inputs) == 1


def _absorb(net: _Net) -> _Net:
    """Take constant channels into biases, and at padded convolutions into the weights of one constant channel."""
    shapes, steps = net.shapes(), list(net.steps)
    known, labels = _constants(net, shapes), _labels(net, shapes)
    needed = _needed(net, shapes, labels, known)
    offers = {}  # by step: which channels could stand for the others
    for n, step in enumerate(steps):
        u = known[step.node.inputs[0]]
        if _kind(step, shapes[step.node.inputs[0]]) == "dense" and not _borderless(step):
            size = np.abs(np.nan_to_num(u))
            offers[n] = np.nonzero((size > 0) & (size >= SMALLEST * size.max()))[0]
    popular = Counter(int(c) for n, at in offers.items() for c in labels[net.steps[n].node.inputs[0]][at])
    for n, step in enumerate(steps):
        i = step.node.inputs[0]
        if _kind(step, shapes[i]) and not (step.node.op == "linear" and len(shapes[i]) > 1):
            step = _absorb_constants(step, known[i])
            if len(offers.get(n, ())):
                chosen = max(offers[n], key=lambda c, i=i: (needed[labels[i][c]], popular[int(labels[i][c])], -c))
                step = _merge_constants(step, known[i], chosen)
            steps[n] = step
    return replace(net, steps=tuple(steps))


def _absorb_constants(step: _Step, u: Exact) -> _Step:
    """A layer without weights for those of its inputs, constants u (in,), that a bias can stand for."""
    fits, part = _foldable(step, u)
    w, bias = step.tensors
    if part.any():
        bias = step.bias + part.sum(axis=1)
    return replace(step, tensors=(np.where(fits.reshape(*fits.shape, *[1] * (w.ndim - 2)), 0.0, w), bias))


def _merge_constants(step: _Step, u: Exact, chosen: int) -> _Step:
    """A dense layer that reads one channel instead of all that are constant, u (in,): they are multiples of it."""
    others = np.isfinite(u) & (u != 0) & _reads(step)
    others[chosen] = False
    w = step.tensors[0].copy()
    w[:, chosen] += np.tensordot(w[:, others], u[others] / u[chosen], axes=(1, 0))
    w[:, others] = 0
    return replace(step, tensors=(w, step.tensors[1]))


def _live(net: _Net, idle: list[bool] | None = None) -> list[bool]:
    """By value: does the output depend on it? A concatenation depends on no value of which no channel is needed."""
    live = [True] + [False] * len(net.steps)
    live[-1] = True
    for n in reversed(range(len(net.steps))):
        inputs = net.steps[n].node.inputs
        if live[n + 1] and net.steps[n].node.op == "concat" and idle:
            inputs = [i for i in inputs if not idle[i]] or inputs
        for i in inputs if live[n + 1] else ():
            live[i] = True
    return live


def _reachable(net: _Net, live: list[bool] | None = None) -> _Net:
    """Leave out the steps whose values nobody reads."""
    live = live or _live(net)
    number = np.cumsum(live) - 1
    steps = []
    for n, step in enumerate(net.steps):
        if live[n + 1]:
            inputs = tuple(int(number[i]) for i in step.node.inputs if live[i])
            steps.append(replace(step, node=replace(step.node, inputs=inputs)))
    return replace(net, steps=tuple(steps))


def _cut(net: _Net) -> _Net:
    """Remove all classes of channels that nobody reads."""
    shapes = net.shapes()
    labels = _labels(net, shapes)
    needed = _needed(net, shapes, labels)
    while True:  # until every value that is left has a channel; then those that are not are not needed in any class
        live = _live(net, [not needed[c].any() for c in labels])
        empty = [c for c, used in zip(labels, live, strict=True) if used and not needed[c].any()]
        if not empty:
            break
        needed[empty[0][0]] = True
    keep = [needed[c] for c in labels]
    steps = [
        _cut_step(s, keep[s.node.inputs[0]], keep[n + 1], shapes[s.node.inputs[0]]) for n, s in enumerate(net.steps)
    ]
    return _reachable(replace(net, steps=tuple(steps)), live)


def _cut_step(step: _Step, into: Flags, out: Flags, x: tuple[int, ...]) -> _Step:
    """One step with the kept channels, flags (in,) and (out,), alone; x is the shape of its input."""
    kind, node = _kind(step, x), step.node
    if kind in ("dense", "depthwise"):
        weight, bias = step.tensors
        columns = step.columns
        if kind == "dense":
            weight, columns = weight[:, into], columns[into]
        else:
            node = replace(node, attrs=(0, 0, int(into.sum()), *node.attrs[3:]))
        own = (weight[out], None if bias is None else bias[out])
        return replace(step, node=node, tensors=own, rows=step.rows[out], columns=columns)
    if node.op == "scale_shift":
        return replace(step, tensors=tuple(t[out] for t in step.tensors))
    if node.op == "pad":
        before, rank = node.attrs[0], len(x)
        attrs = list(node.attrs)
        attrs[0], attrs[rank] = int(out[:before].sum()), int(out[before + x[0] :].sum())
        return replace(step, node=replace(node, attrs=tuple(attrs)))
    return step
