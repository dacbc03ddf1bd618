"""From a torch module to the compact graph, through torch.export."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOpError
from ..graph import Graph, Node

Names = dict[str, int]  # tensor name -> number in the file, from 1


class _Tracer:
    """Walks the exported graph; `values` maps its nodes to our value numbers, or to constants and parameter names."""

    def __init__(self, program: torch.export.ExportedProgram, names: Names) -> None:
        signature = program.graph_signature
        self.sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.names, self.nodes, self.values = names, [], {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in self.sources]
        if len(inputs) != 1:
            raise UnsupportedOpError(f"{len(inputs)} inputs: the runtime takes one")
        self.batch = inputs[0].meta["val"].shape[0]
        self.input_shape = tuple(inputs[0].meta["val"].shape[1:])
        self.values[inputs[0].name] = 0

    def add(self, op: str, inputs: tuple[int, ...], *attrs: int) -> int:
        """Append a node and return its value's number."""
        self.nodes.append(Node(op, inputs, tuple(int(a) for a in attrs)))
        return len(self.nodes)

    def value(self, node: torch.fx.Node) -> int:
        """The value number of an activation."""
        if not isinstance(node, torch.fx.Node) or node.name not in self.values:
            raise UnsupportedOpError(f"an operand {node} that is neither the input nor computed from it")
        return self.values[node.name]

    def tensor(self, node: torch.fx.Node | None, suffix: str = "") -> int:
        """The number of a stored tensor, 0 for None."""
        if node is None:
            return 0
        name = self.sources.get(getattr(node, "name", ""), "")
        if name + suffix not in self.names:
            raise UnsupportedOpError(f"an operand {node} that is not a stored parameter")
        return self.names[name + suffix]


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _many(value, axes: int, default: int) -> tuple[int, ...]:
    """An attribute that torch gives as one number, a list, or an empty list for "the default", one entry an axis."""
    if isinstance(value, int):
        return (value,) * axes
    value = tuple(value) or (default,)
    return value * axes if len(value) == 1 else value


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise UnsupportedOpError(message)


