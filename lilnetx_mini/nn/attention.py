"""Self-attention from which whole heads can go: which layers it has, which of their channels belong to a head, and how it is cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, MissingExtraError
from .factored import Factored

# Names of the layers for queries, keys and values, and of the one that mixes heads: here, and in transformers' BERT and DistilBERT.
LAYOUTS = (
    ("query", "key", "value", "out"),
    ("self.query", "self.key", "self.value", "output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
)
SIZES = ("head_size", "attention_head_size")  # channels of a head, as the module that reshapes them knows it
COUNTS, WIDTHS = ("num_attention_heads", "n_heads"), ("all_head_size", "dim")  # what others remember besides


class SelfAttention(nn.Module):
    """Every position asks all positions (Vaswani et al. 2017), `heads` times in parallel: (N, T, width) to the same shape.

    The layers' widths, and not a number of heads, say how many heads there are.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"{heads} heads cannot share {width} channels evenly")
        self.head_size, self.dropout = width // heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: broadcast to (N, heads, T, T), False where a position is not to be looked at."""
        count, length, _ = x.shape
        q, k, v = (f(x).view(count, length, -1, self.head_size).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(seen.transpose(1, 2).reshape(count, length, -1))


@dataclass(frozen=True)
class Heads:
    """One self-attention of a network.

    inside  the layers that make queries, keys and values; out: the one that reads what heads have found
    size    channels of a head: those of head h are number h * size on, in all of them
    """

    module: nn.Module
    inside: tuple[nn.Linear, nn.Linear, nn.Linear]
    out: nn.Linear
    size: int

    @property
    def count(self) -> int:
        """Heads that there are."""
        return len(self.inside[0].weight) // self.size

    def of(self, heads: Iterable[int]) -> list[int]:
        """Channels of some heads."""
        return [h * self.size + n for h in heads for n in range(self.size)]

    def unread(self) -> list[int]:
        """Heads whose columns of the last layer are all zero."""
        return np.flatnonzero(~self.out.weight.detach().any(0).view(self.count, self.size).any(1).cpu().numpy()).tolist()

    def cut(self, heads: Iterable[int]) -> None:
        """Remove heads, in place."""
        try:
            import torch_pruning as tp
        except ImportError as e:
            raise MissingExtraError("torch_pruning", "shrink") from e
        gone = self.of(heads)
        for layer in self.inside:
            tp.prune_linear_out_channels(layer, gone)
        tp.prune_linear_in_channels(self.out, gone)
        for owner in (self.module, getattr(self.module, "self", None)):
            for name, value in (*((n, self.count) for n in COUNTS), *((n, self.count * self.size) for n in WIDTHS)):
                if hasattr(owner, name):
                    setattr(owner, name, value)


def attentions(model: nn.Module) -> list[Heads]:
    """Every self-attention of a network whose heads can be told apart, in the order of its modules."""
    return [found for module in model.modules() if (found := _heads(module))]


def _heads(module: nn.Module) -> Heads | None:
    inner = getattr(module, "self", None)
    size = next((getattr(owner, name) for owner in (module, inner) for name in SIZES if hasattr(owner, name)), None)
    for layout in LAYOUTS if size else ():
        try:
            layers = [module.get_submodule(name) for name in layout]
        except AttributeError:
            continue
        *inside, out = (m[-1 if n < 3 else 0] if isinstance(m, Factored) else m for n, m in enumerate(layers))
        widths = {*(getattr(m, "out_features", 0) for m in inside), getattr(out, "in_features", 0)}
        if len(widths) == 1 and all(isinstance(m, nn.Linear) for m in (*inside, out)) and widths.pop() % size == 0:
            return Heads(module, tuple(inside), out, size)
    return None

