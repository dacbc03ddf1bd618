"""Which channels of a network can go, together with which others, and how many multiply-adds they cost.

Channels that go together or not at all (those that an addition joins, those on both sides of a depthwise convolution, those
that a gate multiplies, and those of a head of attention) are one unit. Units that the same layers make and read, and equally
often, cost the same: they are a group. If layer l makes w[l] channels and reads r[l], it has ``cost[l] * w[l] * r[l]``
multiply-adds; and both are linear in the numbers of units left in the groups. So a few counts say what the network costs, and
soft counts give that a gradient.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from .attention import Heads, attentions
from .compressor import CONVOLUTIONS, TRANSPOSED
from .export import NORMS
from .factored import Factored
from .shrink import Cutter, unread

STAYS = -1  # in place of a unit: a channel that cannot go
Units = NDArray[np.int64]


def grouped(module: nn.Module) -> bool:
    """Does every output channel of a layer read some input channels of its own, as in a depthwise convolution?"""
    return getattr(module, "groups", 1) > 1


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer, and the units of its channels.

    name   of the module
    makes  (out,) unit of every output channel, or STAYS
    reads  (in,) the same for every input channel; for a convolution with groups (in / groups,), all STAYS
    cost   multiply-adds of one image for an output channel and an input channel
    size   weights for such a pair: positions of the kernel
    """

    name: str
    makes: Units
    reads: Units
    cost: int
    size: int


@dataclass(frozen=True)
class Group:
    """Units that cost the same; `units` of them, numbered after those of the groups before. `name` is the first layer that makes them."""

    name: str
    units: int