def _convolution(t: _Tracer, node: torch.fx.Node, x, w, b=None, stride=1, padding=0, dilation=1, groups=1) -> int:
    kernel = _shape(w)[2:]
    axes = len(kernel)
    stride, dilation = _many(stride, axes, 1), _many(dilation, axes, 1)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        _need(padding == "valid" or all(r % 2 == 0 for r in reach), "padding='same' with a kernel of even extent")
        padding = 0 if padding == "valid" else [r // 2 for r in reach]
    return t.add("conv", (t.value(x),), t.tensor(w), t.tensor(b), groups, *stride, *_many(padding, axes, 0), *dilation)


def _transposed(
    t: _Tracer, node: torch.fx.Node, x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> int:
    axes = len(_shape(w)) - 2
    spatial = [
        *_many(stride, axes, 1),
        *_many(padding, axes, 0),
        *_many(dilation, axes, 1),
        *_many(output_padding, axes, 0),
    ]
    return t.add("conv_transpose", (t.value(x),), t.tensor(w), t.tensor(b), groups, *spatial)


def _batch_norm(t: _Tracer, node: torch.fx.Node, x, w, b, mean, var, training, *rest) -> int:
    _need(not training and mean is not None, "batch norm that uses the statistics of the batch")
    module = t.sources[mean.name].removesuffix("running_mean").removesuffix(".")
    _need(f"{module}.scale" in t.names, f"norm layer {module} that was not folded")
    return t.add("scale_shift", (t.value(x),), t.names[f"{module}.scale"], t.names[f"{module}.shift"])


def _max_pool(t: _Tracer, node: torch.fx.Node, x, kernel, stride=(), padding=0, dilation=1, ceil=False) -> int:
    axes = len(_shape(x)) - 2
    kernel = _many(kernel, axes, 1)
    _need(set(_many(dilation, axes, 1)) == {1} and not ceil, "max pooling with dilation or ceil_mode")
    return t.add(
        "max_pool", (t.value(x),), *kernel, *(_many(stride, axes, 1) if stride else kernel), *_many(padding, axes, 0)
    )


def _avg_pool(
    t: _Tracer, node: torch.fx.Node, x, kernel, stride=(), padding=0, ceil=False, count_padding=True, divisor=None
) -> int:
    axes = len(_shape(x)) - 2
    kernel = _many(kernel, axes, 1)
    _need(divisor is None and not ceil, "average pooling with ceil_mode or a divisor of its own")
    return t.add(
        "avg_pool",
        (t.value(x),),
        count_padding,
        *kernel,
        *(_many(stride, axes, 1) if stride else kernel),
        *_many(padding, axes, 0),
    )


def _adaptive(t: _Tracer, node: torch.fx.Node, x, size) -> int:
    before, after = _shape(x)[2:], _shape(node)[2:]
    if set(after) == {1}:
        return t.add("global_avg_pool", (t.value(x),), 1)
    _need(all(m % n == 0 for m, n in zip(before, after, strict=True)), f"adaptive pooling from {before} to {after}")
    kernel = [m // n for m, n in zip(before, after, strict=True)]
    return t.add("avg_pool", (t.value(x),), 1, *kernel, *kernel, *[0] * len(kernel))


def _mean(t: _Tracer, node: torch.fx.Node, x, dims=None, keep=False, **_) -> int:
    rank = len(_shape(x))
    _need(
        dims is not None and sorted(d % rank for d in dims) == list(range(2, rank)) and rank > 2,
        f"a mean over axes {dims}",
    )
    return t.add("global_avg_pool", (t.value(x),), keep)


def _reshape(t: _Tracer, node: torch.fx.Node, x, *_) -> int:
    before, after = _shape(x), _shape(node)
    if before == after:
        return t.value(x)
    _need(after == (t.batch, math.prod(before[1:])), f"a reshape from {before} to {after}")
    return t.add("flatten", (t.value(x),))


def _slice(t: _Tracer, node: torch.fx.Node, x, dim=0, start=None, end=None, step=1) -> int:
    shape = _shape(x)
    _need((start or 0) == 0 and (end is None or end >= shape[dim]), f"a slice of axis {dim} from {start} to {end}")
    if step == 1:
        return t.value(x)
    _need(dim % len(shape) >= 2, f"a stepped slice of axis {dim}")
    return t.add("subsample", (t.value(x),), *[step if a == dim % len(shape) else 1 for a in range(2, len(shape))])


def _pad(t: _Tracer, node: torch.fx.Node, x, amounts, mode="constant", value=None) -> int:
    _need(
        mode == "constant" and not value and min(amounts) >= 0 and len(amounts) <= 2 * len(_shape(x)) - 2,
        f"{mode} padding by {amounts} with {value}",
    )
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (len(_shape(x)) - 1 - len(pairs)) + pairs
    return t.add("pad", (t.value(x),), *[p[0] for p in pairs], *[p[1] for p in pairs])


def _two(op: str) -> Callable:
    def handler(t: _Tracer, node: torch.fx.Node, x, y, alpha=1) -> int:
        _need(
            alpha == 1 and isinstance(y, torch.fx.Node) and len(_shape(x)) == len(_shape(y)),
            f"{op} with a number, a factor or another rank",
        )
        return t.add(op, (t.value(x), t.value(y)))

    return handler


def _concat(t: _Tracer, node: torch.fx.Node, parts, dim=0) -> int:
    _need(dim % len(_shape(node)) == 1, f"a concatenation along axis {dim}")
    return t.add("concat", tuple(t.value(p) for p in parts))


def _hardtanh(t: _Tracer, node: torch.fx.Node, x, low=-1, high=1) -> int:
    _need((low, high) == (0, 6), f"a clamp to {low} .. {high}")
    return t.add("relu6", (t.value(x),))


def _same(t: _Tracer, node: torch.fx.Node, x, *_, **__) -> int:
    return t.value(x)


def _one(op: str) -> Callable:
    return lambda t, node, x, *_: t.add(op, (t.value(x),))


def _dropout(t: _Tracer, node: torch.fx.Node, x, p, training) -> int:
    _need(not training, "dropout in training mode")
    return t.value(x)


def _linear(t: _Tracer, node: torch.fx.Node, x, w, b=None) -> int:
    return t.add("linear", (t.value(x),), t.tensor(w), t.tensor(b))


HANDLERS: dict[str, Callable] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "_unsafe_view"), _reshape),
    **dict.fromkeys(("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "identity"), _same),
    **{
        name: _one(op)
        for name, op in {
            "relu": "relu",
            "relu6": "relu6",
            "hardswish": "hardswish",
            "hardsigmoid": "hardsigmoid",
            "sigmoid": "sigmoid",
            "silu": "silu",
            "tanh": "tanh",
        }.items()
    },
    "batch_norm": _batch_norm,
    "linear": _linear,
    "mean": _mean,
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "cat": _concat,
    "hardtanh": _hardtanh,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    "add": _two("add"),
    "mul": _two("mul"),
}


def trace(model: nn.Module, example_input: Tensor, names: Names) -> Graph:
    """The graph of an eval-mode module.

    example_input  one batch, as the module takes it
    names          number in the file of every stored tensor; folded norm layers as ``module.scale`` and ``module.shift``
    raises         UnsupportedOpError, naming the operation and the layer, if the runtime lacks something
    """
    try:
        program = torch.export.export(model, (example_input,))
    except Exception as e:  # whatever a user's forward may do inside the tracer
        first = str(e).strip().split("\n")[0][:200]
        raise UnsupportedOpError(
            f"torch.export cannot trace {type(model).__name__}: {type(e).__name__}: {first}"
        ) from None
    tracer = _Tracer(program, names)
    for node in program.graph.nodes:
        if node.op == "call_function":
            _handle(tracer, node)
    output = [n for n in program.graph.nodes if n.op == "output"][0].args[0]
    _need(len(output) == 1, f"{len(output)} outputs: the runtime returns one")
    last = tracer.value(output[0])
    if last != len(tracer.nodes):  # the output must be the last value: nodes after it compute nothing that is used
        tracer.nodes = tracer.nodes[:last]
    return Graph(tracer.input_shape, tuple(tracer.nodes))


def _handle(tracer: _Tracer, node: torch.fx.Node) -> None:
    if node.target is operator.getitem or str(node.target).startswith("aten._assert") or "sym_size" in str(node.target):
        raise UnsupportedOpError(f"an operation {node.target} with several results")
    op = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = stack[-1][0].removeprefix("L['self'].") if stack else ""
    handler = HANDLERS.get(op) or HANDLERS.get(op.rstrip("_"))
    if handler is None:
        raise UnsupportedOpError(f"no runtime operation for {op} (layer '{where}')")
    try:
        tracer.values[node.name] = handler(tracer, node, *node.args, **node.kwargs)
    except UnsupportedOpError as e:
        raise UnsupportedOpError(f"no runtime operation for {e} (layer '{where}')") from None
