"""Whole networks, part of their slices zero: ours against the engines that someone could use instead.

    python benchmarks/network.py [--networks resnet20,resnet50] [--threads 1,2] [--batch 1,32] [--runs 21] [--json]

All peers in one process, turn by turn, medians in milliseconds for a batch; outputs are compared before anything is timed.

  resnet20     ResNet-20, CIFAR shapes, 95 % of the slices of every layer zero, chosen at random
  resnet20x4   the same four times as wide
  resnet50     ResNet-50 at 224 x 224 pixels, 81 %
  trained      the ResNet-20 of results/files, as it was trained

  ours, onnxruntime       see lilnetx_mini.bench
  torch, channels_last    the module in eval mode, in either memory order
  scipy, torch CSR        every convolution as a sparse matrix times the unfolded input (one thread, batch 1)
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import warnings
from pathlib import Path

import scipy.sparse
import torch
from torch import nn
from torch.nn import functional as F

from lilnetx_mini import bench, lnx
from lilnetx_mini.nn import capture, load_into
from lilnetx_mini.nn.models import cifar_resnet20, resnet50
from lilnetx_mini.provenance import circumstances
from lilnetx_mini.runtime import Network

warnings.filterwarnings("ignore", "Sparse CSR tensor support")
TRAINED = Path(__file__).parents[1] / "results" / "files" / "cifar10_resnet20.lnx"
SIZES = {"resnet20": 32, "resnet20x4": 32, "resnet50": 224, "trained": 32}
SPARSITY = {"resnet20": 0.95, "resnet20x4": 0.95, "resnet50": 0.81}


class CsrConv(nn.Module):
    """A convolution as a sparse matrix times the unfolded input, one image at a time."""

    def __init__(self, conv: nn.Conv2d, library: str) -> None:
        super().__init__()
        self.conv, flat = conv, conv.weight.detach().flatten(1)
        self.matrix = scipy.sparse.csr_matrix(flat.numpy()) if library == "scipy" else flat.to_sparse_csr()
        self.library = library

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C, H, W) to (1, O, H', W')."""
        c = self.conv
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], c.padding, c.kernel_size, c.stride, strict=True)]
        columns = F.unfold(x, c.kernel_size, padding=c.padding, stride=c.stride)[0]
        y = torch.from_numpy(self.matrix @ columns.numpy()) if self.library == "scipy" else self.matrix @ columns
        return y.view(1, -1, *size)


def with_csr(model: nn.Module, library: str) -> nn.Module:
    """A copy whose convolutions are sparse matrices."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, CsrConv(child, library))
    return model


def network(name: str) -> nn.Module:
    """The module, with random slices set to zero and norm layers that have seen data."""
    if name == "trained":
        return load_into(cifar_resnet20().eval(), TRAINED)
    torch.manual_seed(0)
    model = resnet50() if name == "resnet50" else cifar_resnet20(4 if name == "resnet20x4" else 1)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            keep = torch.rand(m.weight.shape[:2]) >= SPARSITY[name]
            m.weight.data.mul_(keep.view(*keep.shape, *[1] * (m.weight.ndim - 2)) / math.sqrt(1 - SPARSITY[name]))
        elif isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # running statistics are those of the batch below
    size = SIZES[name]
    with torch.no_grad():
        model.train()(torch.randn(4 if size > 100 else 64, 3, size, size))
    return model.eval()


@torch.inference_mode()
def measure(name: str, batch: int, threads: int, runs: int) -> dict:
    """Milliseconds of every engine for one batch, and what was skipped."""
    torch.set_num_threads(threads)
    module, size = network(name), SIZES[name]
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = lnx.read(TRAINED) if name == "trained" else capture(module, x[:1])
    if batch * size > 4096:  # memory of the reference operations
        truth = module(x).numpy()
    else:
        truth = bench.interpret(model.graph, model.tensors(), x.numpy())
    calls = bench.engines(model, x.numpy(), threads)
    last = x.to(memory_format=torch.channels_last)
    turned = copy.deepcopy(module).to(memory_format=torch.channels_last)
    calls |= {"torch": lambda: module(x).numpy(), "torch, channels_last": lambda: turned(last).numpy()}
    if batch == 1 and threads == 1:
        for library in ("scipy", "torch"):
            csr = with_csr(module, library)
            calls[f"{library} CSR"] = lambda csr=csr: csr(x).numpy()
    bench.agree({k: c for k, c in calls.items() if k != "ours, dense"}, truth)
    rows = bench.turn_by_turn(calls, runs)
    net = Network(model)
    done = sum(step.macs for step in net.plan.steps)
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "slices_zero": SPARSITY.get(name),
        "macs": net.removed.macs[0],
        "macs_done": done,
        "ms": {row.name: row.milliseconds for row in rows},
        "quartiles_ms": {row.name: row.quartiles for row in rows},
        "speedup": {row.name: row.milliseconds / rows[0].milliseconds for row in rows},
    }


def show(rows: list[dict]) -> str:
    """A table for people: milliseconds, and how many times as long as ours."""
    lines = []
    for r in rows:
        zero = "as trained" if r["slices_zero"] is None else f"{100 * r['slices_zero']:.0f} % of slices zero"
        share = 100 * r["macs_done"] / r["macs"]
        lines.append(
            f"\n{r['network']}, {zero}, batch {r['batch']}, {r['threads']} thread(s); "
            f"{share:.1f} % of {r['macs'] / 1e6:,.0f} M multiply-adds are done"
        )
        lines += [f"  {k:<22}{ms:10.3f} ms{r['speedup'][k]:8.2f} x" for k, ms in r["ms"].items()]
    return "\n".join(lines)


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--networks", default="resnet20,resnet20x4,resnet50,trained", help="which, separated by commas")
    p.add_argument("--threads", default="1,2", help="numbers of threads")
    p.add_argument("--batch", default="1,32", help="batch sizes")
    p.add_argument("--runs", type=int, default=21)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    names = a.networks.split(",")
    if unknown := [n for n in names if n not in SIZES]:
        p.error(f"no network {unknown[0]}: there are {', '.join(SIZES)}")
    rows = []
    for name in names:
        for threads in map(int, a.threads.split(",")):
            for batch in map(int, a.batch.split(",")):
                rows.append(measure(name, batch, threads, a.runs))
                print(show(rows[-1:]), file=sys.stderr if a.json else sys.stdout, flush=True)
    if a.json:
        heads = {
            r["network"]: {
                "ours_ms": r["ms"]["ours"],
                "onnxruntime_ms": r["ms"]["onnxruntime"],
                "speedup": r["speedup"]["onnxruntime"],
            }
            for r in rows
            if (r["batch"], r["threads"]) == (1, 1)
        }
        print(json.dumps({**heads, "rows": rows, "runs": a.runs, "made": circumstances()}, indent=1))


if __name__ == "__main__":
    main()
