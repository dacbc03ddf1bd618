"""Running a decoded network on arrays: no torch, no class that made it, only the file.

Loading a network removes the channels that do nothing (`simplify`) and plans the rest (`plan`): where every value lies, what is
fused, every weight in its kernel's order. A call then copies images in, runs the plan, and copies the outputs out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import config
from numpy.typing import NDArray

from . import conv, lnx
from .errors import InputError, UnsupportedOpError
from .graph import Graph, Node, attributes, infer_shapes
from .plan import Memory, NotPlannable, Plan
from .simplify import layer_macs, simplify

Array = NDArray[np.float32]
MEETING = 1_000_000  # multiply-adds of an instruction, on average, from which on it pays that threads meet after each


@dataclass(frozen=True)
class Timing:
    """One step of a network: a layer with all that is fused into it, or another operation.

    name            of the layer's weight, "" if the step has none
    milliseconds    median for one image
    macs_done       multiply-adds with weights that are not zero, one image
    macs_skipped    those that the dense network would do besides
    """

    name: str
    op: str
    milliseconds: float
    macs_done: int
    macs_skipped: int


class Profile(list[Timing]):
    """All steps in order; printed as a table."""

    def __str__(self) -> str:
        width = max((len(t.name) for t in self), default=0)
        rows = [f"{'step':<{width + 16}}{'ms':>8}  {'MACs done':>13}  {'skipped':>13}"]
        total = Timing("sum", "", *(sum(getattr(t, k) for t in self) for k in ("milliseconds", "macs_done", "macs_skipped")))
        for t in (*self, total):
            share = f"{100 * t.macs_skipped / (t.macs_done + t.macs_skipped):5.1f} %" if t.macs_done + t.macs_skipped else ""
            numbers = f"{t.macs_done:>13,}  {t.macs_skipped:>13,}" if share else ""
            rows.append(f"{t.name:<{width}} {t.op:<15}{t.milliseconds:8.3f}  {numbers} {share}".rstrip())
        return "\n".join(rows)


class Network:
    """A network ready to run.

    net = Network.load("model.lnx")
    logits = net(images)          # (N, *net.input_shape) float32 -> (N, classes)
    print(net.profile(images))    # milliseconds and multiply-adds of every layer

    threads   a batch is divided among them; of a single image, every layer's output channels are, if the network is large
    plan      how it runs; None if it is a network that only the reference operations can run, and `note` says why
    removed   channels, weights and multiply-adds before and after removing what does nothing
    """

    def __init__(self, model: lnx.Model, threads: int = 1) -> None:
        if model.graph is None:
            raise UnsupportedOpError(
                f"this file has no graph to run ({model.note or 'none was stored'}); "
                "lilnetx_mini.nn.load_into(model, path) still puts its weights into your torch module"
            )
        if threads < 1:
            raise InputError(f"{threads} threads: at least one is needed")
        self.threads = 1 if config.DISABLE_JIT else threads
        self._pool = ThreadPoolExecutor(self.threads - 1, "lilnetx") if self.threads > 1 else None
        given, names = model.tensors(), model.tensor_names()
        self.graph, self.tensors, self.removed = simplify(model.graph, given)
        self.shapes = infer_shapes(self.graph, [t.shape for t in self.tensors])
        self.input_shape = self.shapes[0]
        self._layers = [
            (layer.now, names[layer.tensor], macs)
            for layer, macs in zip(self.removed.layers, layer_macs(model.graph, given), strict=True)
        ]
        self.plan, self.note = None, ""
        try:
            self.plan = Plan(self.graph, self.tensors, self.threads)
        except NotPlannable as e:
            self.note = str(e)
        self._large = self.plan is not None and sum(s.macs for s in self.plan.steps) > MEETING * len(self.plan.rows)
        self._memories: list[Memory] = []

    @staticmethod
    def load(path: str | os.PathLike, threads: int = 1) -> Network:
        """Read a file and prepare it; LnxError if it is damaged, UnsupportedOpError if it holds no graph."""
        return Network(lnx.read(path), threads)

    def __call__(self, x: NDArray, batch: int = 256) -> Array:
        """Run on a batch.

        x        (N, *input_shape), any real type, finite
        batch    how many images the reference operations take at a time
        returns  (N, *output_shape) float32
        """
        x = self._checked(x)
        if self.plan is None:
            parts = [interpret(self.graph, self.tensors, x[i : i + batch]) for i in range(0, len(x), batch)]
            return np.concatenate([np.zeros((0, *self.shapes[-1]), np.float32), *parts])
        out = np.empty((len(x), *self.shapes[-1]), np.float32)
        divided = self.threads > 1 and len(x) >= self.threads
        while len(self._memories) < (self.threads if divided else 1):
            self._memories.append(self.plan.memory())
        if not divided:
            team = self._together if self.threads > 1 and self._large else None
            for image, y in zip(x, out, strict=True):
                self.plan.run(self._memories[0], image, y, team)
        else:
            self._together(lambda part, parts: self._share(x[part::parts], out[part::parts], self._memories[part]))
        return out

    def _share(self, x: Array, out: Array, memory: Memory) -> None:
        for image, y in zip(x, out, strict=True):
            self.plan.run(memory, image, y)

    def predict(self, x: NDArray) -> NDArray[np.int64]:
        """The class with the largest output for every image, (N,)."""
        return self(x).reshape(len(x), -1).argmax(1)

    def profile(self, x: NDArray, runs: int = 25) -> Profile:
        """Where the time goes, one image after the other on one thread.

        x        (N, *input_shape)
        runs     how often each step is timed
        raises   UnsupportedOpError if the network is not planned
        """
        x = self._checked(x)
        if self.plan is None:
            raise UnsupportedOpError(f"nothing to profile: the reference operations run this network ({self.note})")
        if len(x) == 0 or runs < 1:
            raise InputError(f"{len(x)} images, {runs} runs: at least one of each is needed")
        times, memory = [[] for _ in self.plan.steps], self.plan.memory()
        out = np.empty(self.shapes[-1], np.float32)
        for k in range(-2, runs):  # the first two warm the caches
            for image in x:
                self.plan.run(memory, image, out)
                for taken, step in zip(times, self.plan.steps, strict=True):
                    start = time.perf_counter()
                    self.plan.run(memory, image, out, step=step)
                    if k >= 0:
                        taken.append(1000 * (time.perf_counter() - start))
        layers = {now: (name, macs) for now, name, macs in self._layers}
        profile = Profile()
        for step, taken in zip(self.plan.steps, times, strict=True):
            name, dense = layers.get(step.weight, ("", 0))
            profile.append(Timing(name, step.op, statistics.median(taken), step.macs, dense - step.macs))
        profile += [Timing(name, "removed", 0.0, 0, macs) for now, name, macs in self._layers if now < 0]
        return profile

    def _checked(self, x: NDArray) -> Array:
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape or x.ndim != len(self.input_shape) + 1:
            raise InputError(
                f"input of shape {x.shape}: this network takes a batch of {self.input_shape}, "
                f"so (N, {', '.join(map(str, self.input_shape))})"
            )
        if x.dtype.kind not in "fiub":
            raise InputError(f"input of type {x.dtype}: real numbers are needed")
        x = np.ascontiguousarray(x, np.float32)
        if not np.isfinite(np.vdot(x, x)) and not np.isfinite(x).all():  # a product is quick, and may itself be too large
            raise InputError("the input holds values that are not finite (NaN or infinity)")
        return x

    def _together(self, work: Callable[[int, int], None]) -> None:
        """work(0, threads) here, work(1, threads) and so on in the other threads."""
        others = [self._pool.submit(work, part, self.threads) for part in range(1, self.threads)]
        work(0, self.threads)
        for other in others:
            other.result()


def interpret(graph: Graph, tensors: list[Array], x: Array) -> Array:
    """The graph's meaning, operation by operation: what a plan must compute too, only faster. x (N, *graph.input_shape)."""
    values: list[Array | None] = [x]
    last_use = {i: n for n, node in enumerate(graph.nodes) for i in node.inputs}
    for n, node in enumerate(graph.nodes):
        values.append(_compute(node, [values[i] for i in node.inputs], [None, *tensors]))
        for i in set(node.inputs):
            if last_use[i] == n:
                values[i] = None  # nothing reads it any more
    return values[-1]


def _compute(node: Node, inputs: list[Array], tensors: list[Array | None]) -> Array:
    x = inputs[0]
    a = attributes(node, x.ndim - 1 if node.op == "pad" else x.ndim - 2)
    if node.op in conv.ACTIVATIONS:
        return conv.ACTIVATIONS[node.op](x)
    if node.op in ("conv", "conv_transpose", "linear"):
        return getattr(conv, node.op)(x, tensors[a.pop("weight")], tensors[a.pop("bias")], **a)
    if node.op == "scale_shift":
        return conv.scale_shift(x, tensors[a["scale"]], tensors[a["shift"]])
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
    raise UnsupportedOpError(f"the runtime has no operation {node.op}; lilnetx_mini.nn.load_into still loads the weights")
