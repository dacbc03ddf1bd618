"""Convolutions, dense layers and pooling on arrays: one function an operation, correct first.

Every function takes a batch, (N, channels, *spatial), any number of spatial axes, and computes in float32.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _windows(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Array:
    """View of all windows: (N, C, *out, *kernel); no copy."""
    axes = tuple(range(2, x.ndim))
    span = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    view = sliding_window_view(x, span, axis=axes)
    outer = tuple(slice(None, None, s) for s in stride)
    inner = tuple(slice(None, None, d) for d in dilation)
    return view[(slice(None), slice(None), *outer, *inner)]


def pad(x: Array, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> Array:
    """Constant padding of every axis but the batch."""
    if not any(before) and not any(after):
        return x
    return np.pad(x, [(0, 0), *zip(before, after, strict=True)], constant_values=value)


def conv(
    x: Array,
    w: Array,
    bias: Array | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Array:
    """Cross-correlation, as every framework's convolution.

    x        (N, C, *spatial)
    w        (out, C / groups, *kernel)
    returns  (N, out, *spatial)
    """
    n, axes = x.shape[0], x.ndim - 2
    x = pad(x, (0, *padding), (0, *padding))
    view = _windows(x, w.shape[2:], stride, dilation)
    size = view.shape[2 : 2 + axes]
    order = (1, 0, *range(2, 2 + axes), *range(2 + axes, 2 + 2 * axes))
    into, out = x.shape[1] // groups, w.shape[0] // groups
    result = np.empty((groups, out, n * int(np.prod(size))), np.float32)
    for g in range(groups):
        part = np.moveaxis(view[:, g * into : (g + 1) * into].transpose(order), range(1, 2 + axes), range(-1 - axes, 0))
        np.matmul(w[g * out : (g + 1) * out].reshape(out, -1), part.reshape(-1, result.shape[2]), out=result[g])
    result = np.moveaxis(result.reshape(groups * out, n, *size), 0, 1)
    return _biased(result, bias)


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int = 1,
) -> Array:
    """Transposed convolution: a convolution of the input spread out by its stride, with the kernel turned around.

    x        (N, C, *spatial)
    w        (C, out / groups, *kernel)
    returns  (N, out, *spatial)
    """
    axes = x.ndim - 2
    spread = np.zeros((*x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]), np.float32)
    spread[(slice(None), slice(None), *[slice(None, None, s) for s in stride])] = x
    edge = [d * (k - 1) - p for d, k, p in zip(dilation, w.shape[2:], padding, strict=True)]
    after = [e + o for e, o in zip(edge, output_padding, strict=True)]
    spread = pad(spread, (0, *[max(e, 0) for e in edge]), (0, *[max(e, 0) for e in after]))
    spread = spread[
        (
            slice(None),
            slice(None),
            *[slice(max(-e, 0), n - max(-a, 0)) for e, a, n in zip(edge, after, spread.shape[2:], strict=True)],
        )
    ]
    into = x.shape[1] // groups
    turned = w[(slice(None), slice(None), *[slice(None, None, -1)] * axes)]
    turned = np.concatenate([np.swapaxes(turned[g * into : (g + 1) * into], 0, 1) for g in range(groups)])
    return conv(spread, turned, bias, (1,) * axes, (0,) * axes, dilation, groups)


def linear(x: Array, w: Array, bias: Array | None) -> Array:
    """``x @ w.T + bias`` over the last axis."""
    y = x @ w.T
    return y if bias is None else y + bias


def _biased(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias.reshape(-1, *[1] * (x.ndim - 2))


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    """A folded norm layer: ``x * scale + shift`` by channel."""
    wide = (-1, *[1] * (x.ndim - 2))
    return x * scale.reshape(wide) + shift.reshape(wide)


def max_pool(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Array:
    """Largest value of every window; padding counts as minus infinity."""
    x = pad(x, (0, *padding), (0, *padding), -np.inf)
    return _windows(x, kernel, stride, (1,) * len(kernel)).max(axis=tuple(range(x.ndim, 2 * x.ndim - 2)))


def avg_pool(
    x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], count_padding: bool
) -> Array:
    """Mean of every window; padded zeros take part in the count if asked to."""
    axes = tuple(range(x.ndim, 2 * x.ndim - 2))
    ones = pad(np.ones((1, 1, *x.shape[2:]), np.float32), (0, *padding), (0, *padding), float(count_padding))
    count = _windows(ones, kernel, stride, (1,) * len(kernel)).sum(axis=axes)
    x = pad(x, (0, *padding), (0, *padding))
    return _windows(x, kernel, stride, (1,) * len(kernel)).sum(axis=axes, dtype=np.float32) / count


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), computed without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}
