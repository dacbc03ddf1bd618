"""One call turns a network's weights into latents; the object it returns owns what training and saving need."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import latent as core
from .. import lnx, streams
from ..errors import InputError
from .latent import Decoded, Group
from .prior import slice_norms
from .rate import noisy_rate, rate

if TYPE_CHECKING:
    from .export import Saved

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
DECODER_BITS = 8


@dataclass(frozen=True)
class Penalty:
    """The three terms of the objective, each divided by the number of weights N and without its multiplier.

    rate   bits a weight, estimated with uniform noise (differentiable)
    group  sum of slice norms / N
    l2     sum of squared latents / N
    """

    rate: Tensor
    group: Tensor
    l2: Tensor


@dataclass(frozen=True)
class Weight:
    """One reparameterised weight tensor: name in the state dict, module and attribute, group, shape, axes, conv groups."""

    name: str
    module: nn.Module
    attribute: str
    group: Group
    shape: tuple[int, ...]
    transposed: bool
    conv_groups: int

    @property
    def latents(self) -> nn.Parameter:
        """(S, d), the trained parameter."""
        return self.module.parametrizations[self.attribute].original


def _weights_of(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Attributes of a module that hold a weight of ours, with their kernel shape."""
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        yield "weight", tuple(module.kernel_size)
    elif isinstance(module, (nn.Linear, nn.Embedding)):
        yield "weight", ()
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, ()) for name in ATTENTION if getattr(module, name, None) is not None)


def _check(name: str, weight: Tensor, module: nn.Module, attribute: str) -> None:
    if parametrize.is_parametrized(module, attribute):
        raise InputError(f"{name} is parametrised already: start from a plain network")
    if weight.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name} is {weight.dtype}: call model.float() first; half precision comes back through autocast"
        )
    if weight.numel() == 0:
        raise InputError(f"{name} has shape {tuple(weight.shape)}: an empty weight cannot be compressed")
    if not torch.isfinite(weight).all():
        raise InputError(f"{name} holds values that are not finite: load or initialise the network again")


def _default_kind(slices: int, d: int) -> str:
    return "scalar" if d == 1 else "full" if slices >= 8 * d else "diagonal"


