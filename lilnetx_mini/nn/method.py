"""What makes a network small while it trains: latents and their penalties (LilNetX), or masks, or bits (surrogates).

A `Run` asks the same of both, in this order at every step: `schedule`, `look`, `penalty` on top of the task's loss, and, when the
optimisers have stepped, `stepped`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..grid import LEVELS
from . import latency
from .bits import quantize
from .channels import multiply_adds
from .compressor import Compressor, reparameterize
from .criteria import evenly, magnitudes, scales
from .export import Storable, to_model
from .optimise import optimizers, plain_optimizer, warm_cosine
from .recipes import Recipe
from .surrogate import Pruned, low_rank, prune
from .targets import Steering, Targets, mac_shares, weigh_by_macs

SOFTEST, SHARPEST = 1.0, 12.0  # soft rounding at its start and at its end
TRAVEL = 10.0  # learning rate of masks times steps
DOUBT = 1.5  # how far a stopwatch may be from a table to be believed
TRIES, CLOSE = 6, 0.02  # cuts that are timed until one takes as long as was asked for, nearly enough
FINE = 16.0  # quantisation steps in a standard deviation of weights that were not trained to be rounded: five or six bits each
TRAINED = {"levels": 1.0, "decoder_lr": 1e-4}  # for latents that start at trained weights, in a recipe for random ones
PULL = 10.0  # what the square of the distance to the plan costs, in logarithms of the multiply-adds


@dataclass(frozen=True)
class Span:
    """The steps in which a method works, from `begin` of all `steps`, and what it needs to know of the processes that share them.

    agreed  gives every process the numbers of the first
    noise   seed for noise that they must share, None for torch's own generator
    """

    begin: int
    steps: int
    agreed: Callable[[list[float]], list[float]] = list
    noise: int | None = None

    def done(self, step: int) -> float:
        """Share of these steps before a step, 0 .. 1."""
        return (step - self.begin) / max(self.steps - self.begin, 1)


class Method(Protocol):
    """What a training run needs of a way to make its network small. It changes the network in place when it is made.

    model      the network to be trained from now on: another one, perhaps, after `look` and `restore`
    generator  of the noise in its penalty
    """

    model: nn.Module
    generator: torch.Generator | None

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """For all parameters of the network as it now is."""

    def schedule(self, step: int) -> None:
        """Set what depends on the step alone."""

    def look(self, step: int) -> None:
        """Measure and decide, before a step."""

    def penalty(self) -> Tensor:
        """What is added to the task's loss."""

    def stepped(self) -> None:
        """The optimisers have stepped."""

    def line(self) -> dict:
        """What is to be known at the end of an epoch."""

    def state(self) -> dict:
        """Everything besides parameters and buffers that a resumed run needs, as JSON knows it."""

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""

    def stored(self) -> tuple[Storable, nn.Module]:
        """What is to be written once the network is trained, and a plain network of its shape."""


