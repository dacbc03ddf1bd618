"""A group's latents as byte streams: significance of slices, then the coefficients of those that are not zero.

Two ways, and the file takes whichever is smaller for each group: "static" has an integer table for the flags of every
layer and one for every latent dimension (rans.py); "adaptive" learns its probabilities on the way (context.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import context, rans
from .fields import Reader, Writer
from .frequency import Table
from .latent import IntArray

MODES = ("static", "adaptive")


@dataclass(frozen=True)
class Streams:
    """mode: "static" or "adaptive"; tables, significance, coefficients: their bytes."""

    mode: str
    tables: bytes
    significance: bytes
    coefficients: bytes

    @property
    def size(self) -> int:
        """Bytes of all three together."""
        return len(self.tables) + len(self.significance) + len(self.coefficients)


def _layer_index(shapes: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(shapes)), [r * c for r, c in shapes])


def encode_static(q: IntArray, shapes: list[tuple[int, int]]) -> Streams:
    """q (S, d), layers of shapes (rows, columns) of slices: coded with static tables."""
    q = np.asarray(q)
    flags, layer = q.any(1).astype(np.int64), _layer_index(shapes)
    by_layer = [Table.cheapest(flags[layer == k]) for k in range(len(shapes))]
    by_place = [Table.cheapest(column) for column in q[flags == 1].T]
    tables = Writer()
    for t in by_layer + by_place:
        t.write(tables)
    values, place = q[flags == 1].ravel(), np.tile(np.arange(q.shape[1]), int(flags.sum()))
    return Streams(
        "static", bytes(tables.data), rans.encode(flags, by_layer, layer), rans.encode(values, by_place, place)
    )


def encode_adaptive(q: IntArray, shapes: list[tuple[int, int]], width: int) -> Streams:
    """The same with adaptive contexts; `width` is the kernel's last extent."""
    flags, _ = context.encode_flags(np.asarray(q).any(1), shapes)
    coefficients, _ = context.encode_coefficients(q, shapes, width)
    return Streams("adaptive", b"", flags, coefficients)


def encode(q: IntArray, shapes: list[tuple[int, int]], width: int, mode: str | None = None) -> Streams:
    """Coded in the given mode, or by default in whichever of the two is smaller."""
    ways = {"static": lambda: encode_static(q, shapes), "adaptive": lambda: encode_adaptive(q, shapes, width)}
    return min((ways[m]() for m in ([mode] if mode else MODES)), key=lambda s: s.size)


def decode(
    streams: Streams, shapes: list[tuple[int, int]], d: int, width: int, account: bool = True
) -> tuple[IntArray, NDArray[np.float64]]:
    """(S, d) int16 latents, and the bits that each layer's flags and coefficients took (none if `account` is off)."""
    slices = sum(r * c for r, c in shapes)
    if streams.mode == "adaptive":
        flags, bits = context.decode_flags(streams.significance, shapes, slices, account)
        q, more = context.decode_coefficients(streams.coefficients, flags, shapes, d, width, account)
        return q.astype(np.int16), bits + more
    src, layer = Reader(streams.tables, "tables"), _layer_index(shapes)
    by_layer = [Table.read(src) for _ in shapes]
    by_place = [Table.read(src) for _ in range(d)]
    src.finish()
    flags = rans.decode(streams.significance, by_layer, slices, layer)
    if flags.min(initial=0) < 0 or flags.max(initial=0) > 1:
        raise src.fail("a significance flag is neither 0 nor 1")
    alive = np.flatnonzero(flags)
    place = np.tile(np.arange(d), alive.size)
    q = np.zeros((slices, d), np.int16)
    q[alive] = rans.decode(streams.coefficients, by_place, alive.size * d, place).reshape(-1, d)
    if not q[alive].any(1).all():
        raise src.fail("a slice that is marked as non-zero has only zeros")
    if not account:
        return q, np.zeros(0)
    owner = layer[alive]
    bits = np.array([by_layer[k].bits(flags[layer == k]) for k in range(len(shapes))])
    bits += [
        sum(t.bits(column) for t, column in zip(by_place, q[alive[owner == k]].T, strict=True))
        for k in range(len(shapes))
    ]
    return q, bits


def shapes_of(layers: list) -> list[tuple[int, int]]:
    """(rows, columns) of slices of each layer: the first two extents of its weight."""
    return [(layer.shape[0], layer.shape[1]) for layer in layers]


def last_extent(kernel: tuple[int, ...]) -> int:
    """The kernel's last extent, 1 for dense weights."""
    return kernel[-1] if math.prod(kernel) > 1 else 1
