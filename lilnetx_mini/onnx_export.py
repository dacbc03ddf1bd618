"""From a file to ONNX: the compact graph and the decoded tensors as a model that runs wherever ONNX does.

Value 0 is called "input", the last one "output", the others after their operations; tensors keep their names. The batch
is the only axis whose size stays open. ONNX stores float32, so the result is as large as the plain network.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import __version__, lnx
from .errors import ExportError, InputError, MissingExtraError, UnsupportedOpError
from .graph import OPS, Graph, Node, attributes, infer_shapes
from .simplify import simplify

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    raise MissingExtraError("onnx", "onnx") from None

Array = NDArray[np.float32]

OPSET, IR_VERSION = 17, 8  # the oldest pair that knows all that is needed: onnxruntime reads it from 1.12 on
LARGEST_MODEL = (1 << 31) - (1 << 24)  # bytes of tensors: protobuf ends at 2 GiB, the graph needs a little as well
LARGEST_AXES = 3  # spatial axes of a window that onnxruntime implements

SAME = {  # operations that need no translation
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "add": "Add",
    "mul": "Mul",
}


class _Builder:
    """Nodes and initializers of one ONNX graph; no two names that it gives out are equal."""

    def __init__(self, tensors: list[Array], names: list[str]) -> None:
        self.tensors, self.names = tensors, names
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._taken: set[str] = set()
        self._stored: dict[tuple[int, int], str] = {}

    def fresh(self, name: str) -> str:
        """The name, with underscores after it if it is taken."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, name: str, values: NDArray) -> str:
        """Store an array; returns its name."""
        name = self.fresh(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def tensor(self, number: int, spread: int = 0) -> list[str]:
        """The name of a tensor of the graph, stored with `spread` axes of 1 after its own; nothing for number 0."""
        if number == 0:
            return []
        if (number, spread) not in self._stored:
            values = np.asarray(self.tensors[number - 1], np.float32)
            name = self.names[number - 1] or f"tensor_{number}"
            self._stored[number, spread] = self.constant(name, values.reshape(*values.shape, *[1] * spread))
        return [self._stored[number, spread]]

    def add(self, op: str, inputs: list[str], out: str, **attrs: int | float | list[int] | tuple[int, ...]) -> str:
        """Append a node; returns the name of its value."""
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attrs))
        return out


def _windowed(b: _Builder, node: Node, a: dict, x: list[str], out: str) -> None:
    """Convolutions and pools: one ONNX node each, whose padding is written out for both ends."""
    if len(a["stride"]) > LARGEST_AXES:
        raise UnsupportedOpError(f"{node.op} over {len(a['stride'])} axes: ONNX runtimes take up to {LARGEST_AXES}")
    attrs = {"strides": a["stride"], "pads": a["padding"] * 2}
    if node.op == "max_pool":
        b.add("MaxPool", x, out, kernel_shape=a["kernel"], **attrs)
    elif node.op == "avg_pool":
        b.add("AveragePool", x, out, kernel_shape=a["kernel"], count_include_pad=int(a["count_padding"] > 0), **attrs)
    else:
        attrs |= {"dilations": a["dilation"], "group": a["groups"]}
        if node.op == "conv_transpose":
            x, attrs = _with_output_padding(b, a, x, attrs, out)
        b.add(
            "Conv" if node.op == "conv" else "ConvTranspose",
            [*x, *b.tensor(a["weight"]), *b.tensor(a["bias"])],
            out,
            **attrs,
        )