class LilNetX:
    """Latents and their penalties, with the recipe's multipliers, or such as its targets need.

    compressor, steering  of the network; steering is None without a target
    """

    def __init__(self, model: nn.Module, example: Tensor, recipe: Recipe, span: Span) -> None:
        self.model, self.recipe, self.span, self.share = model, recipe, span, 1.0
        init = recipe.init if span.begin == 0 and not recipe.weights else "from_weights"
        self.compressor = reparameterize(model, init=init, levels=recipe.levels, decoder=recipe.decoder or None)
        self.compressor.rate_of = recipe.rate_of
        if span.noise is not None:
            self.compressor.generator = torch.Generator(next(model.parameters()).device).manual_seed(span.noise)
        if recipe.weigh_macs:
            weigh_by_macs(self.compressor, mac_shares(self.compressor, to_model(self.compressor, example)[0]))
        self.targets, self.steering = Targets.of(recipe), None
        if self.targets:
            rates = [warm_cosine(n / span.steps, recipe.warmup) for n in range(span.begin, span.steps)]
            self.steering = Steering(self.targets, self.compressor, example, rates, span.agreed, recipe.side_bits)

    @property
    def generator(self) -> torch.Generator | None:
        """Of the rate's noise."""
        return self.compressor.generator

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers(self.model, self.compressor, self.recipe)

    def schedule(self, step: int) -> None:
        r, done = self.recipe, self.span.done(step)
        self.compressor.store_decoders(step >= (1 - r.stored_decoders) * self.span.steps)
        if r.quantiser != "straight":
            soft = min(done / r.hard, 1.0) if r.hard else 1.0
            self.compressor.quantise_with(r.quantiser if soft < 1 else "straight", SOFTEST * (SHARPEST / SOFTEST) ** soft)
        self.share = min(1.0, (step - self.span.begin) / max(r.ramp * (self.span.steps - self.span.begin), 1))

    def look(self, step: int) -> None:
        if self.steering:
            self.steering.look(step - self.span.begin)

    def multipliers(self) -> tuple[float, float]:
        """Of rate and group prior; with a target, those of the recipe times what steers them.

        A multiplier of 0 stays 0, except the one that the target needs: it then counts as 1.
        """
        rate, group, asked = self.recipe.lam_rate, self.recipe.lam_group, self.targets
        if not self.steering:
            return rate, group
        rate, group = rate or float(asked.size is not None), group or float(asked.flops is not None or asked.slices is not None)
        return rate * self.steering.rate, group * self.steering.group

    def penalty(self) -> Tensor:
        p, (rate, group) = self.compressor.penalty(), self.multipliers()
        return self.share * (rate * p.rate + group * p.group + self.recipe.lam_l2 * p.l2)

    def stepped(self) -> None:
        pass

    def line(self) -> dict:
        weights_zero, slices_zero = self.compressor.zeros()
        return {"latent_bytes": self.compressor.coded_bytes(), "weights_zero": weights_zero, "slices_zero": slices_zero}

    def state(self) -> dict:
        return self.steering.state() if self.steering else {}

    def restore(self, state: dict) -> None:
        if self.steering:
            self.steering.restore(state)

    def stored(self) -> tuple[Storable, nn.Module]:
        return self.compressor, self.recipe.model()


class Plan:
    """A soft count's way to what is asked for: exponentially, until the recipe's arrival. What is above it costs as a spring does.

    So nothing has to be known of the scale on which the task's loss and the count trade: entries pay until there are few enough of them.
    """

    def __init__(self, recipe: Recipe, span: Span, start: float, target: float) -> None:
        self.arrival, self.span, self.start, self.target = recipe.arrival, span, math.log(start), math.log(target)
        self.now = self.start

    def schedule(self, step: int) -> None:
        """Where the count should be at a step."""
        share = min(1.0, self.span.done(step) / max(self.arrival, 1e-9))
        self.now = (1 - share) * self.start + share * self.target

    def arrived(self, step: int) -> bool:
        """Is it time to choose?"""
        return self.span.done(step) >= self.arrival or step >= self.span.steps - 1

    def penalty(self, count: Tensor) -> Tensor:
        """Of a soft count."""
        return PULL * (count.log() - self.now).clamp_min(0).square()


