"""One convolution layer, part of its slices zero: ours against the engines that someone could use instead.

    python benchmarks/conv.py [--threads 1] [--runs 41] [--json]

Batch 1, medians in milliseconds, all peers in one process, run turn by turn. Dense engines do not care how many slices are
zero, so their row is measured beside every sparsity. Outputs are compared with torch's before anything is timed.

  ours          the layer in lilnetx_mini.runtime, as it runs between other layers of a network
  ours_call     a network of this one layer: its call, with copying the input in and the output out
  onnxruntime   the dense layer
  torch, channels_last   the dense layer in either memory order
  scipy, torch CSR       the weights as a sparse matrix times the unfolded input (unfolding included)
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from lilnetx_mini import bench, lnx
from lilnetx_mini.graph import Graph, Node
from lilnetx_mini.provenance import circumstances
from lilnetx_mini.runtime import Network

warnings.filterwarnings("ignore", "Sparse CSR tensor support")
LAYERS = {"conv3x3": (64, 64, 32, 3), "conv1x1": (256, 512, 14, 1)}  # input and output channels, pixels, kernel
MORE = {"conv1x1_56": (64, 256, 56, 1), "conv1x1_7": (512, 2048, 7, 1), "conv3x3_7": (512, 512, 7, 3)}
SPARSITIES = (0.5, 0.55, 0.75, 0.9, 0.95)


def peers(w: np.ndarray, x: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Every engine as a call that returns (1, O, H, W)."""
    pixels, pad = x.shape[2], w.shape[2] // 2
    conv, silu = Node("conv", (0,), (1, 0, 1, 1, 1, pad, pad, 1, 1)), Node("silu", (0,))
    graph = Graph(x.shape[1:], (conv,))
    between = Graph(x.shape[1:], (silu, replace(conv, inputs=(1,)), replace(silu, inputs=(2,))))
    net, inner = (Network(lnx.Model([], [], raws=[lnx.Raw("w", w)], graph=g), threads) for g in (graph, between))
    memory, (step,), out = inner.plan.memory(), (s for s in inner.plan.steps if s.op == "conv"), np.empty_like(net(x))
    session = bench.onnx_session(graph, [w], threads)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    lx, lw = (v.to(memory_format=torch.channels_last) for v in (tx, tw))
    flat = w.reshape(len(w), -1)
    csr, torch_csr = scipy.sparse.csr_matrix(flat), torch.from_numpy(flat).to_sparse_csr()

    def unfolded() -> torch.Tensor:
        return F.unfold(tx, w.shape[2], padding=pad)[0] if w.shape[2] > 1 else tx.view(x.shape[1], -1)

    shape = (1, len(w), pixels, pixels)
    return {
        "ours_call": lambda: net(x),
        "ours": lambda: inner.plan.run(memory, x, out, inner._together if threads > 1 else None, step),
        "onnxruntime": lambda: session(x),
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
    bench.agree({k: c for k, c in calls.items() if k != "ours"}, calls["torch"]())
    return {f"{row.name}_ms": row.milliseconds for row in bench.turn_by_turn(calls, runs)}


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1, help="threads of every engine but scipy")
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
