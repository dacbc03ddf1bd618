"""Layers as a product of two: what goes through fewer channels in between costs less (U diag(beta) V of Nasery et al. 2023).

A layer's weight, as a matrix of its outputs by everything that they read, is a sum of rank-one terms: its singular value decomposition.
Two layers in a row compute the same: the first has the kernel and a channel for every term, the second mixes these at one position.
Which terms stay is then the old question which channels stay, and the answer the same mask, here begun at the singular values.
"""

from __future__ import annotations

import torch
from torch import nn

from .compressor import CONVOLUTIONS

LIKE = ("stride", "padding", "dilation", "padding_mode")  # what the first layer takes from the whole


class Factored(nn.Sequential):
    """Two layers instead of one: `first` reads the inputs with the kernel, `second` mixes its channels.

    layer   a dense layer, or a convolution without groups
    values  (r,) singular values of its weight over the largest, falling; with channels in between multiplied by them, and only then,
            the two compute what the layer did
    """

    def __init__(self, layer: nn.Module) -> None:
        matrix = layer.weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        scale, rank = s[0].clamp_min(1e-30).sqrt(), len(s)
        if isinstance(layer, nn.Linear):
            first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
        else:
            same = {k: getattr(layer, k) for k in LIKE}
            first = type(layer)(layer.in_channels, rank, layer.kernel_size, bias=False, **same)
            second = type(layer)(rank, layer.out_channels, 1)
        second.bias = layer.bias
        super().__init__()
        self.first, self.second = first.to(layer.weight), second.to(layer.weight)
        self.train(layer.training)
        with torch.no_grad():
            first.weight.copy_((scale * v).view(first.weight.shape))
            second.weight.copy_((u * scale).view(second.weight.shape))
        self.register_buffer("values", (s / s[0].clamp_min(1e-30)).to(layer.weight), persistent=False)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """One layer that computes the same."""
        first, second = self.first, self.second
        weight = (second.weight.flatten(1).double() @ first.weight.flatten(1).double()).to(first.weight)
        if isinstance(first, nn.Linear):
            layer = nn.Linear(first.in_features, second.out_features, second.bias is not None)
        else:
            same = {k: getattr(first, k) for k in LIKE}
            layer = type(first)(first.in_channels, second.out_channels, first.kernel_size, bias=second.bias is not None, **same)
        layer.weight, layer.bias = nn.Parameter(weight.view(len(weight), *first.weight.shape[1:])), second.bias
        return layer.train(self.training)


def pays(module: nn.Module) -> bool:
    """Is there a rank at which a layer in two costs less than in one?"""
    if type(module) not in (*CONVOLUTIONS, nn.Linear) or getattr(module, "groups", 1) > 1 or not module.weight.any():
        return False
    out, into = module.weight.flatten(1).shape
    return out * into > 2 * (out + into)


def factorise(model: nn.Module) -> list[str]:
    """Replace, in place, every layer by two where that can pay; returns their names."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if name and pays(module)]
    factored = {}
    for name in places:
        parent, _, attribute = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), attribute, factored.setdefault(layer, Factored(layer)))
    return places


def merge(model: nn.Module) -> list[str]:
    """Replace, in place, two layers by one where that costs no more; returns their names."""
    merged = []
    for name, module in list(model.named_modules()):
        if isinstance(module, Factored):
            (rank, into), out = module.first.weight.flatten(1).shape, len(module.second.weight)
            if rank * (into + out) >= into * out:
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, module.merged())
                merged.append(name)
    return merged
