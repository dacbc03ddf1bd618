"""How fast a network is here: ours on its sparse and on dense weights, and onnxruntime on the dense and on the shrunk network.

Peers run in one process, turn by turn, on the same input; a figure is the median of its turns. Each runs once untimed
before every timed run, so that nobody finds the other's data in the caches.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from . import lnx
from .errors import InputError, UnsupportedOpError
from .graph import Graph
from .runtime import Network, interpret
from .simplify import fold_norms, simplify

Array = NDArray[np.float32]
Call = Callable[[], Array]
PAUSE = 0.01  # seconds between engines: the threads of some keep a core busy for a while, waiting for more work
ALIKE = 1e-3  # relative: engines sum in different orders


@dataclass(frozen=True)
class Row:
    """One engine's median milliseconds for one call, with the quartiles."""

    name: str
    milliseconds: float
    quartiles: tuple[float, float]


def turn_by_turn(calls: dict[str, Call], runs: int = 21, seconds: float = 60.0) -> list[Row]:
    """Time all calls in turn, `runs` times, or fewer (at least 3) if that takes longer than so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for k in range(runs):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
        if k >= 2 and time.perf_counter() - begin > seconds:
            break
    rows = []
    for name, taken in times.items():
        low, middle, high = np.percentile(taken, (25, 50, 75))
        rows.append(Row(name, float(middle), (float(low), float(high))))
    return rows


def agree(calls: dict[str, Call], truth: Array) -> None:
    """InputError if an engine's output differs from the given one."""
    for name, call in calls.items():
        error = float(np.abs(call() - truth).max() / max(float(np.abs(truth).max()), 1e-30))
        if not error <= ALIKE:
            raise InputError(f"{name} differs from the reference by {error:.1e} of the largest output")


def onnx_session(graph: Graph, tensors: list[Array], threads: int) -> Callable[[Array], Array]:
    """A graph in onnxruntime, all of its optimisations on."""
    import onnxruntime

    from .onnx_export import to_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    model = to_onnx(graph, tensors, [""] * len(tensors)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return lambda x: session.run(None, {name: x})[0]


def dense(model: lnx.Model) -> lnx.Model:
    """The same network without a zero among its weights: what its shapes alone cost."""
    rng = np.random.default_rng(0)
    raws = []
    for name, tensor in zip(model.tensor_names(), model.tensors(), strict=True):
        if tensor.ndim > 1:
            scale = float(np.abs(tensor).mean()) or 1.0
            tensor = np.where(tensor == 0, np.float32(scale) * rng.choice([-1, 1], tensor.shape), tensor)
        raws.append(lnx.Raw(name, tensor.astype(np.float32)))
    return replace(model, groups=[], layers=[], sides=[], raws=raws)


def engines(model: lnx.Model, x: Array, threads: int = 1) -> dict[str, Call]:
    """Calls that run a network on a batch x (N, *input_shape): those of the engines that are installed.

    ours                the runtime on the file's weights
    ours, dense         the runtime on weights without zeros
    onnxruntime         the network as it is: it takes no notice of zeros
    onnxruntime, shrunk without the channels that do nothing
    """
    net, full = Network(model, threads), Network(dense(model), threads)
    calls = {"ours": lambda: net(x), "ours, dense": lambda: full(x)}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        plain = onnx_session(*fold_norms(model.graph, model.tensors()), threads)
        shrunk = onnx_session(*simplify(model.graph, model.tensors())[:2], threads)
        calls |= {"onnxruntime": lambda: plain(x), "onnxruntime, shrunk": lambda: shrunk(x)}
    return calls


def noise(model: lnx.Model, batch: int) -> Array:
    """(batch, *input_shape) of standard normal numbers, always the same."""
    if model.graph is None:
        raise UnsupportedOpError(f"this file has no graph to run ({model.note or 'none was stored'})")
    return np.random.default_rng(0).standard_normal((batch, *model.graph.input_shape)).astype(np.float32)


def measure(model: lnx.Model, batch: int = 1, threads: int = 1, runs: int = 41) -> list[Row]:
    """Time a network on random input; all engines' outputs are compared with the reference operations' first."""
    if batch < 1 or runs < 1:
        raise InputError(f"batch {batch}, {runs} runs: at least one of each is needed")
    x = noise(model, batch)
    calls = engines(model, x, threads)
    agree({k: c for k, c in calls.items() if k != "ours, dense"}, interpret(model.graph, model.tensors(), x))
    return turn_by_turn(calls, runs)