class Surrogate:
    """Masks, whose soft multiply-adds are pulled along a plan to the share that is asked for, and there cut.

    What is cut leaves the network at once, and the rest of the training is as fast as the smaller one.

    pruned  see `lilnetx_mini.nn.surrogate`. Masks do nothing until they are cut where another criterion than these chooses
    """

    generator = None

    def __init__(self, model: nn.Module, example: Tensor, recipe: Recipe, span: Span) -> None:
        self.model, self.recipe, self.span, self.target = model, recipe, span, recipe.target_flops
        self.pruned = self._made(example)
        if recipe.target_latency_ms:
            self.target = self._share_of(recipe.target_latency_ms)
        if recipe.criterion in ("scales", "magnitude", "uniform"):
            self.pruned.alpha.requires_grad_(False)
            self.scores()  # what cannot be had is known at once
        with torch.no_grad():
            self.plan = Plan(recipe, span, float(self.pruned.penalty()), self.target)
        self.left: dict = {}  # what the cut has left, once it is done

    def _made(self, example: Tensor) -> Pruned:
        r = self.recipe
        if bool(self.target) == bool(r.target_latency_ms):
            either = "a share of the multiply-adds, as --target-flops 0.5 or target_flops=0.5, or milliseconds, as --target-latency-ms 3"
            raise InputError(f"method={r.method}: {either}: one of them is needed")
        if not r.target_latency_ms:
            return (prune if r.method == "prune" else low_rank)(self.model, example, form=r.form, start=r.mask_start)
        if r.method != "prune" or not r.latency_table:
            what = "a latency_table" if r.method == "prune" else "method=prune"
            raise InputError(f"target_latency_ms={r.target_latency_ms:g}: {what} is needed with it")
        table = latency.load(r.latency_table)
        return prune(self.model, example[:1].expand(table.batch, *example.shape[1:]), form=r.form, start=r.mask_start, table=table)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        alpha = self.pruned.alpha
        rest = [p for p in self.model.parameters() if p is not alpha]
        if self.left or not alpha.requires_grad:
            return [plain_optimizer(rest, self.recipe)]
        return [plain_optimizer(rest, self.recipe), torch.optim.Adam([alpha], _mask_rate(self.recipe, self.span), fused=True)]

    def schedule(self, step: int) -> None:
        self.plan.schedule(step)

    def look(self, step: int) -> None:
        if self.left or not self.plan.arrived(step):
            return
        measured = self._fit() if self.recipe.target_latency_ms else {}
        if not measured:
            self._cut(self.target)
        self.left = self.line() | measured
        self._shrink()

    def _cut(self, share: float) -> None:
        if self.recipe.criterion == "surrogate":
            self.pruned.keep(share, self.recipe.round_to)
        else:
            self.pruned.cut(self.scores().detach(), share, self.recipe.round_to)

    def _share_of(self, ms: float) -> float:
        """The share of predicted milliseconds with which a network takes so many by the stopwatch, as far as can be known before."""
        asked, dense = f"target_latency_ms={ms:g}", self.pruned.counts().dense_ms
        if ms >= dense:
            raise InputError(f"{asked}: {dense:.3g} ms are predicted for the whole network already")
        (least,) = self.span.agreed([self._timed(self.pruned.narrowest())])
        if least > ms:
            raise InputError(f"{asked} is out of reach: the narrowest network takes {least:.3g} ms")
        trial = copy.deepcopy(self.pruned)
        trial.cut(evenly(magnitudes(trial.model, trial.channels), trial.channels.units), ms / dense, self.recipe.round_to)
        (took,) = self.span.agreed([self._timed(trial.shrink())])
        return min(ms / dense * min(max(ms / took, 1 / DOUBT), DOUBT), 1.0)

    def _timed(self, network: nn.Module) -> float:
        """Milliseconds, by the stopwatch."""
        table = self.pruned.latency.table
        return latency.milliseconds({"": network}, self.pruned.example, table.runtime, table.threads)[""]

    def _fit(self) -> dict:
        """Cut to what the stopwatch says is asked for: where it and the table differ, aim higher or lower."""
        pruned, asked = self.pruned, self.recipe.target_latency_ms
        before, entries = pruned.alive.clone(), pruned.alpha.detach().clone()

        def cut(share: float) -> float:
            pruned.alive.copy_(before)
            pruned.alpha.data.copy_(entries)
            self._cut(share)
            return self.span.agreed([self._timed(pruned.shrink())])[0]

        share, tried = math.exp(self.plan.target), []
        for _ in range(TRIES):
            try:
                took = cut(share)
            except InputError:  # the table sees no way so far down
                if not tried:
                    raise
                break
            tried.append((abs(took / asked - 1), share))
            if tried[-1][0] < CLOSE:
                return {"measured_ms": took}
            share = min(share * asked / took, 1.0)
        return {"measured_ms": cut(min(tried)[1])}

    def _shrink(self) -> None:
        """Go on with the network that is left."""
        self.model = self.pruned.shrink().train(self.model.training)

    def scores(self) -> Tensor:
        """Of the recipe's criterion, (units,): the smallest go first."""
        by = self.recipe.criterion
        if by == "scales":
            return scales(self.pruned.model, self.pruned.channels)
        if by in ("magnitude", "uniform"):
            each = magnitudes(self.pruned.model, self.pruned.channels)
            return each if by == "magnitude" else evenly(each, self.pruned.channels.units)
        return self.pruned.alpha

    def penalty(self) -> Tensor:
        by = self.recipe.criterion
        if self.left or by in ("magnitude", "uniform"):
            return self.pruned.alpha.new_zeros(())
        if by != "surrogate":
            return self.recipe.lam_mask * self.scores().mean()
        return self.plan.penalty(self.pruned.penalty())

    def stepped(self) -> None:
        if not self.left:
            self.pruned.project()

    def line(self) -> dict:
        if self.left:
            return self.left
        c = self.pruned.counts()
        return {
            "flops_left": c.macs / c.dense_macs,
            "soft_flops_left": c.soft_macs / c.dense_macs,
            "weights_zero": 1 - c.weights / c.dense_weights,
            "slices_zero": 1 - c.slices / c.dense_slices if c.dense_slices else 0.0,
            **({"soft_ms": c.soft_ms, "predicted_ms": c.ms, "dense_ms": c.dense_ms} if self.pruned.latency else {}),
        }

    def state(self) -> dict:
        pruned = self.pruned
        plan = [self.plan.start, self.plan.target]
        return {"left": self.left, "plan": plan, "alive": pruned.alive.int().tolist(), "starts": pruned.starts.tolist()}

    def restore(self, state: dict) -> None:
        self.left, (self.plan.start, self.plan.target) = state["left"], state["plan"]
        self.pruned.starts.copy_(torch.tensor(state["starts"]))  # those of the weights as they were when masks began
        self.pruned.alive.copy_(torch.tensor(state["alive"], dtype=torch.bool))
        if self.left:
            self.pruned.project()
            self._shrink()

    def stored(self) -> tuple[Storable, nn.Module]:
        return reparameterize(copy.deepcopy(self.model), init="from_weights", levels=FINE), copy.deepcopy(self.model)


