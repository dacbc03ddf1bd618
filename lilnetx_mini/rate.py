"""How many bits an array of integers costs."""

from __future__ import annotations

import numpy as np

from .density import Density, log_prob
from .errors import InputError
from .latent import Array, IntArray


def self_information(z: Array, density: Density) -> Array:
    """Bits of every latent, ``-log2 P(z)``, (S, d)."""
    return -log_prob(z, density) / np.log(2)


def rate(q: IntArray, density: Density) -> float:
    """Bits of all integers under the density: the length an ideal coder would need."""
    return float(self_information(np.rint(q), density).sum())


def noisy_rate(z: Array, density: Density, seed: int = 0) -> float:
    """The training proxy: bits of ``z + u`` with u uniform in (-1/2, 1/2), which has a gradient where rounding has none."""
    z = np.asarray(z, np.float64)
    u = np.random.default_rng(seed).uniform(-0.5, 0.5, z.shape)
    return float(self_information(z + u, density).sum())


def entropy(q: IntArray) -> float:
    """Bits per value of an array under its own histogram: what no static table can beat."""
    q = np.asarray(q)
    if q.size == 0:
        raise InputError("an empty array has no entropy: give at least one value")
    _, counts = np.unique(q, return_counts=True)
    p = counts / q.size
    return float(-(p * np.log2(p)).sum() + 0.0)
