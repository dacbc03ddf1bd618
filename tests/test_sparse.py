"""The sparse convolution against the dense one, and its kernel against its specification."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilnetx_mini import InputError, conv, sparse


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_it_equals_the_dense_convolution(data, seed):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 2)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(n, s - 2 * p) for n, s, p in zip(pair(1, 19), span, padding, strict=True)]
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    into, out = (groups * data.draw(st.integers(1, 5)) for _ in range(2))
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, into // groups, *kernel)).astype(np.float32)
    w *= rng.random(w.shape[:2])[:, :, None, None] < data.draw(st.sampled_from([0, 0.1, 0.5, 1]))
    bias = rng.standard_normal(out).astype(np.float32) if data.draw(st.booleans()) else None
    x = rng.standard_normal((data.draw(st.integers(1, 3)), into, *size)).astype(np.float32)
    layer = sparse.SparseConv(w, bias, x.shape[1:], stride, padding, dilation, groups)
    expected = conv.conv(x, w, bias, stride, padding, dilation, groups)
    for _ in range(2):  # buffers are used again
        y = layer(x)
        assert y.shape == expected.shape
        assert np.abs(y - expected).max(initial=0) <= 1e-4 * max(1, np.abs(expected).max(initial=0))
    assert layer.macs == np.count_nonzero(w) * expected[0, 0].size


def test_many_channels_go_in_several_passes_and_sum_up():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 300, 3, 3)).astype(np.float32) * (rng.random((7, 300, 1, 1)) < 0.2)
    x = rng.standard_normal((2, 300, 17, 13)).astype(np.float32)
    layer = sparse.SparseConv(w, None, x.shape[1:], padding=(1, 1))
    assert layer.passes > 3
    assert np.allclose(layer(x), conv.conv(x, w, None, (1, 1), (1, 1), (1, 1)), atol=1e-3)


@pytest.mark.parametrize("n", [16, 32, 48, 64])
def test_the_kernel_is_what_its_specification_says(n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal(400).astype(np.float32)
    offsets, weights = rng.integers(0, 300, 9).astype(np.int32), rng.standard_normal(9).astype(np.float32)
    out = np.zeros(2 * n, np.float32)
    bias = np.float32([0.5, -1])
    sparse._convolve(x, offsets, weights, np.array([0, 4, 9]), 1, bias, n, out)
    expected = np.repeat(bias, n).astype(np.float32)
    sparse.walk(x, 0, offsets, weights, 0, 4, expected, 0, n)
    sparse.walk(x, 0, offsets, weights, 4, 9, expected, n, n)
    assert np.allclose(out, expected, atol=1e-5)


def test_it_runs_without_compiling():
    script = (
        "import numpy as np; from lilnetx_mini import conv, sparse; r = np.random.default_rng(0);"
        "w, x = r.standard_normal((2, 3, 3, 3)).astype('f'), r.standard_normal((1, 3, 6, 5)).astype('f');"
        "a = sparse.SparseConv(w, None, x.shape[1:], padding=(1, 1))(x);"
        "assert np.allclose(a, conv.conv(x, w, None, (1, 1), (1, 1), (1, 1)), atol=1e-5)"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("w", "bias", "shape", "message"),
    [
        ((2, 3, 3, 3), None, (4, 8, 8), "do not fit 4 input channels"),
        ((2, 3, 9, 3), None, (3, 8, 8), "does not fit into"),
        ((2, 3, 3, 3), (3,), (3, 8, 8), "bias of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(w, bias, shape, message):
    with pytest.raises(InputError, match=message):
        sparse.SparseConv(np.ones(w), None if bias is None else np.ones(bias), shape)
    layer = sparse.SparseConv(np.ones((2, 3, 3, 3)), None, (3, 8, 8))
    with pytest.raises(InputError, match="planned for"):
        layer(np.ones((1, 3, 9, 8), np.float32))
