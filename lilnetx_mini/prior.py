"""Group priors: penalties whose minimum has whole kernel slices at exactly zero; soft counts of what a mask leaves on."""

from __future__ import annotations

import math

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


FORMS = ("squared", "root")


def soft_count(alpha: Array, form: str = "squared") -> float:
    """How many entries of a mask are on, as a number with a gradient (after Nasery et al. 2023).

    alpha    (d,) mask, non-negative
    form     "squared": (l1 / l2)**2, which is k for k equal entries among zeros; or "root": sqrt(d) * l1 / l2, which is
             sqrt(d * k) for them
    returns  1 .. d; the same for any multiple of alpha, and 0 for a mask of zeros
    raises   InputError if alpha is not a vector, is empty, negative or not finite
    """
    alpha, l1, l2 = _mask_norms(alpha, form)
    ratio = l1 / l2 if l2 else 0.0
    return ratio**2 if form == "squared" else math.sqrt(len(alpha)) * ratio


def soft_count_gradient(alpha: Array, form: str = "squared") -> Array:
    """Gradient of ``soft_count(alpha, form)``, (d,).

    Along it entries below l2**2 / l1 shrink and those above grow: the mask decides by itself which of its entries go. At equal
    entries it is zero, and so is it, by convention, for a mask of zeros.
    """
    scaled, l1, l2 = _mask_norms(alpha, form)
    if not l2:
        return np.zeros_like(scaled)
    ratio = l1 / l2
    slope = (1 - scaled * (l1 / l2**2)) / l2  # of l1 / l2
    slope = slope / np.max(alpha)  # the norms are those of alpha over its largest entry
    return 2 * ratio * slope if form == "squared" else math.sqrt(len(scaled)) * slope


def _mask_norms(alpha: Array, form: str) -> tuple[Array, float, float]:
    """A mask divided by its largest entry, so that squares neither overflow nor vanish, and its l1 and l2 norms."""
    alpha = np.asarray(alpha, np.float64)
    if form not in FORMS:
        raise InputError(f"form {form!r}: {' and '.join(map(repr, FORMS))} are the choices")
    if alpha.ndim != 1 or not alpha.size:
        raise InputError(f"a mask of shape {alpha.shape}: a vector with at least one entry is needed")
    if not np.isfinite(alpha).all() or alpha.min() < 0:
        raise InputError("a mask with entries that are negative or not finite: project it onto alpha >= 0 first")
    peak = alpha.max()
    scaled = alpha / peak if peak else alpha
    return scaled, float(scaled.sum()), float(np.sqrt(np.square(scaled).sum()))