def _with_output_padding(b: _Builder, a: dict, x: list[str], attrs: dict, out: str) -> tuple[list[str], dict]:
    """Input and attributes of a ConvTranspose whose output is longer by a["output_padding"].

    onnxruntime refuses one that reaches the stride, which a dilation allows. Then less is cut off at the end and, where
    that does not suffice, the input gets zeros there: each lengthens the output by one stride and adds nothing to it.
    """
    rows = list(zip(a["output_padding"], a["padding"], a["stride"], strict=True))
    if all(e < s for e, _, s in rows):
        return x, {**attrs, "output_padding": a["output_padding"]}
    zeros = [-(min(p - e, 0) // s) for e, p, s in rows]
    ends = [p - e + z * s for (e, p, s), z in zip(rows, zeros, strict=True)]
    if any(zeros):
        pads = b.constant(f"{out}/pads", np.array([0] * (4 + len(rows)) + zeros, np.int64))
        x = [b.add("Pad", [*x, pads], b.fresh(f"{out}/padded"))]
    return x, {**attrs, "pads": [*a["padding"], *ends]}


def _linear(b: _Builder, a: dict, x: list[str], axes: int, out: str) -> None:
    """Gemm for vectors, MatMul over the last axis for all else; the weight stays (out, in), as the state dict has it."""
    weight, bias = b.tensor(a["weight"]), b.tensor(a["bias"])
    if axes == 0:
        b.add("Gemm", [*x, *weight, *bias], out, transB=1)
        return
    turned = b.add("Transpose", weight, b.fresh(f"{out}/turned"), perm=[1, 0])
    product = b.add("MatMul", [*x, turned], b.fresh(f"{out}/product") if bias else out)
    if bias:
        b.add("Add", [product, *bias], out)


def _translate(b: _Builder, node: Node, x: list[str], axes: int, out: str) -> None:
    """Append what computes the value `out` from the values `x`, the first of which has `axes` axes after the channels."""
    a = attributes(node, axes + 1 if node.op == "pad" else axes)
    if node.op in SAME:
        b.add(SAME[node.op], x, out)
    elif node.op in ("conv", "conv_transpose", "max_pool", "avg_pool"):
        _windowed(b, node, a, x, out)
    elif node.op == "linear":
        _linear(b, a, x, axes, out)
    elif node.op == "scale_shift":
        scaled = b.add("Mul", [*x, *b.tensor(a["scale"], axes)], b.fresh(f"{out}/scaled"))
        b.add("Add", [scaled, *b.tensor(a["shift"], axes)], out)
    elif node.op == "relu6":
        b.add("Clip", [*x, *[b.constant(f"{out}/{k}", np.float32(k)) for k in (0, 6)]], out)
    elif node.op == "hardsigmoid":
        b.add("HardSigmoid", x, out, alpha=1 / 6, beta=0.5)
    elif node.op == "silu":
        b.add("Mul", [*x, b.add("Sigmoid", x, b.fresh(f"{out}/sigmoid"))], out)
    elif node.op == "concat":
        b.add("Concat", x, out, axis=1)
    elif node.op == "global_avg_pool":
        mean = b.add("GlobalAveragePool", x, out if a["keep_axes"] else b.fresh(f"{out}/mean"))
        if not a["keep_axes"]:
            b.add("Flatten", [mean], out, axis=1)
    elif node.op == "flatten":
        b.add("Flatten", x, out, axis=1)
    elif node.op == "subsample":
        spatial = np.arange(2, 2 + axes)
        numbers = {"starts": 0 * spatial, "ends": 0 * spatial + np.iinfo(np.int64).max, "axes": spatial}
        numbers["steps"] = np.array(a["step"])
        b.add("Slice", [*x, *[b.constant(f"{out}/{k}", v.astype(np.int64)) for k, v in numbers.items()]], out)
    elif node.op == "pad":
        b.add("Pad", [*x, b.constant(f"{out}/pads", np.array([0, *a["before"], 0, *a["after"]], np.int64))], out)
    else:
        raise UnsupportedOpError(f"the ONNX export has no operation {node.op}, only {', '.join(OPS)}")


def to_onnx(graph: Graph, tensors: list[Array], names: list[str] | None = None) -> onnx.ModelProto:
    """The graph as a checked ONNX model: "input" (batch, *input_shape) to "output" (batch, *output_shape), float32.

    tensors  in the graph's numbering; those that no node reads are left out
    names    of the tensors [default: tensor_1, ...]; where two would be equal, one gets an underscore
    raises   LnxError if the graph does not fit the tensors, UnsupportedOpError for windows over more than three axes,
             ExportError if the tensors are too large for an ONNX file
    """
    shapes = infer_shapes(graph, [np.shape(t) for t in tensors])
    names = [f"tensor_{i + 1}" for i in range(len(tensors))] if names is None else names
    if len(names) != len(tensors):
        raise InputError(f"{len(names)} names for {len(tensors)} tensors")
    b = _Builder(tensors, names)
    values = ["input", *(f"{node.op}_{n + 1}" for n, node in enumerate(graph.nodes))]
    values = [b.fresh(v) for v in [*values[:-1], "output"]] if graph.nodes else [*values, "output"]
    for node, out in zip(graph.nodes, values[1:], strict=False):
        _translate(b, node, [values[i] for i in node.inputs], len(shapes[node.inputs[0]]) - 1, out)
    if not graph.nodes:
        b.add("Identity", ["input"], "output")
        shapes *= 2
    size = sum(t.ByteSize() for t in b.initializers)
    if size > LARGEST_MODEL:
        raise ExportError(f"{size:,} bytes of tensors: an ONNX file holds at most {LARGEST_MODEL:,}")
    infos = [
        helper.make_tensor_value_info(v, TensorProto.FLOAT, ["batch", *s]) for v, s in zip(values, shapes, strict=True)
    ]
    network = helper.make_graph(b.nodes, "network", infos[:1], infos[-1:], b.initializers, value_info=infos[1:-1])
    model = helper.make_model(
        network,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lilnetx-mini",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)  # infers all shapes anew and compares
    return model


def _names_after(graph: Graph, count: int, weights: dict[int, str]) -> list[str]:
    """Names of a simplified graph's tensors, which are numbered anew: biases follow their weights, scales their node."""
    names = [weights.get(i, "") for i in range(count)]
    for n, node in enumerate(graph.nodes):
        if node.op in ("conv", "conv_transpose", "linear") and node.attrs[1]:
            names[node.attrs[1] - 1] = names[node.attrs[0] - 1].removesuffix(".weight") + ".bias"
        elif node.op == "scale_shift":
            for number, role in zip(node.attrs, ("scale", "shift"), strict=True):
                names[number - 1] = f"{node.op}_{n + 1}.{role}"
    return names


def export(source: str | os.PathLike, target: str | os.PathLike, shrink: bool = True) -> dict:
    """Write the network of an .lnx file as ONNX, atomically.

    shrink   leave out channels that have no effect
    returns  target, bytes and source_bytes of the files, input_shape and output_shape without the batch, and before and
             after of channels, weights and macs (multiplications), as pairs, if channels were left out
    raises   LnxError if the source is damaged, UnsupportedOpError if it holds no graph; an old target then stays
    """
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise InputError(f"{target} is the file to export: choose another name for the ONNX model")
    model = lnx.read(source)
    if model.graph is None:
        raise UnsupportedOpError(
            f"this file has no graph to run ({model.note or 'none was stored'}); lilnetx_mini.nn.load_into(model, path) "
            "still puts its weights into your torch module, which torch.onnx.export can take from there"
        )
    graph, tensors, names, removed = model.graph, model.tensors(), model.tensor_names(), {}
    if shrink:
        graph, tensors, report = simplify(graph, tensors)
        names = _names_after(graph, len(tensors), {k.now: names[k.tensor] for k in report.layers if k.now >= 0})
        removed = {name: list(getattr(report, name)) for name in ("channels", "weights", "macs")}
    shapes = infer_shapes(graph, [t.shape for t in tensors])
    data = to_onnx(graph, tensors, names).SerializeToString(deterministic=True)
    lnx.write_atomic(target, data)
    return {
        "target": str(target),
        "bytes": len(data),
        "source_bytes": Path(source).stat().st_size,
        "input_shape": list(shapes[0]),
        "output_shape": list(shapes[-1]),
        **removed,
    }
