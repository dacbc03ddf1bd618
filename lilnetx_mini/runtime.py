"""Running a decoded network on arrays: no torch, no class that made it, only the file."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from . import conv, lnx
from .errors import InputError, UnsupportedOpError
from .graph import Graph, Node, attributes, infer_shapes

Array = NDArray[np.float32]


class Network:
    """A network ready to run.

    net = Network.load("model.lnx")
    logits = net(images)          # (N, *net.input_shape) float32 -> (N, classes)
    """

    def __init__(self, model: lnx.Model) -> None:
        if model.graph is None:
            raise UnsupportedOpError(
                f"this file has no graph to run ({model.note or 'none was stored'}); "
                "lilnetx_mini.nn.load_into(model, path) still puts its weights into your torch module"
            )
        self.graph: Graph = model.graph
        self.tensors = model.tensors()
        self.shapes = infer_shapes(self.graph, [t.shape for t in self.tensors])
        self.input_shape = self.shapes[0]

    @staticmethod
    def load(path: str | os.PathLike) -> Network:
        """Read a file and prepare it; LnxError if it is damaged, UnsupportedOpError if it holds no graph."""
        return Network(lnx.read(path))

    def __call__(self, x: NDArray, batch: int = 256) -> Array:
        """Run on a batch, at most `batch` at a time.

        x        (N, *input_shape), any real type, finite
        returns  (N, *output_shape) float32
        """
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape or x.ndim != len(self.input_shape) + 1:
            raise InputError(
                f"input of shape {x.shape}: this network takes a batch of {self.input_shape}, "
                f"so (N, {', '.join(map(str, self.input_shape))})"
            )
        if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer) or x.dtype == bool):
            raise InputError(f"input of type {x.dtype}: real numbers are needed")
        x = np.ascontiguousarray(x, np.float32)
        if not np.isfinite(x).all():
            raise InputError("the input holds values that are not finite (NaN or infinity)")
        if len(x) == 0:
            return np.zeros((0, *self.shapes[-1]), np.float32)
        return np.concatenate([self._run(x[i : i + batch]) for i in range(0, len(x), batch)])

    def predict(self, x: NDArray) -> NDArray[np.int64]:
        """The class with the largest output for every image, (N,)."""
        return self(x).reshape(len(x), -1).argmax(1)

    def _run(self, x: Array) -> Array:
        values: list[Array | None] = [x]
        last_use = {i: n for n, node in enumerate(self.graph.nodes) for i in node.inputs}
        for n, node in enumerate(self.graph.nodes):
            values.append(self._compute(node, [values[i] for i in node.inputs]))
            for i in set(node.inputs):
                if last_use[i] == n:
                    values[i] = None  # nothing reads it any more
        return values[-1]

    def _tensor(self, number: int) -> Array | None:
        return self.tensors[number - 1] if number else None

    def _compute(self, node: Node, inputs: list[Array]) -> Array:
        x = inputs[0]
        a = attributes(node, x.ndim - 1 if node.op == "pad" else x.ndim - 2)
        if node.op in conv.ACTIVATIONS:
            return conv.ACTIVATIONS[node.op](x)
        if node.op in ("conv", "conv_transpose", "linear"):
            return getattr(conv, node.op)(x, self._tensor(a.pop("weight")), self._tensor(a.pop("bias")), **a)
        if node.op == "scale_shift":
            return conv.scale_shift(x, self._tensor(a["scale"]), self._tensor(a["shift"]))
        if node.op in ("max_pool", "avg_pool"):
            return getattr(conv, node.op)(x, **a)
        if node.op == "add":
            return x + inputs[1]
        if node.op == "mul":
            return x * inputs[1]
        if node.op == "concat":
            return np.concatenate(inputs, axis=1)
        if node.op == "global_avg_pool":
            return x.mean(axis=tuple(range(2, x.ndim)), dtype=np.float32, keepdims=bool(a["keep_axes"]))
        if node.op == "flatten":
            return x.reshape(len(x), -1)
        if node.op == "subsample":
            return x[(slice(None), slice(None), *[slice(None, None, s) for s in a["step"]])]
        if node.op == "pad":
            return conv.pad(x, a["before"], a["after"])
        raise UnsupportedOpError(
            f"the runtime has no operation {node.op}; lilnetx_mini.nn.load_into still loads the weights"
        )
