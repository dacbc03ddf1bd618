"""Asking for a size, for a share of the multiply-adds, or of zero slices: multipliers that follow the gap to what was asked.

Every now and then during training the network is measured as it would be stored: real coded bytes, real counts after the
channels that do nothing are removed. Between measure and target there is a gap: for sizes in logarithms, for multiply-adds and
slices from the largest latent of the first slice to go down to what rounds to zero. The gap should fall as a power of the learning that
is left, at the pace of the learning rate, as latents can only move while there is one. What it fell since the look before is compared
with what it should have; a multiplier's logarithm moves by a constant times the difference. The plan is made anew at every look: to catch
up with an older one, a multiplier would grow far beyond what keeps the right speed, and what has become zero seldom comes back.
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
from .recipes import Recipe

LOOKS = 100  # measurements in a training
EXACT = 5  # every so many of them write the whole file in memory; the others update what depends on latents alone
SOON = 10  # looks in which what is left to go should fall to a third, when little learning is left
AIM = 0.99  # of the size that was asked: a file for 40 kB should fit into them
FAR = 1.3  # times the target: while more is left, a factor does not fall below its floor, however fast things go
STICKY = 3.0  # times faster back when too much has become zero, as that seldom comes back by itself
# most that the logarithm of a factor falls in a look, and rises below where it started; above, `Plan.up` is the most
DOWN, BACK = 1.0, 0.3
SMALLEST, LARGEST = 1e-4, 1e4  # multipliers' factors stay within these
# a slice rounds to zero when its largest latent is at most ZERO; those that are to go in the end are cut to this
ZERO, CUT = 0.5, 0.49


@dataclass(frozen=True)
class Plan:
    """How a target should be approached; shares are of all learning, the sum of learning rates.

    start    factor of the recipe's multiplier in the beginning. What a penalty does adds up over steps, so shorter trainings start with
             larger multipliers, and longer ones with smaller ones
    late     share before which the factor is left alone: latents have to shrink before one is rounded to zero
    arrival  share after which the target should be reached
    power    of the learning that is left until then, as which the gap should fall
    floor    what the factor does not fall below while there is far to go
    gain     from speed that is missing, a change of the gap for a step at the full learning rate, to what the factor's logarithm
             changes in a look. The more learning lies between two looks, the more a multiplier does from one to the next: the same gain
             for every look would make long trainings swing to and fro, and leave the last looks without effect
    up       most that the factor's logarithm rises in a look. Latents that shrink show only when the first of them reach zero, and then
             most do at once, as the density sharpens with every one of them; a multiplier that has run ahead meanwhile would take
             the network with them
    """

    start: float
    late: float
    arrival: float
    power: float
    floor: float
    gain: float
    up: float


def size_plan(steps: int) -> Plan:
    """For the bytes of a training with so many steps.

    In a training of few steps, early is bad: what is zero by then seldom comes back, and the network trains the longest with the
    least. Nor does the straight line suit the shortest: their last looks are few steps and move little, and a multiplier that is
    large enough to catch up costs accuracy. With more than 8,000 late is worse: those after the arrival make the best of what is
    left. (Measured with LeNet5 in 10,965 steps; ResNet-20 in 3,500 belongs to the others.)
    """
    late, gain, up, start = 0.1, 120.0, 0.1, (2000 / steps) ** 1.5
    if steps > 8000:
        return Plan(max(1.0, start), late, 0.6, 2.0, 1.0, gain, up)
    return Plan(max(0.3, start), late, 0.97, 1 + min(1, 1000 / steps), 0.3, gain, up)


def slice_plan(steps: int) -> Plan:
    """For the slices, or the multiply-adds, of a training with so many steps.

    The share that is zero shows nothing for half of a training, and then answers at once; a multiplier that follows it swings. What
    answers at all times is the largest latent of the first slice to go, and that falls about straight. It should be there in time for
    the network to make the best of what is left. The multiplier should be strong enough early and then rise slowly: a latent
    hardly moves until its price is above what it is worth, and then does at once, so that a quick one takes too many. In a short
    training there are few steps between two looks, and what latents do in these is more chance than speed: a multiplier that answers
    to all of it swings between a fourth and twice of what would do (ResNet-20 in 316 steps, three seeds: 0.9 points less).
    """
    left, calm = min(0.1, max(0.03, 200 / steps)), min(1.0, steps / 1000)
    return Plan(max(0.3, 2500 / steps), 0.1, 1 - left, 1.0, 0.3, 50.0 * calm, 0.03 * calm)


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

    @classmethod
    def of(cls, recipe: Recipe) -> Targets:
        """Those of a recipe, where 0 stands for none."""
        return cls(recipe.target_size or None, recipe.target_flops or None, recipe.target_slices or None)

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
    size, slices  how each of the two is approached
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
        self.size, self.slices = size_plan(max(len(rates), 1)), slice_plan(max(len(rates), 1))
        self._group = self.slices.start
        self.rate = (self.size if targets.size is not None else self.slices).start
        self.group = self.rate if targets.flops is None and targets.slices is None else self._group
        self.history: list[dict] = []
        self._before: dict[str, tuple[float, float]] = {}  # at the look before: gap, and progress
        self._gone = 1.0  # multiply-adds left by removal, of those of slices that are not zero
        model, _ = to_model(compressor, example, side_bits)
        self.graph = model.graph
        if model.graph is None and targets.flops is not None:
            raise InputError(f"this network's multiply-adds cannot be counted: {model.note}")
        self._shares = mac_shares(compressor, model)
        # kernels of one position are left to the rate, unless most of the work is theirs
        if targets.flops is not None and sum(c for w, c in zip(compressor.weights, self._shares, strict=True) if w.group.d == 1) > 0.5:
            weigh_by_macs(compressor, self._shares)
        # what the slices of every weight cost together: multiply-adds, or one each
        self._costs = self._shares if targets.flops is not None else [len(w.latents) * (w.group.d > 1) for w in compressor.weights]
        if (targets.flops is not None or targets.slices is not None) and not sum(self._costs):
            raise InputError("this network has no slices to set to zero: its kernels have one position")
        self._arrived = False  # slices that are to go are cut
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

    @torch.no_grad()
    def _tops(self) -> list[tuple[Tensor, Tensor, float]]:
        """Of every weight whose slices cost something: its latents, the largest of each slice, and what a slice costs."""
        pairs = zip(self.compressor.weights, self._costs, strict=True)
        return [(w.latents, w.latents.abs().amax(1), cost / len(w.latents)) for w, cost in pairs if cost]

    def _border(self, share: float) -> float:
        """The largest latent of the first slice to go, if those with larger ones should have this share of all costs."""
        tops = self._tops()
        top, order = torch.cat([t for _, t, _ in tops]).sort(descending=True)
        costs = torch.cat([torch.full_like(t, cost) for _, t, cost in tops])[order].cumsum(0)
        kept = int((costs <= share * costs[-1]).sum())
        return self.agreed([float(top[min(kept, len(top) - 1)])])[0]

    @torch.no_grad()
    def _cut(self, border: float) -> None:
        """Let slices go whose largest latents do not round to zero, but are no larger than that at the border."""
        for latents, top, _ in self._tops():
            slices = (top > ZERO) & (top <= border)
            latents[slices] = latents[slices].clamp(-CUT, CUT)

    def _measure(self) -> Measured:
        if len(self.history) % EXACT == 0 or self._arrived:
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
            gap = math.log(max(now.size, 1e-6) / (AIM * asked.size))
            self.rate = self.group = self._moved(self.rate, self.size, gap, now.size > FAR * asked.size, progress)
        if asked.flops is not None or asked.slices is not None:
            share = asked.flops / max(self._gone, 1e-9) if asked.flops is not None else 1 - asked.slices
            border = self._border(share)
            self._group = self._moved(self._group, self.slices, border - ZERO, border > FAR * ZERO, progress)
            self._arrived = progress >= self.slices.arrival
            if self._arrived:
                self._cut(border)
            self.group = self._group
            self.rate = self.rate if asked.size is not None else self._group
        self.history.append({"step": step, **asdict(now), "rate": self.rate, "group": self.group})

    def _moved(self, factor: float, plan: Plan, gap: float, far: bool, progress: float) -> float:
        """A multiplier's factor after a look at what it steers."""
        key = "size" if plan is self.size else "slices"
        before, then = self._before.get(key, (gap, progress))
        self._before[key] = gap, progress
        if progress < plan.late:
            return factor
        done = max(progress - then, 1e-9)
        left = max(plan.arrival - progress, 0) / max(plan.arrival - then, 1e-9)
        share = min(1 / SOON, 1 - left**plan.power)  # of the gap, to close in this look
        change = plan.gain / (self._learning * done) * (gap - before + share * before) * (STICKY if gap < 0 else 1.0)
        change = max(-DOWN, min(plan.up if factor >= plan.start else BACK, change))
        return min(max(factor * math.exp(change), plan.floor if far else SMALLEST), LARGEST)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything that a resumed run needs to go on to the same numbers."""
        names = ("rate", "group", "_group", "history", "_before", "_beside", "_gone", "_arrived")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""
        for name, value in state.items():
            setattr(self, name, value)
