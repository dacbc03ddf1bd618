"""Norms of kernel slices: twin of ``lilnetx_mini.prior``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..prior import ORDERS


def slice_norms(z: Tensor, order: float = 2.0) -> Tensor:
    """(S, d) latents to (S,) norms of order 1, 2 or inf; the gradient at a zero slice is zero."""
    if z.ndim != 2:
        raise InputError(f"latents of shape {tuple(z.shape)}: (S, d) is needed, one row per slice")
    if order not in ORDERS:
        raise InputError(f"norm order {order}: 1, 2 and inf are the choices")
    return torch.linalg.vector_norm(z, order, dim=1)
