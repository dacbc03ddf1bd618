"""Bits of weights as a differentiable function of gates, learned with the weights (after Nasery et al. 2023, arXiv 2306.05785).

A weight is its point on a grid of 2 bits, plus a gate times the correction that a grid of 4 bits makes, plus gates times those of 8
and of 16 (see `lilnetx_mini.grid`; the nesting is that of Bayesian Bits, van Baalen et al. 2020). Every output channel has gates of
its own; an open gate is one, and a closed one zero, with all that are behind it. Soft counts of open gates give soft bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import lnx
from ..errors import InputError
from ..grid import LEVELS, Grid, to_grid
from ..latent import Decoder, quantise
from .compressor import TRANSPOSED, find
from .export import plain_copy
from .prior import soft_count

if TYPE_CHECKING:
    from .export import Saved

JITTER = 0.01  # at equal gates the gradient of a soft count is nearly zero
STAYS = 2.0  # beside gates of 0 .. 1: soft counts let entries shrink that are smaller than l2**2 / l1
RANGE_BITS = 8  # of a range in the file
FINER = [2 ** (b // 2) + 1 for b in LEVELS]  # into how many cells a grid divides one of the grid before, the first the whole range


class Rounded(torch.autograd.Function):
    """Rounding to at most so many steps; gradients pass where it does not reach the end."""

    @staticmethod
    def forward(ctx, x: Tensor, most: int) -> Tensor:
        return torch.round(x).clamp_(-most, most)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class OnGrid(nn.Module):
    """A parametrisation: a weight as its points on nested grids, with gates between them.

    gates      (3, R) entries for grids of 4, 8 and 16 bits, of all channels of all layers; this layer's begin at `first`
    log_range  (C,) natural logarithms of its channels' ranges
    stored     compute with ranges as the file will hold them
    """

    def __init__(self, weight: Tensor, gates: nn.Parameter, first: int) -> None:
        super().__init__()
        self.gates, self.first, self.stored = gates, first, False
        largest = weight.detach().flatten(1).abs().amax(1)
        floor = float(largest.max()) * 1e-3 or 1.0  # a channel of zeros
        self.log_range = nn.Parameter(largest.clamp_min(floor).log())

    def own(self) -> Tensor:
        """(3, C) gates of this layer."""
        return self.gates[:, self.first : self.first + len(self.log_range)]

    def grid_ranges(self) -> tuple[np.ndarray, int]:
        """The ranges as integers and the exponent of their step, as in the file."""
        ranges = self.log_range.detach().double().exp().cpu().numpy()
        ints, exponent = quantise(ranges, RANGE_BITS)
        return np.maximum(ints, 1), exponent

    def ranges(self) -> Tensor:
        """(C,) where the last cells end, with a gradient."""
        ranges = self.log_range.exp()
        if not self.stored:
            return ranges
        step = 2.0 ** self.grid_ranges()[1]
        return ranges + (torch.round(ranges / step).clamp_min(1) * step - ranges).detach()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grids, of the same shape."""
        shape = (-1, *[1] * (weight.ndim - 1))
        ranges = self.ranges().to(weight.dtype).view(shape)
        left, step, gate, out = torch.maximum(torch.minimum(weight, ranges), -ranges), ranges * 2, 1.0, 0.0
        for n, finer in enumerate(FINER):
            step = step / finer
            gate = gate * self.own()[n - 1].view(shape) if n else gate
            part = step * Rounded.apply(left / step, finer // 2)
            out, left = out + gate * part, left - part
        return out


@dataclass(frozen=True)
class BitCounts:
    """Of the weights on grids.

    soft_bits, bits  mean over all weights, or what else they cost: by soft counts, and of gates that are open
    bytes            that the weights take with these bits, before entropy coding
    weights          how many there are
    """

    soft_bits: float
    bits: float
    bytes: float
    weights: int


class Quantised:
    """A network on grids: what a training loop needs. Made by `quantize`.

    gates    (3, R) for an optimiser of its own, without weight decay: of grids of 4, 8 and 16 bits, for every channel of every layer
    ranges   list of parameters: logarithms of all layers' ranges, for the same optimiser
    """

    def __init__(self, model: nn.Module, names: list[str], shapes: list[tuple[int, ...]], costs: list[float], form: str, seed: int) -> None:
        self.model, self.names, self.shapes, self.form = model, names, shapes, form
        self._rows = rows = [s[0] for s in shapes]
        device = next(model.parameters()).device
        noise = torch.rand((len(LEVELS) - 1, sum(rows)), generator=torch.Generator().manual_seed(seed))
        self.gates = nn.Parameter((1 - JITTER * noise).to(device))
        self.open = torch.ones_like(self.gates, dtype=torch.bool)
        self._costs = torch.tensor(costs, dtype=torch.float64, device=device) / sum(costs)  # of layers
        self._grids, first = [], 0
        for name, count in zip(names, rows, strict=True):
            module, attribute = self._at(name)
            grid = OnGrid(getattr(module, attribute), self.gates, first)
            parametrize.register_parametrization(module, attribute, grid)
            self._grids.append(grid)
            first += count

    def _at(self, name: str) -> tuple[nn.Module, str]:
        owner, _, attribute = name.rpartition(".")
        return self.model.get_submodule(owner), attribute

    @property
    def ranges(self) -> list[nn.Parameter]:
        """Logarithms of every layer's ranges."""
        return [g.log_range for g in self._grids]

    def soft_bits(self) -> Tensor:
        """(L,) mean bits of every layer's channels, 2 .. 16, with a gradient.

        Beside a layer's gates stands an entry that stays and does not count, so that all of them can close; as it is larger than an
        open gate, gates that are all open have a gradient.
        """
        rows = []
        for gates in self.gates.cumprod(0).split(self._rows, 1):
            stays = gates.new_full((1,), STAYS)
            none, whole = (soft_count(torch.cat([s, stays]), self.form) for s in (torch.zeros_like(gates[0]), torch.ones_like(gates[0])))
            left = [(soft_count(torch.cat([g, stays]), self.form) - none) / (whole - none) for g in gates]
            rows.append(LEVELS[0] + sum((b // 2) * share for b, share in zip(LEVELS[1:], left, strict=True)))
        return torch.stack(rows)

    def penalty(self) -> Tensor:
        """Soft bits, as a mean over all weights or what else they cost, over 16; 0-d. Multiply it and add it to the task's loss."""
        return (self._costs @ self.soft_bits().double() / LEVELS[-1]).float()

    @torch.no_grad()
    def project(self) -> None:
        """Call after every step: gates stay between 0 and 1, and those that were closed stay so."""
        self.gates.clamp_(0, 1).mul_(self.open)

    @torch.no_grad()
    def bits(self) -> Tensor:
        """(R,) bits of every channel by the gates that are open."""
        levels = (self.gates > 0).cumprod(0).sum(0)
        return torch.tensor(LEVELS, device=levels.device)[levels]

    @torch.no_grad()
    def counts(self) -> BitCounts:
        """What the weights take by the gates as they are."""
        sizes = [math.prod(s) for s in self.shapes]
        hard = sum(n * float(b.double().mean()) for n, b in zip(sizes, self.bits().split(self._rows), strict=True))
        return BitCounts(LEVELS[-1] * float(self.penalty()), self._mean(self.bits()), hard / 8, sum(sizes))

    def _mean(self, bits: Tensor) -> float:
        """Mean over what layers cost, of (R,) bits."""
        return float(self._costs @ torch.stack([b.double().mean() for b in bits.split(self._rows)]))

    @torch.no_grad()
    def keep(self, bits: float) -> None:
        """Close the smallest gates for good, so that at most so many bits are left, and open the others whole.

        raises  InputError for less than 2 bits, of which no grid has fewer
        """
        if not bits >= LEVELS[0]:
            raise InputError(f"{bits} bits a weight: 2 are the least")
        score = self.gates.double().cumprod(0)
        score = torch.where(self.open, score, -1.0)
        order = score.flatten().argsort(descending=True, stable=True)  # nested: a gate is never larger than the one before it
        row = torch.cat([(cost / n).expand(n) for cost, n in zip(self._costs, self._rows, strict=True)])
        more = torch.stack([b // 2 * row for b in LEVELS[1:]])
        fits = LEVELS[0] + more.flatten()[order].cumsum(0) <= bits + 1e-9
        chosen = order[fits & (score.flatten()[order] > 0)]
        self.open = torch.zeros_like(score, dtype=torch.bool).flatten().index_fill_(0, chosen, True).view_as(score)
        self.gates.copy_(self.open)
        self.gates.requires_grad_(False)

    @torch.no_grad()
    def zeros(self) -> tuple[float, float]:
        """Fractions of weights that are zero, and of kernel slices of more than one position."""
        weights = slices = count = slice_count = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            w = getattr(*self._at(name)).reshape(*shape[:2], -1)
            weights, count = weights + int((w == 0).sum()), count + w.numel()
            if math.prod(shape[2:]) > 1:
                slices, slice_count = slices + int((~w.any(2)).sum()), slice_count + math.prod(shape[:2])
        return weights / count, slices / max(slice_count, 1)

    def store_ranges(self, on: bool = True) -> None:
        """From now on compute with ranges as the file will hold them (8 bits): for the last epochs of training."""
        for grid in self._grids:
            grid.stored = on

    # -- what the file holds ------------------------------------------------------------------------------------------

    def tied_names(self) -> list[tuple[str, str]]:
        """None: networks with tied weights are refused."""
        return []

    def stored_layers(self) -> list[lnx.Layer]:
        """Every weight as it is listed in the file, with its grids."""
        if self.gates.requires_grad:
            raise InputError("gates are still between open and closed: choose with keep(bits) which stay, before the network is stored")
        kernels = list(dict.fromkeys(s[2:] for s in self.shapes))  # each is a group of the file
        bits, out = self.bits().cpu().numpy().astype(np.int32), []
        ends = np.cumsum([0, *self._rows])
        for n in sorted(range(len(self.names)), key=lambda n: kernels.index(self.shapes[n][2:])):
            module = self._at(self.names[n])[0]
            grid = Grid(*self._grids[n].grid_ranges(), bits[ends[n] : ends[n + 1]])
            transposed, groups = isinstance(module, TRANSPOSED), getattr(module, "groups", 1)
            out.append(lnx.Layer(self.names[n], self.shapes[n], kernels.index(self.shapes[n][2:]), transposed, groups, grid))
        return out

    def stored_groups(self) -> list[lnx.Group]:
        """The numbers of points, by kernel shape."""
        plain = dict(self.plain().named_parameters())
        rows: dict[tuple[int, ...], list[np.ndarray]] = {}
        for layer in self.stored_layers():
            w = plain[layer.name].detach().cpu().numpy()
            q = to_grid(w, layer.grid.ranges(), layer.grid.bits)
            rows.setdefault(layer.shape[2:], []).append(q.reshape(layer.slices, -1))
        return [lnx.Group(Decoder("scalar", k, np.ones(1, np.int32), 0), np.concatenate(qs)) for k, qs in rows.items()]

    def plain(self) -> nn.Module:
        """A copy of the network in eval mode, whose ordinary weights are points of their grids."""
        return plain_copy(self)

    shrink = plain  # nothing becomes narrower, so this is what the other surrogates call by that name

    def save(self, path: str | os.PathLike, example_input: Tensor | None = None, side_bits: int = 8) -> Saved:
        """Write the file, checked before it gets its name; see `lilnetx_mini.nn.export.save`."""
        from .export import save

        return save(self, path, example_input, side_bits)


def quantize(
    model: nn.Module,
    leave: Iterable[str] = (),
    costs: dict[str, float] | None = None,
    form: str = "squared",
    seed: int = 0,
) -> Quantised:
    """Put the weights of convolutions, dense layers, embeddings and attention on grids of 16 bits, from which bits can be taken; in place.

    leave   names of modules to leave alone, or shell patterns such as ``"layer1.*"``
    costs   for names of weights what a bit of each costs in all, such as their multiply-adds; how many weights they have, if it is None
    form    of the soft counts: "squared" or "root"
    seed    of the jitter from which the gates, 0.99 .. 1, start
    raises  InputError for a module that is parametrised or has tied weights, or where there is nothing to quantise

        quantised = quantize(model)
        for x, y in batches:
            (loss(model(x), y) + lam * quantised.penalty()).backward()
            ...
            quantised.project()
        quantised.keep(4)
        ...
        quantised.save("model.lnx", x[:2])
    """
    found, tied = find(model, leave)
    if tied:
        name = found[tied[0][0]][0]
        raise InputError(f"{name} is shared by two modules: weights on grids cannot be shared; name them in leave=")
    names, shapes = [f[0] for f in found], [tuple(f[4].shape) for f in found]
    each = [float(math.prod(s)) for s in shapes] if costs is None else [float(costs.get(n, 0.0)) for n in names]
    if not sum(each) > 0 or min(each) < 0:
        raise InputError("costs: positive numbers are needed, for at least one of the weights")
    return Quantised(model, names, shapes, each, form, seed)
