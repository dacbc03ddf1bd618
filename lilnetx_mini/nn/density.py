"""The factorised density as a torch module: twin of ``lilnetx_mini.density``, which explains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import density as numpy_twin
from ..density import CLOSEST, LAYERS


class Density(nn.Module):
    """Learned cumulative distributions of d latent dimensions, 11 parameters each; starts N(0, 0.01**2).

    peaked  keep every density symmetric, with its only peak at zero: shifts b stay zero, and bends count as |a|. Then ``logits`` is
            odd and steepest at zero, and so is the cumulative distribution. Latents that no other penalty draws to zero need
            this: a free density may find its peak at 2, and all of them gather there
    """

    def __init__(self, d: int, peaked: bool = False) -> None:
        super().__init__()
        self.peaked = peaked
        self.h = nn.Parameter(0.01 * torch.randn(LAYERS, d))
        if peaked:
            self.register_buffer("b", torch.zeros(LAYERS, d))
        else:
            self.b = nn.Parameter(0.01 * torch.randn(LAYERS, d))
        self.a = nn.Parameter(0.01 * torch.randn(LAYERS - 1, d))

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes before softplus (4, d), shifts (4, d), bends before tanh (3, d): what `lilnetx_mini.density.Density` holds."""
        return self.h, self.b, self.a.abs() if self.peaked else self.a

    def logits(self, z: Tensor) -> Tensor:
        """Cumulative distribution before its sigmoid; z (S, d) to (S, d)."""
        h, b, a = self.terms()
        slopes, bends = F.softplus(h), torch.tanh(a)
        u = z
        for k in range(LAYERS):
            u = torch.addcmul(b[k], u, slopes[k])
            if k < LAYERS - 1:
                u = torch.addcmul(u, bends[k], torch.tanh(u))
        return u

    def log_prob(self, z: Tensor) -> Tensor:
        """log P(z) = log(cdf(z + 1/2) - cdf(z - 1/2)), (S, d); values and gradients finite at any logit."""
        hi, lo = self.logits(z + 0.5), self.logits(z - 0.5)
        return F.logsigmoid(hi) + F.logsigmoid(-lo) + torch.log(-torch.expm1(torch.clamp(lo - hi, max=-CLOSEST)))

    def to_numpy(self) -> numpy_twin.Density:
        """The same density for the NumPy functions, float64."""
        return numpy_twin.Density(*(p.detach().double().cpu().numpy() for p in self.terms()))
