"""Writing a trained network to a file, and loading a file back into a torch module."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import lnx
from ..errors import ExportError, InputError, UnsupportedOpError
from ..graph import Graph, infer_shapes
from ..latent import quantise
from ..runtime import Network
from ..simplify import LAYERS, quieted
from .trace import trace

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-4  # relative to the largest output
PROBES = 3  # random batches on which runtime and module are compared
COARSE = 0.05  # of the largest output: a file that is further from the trained network comes with a warning


class Storable(Protocol):
    """A network whose weights are made of integers: by `reparameterize`, or by `quantize`."""

    model: nn.Module

    def tied_names(self) -> list[tuple[str, str]]:
        """State-dict names of tied weights: (the one that is stored, the one that shares it)."""

    def stored_layers(self) -> list[lnx.Layer]:
        """Every weight as it is listed in the file, in the order of its latents there."""

    def stored_groups(self) -> list[lnx.Group]:
        """The integers and their decoders."""


@dataclass(frozen=True)
class Saved:
    """What `save` wrote.

    note        why there is no graph, "" if there is one
    difference  the largest seen between the runtime and a module with the file's weights, relative to the largest output; NaN without
                a graph
    rounding    the same between that module and the trained network, on the example: what 8-bit norm layers, biases and decoders
                cost. NaN without a graph
    """

    path: str
    file_bytes: int
    note: str
    difference: float
    rounding: float = math.nan


def _foldable(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and module.running_mean is not None


@dataclass(frozen=True)
class _Tensor:
    """A tensor besides the latents, before it is quantised (bits) or stored as it is (None)."""

    name: str
    role: str
    values: np.ndarray
    bits: int | None


def _side(t: _Tensor) -> lnx.Side:
    """Quantised to t.bits, or to as many more as keep the typical value apart from a few huge ones."""
    typical = float(np.median(np.abs(t.values[t.values != 0]))) if t.values.any() else 0.0
    for bits in range(t.bits, 17):
        try:
            ints, exponent = quantise(t.values, bits)
        except InputError as e:
            raise InputError(f"{t.name}: {e}") from None
        if typical == 0 or 2.0**exponent <= typical / 16:
            break
    return lnx.Side(t.name, t.role, ints, exponent)


def fold_norm(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift to which a norm layer with running statistics comes down in eval mode, float64."""
    mean, var = (x.detach().double().cpu().numpy() for x in (module.running_mean, module.running_var))
    scale = 1 / np.sqrt(var + module.eps)
    if not module.affine:
        return scale, -mean * scale
    weight, bias = (x.detach().double().cpu().numpy() for x in (module.weight, module.bias))
    return weight * scale, bias - mean * weight * scale


