"""Does a network fit its recipe, and is it still the one of the checkpoint? Found out before training, with two images."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError

if TYPE_CHECKING:
    from .recipes import Recipe

FOREIGN = (Path(torch.__file__).parent, Path(__file__).parents[1])  # code that is not the user's
VALUES = 64  # outputs that are remembered


def blame(e: Exception) -> str:
    """An error of the user's code in one line: its kind, its first line, and where it came from."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not any(Path(f.filename).is_relative_to(p) for p in FOREIGN)]
    if isinstance(e, SyntaxError):
        return f"{type(e).__name__}: {e}"
    first = str(e).strip().split("\n")[0]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames and Path(frames[-1].filename).exists() else ""
    return f"{type(e).__name__}: {first}{place}"


def check(model: nn.Module, example: Tensor, recipe: Recipe, classes: int) -> None:
    """InputError if a network has nothing to train, does not take the images, or gives too few outputs for the classes."""
    name = recipe.own_model or f"the network of {recipe.name}"
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{name} has no parameters to train")
    try:
        made = outputs(model, example)
    except Exception as e:  # whatever the user's forward raises
        raise InputError(f"{name} does not take a batch of shape {tuple(example.shape)}: {blame(e)}") from None
    if recipe.loss is None and (not isinstance(made, Tensor) or made.ndim < 2 or made.shape[1] < classes):
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InputError(
            f"{name} makes {shape} of two images, and {recipe.name} needs (2, {classes}): an output for each of {classes} classes"
        )


@torch.no_grad()
def outputs(model: nn.Module, example: Tensor) -> Any:
    """What a network makes of a batch in eval mode; the mode it had comes back."""
    was_training = model.training
    model.eval()
    made = model(example.to(next(model.parameters()).device))
    model.train(was_training)
    return made


def fingerprint(made: Any) -> list[float]:
    """Some outputs, to be compared by `same`; [] if they are no tensor."""
    return made.double().flatten()[:VALUES].tolist() if isinstance(made, Tensor) else []


def same(a: list[float], b: list[float]) -> bool:
    """Were these made by the same code with the same weights, perhaps on another machine?"""
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-2, atol=1e-2 * np.abs(b).max(initial=0.0), equal_nan=True)
