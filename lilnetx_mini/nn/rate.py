"""Bits of latents under a density: twin of ``lilnetx_mini.rate``."""

from __future__ import annotations

import math

import torch
from numba import config
from torch import Tensor
from torch.nn import functional as F

from .. import density as core
from ..density import CLOSEST, LAYERS
from ..fused import bits_and_gradients
from .density import Density

NATS = 1 / math.log(2)  # bits in a nat


def _bits_and_gradients(z: Tensor, h: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of log P(z) in nats, and its gradients for z, h, b and a."""
    slopes, bends, count = F.softplus(h), torch.tanh(a), len(z)
    u = torch.cat([z + 0.5, z - 0.5])
    inputs, bent = [], []
    for k in range(LAYERS):
        inputs.append(u)
        u = torch.addcmul(b[k], u, slopes[k])
        if k < LAYERS - 1:
            bent.append(torch.tanh(u))
            u.addcmul_(bends[k], bent[k])
    hi, lo = u[:count], u[count:]
    gap = (lo - hi).clamp_(max=-CLOSEST)
    fall = torch.expm1(gap)
    total = (F.logsigmoid(hi) + F.logsigmoid(-lo) + torch.log(-fall)).sum()
    inner = (fall + 1) / fall  # derivative of log(1 - exp(gap))
    g = torch.cat([torch.sigmoid(-hi).sub_(inner), inner - torch.sigmoid(lo)])
    dh, db, da = torch.empty_like(h), torch.empty_like(b), torch.empty_like(a)
    for k in reversed(range(LAYERS)):
        if k < LAYERS - 1:
            da[k] = (g * bent[k]).sum(0) * (1 - bends[k] ** 2)
            g.mul_(bent[k].square_().neg_().add_(1).mul_(bends[k]).add_(1))
        dh[k] = inputs[k].mul_(g).sum(0) * torch.sigmoid(h[k])
        db[k] = g.sum(0)
        g.mul_(slopes[k])
    return total, g[:count] + g[count:], dh, db, da


def _compiled(z: Tensor, h: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """The same in bits, by the compiled kernel."""
    total, dz, gradient = bits_and_gradients(z.numpy(), core.Density(*(p.double().numpy() for p in (h, b, a))))
    parameters = (torch.from_numpy(g).to(p) for g, p in zip((gradient.h, gradient.b, gradient.a), (h, b, a), strict=True))
    return z.new_tensor(total), torch.from_numpy(dz), *parameters


class _TotalBits(torch.autograd.Function):
    """``-log2 P(z)`` summed over all latents, with its gradient worked out by hand in the same pass.

    Every training step needs this term for every weight of the network. Left to autograd it takes several times as long.
    """

    @staticmethod
    def forward(ctx, z: Tensor, h: Tensor, b: Tensor, a: Tensor) -> Tensor:
        z, h, b, a = (t.detach() for t in (z, h, b, a))
        if z.device.type == "cpu" and z.dtype == torch.float32 and not config.DISABLE_JIT:
            total, *gradients = _compiled(z.contiguous(), h, b, a)
        else:
            total, *gradients = (t * -NATS for t in _bits_and_gradients(z, h, b, a))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, ...]:
        return tuple(upstream * g for g in ctx.saved_tensors)


def self_information(z: Tensor, density: Density) -> Tensor:
    """Bits of every latent, ``-log2 P(z)``, (S, d)."""
    return density.log_prob(z) * -NATS


def rate(z: Tensor, density: Density) -> Tensor:
    """Bits of ``round(z)``: the length an ideal coder would need. For measuring; rounding has no gradient."""
    return self_information(torch.round(z), density).sum()


def noisy_rate(z: Tensor, density: Density, noise: Tensor | None = None) -> Tensor:
    """Bits of ``z + u``, u uniform in (-1/2, 1/2) and fresh unless given: the differentiable proxy for training."""
    u = torch.rand_like(z) - 0.5 if noise is None else noise
    return _TotalBits.apply(z + u, *density.terms())
