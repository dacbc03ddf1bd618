"""Asking for a size, for a share of the multiply-adds, or of zero slices: multipliers that follow the gap to what was asked.

Every now and then during training the network is measured as it would be stored: real coded bytes, real counts after the
channels that do nothing are removed. Between the logarithms of measure and target there is a gap, which should fall as a power of
the learning that is left, at the pace of the learning rate, as latents can only move while there is one. What it fell since the look before
is compared with what it should have; a multiplier's logarithm moves by a constant times the difference. The plan is made anew at every
look: to catch up with an older one, a multiplier would grow far beyond what keeps the right speed, and what has become zero seldom comes
back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from .. import lnx
from ..errors import InputError
from ..graph import Graph
from ..simplify import LAYERS, layer_macs, simplify
from .compressor import Compressor
from .export import to_model

LOOKS = 100  # measurements in a training
EXACT = 5  # every so many of them write the whole file in memory; the others update what depends on latents alone
LATE = 0.1  # share of all learning before which multipliers are left alone: latents have to shrink before one is rounded to zero
# how a size is approached: the share of all learning that is left when it should be reached, the power of what is left as which the gap
# should fall until then, and what a factor does not fall below while the file is FAR from the target. In a training of few steps, early
# is bad: what is zero by then seldom comes back, and the network trains the longest with the least. Nor does the straight line suit the
# shortest, up to SHORT steps: their last looks are few steps and move little, and a multiplier that is large enough to catch up costs
# accuracy. With more than LONG steps late is worse: those after the arrival make the best of what is left. (Measured with LeNet5 in
# 12,900 steps; ResNet-20 in 3,500 belongs to the others.)
SHORT, LONG = 1000, 8000
LEFT, FLOOR = 0.03, 0.3
LONG_LEFT, LONG_POWER, LONG_FLOOR = 0.4, 2.0, 1.0
FAR = 1.3  # times the target
# slices answer later than bytes, as all of their latents have to become zero: a multiplier that hurries them takes too many at once, so
# their gap falls straight. As they arrive at full speed, more should be left in a short training: so many steps, and at most this share
SLICES_LEFT, SLICES_LEFT_MOST = 200, 0.1
SOON = 10  # looks in which what is left to go should fall to a third, when little learning is left
# a size should end a little below what was asked, as a file for 40 kB should fit into them; a share of the multiply-adds a little
# above, as the last looks tend to end below it
AIM = {"size": 0.99, "flops": 1.005}
# from speed that is missing, in logarithms a step at the full learning rate, to what the logarithm of a multiplier changes in a look.
# The more learning lies between two looks, the more a multiplier does from one to the next: the same gain for every look would make
# long trainings swing to and fro, and leave the last looks without effect
GAIN = 120.0
STICKY = 3.0  # times faster back when too much has become zero, as that seldom comes back by itself
# most that the logarithm of a multiplier changes in a look. Up is slow: latents that shrink show only when the first of them
# reach zero, and then most do at once, as the density sharpens with every one of them; a multiplier that has run ahead
# meanwhile would take the network with them. Back up is faster, as long as it is below where it started
UP, BACK, DOWN = 0.1, 0.3, 1.0
# steps over which the recipe's multipliers would do about enough, and for sizes a power of what is missing. What a penalty does adds up
# over steps, so shorter trainings start with larger multipliers, for sizes more than in proportion, as there is no time to let them
# grow; longer ones with smaller ones, down to their floor
FULL, MISSING = 2000, 1.5
SMALLEST, LARGEST = 1e-4, 1e4  # multipliers' factors stay within these


@dataclass(frozen=True)
class Targets:
    """What was asked for; None: nothing.

    size    bytes of the whole file
    flops   multiply-adds of slices that are not zero, after removal, as a share of the dense network's
    slices  share of kernel slices that are zero
    """

    size: float | None = None
    flops: float | None = None
    slices: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not 0 < self.size < math.inf:
            raise InputError(f"a target size of {self.size} bytes: a positive number is needed")
        for name in ("flops", "slices"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"a target of {value} for {name}: a share between 0 and 1 is needed")
        if self.flops is not None and self.slices is not None:
            raise InputError("multiply-adds and slices cannot both be targets: one multiplier steers them")

    def __bool__(self) -> bool:
        return any(v is not None for v in asdict(self).values())


@dataclass(frozen=True)
class Measured:
    """A network as it would be stored now: bytes of its file, share of multiply-adds left, share of slices zero."""

    size: float
    flops: float
    slices: float


def slice_macs(model: lnx.Model) -> tuple[int, int]:
    """Multiply-adds of a stored network: dense, and those of slices that are not zero, after removal of what does nothing."""
    graph, tensors, removed = simplify(model.graph, model.tensors())
    left = 0
    weights = [tensors[node.attrs[0] - 1] for node in graph.nodes if node.op in LAYERS]
    for w, macs in zip(weights, layer_macs(graph, tensors), strict=True):
        alive = w.reshape(*w.shape[:2], -1).any(2).mean() if w.size else 0.0
        left += round(macs * float(alive))
    return removed.macs[0], left


@torch.no_grad()
def measure(compressor: Compressor, example: Tensor, graph: Graph | None = None, side_bits: int = 8) -> Measured:
    """Write the file in memory and count; multiply-adds are NaN for a network that the runtime cannot follow.

    graph      of the same network, if it has been traced before
    side_bits  bits for norm layers and biases
    """
    model, _ = to_model(compressor, example, side_bits, graph)
    dense, left = slice_macs(model) if model.graph is not None else (1, math.nan)
    return Measured(len(lnx.encode(model)), left / dense, compressor.zeros()[1])


def mac_shares(compressor: Compressor, model: lnx.Model) -> list[float]:
    """Of the dense multiply-adds, what each weight of the compressor has; zeros for a network without a graph.

    model  of `to_model`
    """
    by_name = dict.fromkeys((w.name for w in compressor.weights), 0.0)
    if model.graph is not None:
        names = model.tensor_names()
        nodes = [n for n in model.graph.nodes if n.op in LAYERS]
        for node, macs in zip(nodes, layer_macs(model.graph, model.tensors()), strict=True):
            by_name[names[node.attrs[0] - 1]] = by_name.get(names[node.attrs[0] - 1], 0.0) + macs
    total = sum(by_name.values()) or 1.0
    return [by_name[w.name] / total for w in compressor.weights]


def weigh_by_macs(compressor: Compressor, shares: list[float]) -> None:
    """Let every slice count in the group prior as its multiply-adds do, those of dense and 1x1 layers too."""
    compressor.dense_prior = True
    pairs = zip(compressor.weights, shares, strict=True)
    compressor.weigh_slices({w.name: share / math.prod(w.shape[:2]) for w, share in pairs})


class Steering:
    """Moves two multipliers, of the rate and of the slice norms, towards targets while a network trains.

    rates         learning rates of all steps to come, in any unit
    agreed        of several processes, gives every one the numbers of the first
    side_bits     bits that norm layers and biases will have in the file
    rate, group   factors for the recipe's multipliers. Both follow the one target; of two, the first follows the size
    start, power  for each measure, where a factor begins, and the power of the learning left as which the gap should fall
    floor         for each measure, what the factor does not fall below while there is far to go
    history       one dict a look: step, what was measured, the factors
    raises        InputError, as soon as it is known, if a target is out of reach, with what is in reach
    """

    def __init__(
        self,
        targets: Targets,
        compressor: Compressor,
        example: Tensor,
        rates: list[float],
        agreed: Callable[[list[float]], list[float]] = list,
        side_bits: int = 8,
    ) -> None:
        self.targets, self.compressor, self.example, self.agreed, self.side_bits = targets, compressor, example, agreed, side_bits
        self.every = max(1, len(rates) // LOOKS)
        self._learning = max(sum(rates), 1e-30) / max([*rates, 1e-30])  # steps at the full rate that would learn as much
        self.pace = np.cumsum([0.0, *rates]) / max(sum(rates), 1e-30)
        steps = max(len(rates), 1)
        left, power, floor = (LONG_LEFT, LONG_POWER, LONG_FLOOR) if steps > LONG else (LEFT, 1 + min(1, SHORT / steps), FLOOR)
        slices = ("flops", "slices")
        self.power = {"size": power} | dict.fromkeys(slices, 1.0)
        self.floor = {"size": floor} | dict.fromkeys(slices, FLOOR)
        self.start = {"size": max(floor, (FULL / steps) ** MISSING)} | dict.fromkeys(slices, max(FLOOR, FULL / steps))
        slices_left = min(SLICES_LEFT_MOST, max(LEFT, SLICES_LEFT / steps))
        self._arrival = {"size": 1 - left} | dict.fromkeys(slices, 1 - slices_left)  # share of all learning
        self._group = self.start["flops"]
        self.rate = self.start["size" if targets.size is not None else "flops"]
        self.group = self.rate if targets.flops is None and targets.slices is None else self._group
        self.history: list[dict] = []
        self._before: dict[str, tuple[float, float]] = {}  # at the look before: logarithm of measure over aim, and progress
        self._gone = 1.0  # multiply-adds left by removal, of those of slices that are not zero
        model, _ = to_model(compressor, example, side_bits)
        self.graph = model.graph
        if model.graph is None and targets.flops is not None:
            raise InputError(f"this network's multiply-adds cannot be counted: {model.note}")
        self._shares = mac_shares(compressor, model)
        if targets.flops is not None:
            weigh_by_macs(compressor, self._shares)
        # bytes of the file besides latents
        self._beside: float = len(lnx.encode(model)) - compressor.coded_bytes()
        if targets.size is not None and targets.size <= self._beside:
            raise InputError(
                f"a file of {targets.size:,.0f} bytes is out of reach: with all weights zero it would take about "
                f"{self._beside:,.0f} (norm layers, biases, names, graph)"
            )

    @torch.no_grad()
    def _alive(self) -> float:
        """Multiply-adds of slices that are not zero, nothing removed, as a share of all."""
        rows = (torch.round(w.latents).any(1).float().mean() for w in self.compressor.weights)
        return float(sum(share * float(row) for share, row in zip(self._shares, rows, strict=True)))

    def _measure(self) -> Measured:
        if len(self.history) % EXACT == 0:
            now = measure(self.compressor, self.example, self.graph, self.side_bits)
            self._beside = now.size - self.compressor.coded_bytes()
            self._gone = now.flops / max(self._alive(), 1e-9)
            return now
        size = self._beside + (self.compressor.coded_bytes() if self.targets.size else 0)
        return Measured(size, self._gone * self._alive(), self.compressor.zeros()[1])

    def look(self, step: int) -> None:
        """Call before every step, counted from the first with latents; most calls return at once."""
        if step % self.every:
            return
        now, progress = Measured(*self.agreed(list(astuple(self._measure())))), float(self.pace[step])
        asked = self.targets
        if asked.size is not None:
            self.rate = self.group = self._moved(self.rate, "size", now.size, asked.size, progress)
        if asked.flops is not None:
            self._group = self._moved(self._group, "flops", now.flops, asked.flops, progress)
        if asked.slices is not None:
            self._group = self._moved(self._group, "slices", 1 - now.slices, 1 - asked.slices, progress)
        if asked.flops is not None or asked.slices is not None:
            self.group = self._group
            self.rate = self.rate if asked.size is not None else self._group
        self.history.append({"step": step, **asdict(now), "rate": self.rate, "group": self.group})

    def _moved(self, factor: float, name: str, value: float, target: float, progress: float) -> float:
        """A multiplier's factor after a look at what it steers."""
        gap = math.log(max(value, 1e-6) / (AIM.get(name, 1.0) * target))
        before, then = self._before.get(name, (gap, progress))
        self._before[name] = gap, progress
        if progress < LATE:
            return factor
        done = max(progress - then, 1e-9)
        left = max(self._arrival[name] - progress, 0) / max(self._arrival[name] - then, 1e-9)
        share = min(1 / SOON, 1 - left ** self.power[name])  # of the gap, to close in this look
        change = GAIN / (self._learning * done) * (gap - before + share * before) * (STICKY if gap < 0 else 1.0)
        change = max(-DOWN, min(UP if factor >= self.start[name] else BACK, change))
        return min(max(factor * math.exp(change), self.floor[name] if value > FAR * target else SMALLEST), LARGEST)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything that a resumed run needs to go on to the same numbers."""
        names = ("rate", "group", "_group", "history", "_before", "_beside", "_gone")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""
        for name, value in state.items():
            setattr(self, name, value)
