"""Latents for torch: rounding with a gradient, groups with a shared decoder, and the parametrisation of one weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import latent as core
from .density import Density

RESCALE_STEPS = 60
DIGITS = 2.0**40  # between the 24 bits of single precision and the 53 of double


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return torch.round(z)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def ste_round(z: Tensor) -> Tensor:
    """round(z), with the gradient of the identity (straight-through estimator, Bengio et al. 2013)."""
    return _RoundStraightThrough.apply(z)


def soft_round(z: Tensor, sharpness: Tensor) -> Tensor:
    """A smooth staircase through the whole numbers and the halves (Agustsson and Theis 2020): z at sharpness 0, round(z) far above."""
    step = torch.floor(z) + 0.5
    return step + 0.5 * torch.tanh(sharpness * (z - step)) / torch.tanh(sharpness / 2)


def quantise(x: Tensor, bits: int = 8) -> Tensor:
    """What `lilnetx_mini.latent.quantise` will store of x, with a straight-through gradient: for the last epochs."""
    limit = 2 ** (bits - 1) - 1
    largest = x.detach().abs().amax().clamp_min(1e-30)
    step = torch.exp2(torch.ceil(torch.log2(largest / (limit + 0.5))))
    step = torch.where(largest >= (limit + 0.5) * step, 2 * step, step)  # a tie rounds up, and out of range
    return step * ste_round(x / step).clamp(-limit, limit)


class Group(nn.Module):
    """All weights of one kernel shape: their decoder and their density.

    kernel   kernel shape, () for dense weights
    kind     decoder kind: "full", "diagonal", "scalar" or "dct"
    widest   the largest number of output channels among its layers
    """

    def __init__(self, kernel: tuple[int, ...], kind: str, widest: int) -> None:
        super().__init__()
        self.kernel, self.kind, self.d = kernel, kind, math.prod(kernel)
        self.variance = core.decoder_variance(widest)
        self.stored_bits: int | None = None  # set in the last epochs: the decoder is then used as it will be stored
        self.quantiser = "straight"
        if kind == "full" and self.d > 1:
            free = torch.randn(self.d, self.d) * math.sqrt(self.variance / self.d)
        else:
            free = torch.full((core.free_entries(kind, self.d),), math.sqrt(self.variance))
        self.free = nn.Parameter(free)
        basis = (
            torch.as_tensor(core.dct_integers(kernel) / 2.0**core.DCT_BITS, dtype=torch.float32)
            if kind == "dct"
            else torch.eye(self.d)
        )
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("sharpness", torch.ones(()), persistent=False)  # of soft rounding
        self.density = Density(self.d, peaked=self.d == 1)  # single latents have no group prior to draw them to zero

    @property
    def psi(self) -> Tensor:
        """The decoder, (d, d)."""
        free = quantise(self.free, self.stored_bits) if self.stored_bits else self.free
        return free.view(self.d, self.d) if self.kind == "full" else free.view(-1, 1) * self.basis

    def quantised(self, z: Tensor) -> Tensor:
        """Latents as the network sees them: rounded, or, in training, what stands for rounding by the group's `quantiser`.

        "straight"  rounded, with the gradient of the identity
        "noise"     with uniform noise in their place, as in the rate
        "soft"      rounded softly, by the group's `sharpness`
        """
        if self.training and self.quantiser == "noise":
            return z + torch.rand_like(z) - 0.5
        if self.training and self.quantiser == "soft":
            return soft_round(z, self.sharpness)
        return ste_round(z)

    def decode(self, z: Tensor) -> Tensor:
        """(S, d) latents to (S, d) weights."""
        q = self.quantised(z)
        with torch.autocast(z.device.type, enabled=False):  # what is stored is what is trained, to the last bit
            return q * self.free if self.d == 1 and not self.stored_bits else q @ self.psi

    @torch.no_grad()
    def start(self, shape: tuple[int, ...]) -> Tensor:
        """Random latents (S, d) for a weight: decoded, they have about the variance 2 / fan of He et al. (2015)."""
        fan = shape[0] * self.d
        bound = core.latent_bound(self.variance, fan)
        z = self.free.new_empty(shape[0] * shape[1], self.d).uniform_(-bound, bound)
        for _ in range(RESCALE_STEPS):
            ratio = float((torch.round(z) @ self.psi).square().mean()) * fan / 2
            if 0.5 < ratio < 2:
                break
            z *= 0.9 if ratio > 1 else 1.1
        return z

    def stored(self, bits: int) -> core.Decoder:
        """The decoder as the file will hold it."""
        ints, exponent = core.quantise(self.free.detach().cpu().numpy().reshape(-1), bits)
        return core.Decoder(self.kind, self.kernel, ints, exponent)


class Decoded(nn.Module):
    """Parametrisation of one weight: latents in, weight out. The latents keep the weight's storage order."""

    def __init__(self, group: Group, shape: torch.Size) -> None:
        super().__init__()
        self.group, self.shape = group, shape

    def forward(self, z: Tensor) -> Tensor:
        """(S, d) latents to the weight tensor."""
        return self.group.decode(z).view(self.shape)

    def latents_for(self, weight: Tensor) -> Tensor:
        """Latents that decode to the weight, up to rounding; the same numbers in every run."""
        rows, psi = weight.detach().reshape(-1, self.group.d), self.group.psi.detach()
        if torch.equal(psi, psi.diagonal().diag()):
            return rows / psi.diagonal()
        # a solver's last digit depends on where in memory the numbers lie. Double precision alone would not hide it: sums of few weights
        # often lie exactly between two numbers of single precision. Rounded to DIGITS first, they do so in every run
        mantissa, exponent = torch.frexp(torch.linalg.lstsq(psi.T.double(), rows.T.double()).solution.T)
        return torch.ldexp(torch.round(mantissa * DIGITS) / DIGITS, exponent).to(rows).contiguous()
