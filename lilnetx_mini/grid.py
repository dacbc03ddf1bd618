"""Weights on grids of 2, 4, 8 or 16 bits: every output channel has a range and a number of bits of its own.

(In a transposed convolution, whose weight has its inputs first, every input channel has.)

A grid of b bits divides -range .. range into 2**b - 1 equal cells; its points are their middles, and zero is one of them. As
2**2b - 1 is (2**b - 1) (2**b + 1), an odd number of finer cells fills a cell, and its middle is one of theirs. So a weight is what its
coarsest grid makes of it plus ever smaller corrections, and bits can be taken away from behind (Bayesian Bits, van Baalen et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .latent import Array, IntArray, dequantise

LEVELS = (2, 4, 8, 16)  # bits


def steps(ranges: Array, bits: IntArray) -> NDArray[np.float64]:
    """Distance between neighbouring points of every channel's grid.

    ranges  (C,) positive: where the last cell ends
    bits    (C,) 2, 4, 8 or 16
    raises  InputError for other numbers
    """
    ranges, bits = np.asarray(ranges, np.float64), np.asarray(bits)
    if ranges.ndim != 1 or ranges.shape != bits.shape:
        raise InputError(f"ranges of shape {ranges.shape} and bits of shape {bits.shape}: one of each for every channel is needed")
    if not np.isin(bits, LEVELS).all():
        raise InputError(f"{bits[~np.isin(bits, LEVELS)][0]} bits: {', '.join(map(str, LEVELS))} are the grids")
    if not ((ranges > 0) & np.isfinite(ranges)).all():
        raise InputError("the range of a grid must be a positive number")
    return 2 * ranges / (2.0**bits - 1)


def to_grid(w: Array, ranges: Array, bits: IntArray) -> NDArray[np.int32]:
    """Numbers of the nearest points, from -(2**(b-1) - 1) to as much.

    w  (C, ...) weights; those beyond their channel's range get its last point
    """
    w = np.asarray(w, np.float64)
    if len(w) != len(np.asarray(ranges)):
        raise InputError(f"{len(w)} channels of weights and {len(np.asarray(ranges))} ranges")
    shape = (-1, *[1] * (w.ndim - 1))
    step, most = steps(ranges, bits).reshape(shape), (2.0 ** (np.asarray(bits) - 1) - 1).reshape(shape)
    return np.clip(np.rint(w / step), -most, most).astype(np.int32)


def from_grid(q: IntArray, ranges: Array, bits: IntArray) -> NDArray[np.float32]:
    """The points with these numbers, (C, ...): an integer times its channel's step, rounded once to float32."""
    q = np.asarray(q)
    return (q * steps(ranges, bits).reshape(-1, *[1] * (q.ndim - 1))).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """The grids of a layer's output channels as they stand in a file.

    ints, exponent  ranges are ``ints * 2**exponent``; (C,) positive integers
    bits            (C,) 2, 4, 8 or 16
    """

    ints: IntArray
    exponent: int
    bits: IntArray

    def ranges(self) -> NDArray[np.float32]:
        """(C,) where the last cells end."""
        return dequantise(self.ints, self.exponent)

    def decode(self, q: IntArray) -> NDArray[np.float32]:
        """Weights (C, ...) of integers."""
        return from_grid(q, self.ranges(), self.bits)
