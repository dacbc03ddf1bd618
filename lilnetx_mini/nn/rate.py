"""Bits of latents under a density: twin of ``lilnetx_mini.rate``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .density import Density


def self_information(z: Tensor, density: Density) -> Tensor:
    """Bits of every latent, ``-log2 P(z)``, (S, d)."""
    return density.log_prob(z) * (-1 / math.log(2))


def rate(z: Tensor, density: Density) -> Tensor:
    """Bits of ``round(z)``: the length an ideal coder would need. For measuring; rounding has no gradient."""
    return self_information(torch.round(z), density).sum()


def noisy_rate(z: Tensor, density: Density, noise: Tensor | None = None) -> Tensor:
    """Bits of ``z + u``, u uniform in (-1/2, 1/2) and fresh unless given: the differentiable proxy for training."""
    u = torch.rand_like(z) - 0.5 if noise is None else noise
    return self_information(z + u, density).sum()