def strip(module: nn.Module) -> None:
    """Replace a module's parametrised attributes by ordinary parameters.

    torch's own remove_parametrizations edits the module's class, which a deep copy shares with its original.
    """
    values = {name: getattr(module, name).detach() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def plain_copy(compressor: Storable) -> nn.Module:
    """An eval-mode copy of the network with ordinary weights, tied ones still tied."""
    model = copy.deepcopy(compressor.model).eval()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            strip(module)
    modules = dict(model.named_modules())
    for first, name in compressor.tied_names():
        owner, _, attribute = name.rpartition(".")
        source, _, source_attribute = first.rpartition(".")
        setattr(modules[owner], attribute, getattr(modules[source], source_attribute))
    return model


def _other_tensors(model: nn.Module, coded: set[str], bits: int) -> list[_Tensor]:
    """Everything besides the latents: folded norm layers and vectors, to be quantised; then other tensors as they are."""
    sides, raws, seen, folded = [], [], set(), set()
    for name, module in model.named_modules():
        if _foldable(module):
            sides += [
                _Tensor(name, role, x, bits) for role, x in zip(("scale", "shift"), fold_norm(module), strict=True)
            ]
            folded |= {
                f"{name}.{x}".lstrip(".")
                for x in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            }
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in coded or name in folded or id(tensor) in seen or name.endswith("num_batches_tracked"):
            continue
        seen.add(id(tensor))
        if tensor.numel() == 0:
            continue
        values = tensor.detach().cpu().numpy()
        if isinstance(tensor, nn.Parameter) and tensor.ndim == 1 and tensor.is_floating_point():
            sides.append(_Tensor(name, "parameter", values, bits))
        else:
            raws.append(_Tensor(name, "raw", values.astype(np.float32), None))
    return sides + raws


def _settle_norms(others: list[_Tensor], graph: Graph, weights: list[np.ndarray]) -> list[_Tensor]:
    """The same function, better to quantise: norm layers that read a convolution or a dense layer, and nobody else reads it.

    Its bias moves into the norm layer's shift: quantised on its own, it would be wrong by its error times the scale. Scales of channels
    that are always zero then have no effect, and get the cheapest value, the median of the others. Trained without signal, such
    a channel's variance is near zero and its scale huge: it would ruin the common step.
    """
    others, count = list(others), len(weights)
    shapes = infer_shapes(graph, [x.shape for x in (*weights, *(t.values for t in others))])
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    users = Counter(i for node in graph.nodes if node.op in (*LAYERS, "scale_shift") for i in node.attrs[:2])
    for node in graph.nodes:
        n = node.inputs[0] if node.op == "scale_shift" else 0
        if not n or graph.nodes[n - 1].op not in ("conv", "linear") or readers[n] > 1:
            continue
        source, weight, bias = graph.nodes[n - 1], *graph.nodes[n - 1].attrs[:2]
        if weight > count or max(users[i] for i in (bias, *node.attrs) if i) > 1 or (source.op == "linear" and len(shapes[n]) > 1):
            continue
        scale, shift = (i - count - 1 for i in node.attrs)
        if bias:
            added = others[bias - count - 1]
            moved = others[shift].values + others[scale].values * np.float64(added.values)
            others[shift] = replace(others[shift], values=moved)
            others[bias - count - 1] = replace(added, values=np.zeros_like(added.values))
        alive = weights[weight - 1].reshape(len(others[scale].values), -1).any(1)
        values = others[scale].values
        others[scale] = replace(others[scale], values=np.where(alive, values, np.median(values[alive]) if alive.any() else 1.0))
    return others


def _without_effectless(model: lnx.Model, others: list[_Tensor], graph: Graph) -> tuple[lnx.Model, list[_Tensor]]:
    """The same function, where slices and biases that have no effect are zero: filters that nobody reads, constants' readers."""
    old = [*model.tensors(), *(np.float32(t.values) for t in others)]
    new, count = quieted(graph, old), len(model.layers)
    rows = []
    for q, before, after in zip(model.latents(), old, new, strict=False):
        gone, was = (~w.reshape(q.shape).any(1) for w in (after, before))
        rows.append(np.where((gone & ~was)[:, None], 0, q))
    groups = [
        replace(g, q=np.concatenate([q for q, layer in zip(rows, model.layers, strict=True) if layer.group == n]))
        for n, g in enumerate(model.groups)
    ]
    others = [
        replace(t, values=np.where(before == after, t.values, after))
        for t, before, after in zip(others, old[count:], new[count:], strict=True)
    ]
    return replace(model, groups=groups), others


def _example(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(
            f"example_input is a {type(x).__name__}: one tensor is needed, a batch as the network takes it"
        )
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"example_input has shape {tuple(x.shape)}: a batch of at least one is needed")
    x = x.detach().cpu()
    return x.float() if x.is_floating_point() else x


@torch.no_grad()
def _try(model: nn.Module, example: Tensor) -> None:
    try:
        model(example)
    except Exception as e:  # whatever the user's forward raises
        first = str(e).strip().split("\n")[0]
        message = (
            f"the network does not take the example_input of shape {tuple(example.shape)}: {type(e).__name__}: {first}"
        )
        raise ExportError(message + "; nothing was written") from None


def capture(module: nn.Module, example_input: Tensor) -> lnx.Model:
    """A network as it is, uncompressed, as a file's model: for the runtime, for ONNX, for `lnx.write`.

    module         in eval mode or not: it is captured in eval mode, and left as it was
    example_input  one batch as the network takes it
    raises         ExportError if the network does not take the example, UnsupportedOpError for an operation without counterpart

    net = runtime.Network(nn.capture(model, x))
    """
    if any(parametrize.is_parametrized(m) for m in module.modules()):
        raise InputError("the module is parametrised: save its compressor, or capture the network that nn.load_into returns")
    plain = copy.deepcopy(module).cpu().float().eval()
    example = _example(example_input)
    _try(plain, example)
    others = _other_tensors(plain, set(), 8)
    raws = [lnx.Raw(f"{t.name}.{t.role}" if t.role in ("scale", "shift") else t.name, np.float32(t.values)) for t in others]
    numbers = {raw.name: i + 1 for i, raw in enumerate(raws)}
    tensors = {id(t): name for name, t in plain.state_dict(keep_vars=True).items() if name in numbers}
    for name, t in plain.named_parameters(remove_duplicate=False):
        if name not in numbers and id(t) in tensors:
            numbers[name] = numbers[tensors[id(t)]]
    return lnx.Model([], [], raws=raws, graph=trace(plain, example, numbers))


def to_model(
    compressor: Storable, example_input: Tensor | None, side_bits: int = 8, graph: Graph | None = None
) -> tuple[lnx.Model, nn.Module]:
    """The network as the file's model, and a plain eval-mode copy of the module.

    graph  of an earlier call, to save the time of tracing the same network again
    """
    plain = plain_copy(compressor).cpu().float()
    layers = compressor.stored_layers()
    shared = {name for _, name in compressor.tied_names()}
    others = _other_tensors(plain, {x.name for x in layers} | shared, side_bits)
    latents = lnx.Model(compressor.stored_groups(), layers)
    note = "" if graph else "no example input was given when the file was written"
    if example_input is not None and graph is None:
        names = [x.name for x in layers] + [
            f"{t.name}.{t.role}" if t.role in ("scale", "shift") else t.name for t in others
        ]
        example = _example(example_input)
        _try(plain, example)
        numbers = {name: i + 1 for i, name in enumerate(names)}
        numbers |= {name: numbers[first] for first, name in compressor.tied_names()}
        try:
            graph, note = trace(plain, example, numbers), ""
        except UnsupportedOpError as e:
            note = str(e)
    if graph is not None:
        latents, others = _without_effectless(latents, others, graph)
        others = _settle_norms(others, graph, latents.tensors())
    sides = [_side(t) for t in others if t.bits]
    raws = [lnx.Raw(t.name, t.values) for t in others if not t.bits]
    return replace(latents, sides=sides, raws=raws, graph=graph, note=note), plain


def save(
    compressor: Storable, path: str | os.PathLike, example_input: Tensor | None = None, side_bits: int = 8
) -> Saved:
    """Write a compressed network to one file.

    example_input  one batch as the network takes it; without it, or if an operation has no counterpart in the runtime,
                   the file holds the weights but no graph, and its note says why
    side_bits      bits for norm layers and biases, 2 to 16; some get more by themselves, where a few huge values would drown the others
    raises         ExportError if the file, read back, does not compute what the module computes; the old file then stays
    """
    if side_bits not in range(2, 17):
        raise InputError(f"side_bits={side_bits}: 2 to 16 are possible")
    model, plain = to_model(compressor, example_input, side_bits)
    data = lnx.encode(model)
    decoded = lnx.decode(data)
    module = put(decoded, copy.deepcopy(plain))
    difference = rounding = math.nan
    if decoded.graph is not None:
        difference = _compare(Network(decoded), module, _example(example_input))
        rounding = _difference(module, plain, _example(example_input))
        if rounding > COARSE:
            more = "" if side_bits == 16 else f"side_bits={min(side_bits + 4, 16)} stores norm layers and biases more finely, and "
            what = f"{path} gives outputs that are {rounding:.0%} of the largest off the trained network's: {more}"
            warnings.warn(f"{what}compressor.store_decoders() lets the last epochs train with decoders as stored", stacklevel=2)
    elif example_input is not None:
        warnings.warn(f"{path} is stored without a graph: {decoded.note}; load_into works", stacklevel=2)
    lnx.write_atomic(path, data)
    return Saved(str(path), len(data), decoded.note, difference, rounding)


@torch.no_grad()
def _compare(network: Network, module: nn.Module, example: Tensor) -> float:
    """Largest relative difference between runtime and module over the example and random inputs; ExportError if too large."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for probe in [example, *(torch.randn(example.shape, generator=generator) for _ in range(PROBES))]:
        want = module(probe).numpy()
        have = network(probe.numpy())
        if have.shape != want.shape:
            raise ExportError(f"the runtime's output has shape {have.shape}, the module's {want.shape}")
        worst = max(worst, float(np.abs(have - want).max() / max(1.0, np.abs(want).max())))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"runtime and module differ by {worst:.2g} of the largest output, more than {TOLERANCE}; nothing was written"
        )
    return worst


@torch.no_grad()
def _difference(a: nn.Module, b: nn.Module, example: Tensor) -> float:
    """Largest difference of two networks' outputs, relative to b's largest."""
    have, want = a(example), b(example)
    return float((have - want).abs().max() / want.abs().max().clamp(min=1e-30))


def put(file: lnx.Model, model: nn.Module) -> nn.Module:
    """Put a decoded file's weights into a plain module of the same architecture; see `load_into`."""
    modules, state = dict(model.named_modules()), model.state_dict(keep_vars=True)
    for name, module in modules.items():
        if parametrize.is_parametrized(module):
            raise InputError(
                f"{name or 'the module'} is parametrised: load_into takes the plain network, before reparameterize"
            )
    tensors = dict(zip(file.tensor_names(), file.tensors(), strict=True))
    filled = set()
    with torch.no_grad():
        for side in file.sides:
            if side.role == "scale":
                _put_norm(
                    side.name, modules, tensors.pop(f"{side.name}.scale"), tensors.pop(f"{side.name}.shift", None)
                )
                filled |= {id(x) for x in modules[side.name].state_dict(keep_vars=True).values()}
        for name, values in tensors.items():
            target = state.get(name)
            if target is None or tuple(target.shape) != values.shape:
                there = "missing there" if target is None else f"of shape {tuple(target.shape)}"
                raise InputError(
                    f"the file's {name} has shape {values.shape}, but the module's is {there}: is it the same architecture?"
                )
            target.copy_(torch.from_numpy(values))
            filled.add(id(target))
    missing = [
        n for n, t in state.items() if id(t) not in filled and t.numel() and not n.endswith("num_batches_tracked")
    ]
    if missing:
        raise InputError(f"the file has nothing for {', '.join(missing[:5])}: is it the same architecture?")
    return model


def _put_norm(name: str, modules: dict[str, nn.Module], scale: np.ndarray, shift: np.ndarray | None) -> None:
    module = modules.get(name)
    if module is None or shift is None or not _foldable(module) or tuple(module.running_mean.shape) != scale.shape:
        raise InputError(
            f"the file has a norm layer {name} of {scale.size} channels, the module has none such: is it the same architecture?"
        )
    scale, shift = torch.from_numpy(scale), torch.from_numpy(shift)
    if module.affine:
        module.weight.copy_(scale)
        module.bias.copy_(shift)
        module.running_mean.zero_()
        module.running_var.fill_(1 - module.eps)
    elif (scale > 0).all():
        module.running_mean.copy_(-shift / scale)
        module.running_var.copy_(scale.double() ** -2 - module.eps)
    else:
        raise InputError(f"the file's norm layer {name} has scales of 0 or below, and the module's has no weights to hold them")


def load_into(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Put a file's weights into a plain module of the same architecture, in place; returns it.

    Folded norm layers come back as running_mean 0, running_var 1 - eps, weight = scale, bias = shift; those without weights as
    the mean and variance that have the same effect. A bias before such a layer comes back as 0: it is in the shift.
    raises  LnxError for a damaged file, InputError if names or shapes do not match
    """
    return put(lnx.read(path), model)
