"""Recipes: everything that defines a training run, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .. import data
from ..errors import InputError
from . import models


@dataclass(frozen=True)
class Recipe:
    """One training run.

    epochs, batch      passes over the training images, images a step
    lr                 peak rate of Adam, for latents, decoders and the rest; falls to zero along a cosine
    plain_lr           the same for the plain network: each side of a comparison trains at its own best
    density_lr         the same for the densities
    decoder_lr         the same for decoders, and
    rest_lr            for everything that is not compressed; 0 for both: as the latents
    lam_rate, ...      multipliers of the three penalties, reached linearly over the first `ramp` of the steps
    shift              images move by up to this many pixels
    flip               1: half of the images are mirrored left to right
    init               how latents start: "random", or "from_weights" for a model that is trained already
    levels             for "from_weights": quantisation steps in a standard deviation of the weights
    channels_last      1: compute with channels last in memory; a quarter faster for wide images on a CPU
    label_smoothing    share of the target spread over all classes
    stored_decoders    share of the steps, at the end, that compute with 8-bit decoders as in the file
    threads            of the processor, for one run; the numbers depend on it, so it belongs to the recipe
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], data.Splits]
    epochs: int
    batch: int
    lr: float = 0.01
    plain_lr: float = 0.01
    density_lr: float = 0.01
    decoder_lr: float = 0.0
    rest_lr: float = 0.0
    lam_rate: float = 1.0
    lam_group: float = 1.0
    lam_l2: float = 0.0
    ramp: float = 0.3
    shift: int = 0
    flip: int = 0
    init: str = "random"
    levels: float = 6.0
    channels_last: int = 0
    label_smoothing: float = 0.0
    stored_decoders: float = 0.2
    threads: int = 1


RECIPES = {
    "digits": Recipe(
        "digits", models.digits_resnet, data.digits, epochs=60, batch=128, lr=0.03, lam_rate=1.7, lam_group=1.7, shift=1
    ),
}


def get(name: str, changes: dict[str, str] | None = None) -> Recipe:
    """A recipe by name, with some of its numbers changed; InputError lists what there is."""
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}: there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    types = {f.name: type(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    types = {k: t for k, t in types.items() if t in (int, float)}
    values = {}
    for key, text in (changes or {}).items():
        if key not in types:
            raise InputError(f"the recipe has no number {key!r} to set: there are {', '.join(types)}")
        try:
            values[key] = types[key](text)
        except ValueError:
            raise InputError(f"{key}={text!r}: {types[key].__name__} expected") from None
        if not 0 <= values[key] < float("inf") or (
            types[key] is int and key not in ("shift", "flip", "channels_last") and values[key] < 1
        ):
            raise InputError(f"{key}={text}: out of range")
    return dataclasses.replace(recipe, **values)
