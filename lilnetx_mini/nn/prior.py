"""Norms of kernel slices and soft counts: twin of ``lilnetx_mini.prior``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..prior import FORMS, ORDERS

TINY = 1e-30  # keeps a mask of zeros from dividing by zero


def slice_norms(z: Tensor, order: float = 2.0) -> Tensor:
    """(S, d) latents to (S,) norms of order 1, 2 or inf; the gradient at a zero slice is zero."""
    if z.ndim != 2:
        raise InputError(f"latents of shape {tuple(z.shape)}: (S, d) is needed, one row per slice")
    if order not in ORDERS:
        raise InputError(f"norm order {order}: 1, 2 and inf are the choices")
    return torch.linalg.vector_norm(z, order, dim=1)


def soft_count(alpha: Tensor, form: str = "squared") -> Tensor:
    """(d,) non-negative mask to its soft count, 0-d, with a gradient; "squared" or "root", see the NumPy twin."""
    if form not in FORMS:
        raise InputError(f"form {form!r}: {' and '.join(map(repr, FORMS))} are the choices")
    if alpha.ndim != 1 or not alpha.numel():
        raise InputError(f"a mask of shape {tuple(alpha.shape)}: a vector with at least one entry is needed")
    squares = alpha.square().sum()
    if form == "squared":
        return alpha.sum().square() / squares.clamp_min(TINY)
    return math.sqrt(len(alpha)) * alpha.sum() / squares.clamp_min(TINY).sqrt()
