"""Trained weights from elsewhere: a checkpoint of torch into a network that may call its tensors otherwise."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ..errors import InputError

NESTS = ("state_dict", "model_state_dict", "model", "net")  # under which others put the tensors
COUNTER = "num_batches_tracked"  # of norm layers; older files lack it, and nothing here reads it


def load_weights(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Copy a checkpoint's tensors into a network, in place: by their names, or else in their order.

    path     of torch: a dict of tensors, perhaps within another one. Names may have a prefix that all share, such as ``module.``
    returns  names of the network's tensors for which the file has none: all of a norm layer of pixels in front of the network, or none
    raises   InputError for a file that is none, or that is of another network: the network is then as it was
    """
    given, own = _read(path), {k: v for k, v in model.state_dict().items() if not k.endswith(COUNTER)}
    front = [k for k in own if k.startswith("pixels.")]
    if len(given) == len(own) - len(front):
        own = {k: v for k, v in own.items() if k not in front}
    else:
        front = []
    pairs = _paired(given, own, path)
    with torch.no_grad():
        for name, there in pairs:
            own[there].copy_(given[name])
    return front


def _read(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a file, by names without what all of them begin with."""
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as e:
        raise InputError(f"{path} is no checkpoint that can be read safely: {type(e).__name__}, {str(e).splitlines()[0][:200]}") from None
    for nest in NESTS:
        if isinstance(found, dict) and isinstance(found.get(nest), dict):
            found = found[nest]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path} holds no tensors by name: a state_dict is needed, or a dict with one under {', '.join(NESTS)}")
    while len({k.split(".")[0] for k in found}) == 1 and all("." in k for k in found):
        found = {k.partition(".")[2]: v for k, v in found.items()}
    return {k: v for k, v in found.items() if not k.endswith(COUNTER)}


def _paired(given: dict[str, Tensor], own: dict[str, Tensor], path: str | os.PathLike) -> list[tuple[str, str]]:
    """Names in the file and in the network that mean the same tensor."""
    names = next((n for n in ({k: k for k in own}, {k.removeprefix("network."): k for k in own}) if set(n) == set(given)), None)
    pairs = [(k, names[k]) for k in given] if names else list(zip(given, own, strict=False))
    for name, there in pairs:
        kinds = name.rpartition(".")[2], there.rpartition(".")[2]
        if kinds[0] != kinds[1] or given[name].shape != own[there].shape:
            raise InputError(f"{path} is of another network: where this one has {there}, {_shape(own[there])}, the file has {name}, "
                             f"{_shape(given[name])}")  # fmt: skip
    if len(given) != len(own):
        raise InputError(f"{path} is of another network: {len(given)} tensors, and {len(own)} are needed")
    return pairs


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
