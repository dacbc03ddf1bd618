"""One convolution layer, part of its slices zero: ours against the engines that someone could use instead.

    python benchmarks/conv.py [--threads 1] [--runs 41] [--json]

Batch 1, medians in milliseconds, all peers in one process, run turn by turn. Dense engines do not care how many slices are
zero, so their row is measured beside every sparsity. Outputs are compared with torch's before anything is timed.

  ours          lilnetx_mini.sparse.SparseConv, one thread
  onnxruntime   the dense layer
  torch, channels_last   the dense layer in either memory order
  scipy, torch CSR       the weights as a sparse matrix times the unfolded input (unfolding included)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import scipy.sparse
import torch
from torch.nn import functional as F

from lilnetx_mini.provenance import circumstances
from lilnetx_mini.sparse import SparseConv

LAYERS = {"conv3x3": (64, 64, 32, 3), "conv1x1": (256, 512, 14, 1)}  # input and output channels, pixels, kernel
MORE = {"conv1x1_56": (64, 256, 56, 1), "conv1x1_7": (512, 2048, 7, 1), "conv3x3_7": (512, 512, 7, 3)}
SPARSITIES = (0.5, 0.55, 0.75, 0.9, 0.95)


def dense_session(w: np.ndarray, pixels: int, threads: int) -> onnxruntime.InferenceSession:
    """One convolution as an ONNX model of its own."""
    h, t = onnx.helper, onnx.TensorProto.FLOAT
    pad = w.shape[2] // 2
    node = h.make_node("Conv", ["x", "w"], ["y"], kernel_shape=w.shape[2:], pads=[pad] * 4)
    values = [h.make_tensor_value_info(n, t, [1, c, pixels, pixels]) for n, c in (("x", w.shape[1]), ("y", w.shape[0]))]
    graph = h.make_graph([node], "layer", values[:1], values[1:], [onnx.numpy_helper.from_array(w, "w")])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def peers(w: np.ndarray, x: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Every engine as a call that returns (1, O, H, W)."""
    pixels, pad = x.shape[2], w.shape[2] // 2
    layer = SparseConv(w, None, x.shape[1:], padding=(pad, pad))
    session = dense_session(w, pixels, threads)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    lx, lw = (v.to(memory_format=torch.channels_last) for v in (tx, tw))
    flat = w.reshape(len(w), -1)
    csr, torch_csr = scipy.sparse.csr_matrix(flat), torch.from_numpy(flat).to_sparse_csr()

    def unfolded() -> torch.Tensor:
        return F.unfold(tx, w.shape[2], padding=pad)[0] if w.shape[2] > 1 else tx.view(x.shape[1], -1)

    shape = (1, len(w), pixels, pixels)
    return {
        "ours": lambda: layer(x),
        "onnxruntime": lambda: session.run(None, {"x": x})[0],
        "torch": lambda: F.conv2d(tx, tw, padding=pad).numpy(),
        "channels_last": lambda: F.conv2d(lx, lw, padding=pad).numpy(),
        "scipy_csr": lambda: (csr @ unfolded().numpy()).reshape(shape),
        "torch_csr": lambda: (torch_csr @ unfolded()).numpy().reshape(shape),
    }


def measure(layer: tuple[int, int, int, int], sparsity: float, threads: int, runs: int) -> dict[str, float]:
    """Median milliseconds of every peer."""
    into, out, pixels, kernel = layer
    rng = np.random.default_rng(0)
    w = rng.standard_normal((out, into, kernel, kernel)).astype(np.float32)
    w *= (rng.random((out, into)) >= sparsity)[:, :, None, None]
    x = rng.standard_normal((1, into, pixels, pixels)).astype(np.float32)
    calls = peers(w, x, threads)
    truth = calls["torch"]()
    for name, call in calls.items():
        error = float(np.abs(call() - truth).max() / np.abs(truth).max())
        if error > 1e-4:
            raise SystemExit(f"{name} is wrong by {error:.1e}")
    times = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            call()  # what ran before must not have the caches
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {f"{name}_ms": statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1, help="threads of torch and onnxruntime; ours takes one")
    p.add_argument("--runs", type=int, default=41)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    rows = {
        name: {str(s): measure(layer, s, a.threads, a.runs) for s in SPARSITIES} for name, layer in (LAYERS | MORE).items()
    }
    if a.json:
        print(json.dumps({**rows, "threads": a.threads, "runs": a.runs, "made": circumstances()}, indent=1))
        return
    for name, by_sparsity in rows.items():
        into, out, pixels, kernel = (LAYERS | MORE)[name]
        print(f"{name}: {into} -> {out} channels, {pixels} x {pixels} pixels, kernel {kernel}, ms (share of onnxruntime)")
        for s, row in by_sparsity.items():
            dense = row["onnxruntime_ms"]
            cells = "".join(f"{k[:-3]:>15} {v:6.3f} ({v / dense:4.2f})" for k, v in row.items())
            print(f"{100 * float(s):4.0f} %{cells}")


if __name__ == "__main__":
    main()
