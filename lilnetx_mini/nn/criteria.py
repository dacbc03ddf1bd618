"""Older ways of choosing the channels that go, with which masks that are learned have to be compared.

None of them looks at what a channel costs; `Pruned.cut` takes the units with the smallest scores until few enough multiply-adds
are left, so all of them meet the same target.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from .channels import STAYS, Channels, grouped
from .compressor import TRANSPOSED


def _summed(channels: Channels, units: np.ndarray, values: Tensor) -> Tensor:
    """(C,) numbers of channels, added up by the units (C,) that these belong to: (units,)."""
    total = torch.zeros(sum(channels.units), dtype=values.dtype, device=values.device)
    can_go = np.flatnonzero(units != STAYS)
    return total.index_add(0, torch.from_numpy(units[can_go]).to(values.device), values[torch.from_numpy(can_go).to(values.device)])


@torch.no_grad()
def magnitudes(model: nn.Module, channels: Channels) -> Tensor:
    """(units,) l1 norms of the kernels that make a unit, over the mean of its group (Li et al. 2017, with a scale for all layers)."""
    total = torch.zeros(sum(channels.units), device=next(model.parameters()).device)
    for layer in channels.layers:
        module = model.get_submodule(layer.name)
        masked = parametrize.is_parametrized(module, "weight")
        weight = module.parametrizations.weight.original if masked else module.weight
        norms = weight.abs().transpose(0, 1) if isinstance(module, TRANSPOSED) and not grouped(module) else weight.abs()
        total += _summed(channels, layer.makes, norms.flatten(1).sum(1))
    return torch.cat([part / part.mean().clamp_min(1e-30) for part in total.split(channels.units)])


def scales(model: nn.Module, channels: Channels) -> Tensor:
    """(units,) sums of the absolute scales that norm layers give a unit's channels, with a gradient (network slimming, Liu et al. 2017).

    raises  InputError where a unit goes through no norm layer with scales
    """
    total, seen = torch.zeros(sum(channels.units), device=next(model.parameters()).device), np.zeros(sum(channels.units), bool)
    for name, units in channels.norms.items():
        norm = model.get_submodule(name)
        if norm.weight is not None:
            total = total + _summed(channels, units, norm.weight.abs())
            seen[units[units != STAYS]] = True
    if not seen.all():
        groups = np.repeat([g.name for g in channels.groups], channels.units)
        without = groups[np.argmin(seen)]
        raise InputError(f"what {without} makes goes through no norm layer with scales: choose channels by something else")
    return total


def evenly(scores: Tensor, units: list[int]) -> Tensor:
    """(units,) scores that take the same share of every group: the places (0 .. 1) of others among those of their group."""
    return torch.cat([part.argsort().argsort() / len(part) for part in scores.split(units)])