class Channels:
    """What can go in a network, and what is then left to do.

    model          a module with ordinary weights; it is not changed
    example_input  one batch, as the module takes it
    only           shell patterns: what other layers make stays, and so does what is joined with it
    raises         MissingExtraError without torch-pruning; ExportError if it cannot follow the network; InputError if no channel
                   can go

    groups         list of `Group`, G of them
    layers         list of `Layer`, L of them
    products       of queries with keys, and of what comes of them with values: the layer that makes queries to their multiply-adds for
                   one of its channels
    norms          name of every norm layer to (C,) unit of its channels, or STAYS
    """

    def __init__(self, model: nn.Module, example_input: Tensor, only: tuple[str, ...] = ("*",)) -> None:
        model = copy.deepcopy(model).eval()
        cutter = Cutter(model, example_input)
        known = set(cutter.layers)
        modules = [m for m in model.modules() if m in known]
        named = {n for n, m in enumerate(modules) if any(fnmatch(cutter.names[m], pattern) for pattern in only)}
        sides, norms = _sides(cutter, modules)
        sides = _candidates(sides, named)
        sides, self.groups = _grouped(_proved(model, example_input, modules, sides), [cutter.names[m] for m in modules])
        if not self.groups:
            where = "" if only == ("*",) else f" in layers called {' or '.join(only)}"
            raise InputError(f"{type(model).__name__} has no channels that could go{where}")
        costs, sizes = _costs(model, modules, example_input), [math.prod(m.weight.shape[2:]) for m in modules]
        self.layers = [Layer(cutter.names[m], *x) for m, *x in zip(modules, *zip(*sides, strict=True), costs, sizes, strict=True)]
        self.products = {cutter.names[a.inside[0]]: n for a, n in _products(model, example_input).items() if a.inside[0] in known}
        self._costs = torch.tensor([*costs, *self.products.values()], dtype=torch.float64)
        self._sizes = torch.tensor([*sizes, *[0] * len(self.products)], dtype=torch.float64)
        self.norms: dict[str, Units] = {}
        for norm, n, there, root in norms:
            units = self.norms.setdefault(cutter.names[norm], np.full(norm.num_features, STAYS))
            units[there] = self.layers[n].makes[root]
        number = {x.name: n for n, x in enumerate(self.layers)}
        factored = [name for name, module in model.named_modules() if isinstance(module, Factored)]
        self._pairs = [(number[f"{name}.first"], number[f"{name}.second"]) for name in factored]
        self._makes = self._widths([*(x.makes for x in self.layers), *(self.layers[number[name]].makes for name in self.products)])
        self._reads = self._widths([*(x.reads for x in self.layers), *[np.array([STAYS])] * len(self.products)])

    @property
    def units(self) -> list[int]:
        """Units of every group."""
        return [g.units for g in self.groups]

    def _widths(self, sides: list[Units]) -> Tensor:
        """(sides, G + 1): channels of one side of every layer or product, for a unit of every group; last those that stay."""
        group = np.repeat(np.arange(len(self.groups)), self.units)
        rows = [np.bincount(group[u[u != STAYS]], minlength=len(self.groups)) / self.units for u in sides]
        return torch.tensor(np.column_stack([rows, [(u == STAYS).sum() for u in sides]]), dtype=torch.float64)

    def macs(self, counts: Tensor, merged: bool = False) -> Tensor:
        """Multiply-adds of one image in layers and products with so many units, (G,), of each group; 0-d float64.

        merged  two layers of a `Factored` one count as the one that they could be if that costs less

        Counts may be fractions and have a gradient; ``macs(torch.tensor(channels.units))`` is the network as it is.
        """
        return self._total(self._costs, counts, merged)

    def weights(self, counts: Tensor, merged: bool = False) -> Tensor:
        """The same for the weights of convolutions and dense layers, without biases and norm layers."""
        return self._total(self._sizes, counts, merged)

    def slices(self, counts: Tensor, merged: bool = False) -> Tensor:
        """The same for kernels of more than one position."""
        return self._total((self._sizes > 1).double(), counts, merged)

    def to(self, device: torch.device | str) -> Channels:
        """Compute where the counts lie; returns itself."""
        for name in ("_costs", "_sizes", "_makes", "_reads"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def widths(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """(G,) units left to the channels, (L,) each, that layers then make and read; float64, with a gradient."""
        makes, reads = self._both(counts)
        return makes[: len(self.layers)], reads[: len(self.layers)]

    def _both(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.cat([counts.double(), torch.ones(1, dtype=torch.float64, device=counts.device)])
        return self._makes @ left, self._reads @ left

    def _total(self, each: Tensor, counts: Tensor, merged: bool) -> Tensor:
        makes, reads = self._both(counts)
        rows = each * makes * reads
        total = rows.sum()
        for first, second in self._pairs if merged else ():
            total = total - (rows[first] + rows[second] - each[first] * makes[second] * reads[first]).clamp_min(0)
        return total

    def counts(self, alive: Tensor) -> Tensor:
        """(units,) which of them are left to (G,) how many of each group."""
        return torch.stack([part.sum() for part in alive.double().split(self.units)])


@torch.no_grad()
def _costs(model: nn.Module, layers: list[nn.Module], example: Tensor) -> list[int]:
    """Multiply-adds of one image in every layer, for each pair of an output and an input channel."""
    seen = dict.fromkeys(layers, 0)

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        image = inputs[0] if isinstance(module, TRANSPOSED) else output  # a kernel for each of its places
        channels = image.shape[-1] if isinstance(module, nn.Linear) else image.shape[1]
        seen[module] += image.numel() // (channels * len(example)) * math.prod(module.weight.shape[2:])

    hooks = [m.register_forward_hook(count) for m in layers]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[m] for m in layers]


def _products(model: nn.Module, example: Tensor) -> dict[Heads, int]:
    """Multiply-adds of one image in the two products of every self-attention, for each channel."""
    found = attentions(model)
    places = dict(zip(found, _costs(model, [a.inside[1] for a in found], example), strict=True))
    return {a: 2 * n * n for a, n in places.items()}


def multiply_adds(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Of one image, in every convolution and dense layer: by the names of their weights, and without attention's products.

    In eval mode; the mode it had comes back.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))}
    was_training = model.training
    costs = _costs(model.eval(), list(layers.values()), example_input.to(next(model.parameters()).device))
    model.train(was_training)
    rows = zip(layers.items(), costs, strict=True)
    return {f"{name}.weight": cost * math.prod(m.weight.shape[:2]) for (name, m), cost in rows}


# ---- units


