"""What a training will take, before it starts: shapes, memory, steps, time."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import islice

import torch

from .channels import multiply_adds
from .compressor import find
from .recipes import Recipe
from .train import Run

WARM, TIMED = 2, 5  # steps


def estimate(recipe: Recipe, device: str | None = "cpu") -> dict:
    """Set the run up, take a few steps of it, and work out the rest. Nothing is written.

    returns  images, steps, shapes, parameters, macs (an image), seconds_a_step, seconds (of all
             steps), and bytes of memory: weights, gradients, optimiser, activations (what a step keeps for its backward pass), images
    """
    run = Run(replace(recipe, start=0.0, distill=0.0, compile=0), 0, folder="", device=device)
    run.model.train()
    order = torch.randperm(len(run.source), generator=run.generator)
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in run.model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in owned:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    times = []
    for n, step in enumerate(islice(run.source.steps(order, 0, 0, run.generator), WARM + TIMED)):
        start = time.perf_counter()
        if n == 0:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                run._take(step)
        else:
            run._take(step)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    plain = recipe.model()
    weights = {f[0]: list(f[4].shape) for f in find(plain)[0]}
    trained = sum(p.numel() for p in run.model.parameters())
    state = sum(t.nbytes for o in run.optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t))
    images = run.source.x.nbytes if hasattr(run.source, "x") else 0
    return {
        "recipe": recipe.name,
        "device": str(run.device),
        "images": {k: len(getattr(run.splits, k)) for k in ("train", "validation", "test")},
        "shapes": {"batch": [recipe.batch, *run.example().shape[1:]]} | weights,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "compressed": sum(math.prod(shape) for shape in weights.values()),
        "macs": sum(multiply_adds(plain, run.example().cpu()).values()),
        "steps": run.steps,
        "seconds_a_step": seconds,
        "seconds": seconds * run.steps,
        "memory": {
            "weights": 4 * trained,
            "gradients": 4 * trained,
            "optimiser": state,
            "activations": sum(kept.values()),
            "images": images,
        },
    }


def table(e: dict) -> str:
    """An estimate for people."""
    shapes = [f"    {name:40}{'x'.join(map(str, shape)):>18}" for name, shape in e["shapes"].items()]
    megabytes = {k: v / 1e6 for k, v in e["memory"].items()}
    return "\n".join(
        [
            f"{e['recipe']} on {e['device']}: {', '.join(f'{v:,} {k}' for k, v in e['images'].items())} images",
            f"  {e['parameters']:,} parameters, {e['compressed']:,} of them to be compressed; "
            f"{e['macs'] / 1e6:,.1f} M multiply-adds an image",
            *shapes,
            f"  memory: {sum(megabytes.values()):,.0f} MB ({', '.join(f'{k} {v:,.1f}' for k, v in megabytes.items())})",
            f"  {e['steps']:,} steps of {1000 * e['seconds_a_step']:,.0f} ms: about {_duration(e['seconds'])} for the compressed network,"
            " without evaluation",
        ]
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