class Bits:
    """Gates of grids, whose soft bits are pulled along a plan to what is asked for, and there opened or closed for good.

    quantised  see `lilnetx_mini.nn.bits`
    """

    generator = None

    def __init__(self, model: nn.Module, example: Tensor, recipe: Recipe, span: Span) -> None:
        self.model, self.recipe, self.span = model, recipe, span
        if not recipe.target_bits:
            raise InputError("method=quantize: mean bits of a weight are needed, as --target-bits 4 or target_bits=4")
        costs = multiply_adds(model, example) if recipe.bits_of == "macs" else None
        self.quantised = quantize(model, costs=costs, form=recipe.form)
        with torch.no_grad():
            self.plan = Plan(recipe, span, float(self.quantised.penalty()), recipe.target_bits / LEVELS[-1])
        self.chosen = False

    def optimizers(self) -> list[torch.optim.Optimizer]:
        own = [self.quantised.gates, *self.quantised.ranges]
        ours = {id(p) for p in own}
        rest = [p for p in self.model.parameters() if id(p) not in ours]
        return [plain_optimizer(rest, self.recipe), torch.optim.Adam(own, _mask_rate(self.recipe, self.span), fused=True)]

    def schedule(self, step: int) -> None:
        self.plan.schedule(step)
        self.quantised.store_ranges(step >= (1 - self.recipe.stored_decoders) * self.span.steps)

    def look(self, step: int) -> None:
        if not self.chosen and self.plan.arrived(step):
            self.quantised.keep(self.recipe.target_bits)
            self.chosen = True

    def penalty(self) -> Tensor:
        return self.quantised.gates.new_zeros(()) if self.chosen else self.plan.penalty(self.quantised.penalty())

    def stepped(self) -> None:
        if not self.chosen:
            self.quantised.project()

    def line(self) -> dict:
        c = self.quantised.counts()
        return {"bits": c.bits, "soft_bits": c.soft_bits, **dict(zip(("weights_zero", "slices_zero"), self.quantised.zeros(), strict=True))}

    def state(self) -> dict:
        return {"chosen": self.chosen, "start": self.plan.start, "open": self.quantised.open.int().tolist()}

    def restore(self, state: dict) -> None:
        self.chosen, self.plan.start = state["chosen"], state["start"]
        self.quantised.open.copy_(torch.tensor(state["open"], dtype=torch.bool))
        self.quantised.gates.requires_grad_(not self.chosen)

    def stored(self) -> tuple[Storable, nn.Module]:
        return self.quantised, self.recipe.model()


