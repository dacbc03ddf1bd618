"""What a file holds, as plain data: groups of latents, layers, side parameters, raw tensors and the graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .graph import Graph
from .grid import Grid
from .latent import Decoder, IntArray, dequantise


@dataclass(frozen=True)
class Group:
    """All latents of one kernel shape, in the order of their layers: q (S, d) integers, and their decoder."""

    decoder: Decoder
    q: IntArray


@dataclass(frozen=True)
class Layer:
    """One weight tensor: its name in the state dict, full shape, group, whether its axes are (in, out), conv groups.

    grid  one for every index of the first axis, if what the group's decoder makes of the latents are numbers of points on grids
    """

    name: str
    shape: tuple[int, ...]
    group: int
    transposed: bool = False
    conv_groups: int = 1
    grid: Grid | None = None

    @property
    def slices(self) -> int:
        """How many kernel slices it has."""
        return self.shape[0] * self.shape[1]

    def on_grid(self, w: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the decoder has made, in the layer's shape, as weights."""
        return self.grid.decode(w) if self.grid else w


@dataclass(frozen=True)
class Side:
    """A parameter stored as integers times ``2**exponent``; `name` is the norm module's for roles scale and shift."""

    name: str
    role: str
    ints: IntArray
    exponent: int

    def values(self) -> NDArray[np.float32]:
        """The tensor."""
        return dequantise(self.ints, self.exponent)


@dataclass(frozen=True)
class Raw:
    """A float32 tensor stored as it is."""

    name: str
    array: NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """Everything a file holds. `note` says why there is no graph where there is none."""

    groups: list[Group]
    layers: list[Layer]
    sides: list[Side] = field(default_factory=list)
    raws: list[Raw] = field(default_factory=list)
    graph: Graph | None = None
    note: str = ""

    def latents(self) -> list[IntArray]:
        """(S, d) integers of every layer."""
        at, out = [0] * len(self.groups), []
        for layer in self.layers:
            out.append(self.groups[layer.group].q[at[layer.group] : at[layer.group] + layer.slices])
            at[layer.group] += layer.slices
        return out

    def tensors(self) -> list[NDArray[np.float32]]:
        """All tensors in the graph's numbering: layers' weights, side parameters, raw tensors."""
        weights = [
            layer.on_grid(self.groups[layer.group].decoder.decode(q).reshape(layer.shape))
            for layer, q in zip(self.layers, self.latents(), strict=True)
        ]
        return [*weights, *(s.values() for s in self.sides), *(r.array for r in self.raws)]

    def tensor_names(self) -> list[str]:
        """Names of the same: state-dict keys, and ``module.scale`` and ``module.shift`` of folded norm layers."""
        sides = [s.name if s.role == "parameter" else f"{s.name}.{s.role}" for s in self.sides]
        return [*(x.name for x in self.layers), *sides, *(r.name for r in self.raws)]

    def tensor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the same, without decoding."""
        return [
            *(x.shape for x in self.layers),
            *(s.ints.shape for s in self.sides),
            *(r.array.shape for r in self.raws),
        ]


@dataclass(frozen=True)
class Ledger:
    """Where a file's bytes go.

    file_bytes  length of the file
    sections    name to bytes, "header" included; they sum to file_bytes
    layers      for each layer a dict: name, shape, weights, bits (of its latents), bits_per_weight, weights_zero,
                slice_sparsity, coder; sparsities are fractions
    note        why there is no graph, "" if there is one
    raws        for each tensor stored as float32 a dict: name, shape, values
    """

    file_bytes: int
    sections: dict[str, int]
    layers: list[dict]
    note: str = ""
    raws: list[dict] = field(default_factory=list)
