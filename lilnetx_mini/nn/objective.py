"""What training makes small: the task's loss, that of a teacher if there is one, and the penalties of LilNetX."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compressor import Compressor
from .recipes import Recipe


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a network's classes are from its teacher's, both softened (Hinton et al. 2015).

    outputs, teacher  logits (N, classes)
    temperature       both are divided by it; the result is multiplied by its square, so that gradients keep their scale
    """
    ours, theirs = (F.log_softmax(x / temperature, 1) for x in (outputs, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


class Objective:
    """``task + share * (lam_rate * rate + lam_group * group + lam_l2 * l2)`` of a recipe."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None = None) -> None:
        self.recipe, self.teacher = recipe, teacher
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def task(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch, before penalties."""
        r, outputs = self.recipe, network(x)
        loss = r.loss(outputs, y) if r.loss else F.cross_entropy(outputs, y, label_smoothing=r.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad():
                known = self.teacher(x)
            loss = (1 - r.distill) * loss + r.distill * distillation(outputs, known, r.temperature)
        return loss

    def penalties(self, compressor: Compressor, share: float, lam_rate: float, lam_group: float) -> Tensor:
        """The three terms with their multipliers; they do not depend on the images."""
        p = compressor.penalty()
        return share * (lam_rate * p.rate + lam_group * p.group + self.recipe.lam_l2 * p.l2)
