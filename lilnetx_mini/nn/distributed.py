"""Several processes that train one network, as ``torchrun`` starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run: which one this is, and how many there are."""

    rank: int = 0
    size: int = 1

    def add(self, numbers: Iterable[float], device: torch.device) -> list[float]:
        """Sums over all processes."""
        t = torch.tensor(list(numbers), dtype=torch.float64)
        if self.size > 1:
            t = t.to(device)
            dist.all_reduce(t)
        return t.tolist()

    def from_first(self, numbers: Iterable[float], device: torch.device) -> list[float]:
        """What the first process has, for all."""
        t = torch.tensor(list(numbers), dtype=torch.float64)
        if self.size > 1:
            t = t.to(device)
            dist.broadcast(t, 0)
        return t.tolist()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Every process gets the first one's values, in place."""
        for t in tensors if self.size > 1 else ():
            dist.broadcast(t, 0)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def join(device: torch.device) -> World:
    """The world that ``torchrun`` describes in the environment, joined if that has not happened yet; one of one process without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())
