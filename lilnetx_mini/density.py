"""A learned probability for every integer: the factorised density of Ballé et al. (2018), width one.

Each latent dimension j owns a monotone scalar function, four affine layers with gentle bends between them, ending in
a sigmoid: its cumulative distribution. The probability of an integer is what the cumulative gains around it,
``P(q) = cdf(q + 1/2) - cdf(q - 1/2)``, so the probabilities of all integers sum to one whatever was learned.
Everything here is float64; ``lilnetx_mini.nn.density`` is the twin in torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .latent import Array, IntArray

LAYERS = 4
CLOSEST = 1e-30  # the logits of the two half-steps are kept at least this far apart, so that no logarithm sees zero


@dataclass(frozen=True)
class Density:
    """Parameters for d dimensions.

    h  (4, d)  slopes before softplus
    b  (4, d)  shifts
    a  (3, d)  strength of the bends before tanh
    """

    h: Array
    b: Array
    a: Array

    @staticmethod
    def start(d: int, seed: int = 0) -> Density:
        """N(0, 0.01**2): a wide, nearly logistic density."""
        rng = np.random.default_rng(seed)
        return Density(*(rng.normal(0, 0.01, (n, d)) for n in (LAYERS, LAYERS, LAYERS - 1)))

    def flat(self) -> Array:
        """All parameters as one (11 * d,) vector: h, b, a."""
        return np.concatenate([self.h.ravel(), self.b.ravel(), self.a.ravel()])

    @staticmethod
    def from_flat(vector: Array, d: int) -> Density:
        """The inverse of `flat`."""
        h, b, a = np.split(np.asarray(vector, np.float64), [LAYERS * d, 2 * LAYERS * d])
        return Density(h.reshape(LAYERS, d), b.reshape(LAYERS, d), a.reshape(LAYERS - 1, d))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(0, x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow; the derivative of softplus."""
    return np.exp(-np.logaddexp(0, -x))


def logits(z: Array, density: Density) -> Array:
    """Cumulative distribution before its sigmoid, increasing in z.

    z        (S, d)
    returns  (S, d)
    """
    u = z
    for k in range(LAYERS):
        u = u * softplus(density.h[k]) + density.b[k]
        if k < LAYERS - 1:
            u = u + np.tanh(density.a[k]) * np.tanh(u)
    return u


def log_prob(z: Array, density: Density) -> Array:
    """log P of every latent, natural logarithm, (S, d); finite for logits up to 1e4 and far beyond.

    With hi and lo the logits at z + 1/2 and z - 1/2, ``sigmoid(hi) - sigmoid(lo)`` is exactly
    ``sigmoid(hi) * sigmoid(-lo) * (1 - exp(lo - hi))``: a product, so no digits cancel on either side of the centre.
    """
    z = np.asarray(z, np.float64)
    if z.ndim != 2 or z.shape[1] != density.h.shape[1]:
        raise InputError(f"latents of shape {z.shape} do not fit a density of {density.h.shape[1]} dimensions")
    hi, lo = logits(z + 0.5, density), logits(z - 0.5, density)
    return -softplus(-hi) - softplus(lo) + np.log(-np.expm1(np.minimum(lo - hi, -CLOSEST)))


def _backward(z: Array, upstream: Array, density: Density) -> tuple[Array, Density]:
    """Gradients of sum(upstream * logits(z)) with respect to z and to the parameters: the chain rule, layer by layer."""
    inputs, affine, u = [], [], z
    for k in range(LAYERS):
        inputs.append(u)
        u = u * softplus(density.h[k]) + density.b[k]
        affine.append(u)
        if k < LAYERS - 1:
            u = u + np.tanh(density.a[k]) * np.tanh(u)
    dh, db, da = np.zeros_like(density.h), np.zeros_like(density.b), np.zeros_like(density.a)
    g = upstream
    for k in reversed(range(LAYERS)):
        if k < LAYERS - 1:
            t, bend = np.tanh(affine[k]), np.tanh(density.a[k])
            da[k] = (g * t).sum(0) * (1 - bend**2)
            g = g * (1 + bend * (1 - t**2))
        dh[k] = (g * inputs[k]).sum(0) * sigmoid(density.h[k])
        db[k] = g.sum(0)
        g = g * softplus(density.h[k])
    return g, Density(dh, db, da)


def log_prob_gradients(z: Array, density: Density, weight: Array | None = None) -> tuple[Array, Density]:
    """Gradients of ``sum(weight * log_prob(z))``.

    weight   (S, d), default ones: how often each latent counts
    returns  gradient for z, (S, d), and for the parameters, as a Density
    """
    z = np.asarray(z, np.float64)
    hi, lo = logits(z + 0.5, density), logits(z - 0.5, density)
    gap = np.minimum(lo - hi, -CLOSEST)
    inner = np.exp(gap) / np.expm1(gap) * (lo - hi < -CLOSEST)  # d log(1 - exp(gap)) / d gap
    weight = np.ones_like(z) if weight is None else weight
    up, down = weight * (sigmoid(-hi) - inner), weight * (inner - sigmoid(lo))
    gz_up, g_up = _backward(z + 0.5, up, density)
    gz_down, g_down = _backward(z - 0.5, down, density)
    return gz_up + gz_down, Density(g_up.h + g_down.h, g_up.b + g_down.b, g_up.a + g_down.a)


def fit(q: IntArray, steps: int = 600, learning_rate: float = 0.05, seed: int = 0) -> Density:
    """The density under which the integers cost the fewest bits, by Adam on their histogram.

    q        (S, d) integers
    returns  Density of d dimensions
    """
    q = np.asarray(q)
    if q.ndim != 2 or q.size == 0:
        raise InputError(
            f"cannot fit a density to integers of shape {q.shape}: (S, d) with S and d at least 1 is needed"
        )
    values = np.unique(q)
    counts = np.stack([(q == v).sum(0) for v in values]) / q.shape[0]
    points = np.repeat(values[:, None].astype(np.float64), q.shape[1], axis=1)
    theta = Density.start(q.shape[1], seed).flat()
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t in range(1, steps + 1):
        _, grad = log_prob_gradients(points, Density.from_flat(theta, q.shape[1]), counts)
        g = -grad.flat()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * t / steps))
        theta = theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    return Density.from_flat(theta, q.shape[1])
