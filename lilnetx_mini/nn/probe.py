"""Does a network fit its recipe, and is it still the same one? Found out before training, with two images."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

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


@torch.no_grad()
def probe(model: nn.Module, example: Tensor, recipe: Recipe, classes: int) -> list[float]:
    """Some outputs of a network before it is trained, by which `same_probe` knows it; [] if it gives no tensor.

    raises  InputError if it has nothing to train, does not take the images, or gives too few outputs for the classes
    """
    name, parameters = recipe.own_model or f"the network of {recipe.name}", [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{name} has no parameters to train")
    was_training = model.training
    model.eval()
    try:
        outputs = model(example.to(parameters[0].device))
    except Exception as e:  # whatever the user's forward raises
        raise InputError(f"{name} does not take a batch of shape {tuple(example.shape)}: {blame(e)}") from None
    model.train(was_training)
    if recipe.loss is None:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] < classes:
            raise InputError(
                f"{name} makes {shape} of two images, and {recipe.name} needs (2, {classes}): an output for each of {classes} classes"
            )
    return outputs.double().flatten()[:VALUES].tolist() if isinstance(outputs, Tensor) else []


def same_probe(a: list[float], b: list[float]) -> bool:
    """Outputs of the same code with the same seed, perhaps on another machine."""
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-2, atol=1e-3 * (1 + np.abs(b).max(initial=0.0)), equal_nan=True)
