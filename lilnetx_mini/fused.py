"""Bits of latents and all their gradients in one pass: what a training step needs of the density, in 30 ns a latent.

`lilnetx_mini.density.log_prob_gradients` says the same in NumPy, and explains it. Here every latent goes once through the
eight layers, up and back down, in registers: float32, and vectorised, which takes exponentials and logarithms of our own (the
polynomials of Moshier's Cephes library, relative error about 1e-7) and no branch in the loop.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .density import LAYERS, Density, sigmoid, softplus
from .errors import InputError

Array32 = NDArray[np.float32]
F = np.float32
BLOCK = 512  # latents of one dimension at a time: they stay in the first-level cache
NARROW = F(-0.01)  # logits closer than this: 1 - exp(gap) from its series
LOG2E, LN2, LN2_HIGH, LN2_LOW = F(1.4426950408889634), F(0.6931471805599453), F(0.693359375), F(-2.12194440e-4)
_CALL = {"cache": True, "inline": "always", "error_model": "numpy"}


@intrinsic
def _nearest_power(typing, x):
    """n and 2**n, n the whole number nearest to x, -126 .. 127; both float32."""

    def generate(context, b, signature, arguments):
        whole, real = ir.IntType(32), ir.FloatType()
        n = b.call(b.module.declare_intrinsic("llvm.rint", [real]), arguments)
        bits = b.shl(b.add(b.fptosi(n, whole), ir.Constant(whole, 127)), ir.Constant(whole, 23))
        return context.make_tuple(b, signature.return_type, [n, b.bitcast(bits, real)])

    return types.UniTuple(types.float32, 2)(types.float32), generate


@intrinsic
def _mantissa(typing, x):
    """n and m, x = m * 2**n with 1 <= m < 2, for a normal positive float32."""

    def generate(context, b, signature, arguments):
        whole, real = ir.IntType(32), ir.FloatType()
        bits = b.bitcast(arguments[0], whole)
        n = b.sub(b.lshr(bits, ir.Constant(whole, 23)), ir.Constant(whole, 127))
        m = b.or_(b.and_(bits, ir.Constant(whole, 0x7FFFFF)), ir.Constant(whole, 0x3F800000))
        return context.make_tuple(b, signature.return_type, [b.sitofp(n, real), b.bitcast(m, real)])

    return types.UniTuple(types.float32, 2)(types.float32), generate


@numba.njit(**_CALL)
def _exp(x):
    """exp(x) for x up to 88; below -87 as at -87."""
    x = x if x > F(-87) else F(-87)
    n, power = _nearest_power(x * LOG2E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = F(1.9875691500e-4) * r + F(1.3981999507e-3)
    p = (p * r + F(8.3334519073e-3)) * r + F(4.1665795894e-2)
    p = (p * r + F(1.6666665459e-1)) * r + F(5.0000001201e-1)
    return (p * r * r + r + F(1)) * power


@numba.njit(**_CALL)
def _log(x):
    """log(x) for positive x; below 1.2e-38 as there."""
    n, m = _mantissa(x if x > F(1.2e-38) else F(1.2e-38))
    high = m > F(1.4142135)
    m = m * F(0.5) if high else m
    n = n + F(1) if high else n
    r = m - F(1)
    p = F(7.0376836292e-2) * r + F(-1.1514610310e-1)
    p = (p * r + F(1.1676998740e-1)) * r + F(-1.2420140846e-1)
    p = (p * r + F(1.4249322787e-1)) * r + F(-1.6668057665e-1)
    p = (p * r + F(2.0000714765e-1)) * r + F(-2.4999993993e-1)
    p = p * r + F(3.3333331174e-1)
    return r + (p * r - F(0.5)) * r * r + n * LN2


@numba.njit(**_CALL)
def _tanh(x):
    x = x if x > F(-9) else F(-9)
    x = x if x < F(9) else F(9)
    return F(1) - F(2) / (F(1) + _exp(F(2) * x))


@numba.njit(**_CALL)
def _logit(z, s, b, a):
    """The cumulative distribution's logit, the three tanh on the way, and what came out of the three bends."""
    u = z * s[0] + b[0]
    t0 = _tanh(u)
    v0 = u + a[0] * t0
    u = v0 * s[1] + b[1]
    t1 = _tanh(u)
    v1 = u + a[1] * t1
    u = v1 * s[2] + b[2]
    t2 = _tanh(u)
    v2 = u + a[2] * t2
    return v2 * s[3] + b[3], t0, t1, t2, v0, v1, v2


@numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def _column(z, gradient, s, b, a, sums):
    """Latents of one dimension: their gradients, and sums (12,): those of the s, the b, the a, and of log P."""
    s0 = s1 = s2 = s3 = b0 = b1 = b2 = b3 = a0 = a1 = a2 = total = F(0)
    for i in range(len(z)):
        up, down = z[i] + F(0.5), z[i] - F(0.5)
        hi, p0, p1, p2, x0, x1, x2 = _logit(up, s, b, a)
        lo, q0, q1, q2, y0, y1, y2 = _logit(down, s, b, a)
        gap = lo - hi
        gap = gap if gap < F(-1e-30) else F(-1e-30)
        eh, el, e = _exp(hi if hi < F(0) else -hi), _exp(lo if lo < F(0) else -lo), _exp(gap)
        inside = -gap * (F(1) + gap * (F(0.5) + gap * F(1 / 6))) if gap > NARROW else F(1) - e
        total += (hi if hi < F(0) else F(0)) - (lo if lo > F(0) else F(0)) + _log(inside / ((F(1) + eh) * (F(1) + el)))
        g = (eh if hi >= F(0) else F(1)) / (F(1) + eh) + e / inside
        h = -e / inside - (F(1) if lo >= F(0) else el) / (F(1) + el)
        s3 += g * x2 + h * y2
        b3 += g + h
        g, h = g * s[3], h * s[3]
        a2 += g * p2 + h * q2
        g, h = g * (F(1) + a[2] * (F(1) - p2 * p2)), h * (F(1) + a[2] * (F(1) - q2 * q2))
        s2 += g * x1 + h * y1
        b2 += g + h
        g, h = g * s[2], h * s[2]
        a1 += g * p1 + h * q1
        g, h = g * (F(1) + a[1] * (F(1) - p1 * p1)), h * (F(1) + a[1] * (F(1) - q1 * q1))
        s1 += g * x0 + h * y0
        b1 += g + h
        g, h = g * s[1], h * s[1]
        a0 += g * p0 + h * q0
        g, h = g * (F(1) + a[0] * (F(1) - p0 * p0)), h * (F(1) + a[0] * (F(1) - q0 * q0))
        s0 += g * up + h * down
        b0 += g + h
        gradient[i] = (g + h) * s[0]
    for k, x in enumerate((s0, s1, s2, s3, b0, b1, b2, b3, a0, a1, a2, total)):
        sums[k] += x


@numba.njit(cache=True, nogil=True)
def _all(z, s, b, a, gradient, sums):
    """Every dimension in turn, a block of latents at a time. z, gradient (S, d); s, b (d, 4), a (d, 3); sums (d, 12) float64."""
    slices, d = z.shape
    x, y = np.empty((d, BLOCK), np.float32), np.empty((d, BLOCK), np.float32)
    for begin in range(0, slices, BLOCK):
        n = min(BLOCK, slices - begin)
        for i in range(n):
            for j in range(d):
                x[j, i] = z[begin + i, j]
        for j in range(d):
            t, u, v = s[j], b[j], a[j]
            four, three = (t[0], t[1], t[2], t[3]), (v[0], v[1], v[2])
            _column(x[j, :n], y[j, :n], four, (u[0], u[1], u[2], u[3]), three, sums[j])
        for i in range(n):
            for j in range(d):
                gradient[begin + i, j] = y[j, i]


def bits_and_gradients(z: Array32, density: Density) -> tuple[float, Array32, Density]:
    """Bits of all latents, ``sum(-log2 P(z))``, with their gradients.

    z        (S, d) float32
    returns  the bits; their gradient for z, (S, d) float32; and for the density's parameters, as a Density
    raises   InputError if z is not such an array
    """
    if z.ndim != 2 or z.shape[1] != density.h.shape[1] or z.dtype != np.float32:
        raise InputError(f"latents {z.dtype} {z.shape}: float32 (S, {density.h.shape[1]}) is needed for this density")
    d, bends = z.shape[1], np.tanh(density.a)
    arguments = (np.ascontiguousarray(p.T, np.float32) for p in (softplus(density.h), density.b, bends))
    gradient, sums = np.empty(z.shape, np.float32), np.zeros((d, 3 * LAYERS))
    _all(np.ascontiguousarray(z), *arguments, gradient, sums)
    sums = sums.T / -np.log(2)
    gradient *= F(-1 / np.log(2))
    h, b, a = sums[:LAYERS] * sigmoid(density.h), sums[LAYERS : 2 * LAYERS], sums[2 * LAYERS : -1] * (1 - bends**2)
    return float(sums[-1].sum()), gradient, Density(h, b, a)