class Compressor:
    """Owns the groups of a reparameterised network. Made by `reparameterize`."""

    def __init__(
        self,
        model: nn.Module,
        weights: list[Weight],
        tied: list[tuple[Weight, nn.Module, str]],
        order: float,
        dense_prior: bool,
    ) -> None:
        self.model, self.weights, self.tied = model, weights, tied
        self.order, self.dense_prior = order, dense_prior
        self.groups = list(dict.fromkeys(w.group for w in weights))
        self.count = sum(math.prod(w.shape) for w in weights)
        self._costs: dict[Group, Tensor] = {}  # of every slice of a group, if they differ
        self.rate_of = "noise"
        self.generator: torch.Generator | None = None  # of the rate's noise; torch's own if there is none

    def tied_names(self) -> list[tuple[str, str]]:
        """State-dict names of tied weights: (the one that is stored, the one that shares it)."""
        names = {id(m): n for n, m in self.model.named_modules()}
        return [(first.name, f"{names[id(module)]}.{attribute}".lstrip(".")) for first, module, attribute in self.tied]

    def latents(self, group: Group) -> Tensor:
        """All latents of a group, (S, d)."""
        return torch.cat([w.latents for w in self.weights if w.group is group])

    def penalty(self) -> Penalty:
        """Rate, group and l2 terms for the loss, from the latents as they are now; fresh noise at every call.

        With ``rate_of = "rounded"`` the rate is that of the rounded latents, and its gradient passes the rounding.
        """
        bits = norms = squares = 0.0
        for group in self.groups:
            z = self.latents(group)
            bits = bits + noisy_rate(z, group.density, self._offset(z.detach()))
            squares = squares + z.square().sum()
            if group.d > 1 or self.dense_prior:
                each = slice_norms(z, self.order)
                norms = norms + (each @ self._costs[group] if group in self._costs else each.sum())
        zero = squares.new_zeros(())
        return Penalty(bits / self.count, (norms + zero) / self.count, squares / self.count)

    def _offset(self, z: Tensor) -> Tensor | None:
        """What the rate adds to latents, None for fresh noise of torch's own generator."""
        if self.rate_of == "rounded":
            return torch.round(z) - z
        if self.generator is None:
            return None
        return torch.rand(z.shape, generator=self.generator, device=z.device, dtype=z.dtype) - 0.5

    def quantise_with(self, quantiser: str, sharpness: float = 1.0) -> None:
        """How the network sees latents in training from now on: "straight", "noise" or "soft", see `Group.quantised`."""
        for g in self.groups:
            g.quantiser = quantiser
            g.sharpness.fill_(sharpness)

    def weigh_slices(self, costs: dict[str, float]) -> None:
        """Let a slice count in the prior by what it costs.

        costs  for names of weights, what one of their slices costs, in any unit, such as multiply-adds: 0 for those that are
               not named. Norms are multiplied by it, divided by the mean over all of the cost: slices that most of it goes to
               count about as they did, and the many of a dense layer, cheap each, count little
        """
        prior = [w for w in self.weights if w.group.d > 1 or self.dense_prior]
        rows = [(costs.get(w.name, 0.0), math.prod(w.shape[:2])) for w in prior]
        total = sum(cost * slices for cost, slices in rows)
        mean = sum(cost * cost * slices for cost, slices in rows) / total if total else 0.0
        for group in {w.group for w in prior} if mean else ():
            members = [w for w in self.weights if w.group is group]
            parts = [group.free.new_full((math.prod(w.shape[:2]),), costs.get(w.name, 0.0) / mean) for w in members]
            self._costs[group] = torch.cat(parts)

    @torch.no_grad()
    def size(self) -> float:
        """Bits that the rounded latents would take in an ideal coder under the learned densities."""
        return float(sum(rate(self.latents(g), g.density) for g in self.groups))

    def coded_bytes(self) -> int:
        """Bytes that the rounded latents really take in the file."""
        total = 0
        for group, stored in zip(self.groups, self.stored_groups(), strict=True):
            shapes = [w.shape[:2] for w in self.weights if w.group is group]
            total += streams.encode_adaptive(stored.q, shapes, streams.last_extent(group.kernel)).size
        return total

    @torch.no_grad()
    def zeros(self) -> tuple[float, float]:
        """Fractions of weights' latents that round to zero, and of kernel slices (d > 1) that do so throughout."""
        weights = slices = count = 0
        for group in self.groups:
            q = torch.round(self.latents(group))
            weights += int((q == 0).sum())
            if group.d > 1:
                slices += int((~q.any(1)).sum())
                count += len(q)
        return weights / self.count, slices / max(count, 1)

    def parameter_groups(
        self,
        lr: float = 0.01,
        decoder_lr: float | None = None,
        density_lr: float | None = None,
        rest_lr: float | None = None,
        weight_decay: float = 0.0,
    ) -> list[dict]:
        """For the optimiser: latents, decoders, densities, and everything else, each with its own rate (default `lr`).

        Latents, decoders and densities get no weight decay: the penalties are theirs.
        """
        latents = [w.latents for w in self.weights]
        decoders = [g.free for g in self.groups]
        densities = [p for g in self.groups for p in g.density.parameters()]
        ours = {id(p) for p in (*latents, *decoders, *densities)}
        rest = [p for p in self.model.parameters() if id(p) not in ours and p.requires_grad]
        rows = [
            ("latents", latents, lr, 0.0),
            ("decoders", decoders, lr if decoder_lr is None else decoder_lr, 0.0),
            ("densities", densities, lr if density_lr is None else density_lr, 0.0),
            ("rest", rest, lr if rest_lr is None else rest_lr, weight_decay),
        ]
        return [{"name": n, "params": p, "lr": r, "weight_decay": d} for n, p, r, d in rows if p]

    def sgd_groups(self, lr: float, rest_lr: float | None = None, weight_decay: float = 0.0) -> list[dict]:
        """For SGD: latents and everything else but decoders and densities, which are `adam_groups`.

        A step of lr along the gradient of w = z psi is one of lr / psi**2 along that of z. So each group's latents have their
        rate divided by the mean square of its decoder, and weight decay multiplied by it: where decoders are scalars, as after
        ``init="from_weights"``, or "dct" ones that start there, a scalar times the orthonormal cosine basis, the decoded weights
        take the very steps that the plain network's would, and the multipliers of the penalties are prices in units of the task's
        loss, however long the training.
        """
        rows = []
        for g in self.groups:
            square = float(g.psi.detach().square().sum() / g.d)
            members = [w.latents for w in self.weights if w.group is g]
            rows.append({"name": "latents", "params": members, "lr": lr / square, "weight_decay": weight_decay * square})
        ours = {id(p) for g in self.groups for p in g.parameters()} | {id(w.latents) for w in self.weights}
        rest = [p for p in self.model.parameters() if id(p) not in ours and p.requires_grad]
        rows.append({"name": "rest", "params": rest, "lr": lr if rest_lr is None else rest_lr, "weight_decay": 0.0})
        return [r for r in rows if r["params"]]

    def adam_groups(self, density_lr: float, decoder_lr: float = 0.0) -> list[dict]:
        """What goes with `sgd_groups`: densities, and decoders unless their rate is 0."""
        densities = [p for g in self.groups for p in g.density.parameters()]
        rows = [{"name": "densities", "params": densities, "lr": density_lr}]
        if decoder_lr:
            rows.append({"name": "decoders", "params": [g.free for g in self.groups], "lr": decoder_lr})
        return rows

    def store_decoders(self, on: bool = True) -> None:
        """From now on compute with decoders as the file will hold them (8 bits): for the last epochs of training."""
        for g in self.groups:
            g.stored_bits = DECODER_BITS if on else None

    def stored_layers(self) -> list[lnx.Layer]:
        """Every weight as it is listed in the file, in the order of its latents there."""
        order = [w for g in self.groups for w in self.weights if w.group is g]
        return [lnx.Layer(w.name, w.shape, self.groups.index(w.group), w.transposed, w.conv_groups) for w in order]

    def stored_groups(self) -> list[lnx.Group]:
        """Every group as it would go into the file now; InputError names a latent that is not finite."""
        out = []
        for g in self.groups:
            parts = []
            for w in self.weights:
                if w.group is g:
                    try:
                        parts.append(core.round_latents(w.latents.detach().cpu().numpy()))
                    except InputError as e:
                        raise InputError(f"{w.name}: {e}") from None
            out.append(lnx.Group(g.stored(DECODER_BITS), np.concatenate(parts)))
        return out

    def save(self, path: str | os.PathLike, example_input: Tensor | None = None, side_bits: int = 8) -> Saved:
        """Write the file, checked before it gets its name; see `lilnetx_mini.nn.export.save`.

        side_bits  bits for norm layers and biases, 2 to 16
        """
        from .export import save

        return save(self, path, example_input, side_bits)


