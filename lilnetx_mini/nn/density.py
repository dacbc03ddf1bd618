"""The factorised density as a torch module: twin of ``lilnetx_mini.density``, which explains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import density as numpy_twin
from ..density import CLOSEST, LAYERS


class Density(nn.Module):
    """Learned cumulative distributions of d latent dimensions, 11 parameters each; starts N(0, 0.01**2)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.h = nn.Parameter(0.01 * torch.randn(LAYERS, d))
        self.b = nn.Parameter(0.01 * torch.randn(LAYERS, d))
        self.a = nn.Parameter(0.01 * torch.randn(LAYERS - 1, d))

    def logits(self, z: Tensor) -> Tensor:
        """Cumulative distribution before its sigmoid; z (S, d) to (S, d)."""
        slopes, bends = F.softplus(self.h), torch.tanh(self.a)
        u = z
        for k in range(LAYERS):
            u = torch.addcmul(self.b[k], u, slopes[k])
            if k < LAYERS - 1:
                u = torch.addcmul(u, bends[k], torch.tanh(u))
        return u

    def log_prob(self, z: Tensor) -> Tensor:
        """log P(z) = log(cdf(z + 1/2) - cdf(z - 1/2)), (S, d); values and gradients finite at any logit."""
        hi, lo = self.logits(z + 0.5), self.logits(z - 0.5)
        return F.logsigmoid(hi) + F.logsigmoid(-lo) + torch.log(-torch.expm1(torch.clamp(lo - hi, max=-CLOSEST)))

    def to_numpy(self) -> numpy_twin.Density:
        """The same density for the NumPy functions, float64."""
        return numpy_twin.Density(*(p.detach().double().cpu().numpy() for p in (self.h, self.b, self.a)))
