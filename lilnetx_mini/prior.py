"""Group priors: penalties whose minimum has whole kernel slices at exactly zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .latent import Array, IntArray

ORDERS = (1.0, 2.0, float("inf"))


def _check(z: Array, order: float) -> Array:
    z = np.asarray(z, np.float64)
    if z.ndim != 2:
        raise InputError(f"latents of shape {z.shape}: (S, d) is needed, one row per slice")
    if order not in ORDERS:
        raise InputError(f"norm order {order}: 1, 2 and inf are the choices")
    return z


def slice_norms(z: Array, order: float = 2.0) -> Array:
    """Norm of every kernel slice.

    z        (S, d) latents, one row per slice, in units of one quantisation step
    order    2 (default), 1 or inf
    returns  (S,) non-negative floats; exactly zero where the slice is zero
    raises   InputError if z is not two-dimensional

    The group prior is their sum over the number of weights: ``lam_group / N * slice_norms(z).sum()``.
    """
    z = _check(z, order)
    size = np.abs(z)
    if order == 1:
        return size.sum(1)
    peak = size.max(1)
    if order == 2:  # scaled by the largest entry, so that squares neither overflow nor vanish
        return peak * np.sqrt(np.square(z / np.where(peak == 0, 1, peak)[:, None]).sum(1))
    return peak


def slice_norms_gradient(z: Array, order: float = 2.0) -> Array:
    """Gradient of ``slice_norms(z, order).sum()``, (S, d); zero at a zero slice, shared equally among ties for inf."""
    z = _check(z, order)
    if order == 1:
        return np.sign(z)
    norm = slice_norms(z, order)[:, None]
    if order == 2:
        return z / np.where(norm == 0, 1, norm)
    largest = (np.abs(z) == norm) & (norm > 0)
    return np.sign(z) * largest / np.maximum(largest.sum(1, keepdims=True), 1)


def zero_slices(q: IntArray) -> NDArray[np.bool_]:
    """(S,) True where every integer of a slice is zero."""
    return ~np.asarray(q).any(axis=1)