def _sides(cutter: Cutter, layers: list[nn.Module]) -> tuple[list[tuple[Units, Units]], list[tuple[nn.Module, int, Units, Units]]]:
    """Units of the channels that every layer makes, and of those that it reads; numbered anyhow.

    And what norm layers have of them: (norm layer, number of a layer, channels of the one, those of the other that they go with).
    """
    graph, norms = cutter.graph, []
    widths = [n for m in layers for n in (graph.get_out_channels(m), graph.get_in_channels(m) // getattr(m, "groups", 1))]
    ends = np.cumsum([0, *widths])
    first = {(m, made): ends[2 * n + (not made)] for n, m in enumerate(layers) for made in (True, False)}
    stays, joined = np.zeros(ends[-1], bool), [np.zeros((2, 0), np.int64)]
    heads = [a for a in attentions(cutter.model) if {*a.inside, a.out} <= set(layers)]
    for a in heads:
        channels = np.arange(a.count * a.size)
        sides = [*((m, True) for m in a.inside), (a.out, False)]
        joined += [np.stack([first[side] + channels, first[sides[0]] + channels // a.size * a.size]) for side in sides]
    inside = {m for a in heads for m in a.inside}
    for n, (m, width, reads) in enumerate(zip(layers, widths[::2], widths[1::2], strict=True)):
        stays[first[m, False] : first[m, False] + reads] = grouped(m)
        here = first[m, True] + np.arange(width)
        if m in inside:
            continue
        try:
            coupled = cutter.coupled(m, range(width))
        except Exception:  # torch-pruning has lost track of them
            stays[here] = True
            continue
        for (node, cut), pairs in coupled.items():
            stays[here[sorted(cutter.fixed(node, pairs))]] = True
            there, root = np.array([tuple(p) for p in pairs]).T
            if isinstance(node.module, NORMS):
                norms.append((node.module, n, there, root))
            start = first.get((node.module, cutter.gives(cut)))
            if start is not None and not (grouped(node.module) and not cutter.gives(cut)):
                joined.append(np.stack([start + there, here[root]]))
    unit = _joined(ends[-1], *np.concatenate(joined, 1))
    unit = np.where(np.isin(unit, unit[stays]), STAYS, unit)
    parts = np.split(unit, ends[1:-1])
    return list(zip(parts[::2], parts[1::2], strict=True)), norms


def _joined(count: int, a: Units, b: Units) -> Units:
    """The smallest number among all that pairs (a, b) join each number with."""
    unit = np.arange(count)
    while True:
        before = unit.copy()
        np.minimum.at(unit, a, unit[b])
        np.minimum.at(unit, b, unit[a])
        if np.array_equal(unit, before):
            return unit


def _candidates(sides: list[tuple[Units, Units]], named: set[int]) -> list[tuple[Units, Units]]:
    """Without what other layers than those with these numbers make, or what none makes or none reads: the input, and outputs."""
    made, read = (np.concatenate(side) for side in zip(*sides, strict=True))
    others = np.concatenate([[STAYS], *(makes for n, (makes, _) in enumerate(sides) if n not in named)])
    can_go = np.setdiff1d(np.intersect1d(made, read), others)
    return [tuple(np.where(np.isin(u, can_go), u, STAYS) for u in side) for side in sides]


def _proved(model: nn.Module, example: Tensor, layers: list[nn.Module], sides: list[tuple[Units, Units]]) -> list[tuple[Units, Units]]:
    """Without units that matter to the output even where no layer reads them: all of them, and each of two halves for itself.

    Half of the channels that a layer norm sees, or of those by which queries and keys meet, changes what becomes of the other half.
    """
    while True:
        units = np.setdiff1d(np.concatenate([u for side in sides for u in side]), [STAYS])
        halves = np.array_split(np.random.default_rng(0).permutation(units), 2)
        out = np.concatenate([_leaking(model, example, layers, sides, part) for part in (units, *halves)])
        if not len(out):
            return sides
        sides = [tuple(np.where(np.isin(u, out), STAYS, u) for u in side) for side in sides]


def _leaking(model: nn.Module, example: Tensor, layers: list[nn.Module], sides: list[tuple[Units, Units]], part: Units) -> Units:
    """Of these units, those that matter to the output where no layer reads any of them; all, if it cannot be told which."""
    blind = copy.deepcopy(model)
    twins = dict(zip(model.modules(), blind.modules(), strict=True))
    for m, (_, reads) in zip(layers, sides, strict=True):
        if not grouped(m):
            columns(twins[m])[:, torch.from_numpy(np.isin(reads, part))] = 0
    given = {twins[m]: np.flatnonzero(np.isin(makes, part)).tolist() for m, (makes, _) in zip(layers, sides, strict=True)}
    given = {m: channels for m, channels in given.items() if channels}
    if unread(blind, example, given):
        return part[:0]
    leaks = [n for n, m in enumerate(layers) if twins[m] in given and not unread(blind, example, {twins[m]: given[twins[m]]})]
    return np.concatenate([sides[n][0] for n in leaks]) if leaks else part


def columns(module: nn.Module) -> Tensor:
    """A view of a layer's weight, (out, in, *kernel), without gradient."""
    w = module.weight.detach()
    return w.transpose(0, 1) if isinstance(module, TRANSPOSED) else w


def _grouped(sides: list[tuple[Units, Units]], names: list[str]) -> tuple[list[tuple[Units, Units]], list[Group]]:
    """Units numbered group by group, in the order of the layers that make them first."""
    units = np.setdiff1d(np.concatenate([u for side in sides for u in side]), [STAYS])
    table = np.stack([(u[:, None] == units).sum(0) for side in sides for u in side], 1)  # (units, 2 L)
    order = np.lexsort(np.fliplr(-table).T) if len(units) else np.zeros(0, np.int64)
    units, table = units[order], table[order]
    starts = np.flatnonzero(np.r_[True, (table[1:] != table[:-1]).any(1)]) if len(units) else []
    makers = [names[int(np.flatnonzero(table[s, ::2])[0])] for s in starts]
    groups = [Group(name, int(n)) for name, n in zip(makers, np.diff([*starts, len(units)]), strict=True)]
    number = {int(u): n for n, u in enumerate(units)} | {STAYS: STAYS}
    return [tuple(np.array([number[int(x)] for x in u]) for u in side) for side in sides], groups
