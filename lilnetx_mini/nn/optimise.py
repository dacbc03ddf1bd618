"""Learning rates over a training, and the optimisers of a recipe."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import InputError
from .compressor import Compressor
from .recipes import Recipe

MOMENTUM = 0.9


def warm_cosine(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linearly up over the first `warmup` of the training, then to zero along a cosine.

    progress  0 .. 1
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def plain_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser for weights that are no latents, norm layers and biases."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.plain_lr, fused=True)
    wide, thin = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    rows = [{"params": wide, "weight_decay": recipe.weight_decay}, {"params": thin, "weight_decay": 0.0}]
    return torch.optim.SGD(rows, lr=recipe.plain_lr, momentum=MOMENTUM, nesterov=True, fused=True)


def optimizers(model: nn.Module, compressor: Compressor | None, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers for a network as it is now: plain (compressor None), or of latents."""
    if recipe.optimizer not in ("adam", "sgd"):
        raise InputError(f"optimizer {recipe.optimizer!r}: 'adam' and 'sgd' are the choices")
    if compressor is None:
        return [plain_optimizer(list(model.parameters()), recipe)]
    if recipe.optimizer == "adam":
        rates = recipe.lr, recipe.decoder_lr or None, recipe.density_lr, recipe.rest_lr or None
        return [torch.optim.Adam(compressor.parameter_groups(*rates), fused=True)]
    for group in compressor.groups:
        group.free.requires_grad_(recipe.decoder_lr > 0)
    rows = compressor.sgd_groups(recipe.lr, recipe.rest_lr or None, recipe.weight_decay)
    return [
        torch.optim.SGD(rows, lr=recipe.lr, momentum=MOMENTUM, nesterov=True, fused=True),
        torch.optim.Adam(compressor.adam_groups(recipe.density_lr, recipe.decoder_lr), fused=True),
    ]


def clip(optimizer: torch.optim.Optimizer, scales: list[float], most: float) -> None:
    """Shorten all gradients of an optimiser alike, so that together they have at most this norm.

    scales  of every parameter group, what its squared gradients count: for latents that step as weights do, the ratio of their
            learning rate to that of weights, as a gradient of w = z psi is one of z divided by psi
    """
    rows = [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    norms = [scale**0.5 * n for row, scale in zip(rows, scales, strict=True) for n in torch._foreach_norm(row)]
    factor = (most / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-12)).clamp(max=1)
    torch._foreach_mul_([g for row in rows for g in row], factor)
