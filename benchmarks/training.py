"""What LilNetX costs in training: one step of a compressed network against one of the plain network.

    python benchmarks/training.py [--network cifar_resnet20] [--batch 256] [--threads 2] [--runs 15] [--bf16] [--json]

Both sides have the same optimiser, memory order and input, and take a whole step: forward, loss, backward, optimiser. LilNetX has
all three terms of its objective (rate, slice norms, l2) in every step. Turn by turn: a ratio compares two steps that follow one
another; medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from lilnetx_mini.nn import models, reparameterize
from lilnetx_mini.nn.optimise import optimizers
from lilnetx_mini.nn.recipes import Recipe
from lilnetx_mini.provenance import circumstances

NETWORKS = {"cifar_resnet20": 32, "lenet5": 28, "resnet18": 224, "mobilenet_v2": 224}


def stepper(network: str, batch: int, optimizer: str, device: str, bf16: bool, compress: bool) -> Callable[[], None]:
    """A function that takes one training step, always on the same images."""
    torch.manual_seed(0)
    model = getattr(models, network)().to(device).to(memory_format=torch.channels_last)
    compressor = reparameterize(model, init="from_weights", levels=2.0) if compress else None
    recipe = Recipe(network, None, None, epochs=1, batch=batch, optimizer=optimizer, lr=1e-4, plain_lr=1e-4, weight_decay=5e-4)
    optimisers = optimizers(model, compressor, recipe)
    size, channels = NETWORKS[network], 1 if network == "lenet5" else 3
    x = torch.randn(batch, channels, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        if compressor:
            p = compressor.penalty()
            loss = loss + p.rate + p.group + 1e-3 * p.l2
        for o in optimisers:
            o.zero_grad()
        loss.backward()
        for o in optimisers:
            o.step()

    return step


def measure(device: str, network: str, batch: int, optimizer: str, runs: int, bf16: bool) -> dict:
    """Medians of both sides, and the most memory that each held on a GPU."""
    steps = {side: stepper(network, batch, optimizer, device, bf16, side == "lilnetx") for side in ("plain", "lilnetx")}
    times, memory = {side: [] for side in steps}, {}
    for n in range(runs + 2):  # the first two warm up
        for side, step in steps.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
                memory[side] = torch.cuda.max_memory_allocated() / 1e6
            if n >= 2:
                times[side].append(1000 * (time.perf_counter() - start))
    ms = {side: float(np.median(t)) for side, t in times.items()}
    low, middle, high = np.percentile(np.array(times["lilnetx"]) / np.array(times["plain"]), (25, 50, 75))
    return {"ms": ms, "ratio": float(middle), "quartiles": [float(low), float(high)], "peak_memory_MB": memory}


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--network", default="cifar_resnet20", choices=NETWORKS)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--optimizer", default="sgd", choices=["sgd", "adam"])
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--runs", type=int, default=15)
    p.add_argument("--bf16", action="store_true", help="the network of both sides in bfloat16")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    rows = {device: measure(device, a.network, a.batch, a.optimizer, a.runs, a.bf16) for device in devices}
    if a.json:
        settings = {k: v for k, v in vars(a).items() if k != "json"}
        ratios = {device: row["ratio"] for device, row in rows.items()}
        print(json.dumps({"step_ratio": ratios, "devices": rows, "settings": settings, "made": circumstances()}, indent=1))
        return
    print(f"{a.network}, batch {a.batch}, {a.optimizer}, {a.threads} threads{', bfloat16' * a.bf16}, medians of {a.runs} steps")
    for device, row in rows.items():
        ms, (low, high) = row["ms"], row["quartiles"]
        print(f"  {device:5} plain {ms['plain']:9.1f} ms   LilNetX {ms['lilnetx']:9.1f} ms", end="")
        print(f"   ratio {row['ratio']:.3f}   (quartiles {low:.3f}, {high:.3f})")
        for side, megabytes in row["peak_memory_MB"].items():
            print(f"        most memory, {side}: {megabytes:,.0f} MB")


if __name__ == "__main__":
    main()
