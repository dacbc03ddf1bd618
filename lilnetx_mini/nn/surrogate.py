"""Multiply-adds as a differentiable function of masks, learned with the weights (after Nasery et al. 2023, arXiv 2306.05785).

A mask has an entry for every unit of channels that can go together. It multiplies the weights that read them: what comes before,
norm layers, biases and activations, then does not matter, and a channel whose entry is zero can be cut out of the network whatever
they make of it. The soft count of a group's entries stands for the number of its channels in the formula of the multiply-adds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from .channels import STAYS, Channels, grouped
from .compressor import TRANSPOSED
from .criteria import magnitudes
from .export import strip
from .factored import Factored, factorise, merge
from .latency import Predictor, Table
from .prior import soft_count
from .shrink import shrink

JITTER = 0.01  # at equal entries the gradient of a soft count is exactly zero
FAINT = 0.1  # least entry to start from
STARTS = ("magnitudes", "ones")
LEAST = 1e-3  # of an entry that stays because it is the last of its group


class Mask(nn.Module):
    """A parametrisation: every column of a weight, as many as it reads channels, times its unit's entry of the mask over its first one."""

    def __init__(self, alpha: nn.Parameter, starts: Tensor, units: np.ndarray, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.alpha, self.starts, self.shape = alpha, starts, [len(units) if a == axis else 1 for a in range(weight.ndim)]
        entries = torch.from_numpy(np.where(units == STAYS, len(alpha), units))
        self.register_buffer("entries", entries.to(weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, of the same shape."""
        one = self.alpha.new_ones(1)  # for what stays
        return weight * torch.cat([self.alpha / self.starts, one])[self.entries].view(self.shape)


@dataclass(frozen=True)
class Counts:
    """Of convolutions and dense layers, what is left and what the whole network has.

    soft_macs, macs  multiply-adds of one image, by soft counts, and those of channels that are left
    slices           kernels of more than one position
    ms               milliseconds that a latency table predicts, in the same three ways; NaN without one
    """

    soft_macs: float
    macs: int
    dense_macs: int
    weights: int
    dense_weights: int
    slices: int
    dense_slices: int
    soft_ms: float = math.nan
    ms: float = math.nan
    dense_ms: float = math.nan


class Pruned:
    """A network with masks: what a training loop needs. Made by `prune`.

    alpha     (units,) the mask, for an optimiser of its own, without weight decay
    starts    (units,) its entries at the start, when the network computes what it did
    channels  what its entries stand for
    form      of the soft counts: "squared" or "root"
    latency   predicts milliseconds, and these are then what counts; None: multiply-adds
    """

    def __init__(
        self, model: nn.Module, channels: Channels, example: Tensor, form: str, start: str, seed: int, latency: Predictor | None = None
    ) -> None:
        if start not in STARTS:
            raise InputError(f"start {start!r}: {' and '.join(map(repr, STARTS))} are the choices")
        device = next(model.parameters()).device
        self.model, self.channels, self.example, self.form, self.latency = model, channels.to(device), example, form, latency
        noise = torch.rand(sum(channels.units), generator=torch.Generator().manual_seed(seed))
        self.starts = (1 - JITTER * noise).to(device)
        if start == "magnitudes":
            self.starts *= magnitudes(model, channels).clamp_min(FAINT)
        self.alpha = nn.Parameter(self.starts.clone())
        self.alive = torch.ones_like(self.alpha, dtype=torch.bool)
        self._full = torch.tensor(channels.units, device=device)
        self._dense = self.cost(self._full)
        for layer in channels.layers:
            module = model.get_submodule(layer.name)
            ranked = model.get_submodule(layer.name.rpartition(".")[0])
            if isinstance(ranked, Factored) and layer.name.endswith(".first") and layer.makes[0] != STAYS:
                with torch.no_grad():
                    self.alpha[torch.from_numpy(layer.makes)] = ranked.values
                self.starts[torch.from_numpy(layer.makes)] = 1
            if (layer.reads != STAYS).any() and not grouped(module):
                mask = Mask(self.alpha, self.starts, layer.reads, module.weight, 0 if isinstance(module, TRANSPOSED) else 1)
                parametrize.register_parametrization(module, "weight", mask)

    def cost(self, counts: Tensor) -> Tensor:
        """Multiply-adds, or milliseconds, of (G,) units left of every group; 0-d float64."""
        return self.latency(counts) if self.latency else self.channels.macs(counts, merged=True)

    def soft_counts(self) -> Tensor:
        """(G,) soft counts of every group's entries."""
        return torch.stack([soft_count(a, self.form) for a in self.alpha.split(self.channels.units)])

    def penalty(self) -> Tensor:
        """Soft multiply-adds, or milliseconds, over those of the whole network; 0-d, 0 .. 1. Multiply it and add it to the task's loss."""
        counts = self.soft_counts()
        return ((self.latency(counts, steady=True) if self.latency else self.channels.macs(counts)) / self._dense).float()

    @torch.no_grad()
    def project(self) -> None:
        """Call after every step: negative entries become zero, what was cut stays zero, and every group keeps an entry."""
        for a, alive in zip(self.alpha.split(self.channels.units), self.alive.split(self.channels.units), strict=True):
            largest = torch.where(alive, a, -torch.inf).argmax()
            a.clamp_(min=0).mul_(alive)
            a[largest] = a[largest].clamp(min=LEAST)

    def counts(self) -> Counts:
        """What the network costs by the masks as they are."""
        channels, left = self.channels, self.channels.counts(self.alpha.detach() > 0)
        hard = [int(f(n, merged=True).round()) for f in (channels.macs, channels.weights, channels.slices) for n in (left, self._full)]
        with torch.no_grad():
            soft = self.soft_counts()
            ms = [float(self.latency(n)) for n in (soft, left, self._full)] if self.latency else []
            return Counts(float(channels.macs(soft)), *hard, *ms)

    @torch.no_grad()
    def keep(self, share: float, round_to: int = 1) -> None:
        """Cut the smallest entries for good, so that at most this share of the multiply-adds, or milliseconds, is left.

        round_to  let as many units stay in every group as are a multiple of it, or all

        Entries are compared by what decides whether a soft count lets them shrink or grow, alpha * l1 / l2**2 in their group.
        """
        parts = self.alpha.detach().split(self.channels.units)
        self.cut(torch.cat([a * a.sum() / a.square().sum() for a in parts]), share, round_to)

    @torch.no_grad()
    def cut(self, scores: Tensor, share: float, round_to: int = 1) -> None:
        """Cut the units with the smallest scores, (units,), for good; ties by their order. The best of every group stays.

        share     of the multiply-adds, or milliseconds, that may be left
        round_to  as in `keep`
        raises    InputError if no choice leaves so little
        """
        what = "milliseconds" if self.latency else "multiply-adds"
        if not 0 < share <= 1:
            raise InputError(f"a share of {share} of the {what}: a number above 0 and at most 1 is needed")
        channels, device = self.channels, self.alpha.device
        best = torch.cat([torch.arange(len(s)) == s.argmax() for s in scores.cpu().split(channels.units)])
        order = torch.where(best, torch.inf, scores.cpu().double()).argsort(descending=True, stable=True).to(device)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
        low, high = len(channels.units), len(order)  # the most units that are few enough lie in low .. high

        def left(count: int) -> Tensor:
            alive = rank < count
            return alive if round_to == 1 else _rounded(alive, rank, channels.units, round_to)

        def cost(count: int) -> float:
            return float(self.cost(channels.counts(left(count))) / self._dense)

        if cost(low) > share:
            raise InputError(f"{share:.1%} of the {what} are out of reach: the fewest channels that may stay leave {cost(low):.1%}")
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle) <= share else (low, middle - 1)
        self.alive &= left(low)
        self.project()

    def plain(self) -> nn.Module:
        """A copy of the network in eval mode, with ordinary weights that are multiplied by their masks."""
        model = copy.deepcopy(self.model).eval()
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                strip(module)
        return model

    def shrink(self) -> nn.Module:
        """The smaller network, without what the masks cut: equal outputs, see `lilnetx_mini.nn.shrink`."""
        small = shrink(self.plain(), self.example)
        merge(small)
        return small

    @torch.no_grad()
    def narrowest(self) -> nn.Module:
        """The network with one unit in every group: there is no smaller one."""
        other = copy.deepcopy(self)
        other.alive = torch.cat([torch.arange(n, device=self.alpha.device) == 0 for n in self.channels.units])
        other.project()
        return other.shrink()


def _rounded(alive: Tensor, rank: Tensor, units: list[int], step: int) -> Tensor:
    """With as many alive in every group as are a multiple of the step, at least once that or all: those that rank first."""
    rows = []
    for part, places in zip(alive.split(units), rank.split(units), strict=True):
        count = min(len(part), max(step, int(part.sum()) // step * step))
        rows.append(torch.zeros_like(part).index_fill_(0, places.argsort()[:count], True))
    return torch.cat(rows)


def prune(
    model: nn.Module,
    example_input: Tensor,
    only: str | Iterable[str] = "*",
    form: str = "squared",
    start: str = "magnitudes",
    seed: int = 0,
    table: Table | None = None,
) -> Pruned:
    """Give every channel that can go an entry of a mask, in place.

    model          any module; channels joined by additions, gates, concatenations or depthwise convolutions share an entry. Its weights
                   may not be parametrised
    example_input  one batch, as the module takes it
    only           names of layers whose outputs may go, unless joined with those of others; shell patterns such as ``"layer1.*"``
                   are understood
    form           of the soft counts: "squared", exact for masks of zeros and equal entries, or "root"
    start          what entries start from: "magnitudes", l1 norms of the kernels that make a unit, over the mean of its group, as those of
                   a trained network say much already; or "ones"
    seed           of a jitter of a hundredth that makes entries unequal
    table          of latencies, see `lilnetx_mini.nn.latency`: what counts are then milliseconds
    raises         InputError for a parametrised module, where nothing can go, or if the table lacks a layer; MissingExtraError without
                   torch-pruning; ExportError if it cannot follow the network

        pruned = prune(model, x[:2])
        for x, y in batches:
            (loss(model(x), y) + lam * pruned.penalty()).backward()
            ...
            pruned.project()
        pruned.keep(0.5)
        small = pruned.shrink()
    """
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise InputError("the module is parametrised already: start from a plain network")
    patterns = (only,) if isinstance(only, str) else tuple(only)
    example_input = example_input.to(next(model.parameters()).device)
    channels = Channels(model, example_input, patterns)
    return Pruned(model, channels, example_input, form, start, seed, table.of(model, example_input, channels) if table else None)


def low_rank(
    model: nn.Module, example_input: Tensor, channels: bool = False, form: str = "squared", start: str = "magnitudes", seed: int = 0
) -> Pruned:
    """Put every layer where that can pay into two, in place, with an entry of a mask for every channel in between.

    Entries start at the singular values of the layer's weight, over the largest: the network computes what it did.

    channels  give those of the whole network entries too, as `prune` does
    returns, raises  as `prune`. Shrinking makes one layer again of two that together cost no less
    """
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise InputError("the module is parametrised already: start from a plain network")
    names = factorise(model)
    if not names:
        raise InputError(f"{type(model).__name__} has no layer that could cost less in two")
    return prune(model, example_input, "*" if channels else [f"{name}.first" for name in names], form, start, seed)
