"""Latents: a network's weights as small integers times one shared decoder.

A group collects the weight tensors of one kernel shape. Its latents ``z`` are a matrix with one row per kernel slice
and one column per kernel position; what is stored is ``q = round(z)``, and the weights are ``w = q @ psi``.
There is no shift, so a row of zeros gives a kernel of zeros (LilNetX, Girish et al., ICLR 2023, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Array = NDArray[np.floating]
IntArray = NDArray[np.integer]

LARGEST = 32767  # latents are stored as 16-bit integers
LARGEST_EXPONENT = 80  # steps of stored numbers lie between 2**-80 and 2**80: no product with them overflows float32


def round_latents(z: Array) -> IntArray:
    """Nearest integers, halves to even: what the file stores.

    z        array of any shape, in units of one quantisation step, finite, at most 32767 in magnitude
    returns  int32 array of the same shape
    raises   InputError, with the position, if a value is not finite or too large
    """
    z = np.asarray(z)
    wrong = ~(np.abs(z) <= LARGEST)  # NaN compares false, so it counts as wrong too
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"latent {z[where]} at {where} is not a finite number up to {LARGEST}: "
            "lower the learning rate, or rescale the weights before they become latents"
        )
    return np.rint(z).astype(np.int32)


def to_slices(w: NDArray, dense: bool = False) -> NDArray:
    """A weight tensor as rows of kernel slices, in the tensor's own storage order.

    w        (out, in, *kernel), or (in, out, *kernel) of a transposed convolution, or (out, in) of a dense layer
    dense    True for matrices with no kernel: each weight is a row of its own
    returns  (S, d): S = w.shape[0] * w.shape[1], d = the kernel's size, 1 for dense
    """
    w = np.asarray(w)
    if w.ndim < 2 or w.size == 0:
        raise InputError(f"a weight of shape {w.shape} has no slices: at least two axes and one value are needed")
    if dense:
        return np.ascontiguousarray(w).reshape(-1, 1)
    return np.ascontiguousarray(w).reshape(w.shape[0] * w.shape[1], -1)


def decode(q: IntArray, psi: Array) -> Array:
    """Weights of every slice, ``w = q @ psi``, summed over j in the order 0 .. d-1 and never by BLAS.

    q        (S, d) integers (or latents)
    psi      (d, d) decoder
    returns  (S, d) in psi's type (at least float32); the fixed order makes the result the same on every machine
    """
    q, psi = np.asarray(q), np.asarray(psi)
    if q.ndim != 2 or psi.shape != (q.shape[1], q.shape[1]):
        raise InputError(f"latents of shape {q.shape} do not fit a decoder of shape {psi.shape}: (S, d) and (d, d) do")
    w = np.zeros(q.shape, np.result_type(psi, np.float32))
    for j in range(q.shape[1]):
        w += q[:, j : j + 1].astype(w.dtype) * psi[j]
    return w


# -- numbers as integers times a power of two: decoders, norm layers and biases in the file ---------------------------


def power_of_two_step(largest: float, bits: int = 8) -> int:
    """The exponent e of the smallest step ``2**e`` with which `largest` still fits into `bits` signed bits.

    largest  finite and non-negative; 0 gives exponent 0
    """
    if not math.isfinite(largest):
        raise InputError(f"cannot choose a step for {largest}: the values to store must be finite")
    if largest == 0:
        return 0
    limit = 2 ** (bits - 1) - 1
    e = math.floor(math.log2(largest)) - bits
    while round(largest / 2.0**e) > limit:
        e += 1
    if e > LARGEST_EXPONENT:
        raise InputError(
            f"a largest value of {largest} needs a step of 2**{e}, more than the 2**{LARGEST_EXPONENT} of the format"
        )
    return max(e, -LARGEST_EXPONENT)


def quantise(x: Array, bits: int = 8) -> tuple[IntArray, int]:
    """`x` as int32 integers times ``2**exponent``: returns (integers, exponent); exact to read back anywhere."""
    x = np.asarray(x, np.float64)
    e = power_of_two_step(float(np.abs(x).max(initial=0.0)), bits)
    return np.rint(x / 2.0**e).astype(np.int32), e


def dequantise(ints: IntArray, exponent: int) -> NDArray[np.float32]:
    """``ints * 2**exponent`` as float32, rounded once."""
    return np.ldexp(np.asarray(ints, np.float64), exponent).astype(np.float32)


# -- decoders ---------------------------------------------------------------------------------------------------------

DECODER_KINDS = ("full", "diagonal", "scalar", "dct")
DCT_BITS = 14  # the fixed cosine basis is itself a table of integers over 2**14


def dct_integers(kernel: tuple[int, ...]) -> NDArray[np.int64]:
    """The orthonormal cosine basis of a kernel as (d, d) integers over ``2**14``; row = frequency, column = position."""
    basis = np.ones((1, 1))
    for k in kernel:
        f, x = np.meshgrid(np.arange(k), np.arange(k), indexing="ij")
        one = np.sqrt(2 / k) * np.cos(np.pi * (x + 0.5) * f / k)
        one[0] /= math.sqrt(2)
        basis = np.kron(basis, one)
    return np.rint(basis * 2**DCT_BITS).astype(np.int64)


@dataclass(frozen=True)
class Decoder:
    """A group's decoder as it stands in the file.

    kind      "full" (d*d free entries), "diagonal" (d), "scalar" (1) or "dct" (d factors times a fixed cosine basis)
    kernel    kernel shape, () for dense weights; d is its product
    ints      the free entries, int32
    exponent  their common step is ``2**exponent``
    """

    kind: str
    kernel: tuple[int, ...]
    ints: IntArray
    exponent: int

    def integers(self) -> tuple[NDArray[np.int64], int]:
        """The (d, d) matrix as (integers, exponent of their step)."""
        d = math.prod(self.kernel)
        ints = np.asarray(self.ints, np.int64)
        if self.kind == "full":
            return ints.reshape(d, d), self.exponent
        if self.kind == "scalar":
            return np.eye(d, dtype=np.int64) * ints[0], self.exponent
        if self.kind == "diagonal":
            return np.diag(ints), self.exponent
        return ints[:, None] * dct_integers(self.kernel), self.exponent - DCT_BITS

    def matrix(self) -> NDArray[np.float32]:
        """psi, (d, d) float32."""
        return dequantise(*self.integers())

    def decode(self, q: IntArray) -> NDArray[np.float32]:
        """(S, d) float32 weights. The sum is over integers and so exact; one rounding to float32 ends it."""
        ints, exponent = self.integers()
        return dequantise(np.asarray(q, np.int64) @ ints, exponent)


def free_entries(kind: str, d: int) -> int:
    """How many numbers a decoder of this kind stores for kernels of d positions."""
    return {"full": d * d, "diagonal": d, "scalar": 1, "dct": d}[kind]


# -- initialisation ---------------------------------------------------------------------------------------------------

BOUNDARY = 3  # latents start within about -3 .. 3


def decoder_variance(widest: int) -> float:
    """Variance of ``q @ psi`` per unit of latent variance; `widest` is F, the largest number of output channels."""
    return 24 / (widest * ((2 * BOUNDARY + 1) ** 2 - 1))


def latent_bound(variance: float, fan: int) -> float:
    """Half width b of the uniform start U(-b, b) of a layer's latents.

    fan  out * kh * kw. The floor of 0.75 keeps layers with large kernels from starting at zero throughout.
    """
    return max(0.75, (math.sqrt(24 / (variance * fan) + 1) - 1) / 2)
