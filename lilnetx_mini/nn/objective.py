"""What training makes small besides the penalties: the task's loss, and that of a teacher if there is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipes import Recipe


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a network's classes are from its teacher's, both softened (Hinton et al. 2015).

    outputs, teacher  logits (N, classes)
    temperature       both are divided by it; the result is multiplied by its square, so that gradients keep their scale
    """
    ours, theirs = (F.log_softmax(x / temperature, 1) for x in (outputs, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


class Objective:
    """The loss of a recipe, to which a method adds its penalty."""

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
