"""A moving average of a network's weights, for evaluation and for the file (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Of all parameters, latents among them, and of all buffers of floating point.

    decay  share of the average that stays at every step; less in the first steps, so that the start is soon forgotten
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.live = [t.data for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        self.mean = [t.clone() for t in self.live]
        self.decay, self.count = decay, 0

    def update(self) -> None:
        """Call after every step."""
        self.count += 1
        torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, (1 + self.count) / (10 + self.count)))

    def swap(self) -> None:
        """The network gets the averages, and the averages what the network had."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The network has the averages for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> dict[str, list[Tensor] | int]:
        """For a checkpoint."""
        return {"mean": self.mean, "count": self.count}

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""
        self.count = state["count"]
        for mean, kept in zip(self.mean, state["mean"], strict=True):
            mean.copy_(kept)