Found = tuple[str, nn.Module, str, tuple[int, ...], Tensor]


def find(model: nn.Module, leave: Iterable[str] = ()) -> tuple[list[Found], list[tuple[int, nn.Module, str]]]:
    """A network's weights that can become integers, each with its name, module, attribute, kernel and values; then those that share them.

    leave    names of modules or weights to leave alone, or shell patterns; frozen weights are left alone too
    returns  for every tied weight the number of the one it shares, its module and attribute
    raises   InputError if there are none, or one is parametrised, of half precision, empty or not finite
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is not a torch module")
    leave = [leave] if isinstance(leave, str) else list(leave)
    names = [n for n, m in model.named_modules() for n in (n, *(f"{n}.{a}".lstrip(".") for a, _ in _weights_of(m)))]
    for pattern in leave:
        if not any(fnmatch(n, pattern) for n in names):
            raise InputError(
                f"leave: no module is called {pattern!r}; there are {', '.join(n for n in names if n)[:200]} ..."
            )
    found, tied, owner = [], [], {}
    for module_name, module in model.named_modules():
        for attribute, kernel in _weights_of(module):
            name = f"{module_name}.{attribute}" if module_name else attribute
            if any(fnmatch(module_name, p) or fnmatch(name, p) for p in leave):
                continue
            weight = getattr(module, attribute)
            if not parametrize.is_parametrized(module, attribute) and not weight.requires_grad:
                continue  # frozen: it stays as it is
            _check(name, weight, module, attribute)
            if id(weight) in owner:
                tied.append((owner[id(weight)], module, attribute))
                continue
            owner[id(weight)] = len(found)
            found.append((name, module, attribute, kernel, weight))
    if not found:
        kinds = "convolution, dense layer, embedding or attention projection"
        raise InputError(
            f"{type(model).__name__} has no {kinds} to reparameterise"
            + (f" besides those left alone ({', '.join(leave)})" if leave else "")
        )
    return found, tied


def reparameterize(
    model: nn.Module,
    *,
    leave: Iterable[str] = (),
    shared_decoders: bool = True,
    decoder: str | dict | None = None,
    order: float = 2.0,
    dense_prior: bool = False,
    init: str = "random",
    levels: float = 6.0,
) -> Compressor:
    """Turn the weights of a network's convolutions, dense layers, embeddings and attention projections into latents.

    model            any module; changed in place through torch's parametrisations, so ``layer.weight`` still works
    leave            names of modules to leave alone; shell patterns such as ``"layer1.*"`` are understood. Frozen weights
                     (``requires_grad`` off) are left alone too
    shared_decoders  one decoder and density for every kernel shape (default), or for every layer
    decoder          "full", "diagonal", "scalar" or "dct"; a dict maps kernel shapes such as (3, 3) to one of them.
                     Default: scalar for dense and 1x1 weights; else full where a group has at least 8 d slices, diagonal below
    order            norm of the slice prior: 1, 2 or inf
    dense_prior      also charge dense and 1x1 latents, with their absolute value
    init             "random" starts anew at the usual variance; "from_weights" keeps what a trained network knows
    levels           for "from_weights": about this many quantisation steps in a standard deviation of a group's weights. 6 loses
                     next to nothing at the start; 1 or 2 start with many zeros and need training to recover
    raises           InputError if nothing can be reparameterised, or a weight is of half precision, empty or not finite
    """
    if init not in ("random", "from_weights"):
        raise InputError(f"init={init!r}: 'random' and 'from_weights' are the choices")
    if not 0 < levels < math.inf:
        raise InputError(f"levels={levels}: a positive number expected")
    found, tied = find(model, leave)
    kernels = {kernel for _, _, _, kernel, _ in found}
    if isinstance(decoder, dict) and set(decoder) - kernels:
        raise InputError(
            f"decoder: no weight has kernel {next(iter(set(decoder) - kernels))!r}; there are {sorted(kernels)}"
        )
    keys = [kernel if shared_decoders else name for name, _, _, kernel, _ in found]
    groups = {
        key: _make_group([f for f, k in zip(found, keys, strict=True) if k == key], decoder, init, levels)
        for key in dict.fromkeys(keys)
    }
    weights = [_attach(*f, groups[key], init) for f, key in zip(found, keys, strict=True)]
    for index, module, attribute in tied:
        first = weights[index]
        parametrize.register_parametrization(
            module, attribute, Decoded(first.group, torch.Size(first.shape)), unsafe=True
        )
        module.parametrizations[attribute].original = first.latents
    return Compressor(model, weights, [(weights[i], m, a) for i, m, a in tied], order, dense_prior)


def _make_group(members: list[tuple], decoder: str | dict | None, init: str, levels: float) -> Group:
    kernel = members[0][3]
    slices = sum(w.shape[0] * w.shape[1] for *_, w in members)
    kind = decoder.get(kernel) if isinstance(decoder, dict) else decoder
    kind = kind or _default_kind(slices, math.prod(kernel))
    if kind not in core.DECODER_KINDS:
        raise InputError(f"decoder kind {kind!r}: {', '.join(core.DECODER_KINDS)} are the choices")
    kind = "scalar" if math.prod(kernel) == 1 else kind
    group = Group(kernel, kind, max(_channels(m, w) for _, m, _, _, w in members)).to(members[0][4].device)
    if init == "from_weights":
        everything = torch.cat([w.detach().flatten() for *_, w in members])
        deviation = float(everything.square().mean().sqrt()) or 1.0
        step = 2.0 ** round(math.log2(deviation / levels))  # a power of two: the stored decoder is exactly this one
        with torch.no_grad():
            group.free.copy_(step * torch.eye(group.d) if kind == "full" else torch.full_like(group.free, step))
    return group.to(members[0][4].dtype)


def _channels(module: nn.Module, weight: Tensor) -> int:
    return weight.shape[1] * module.groups if isinstance(module, TRANSPOSED) else weight.shape[0]


def _attach(
    name: str, module: nn.Module, attribute: str, kernel: tuple[int, ...], weight: Tensor, group: Group, init: str
) -> Weight:
    shape = tuple(weight.shape)
    decoded = Decoded(group, weight.shape)
    z = decoded.latents_for(weight) if init == "from_weights" else group.start(shape).to(weight)
    parametrize.register_parametrization(module, attribute, decoded, unsafe=True)
    module.parametrizations[attribute].original = nn.Parameter(z.to(weight).contiguous())
    return Weight(name, module, attribute, group, shape, isinstance(module, TRANSPOSED), getattr(module, "groups", 1))
