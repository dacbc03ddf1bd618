"""Every operation of the runtime against torch's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lilnetx_mini import conv


def close(a: np.ndarray, b: torch.Tensor) -> None:
    assert a.shape == tuple(b.shape)
    assert np.abs(a - b.numpy()).max(initial=0) <= 1e-4 * max(1.0, float(b.abs().max()))


def normal(*shape):
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


SPATIAL = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    SPATIAL,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    SPATIAL,
    st.tuples(st.integers(9, 12), st.integers(9, 13)),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_convolution(n, groups, into, out, kernel, stride, padding, dilation, size, biased):
    x, w = normal(n, into * groups, *size), normal(out * groups, into, *kernel)
    b = normal(out * groups) if biased else None
    if any(d * (k - 1) + 1 > s + 2 * p for d, k, s, p in zip(dilation, kernel, size, padding, strict=True)):
        return
    have = conv.conv(x.numpy(), w.numpy(), b.numpy() if biased else None, stride, padding, dilation, groups)
    close(have, F.conv2d(x, w, b, stride, padding, dilation, groups))


@given(
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    SPATIAL,
    st.tuples(st.integers(0, 4), st.integers(0, 2)),
    SPATIAL,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_transposed_convolution(n, groups, into, out, kernel, stride, padding, dilation, extra, biased):
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return
    x, w = normal(n, into * groups, 5, 6), normal(into * groups, out, *kernel)
    b = normal(out * groups) if biased else None
    size = [
        (s0 - 1) * s - 2 * p + d * (k - 1) + e + 1
        for s0, s, p, d, k, e in zip((5, 6), stride, padding, dilation, kernel, extra, strict=True)
    ]
    if min(size) < 1:
        return
    have = conv.conv_transpose(
        x.numpy(), w.numpy(), b.numpy() if biased else None, stride, padding, dilation, extra, groups
    )
    close(have, F.conv_transpose2d(x, w, b, stride, padding, extra, groups, dilation))


def test_one_and_three_spatial_axes():
    x, w = normal(2, 3, 11), normal(4, 3, 3)
    close(conv.conv(x.numpy(), w.numpy(), None, (2,), (1,), (1,)), F.conv1d(x, w, None, 2, 1))
    x, w = normal(2, 4, 5, 6, 7), normal(4, 2, 3, 2, 1)
    close(
        conv.conv(x.numpy(), w.numpy(), None, (1, 2, 1), (1, 0, 1), (1, 1, 1), 2),
        F.conv3d(x, w, None, (1, 2, 1), (1, 0, 1), 1, 2),
    )


@pytest.mark.parametrize(
    "kernel,stride,padding", [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 0))]
)
def test_pooling(kernel, stride, padding):
    x = normal(2, 3, 8, 9)
    close(conv.max_pool(x.numpy(), kernel, stride, padding), F.max_pool2d(x, kernel, stride, padding))
    for counted in (True, False):
        close(
            conv.avg_pool(x.numpy(), kernel, stride, padding, counted),
            F.avg_pool2d(x, kernel, stride, padding, count_include_pad=counted),
        )


@pytest.mark.parametrize("name", conv.ACTIVATIONS)
def test_activations(name):
    x = normal(4, 7) * 5
    x[0, 0], x[0, 1] = 1000, -1000
    with np.errstate(all="raise", under="ignore"):
        close(conv.ACTIVATIONS[name](x.numpy()), getattr(F, name, getattr(torch, name, None))(x))


def test_dense_and_scaled():
    x, w, b = normal(5, 7), normal(3, 7), normal(3)
    close(conv.linear(x.numpy(), w.numpy(), b.numpy()), F.linear(x, w, b))
    x, s, t = normal(2, 3, 4, 4), normal(3), normal(3)
    close(conv.scale_shift(x.numpy(), s.numpy(), t.numpy()), x * s.view(-1, 1, 1) + t.view(-1, 1, 1))