class Staged:
    """Masks first; after the cut another method on what is left: latents with their rate, or bits."""

    def __init__(self, model: nn.Module, example: Tensor, recipe: Recipe, span: Span) -> None:
        self.example, self.span = example, span
        if recipe.then == "quantize" and not recipe.target_bits:
            raise InputError("then=quantize: mean bits of a weight are needed, as --target-bits 4 or target_bits=4")
        changes = {"method": recipe.then, "then": "", "target_flops": 0.0, "target_latency_ms": 0.0, "init": "from_weights"}
        self.recipe = replace(recipe, **changes, **(TRAINED if recipe.init == "random" else {}))
        self.masks, self.second, self.begin = Surrogate(model, example, recipe, span), None, 0
        self.small: nn.Module | None = None  # what the cut has left, plain

    @property
    def now(self) -> Method:
        """The one at work."""
        return self.second or self.masks

    @property
    def model(self) -> nn.Module:
        return self.now.model

    @property
    def generator(self) -> torch.Generator | None:
        return self.now.generator

    @property
    def compressor(self) -> Compressor | None:
        return getattr(self.second, "compressor", None)

    @property
    def steering(self) -> Steering | None:
        return getattr(self.second, "steering", None)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return self.now.optimizers()

    def schedule(self, step: int) -> None:
        self.now.schedule(step)

    def look(self, step: int) -> None:
        self.now.look(step)
        if not self.second and self.masks.left:
            self._go_on(step)
            self.second.schedule(step)

    def _go_on(self, step: int) -> None:
        self.begin, self.small = step, copy.deepcopy(self.masks.model)
        self.second = method(self.masks.model, self.example, self.recipe, replace(self.span, begin=step))

    def penalty(self) -> Tensor:
        return self.now.penalty()

    def stepped(self) -> None:
        self.now.stepped()

    def line(self) -> dict:
        return self.masks.line() | (self.second.line() if self.second else {})

    def state(self) -> dict:
        return {"masks": self.masks.state(), "begin": self.begin, "second": self.second.state() if self.second else None}

    def restore(self, state: dict) -> None:
        self.masks.restore(state["masks"])
        if state["second"] is not None:
            self._go_on(state["begin"])
            self.second.restore(state["second"])

    def stored(self) -> tuple[Storable, nn.Module]:
        return self.second.stored()[0], copy.deepcopy(self.small)


def _mask_rate(recipe: Recipe, span: Span) -> float:
    return recipe.mask_lr or TRAVEL / max(span.steps - span.begin, 1)


METHODS = {"lilnetx": LilNetX, "prune": Surrogate, "low_rank": Surrogate, "quantize": Bits}


def method(model: nn.Module, example: Tensor, recipe: Recipe, span: Span) -> Method:
    """The recipe's method; the network is changed in place."""
    if not recipe.then:
        return METHODS[recipe.method](model, example, recipe, span)
    if METHODS[recipe.method] is not Surrogate:
        raise InputError(f"then={recipe.then} follows a cut, and method={recipe.method} makes none: prune and low_rank do")
    return Staged(model, example, recipe, span)
