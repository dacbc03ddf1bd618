"""The compact graph: what a network computes, as a list of operations on numbered values and tensors.

Value 0 is the input; node n computes value n + 1 from earlier values; the last value is the output. Attributes are
integers only. An attribute that names a tensor holds its number plus one, and 0 for none. Shapes leave out the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InputError, LnxError
from .fields import Reader, Writer

LARGEST_VALUE = 1 << 27  # numbers in one activation, batch excluded
LARGEST_ATTRIBUTE = 1 << 24


@dataclass(frozen=True)
class Node:
    """One operation: its name, the values it reads, its attributes."""

    op: str
    inputs: tuple[int, ...]
    attrs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """input_shape without the batch, and the nodes in order."""

    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]


# name -> (number of inputs or None for any, attributes). The position is the number in the file: append only.
# Spatial attributes (s, p, ...) have one entry an axis, all of the first, then all of the second.
OPS: dict[str, tuple[int | None, str]] = {
    "conv": (1, "weight bias groups *stride *padding *dilation"),
    "conv_transpose": (1, "weight bias groups *stride *padding *dilation *output_padding"),
    "linear": (1, "weight bias"),
    "scale_shift": (1, "scale shift"),
    "relu": (1, ""),
    "relu6": (1, ""),
    "hardswish": (1, ""),
    "hardsigmoid": (1, ""),
    "sigmoid": (1, ""),
    "silu": (1, ""),
    "tanh": (1, ""),
    "add": (2, ""),
    "mul": (2, ""),
    "concat": (None, ""),  # along channels
    "max_pool": (1, "*kernel *stride *padding"),
    "avg_pool": (1, "count_padding *kernel *stride *padding"),
    "global_avg_pool": (1, "keep_axes"),
    "flatten": (1, ""),
    "subsample": (1, "*step"),
    "pad": (1, "*before *after"),  # zeros; one entry for every axis, channels first
}
NAMES = tuple(OPS)


def write_graph(graph: Graph, out: Writer) -> None:
    """Append a graph; inputs are stored as distances back."""
    out.uints(graph.input_shape).uint(len(graph.nodes))
    for n, node in enumerate(graph.nodes):
        out.uint(NAMES.index(node.op))
        if OPS[node.op][0] is None:
            out.uint(len(node.inputs))
        for i in node.inputs:
            out.uint(n - i)
        out.uints(node.attrs)


def read_graph(src: Reader) -> Graph:
    """The inverse; LnxError for unknown operations and inputs that do not exist."""
    shape = tuple(src.uints(LARGEST_VALUE, 8, "input shape"))
    nodes = []
    for n in range(src.uint(1 << 16, "number of nodes")):
        op = src.uint(1 << 16, "operation")
        if op >= len(NAMES):
            raise src.fail(f"operation {op} is unknown to this version: written by a newer one?")
        count = OPS[NAMES[op]][0]
        count = src.uint(n + 1, "number of inputs") if count is None else count
        inputs = tuple(n - src.uint(n, "an input's distance") for _ in range(count))
        nodes.append(Node(NAMES[op], inputs, tuple(src.uints(LARGEST_ATTRIBUTE, 64, "attributes"))))
    return Graph(shape, tuple(nodes))


def attributes(node: Node, axes: int) -> dict[str, int | tuple[int, ...]]:
    """Attributes by name; `axes` is how many entries a spatial one has. InputError if their number is wrong."""
    out: dict[str, int | tuple[int, ...]] = {}
    rest = list(node.attrs)
    for name in OPS[node.op][1].split():
        take = axes if name[0] == "*" else 1
        if len(rest) < take:
            raise InputError(f"{node.op} lacks its attribute {name}")
        out[name.lstrip("*")] = tuple(rest[:take]) if name[0] == "*" else rest[0]
        del rest[:take]
    if rest:
        raise InputError(f"{node.op} has {len(rest)} attributes too many")
    return out


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _conv_shape(node: Node, x: tuple[int, ...], tensors: list[tuple[int, ...]]) -> tuple[int, ...]:
    axes = len(x) - 1
    _need(axes >= 1, f"a convolution of a value of shape {x}")
    a = attributes(node, axes)
    w, groups = _tensor(a["weight"], tensors), a["groups"]
    _need(len(w) == axes + 2, f"a weight of shape {w} on a value of shape {x}")
    _need(min(*a["stride"], *a["dilation"], groups) >= 1, "stride, dilation and groups must be at least 1")
    span = [d * (k - 1) + 1 for d, k in zip(a["dilation"], w[2:], strict=True)]
    if node.op == "conv":
        out, into = w[0], w[1] * groups
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x[1:], a["padding"], span, a["stride"], strict=True)]
    else:
        out, into = w[1] * groups, w[0]
        extra = a["output_padding"]
        _need(
            all(e < max(s, d) for e, s, d in zip(extra, a["stride"], a["dilation"], strict=True)),
            "output padding too large",
        )
        size = [
            (n - 1) * s - 2 * p + k + e
            for n, p, k, s, e in zip(x[1:], a["padding"], span, a["stride"], extra, strict=True)
        ]
    _need(
        x[0] == into and out % groups == 0 and into % groups == 0,
        f"{into} input channels wanted, in {groups} groups, {x[0]} given",
    )
    if a["bias"]:
        _need(
            _tensor(a["bias"], tensors) == (out,), f"a bias of shape {_tensor(a['bias'], tensors)} for {out} channels"
        )
    return (out, *size)


def _tensor(number: int, tensors: list[tuple[int, ...]]) -> tuple[int, ...]:
    _need(1 <= number <= len(tensors), f"tensor {number} of {len(tensors)}")
    return tensors[number - 1]


def _pool_shape(node: Node, x: tuple[int, ...]) -> tuple[int, ...]:
    a = attributes(node, len(x) - 1)
    _need(len(x) >= 2 and min(*a["kernel"], *a["stride"]) >= 1, f"pooling of a value of shape {x}")
    _need(
        all(2 * p <= k for p, k in zip(a["padding"], a["kernel"], strict=True)),
        "pooling pads by more than half its window",
    )
    rows = zip(x[1:], a["kernel"], a["stride"], a["padding"], strict=True)
    return (x[0], *[(n + 2 * p - k) // s + 1 for n, k, s, p in rows])


def node_shape(node: Node, inputs: list[tuple[int, ...]], tensors: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of a node's value from its inputs' and all tensors' shapes; InputError if they do not fit."""
    _need(
        len(inputs) == OPS[node.op][0] or (OPS[node.op][0] is None and len(inputs) > 0),
        f"{node.op} of {len(inputs)} values",
    )
    x = inputs[0]
    if node.op in ("conv", "conv_transpose"):
        return _conv_shape(node, x, tensors)
    if node.op in ("max_pool", "avg_pool"):
        return _pool_shape(node, x)
    a = attributes(node, len(x) if node.op == "pad" else len(x) - 1)
    if node.op == "linear":
        w = _tensor(a["weight"], tensors)
        _need(len(w) == 2 and len(x) >= 1 and x[-1] == w[1], f"a weight of shape {w} on a value of shape {x}")
        _need(not a["bias"] or _tensor(a["bias"], tensors) == (w[0],), "a bias of another length than the output")
        return (*x[:-1], w[0])
    if node.op == "scale_shift":
        _need(
            len(x) >= 1 and _tensor(a["scale"], tensors) == _tensor(a["shift"], tensors) == (x[0],),
            f"scale and shift for shape {x}",
        )
        return x
    if node.op in ("add", "mul"):
        y = inputs[1]
        _need(
            len(x) == len(y) and all(m == n or 1 in (m, n) for m, n in zip(x, y, strict=True)),
            f"{node.op} of shapes {x} and {y}",
        )
        return tuple(max(m, n) for m, n in zip(x, y, strict=True))
    if node.op == "concat":
        _need(
            len(x) >= 1 and all(len(y) == len(x) and y[1:] == x[1:] for y in inputs),
            f"concatenation of shapes {inputs}",
        )
        return (sum(y[0] for y in inputs), *x[1:])
    if node.op == "global_avg_pool":
        _need(len(x) >= 2, f"pooling of a value of shape {x}")
        return (x[0], *[1] * (len(x) - 1)) if a["keep_axes"] else (x[0],)
    if node.op == "flatten":
        return (math.prod(x),)
    if node.op == "subsample":
        _need(len(x) >= 2 and min(a["step"]) >= 1, f"subsampling of a value of shape {x}")
        return (x[0], *[-(-n // s) for n, s in zip(x[1:], a["step"], strict=True)])
    if node.op == "pad":
        return tuple(n + b + c for n, b, c in zip(x, a["before"], a["after"], strict=True))
    return x  # elementwise


def infer_shapes(graph: Graph, tensors: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of all values, the input's first; LnxError names the node that does not fit."""
    shapes = [tuple(graph.input_shape)]
    if not all(shapes[0]) or math.prod(shapes[0]) > LARGEST_VALUE:
        raise LnxError("network", f"an input of shape {shapes[0]}")
    for n, node in enumerate(graph.nodes):
        try:
            shape = node_shape(node, [shapes[i] for i in node.inputs], tensors)
            _need(all(s >= 1 for s in shape) and math.prod(shape) <= LARGEST_VALUE, f"a value of shape {shape}")
        except InputError as e:
            raise LnxError("network", f"node {n} ({node.op}) does not fit: {e}") from None
        shapes.append(shape)
    return shapes
