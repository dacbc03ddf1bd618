"""The sparse kernels against their specification, and a planned convolution against the reference one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilnetx_mini import conv, sparse
from lilnetx_mini.graph import Graph, Node
from lilnetx_mini.plan import Plan

ALL = range(len(sparse.KERNELS))


def layer(kernel, seed, length, channels=7, outputs=8, density=0.5, pitch=None, near=None):
    """A made-up layer for one kernel: (arena, base, lists, where its outputs go, pitch, bias, weights, tap_at)."""
    rng = np.random.default_rng(seed)
    tap_at = np.array([3, 4, 5, 40, 41, 42, 80, 81, 120]) if kernel == sparse.TRIPLES else np.array([5])
    w = rng.standard_normal((outputs, channels, len(tap_at))).astype(np.float32)
    w *= rng.random((outputs, channels, 1)) < density
    pitch = pitch or length + 144
    arena = rng.standard_normal((channels + outputs) * pitch + 512).astype(np.float32)
    made = sparse.make_lists(w, 1, tap_at, pitch, length, kernel, near)
    bias = rng.standard_normal(outputs).astype(np.float32)
    mask = np.where(rng.random(length + 2 * sparse.BLOCK) < 0.8, -1, 0).astype(np.int32)
    lists = made.offsets, made.weights, made.table, bias, mask
    return arena, made, lists, w, tap_at, channels * pitch, pitch


def expected(arena, w, tap_at, to, pitch, bias, mask, length, residual, lo, hi):
    """The same in float64, from the definition."""
    out = []
    for o, plane in enumerate(w.astype(np.float64)):
        total = np.full(length, bias[o], np.float64)
        for c, taps in enumerate(plane):
            for weight, at in zip(taps, tap_at, strict=True):
                total += weight * arena[c * pitch + at : c * pitch + at + length]
        if residual != sparse.NONE:
            total += arena[to + o * pitch + residual : to + o * pitch + residual + length]
        out.append(np.where(mask[:length], np.clip(total, lo, hi), 0))
    return np.array(out)


def run(arena, made, lists, outputs, to, pitch, length, residual, lo, hi, part=0, parts=1):
    sparse.convolve(
        arena, 0, lists, 0, made.kernel, outputs, made.passes, made.span, 0, to, pitch, length, residual,
        np.float32(lo), np.float32(hi), 0, part, parts,
    )  # fmt: skip
    return np.array([arena[to + o * pitch : to + o * pitch + length] for o in range(outputs)])


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("length", [1, 13, 14, 15, 16, 30, 62, 100, 126, 127, 209, 400])
@pytest.mark.parametrize("near", [None, 30])
def test_a_kernel_computes_what_its_lists_say(kernel, length, near):
    length = length if kernel == sparse.TRIPLES else -(-length // sparse.LANES) * sparse.LANES
    for residual, lo, hi in ((sparse.NONE, -np.inf, np.inf), (0, 0, np.inf), (0, -1, 1)):
        arena, made, lists, w, tap_at, to, pitch = layer(kernel, length, length, near=near)
        given_arena = arena.copy()
        want = expected(arena, w, tap_at, to, pitch, *lists[3:], length, residual, lo, hi)
        have = run(arena, made, lists, len(w), to, pitch, length, residual, lo, hi)
        assert np.allclose(have, want, atol=1e-4)
        touched = np.zeros(arena.size, bool)
        for o in range(len(w)):
            touched[to + o * pitch : to + o * pitch + length] = True
        assert np.array_equal(arena[~touched], given_arena[~touched])  # and writes nowhere else
        assert near is None or made.passes > 1


@pytest.mark.parametrize("kernel", ALL)
def test_two_threads_do_the_halves_of_the_work(kernel):
    arena, made, lists, w, _, to, pitch = layer(kernel, 3, 208)
    other = arena.copy()
    args = len(w), to, pitch, 208, sparse.NONE, 0, 6
    whole = run(arena, made, lists, *args)
    first = run(other, made, lists, *args, 0, 2)
    assert not np.array_equal(first, whole)
    assert np.array_equal(run(other, made, lists, *args, 1, 2), whole)


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("parts", [2, 3])
def test_an_output_is_the_same_threads_in_all_passes(kernel, parts):
    rng = np.random.default_rng(parts)
    w = rng.standard_normal((24, 60, 9)) * (rng.random((24, 60, 1)) < 0.3)
    tap_at = np.arange(9) if kernel == sparse.TRIPLES else 2 * np.arange(9)
    made = sparse.make_lists(w.astype(np.float32), 1, tap_at, 400, 320, kernel, near=8000, parts=parts)
    k = sparse.KERNELS[kernel]
    outputs = made.table.reshape(made.passes, -1, sparse.ROW)[..., sparse.OUTPUTS : sparse.OUTPUTS + k.members]
    assert made.passes > 2 and not (outputs[0] == outputs).all()  # their order changes from pass to pass
    for part in range(parts):
        owned = [set(rows[part::parts].ravel()) for rows in outputs]
        assert all(o == owned[0] for o in owned)


def test_empty_lists_and_filled_ones_take_as_many_entries_as_they_should():
    w = np.zeros((8, 5, 1), np.float32)
    w[1, 2], w[6, 2], w[6, 4] = 1, 2, 3
    single = sparse.make_lists(w, 1, np.zeros(1), 64, 64, sparse.SINGLE)
    assert len(single.offsets) == 3 and sorted(single.weights) == [1, 2, 3]
    step = sparse.make_lists(w, 1, np.zeros(1), 64, 64, sparse.STEP)
    assert len(step.offsets) == 8  # four lists of two
    shared = sparse.make_lists(w, 1, np.zeros(1), 64, 64, sparse.SHARED)
    assert len(shared.offsets) == 3 and len(shared.weights) == 12
    dense = sparse.make_lists(np.ones((4, 3, 9), np.float32), 1, np.arange(9), 64, 64)
    assert dense.kernel == sparse.TRIPLES and len(dense.offsets) == 4 * 3 * 3


def test_the_measured_costs_choose_the_sparse_kernel_where_all_is_zero():
    costs = sparse.measured()
    assert all(0 < x < 1e6 for pair in costs.values() for x in pair)
    nearly = np.zeros((64, 256, 1), np.float32)
    nearly[::4, 3] = 1
    assert sparse.make_lists(nearly, 1, np.zeros(1), 256, 256).kernel == sparse.STEP
    costs[sparse.SHARED], costs[sparse.STEP] = (1.0, 1.0), (1.0, 1.0)  # as if they took equally long for an entry
    try:
        assert sparse.make_lists(np.ones_like(nearly), 1, np.zeros(1), 256, 256).kernel == sparse.SHARED
        costs[sparse.SHARED] = 10.0, 1.0
        assert sparse.make_lists(np.ones_like(nearly), 1, np.zeros(1), 256, 256).kernel == sparse.STEP
    finally:
        sparse.measured.cache_clear()


def single_conv(w, bias, shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """A plan of one convolution, as a function of one image (C, H, W)."""
    tensors = [w] if bias is None else [w, bias]
    node = Node("conv", (0,), (1, 0 if bias is None else 2, groups, *stride, *padding, *dilation))
    plan = Plan(Graph(tuple(shape), (node,)), [np.asarray(t, np.float32) for t in tensors])
    memory = plan.memory()

    def call(x):
        out = np.full(plan.shapes[-1], np.nan, np.float32)
        plan.run(memory, x, out)
        return out

    return call, plan


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_a_planned_convolution_equals_the_reference(data, seed):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 2)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(n, s - 2 * p) for n, s, p in zip(pair(1, 19), span, padding, strict=True)]
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    into, out = (groups * data.draw(st.integers(1, 9)) for _ in range(2))
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, into // groups, *kernel)).astype(np.float32)
    w *= rng.random(w.shape[:2])[:, :, None, None] < data.draw(st.sampled_from([0, 0.1, 0.5, 1]))
    bias = rng.standard_normal(out).astype(np.float32) if data.draw(st.booleans()) else None
    x = rng.standard_normal((3, into, *size)).astype(np.float32)
    call, plan = single_conv(w, bias, x.shape[1:], stride, padding, dilation, groups)
    want = conv.conv(x, w, bias, stride, padding, dilation, groups)
    for image, y in zip(x, want, strict=True):  # memory is used again
        assert np.abs(call(image) - y).max(initial=0) <= 1e-4 * max(1, np.abs(y).max(initial=0))
    assert sum(step.macs for step in plan.steps) == np.count_nonzero(w) * want[0, 0].size


def test_many_channels_go_in_several_passes_and_spans():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 600, 3, 3)).astype(np.float32) * (rng.random((8, 600, 1, 1)) < 0.2)
    x = rng.standard_normal((600, 40, 33)).astype(np.float32)
    call, _ = single_conv(w, None, x.shape, padding=(1, 1))
    assert np.allclose(call(x), conv.conv(x[None], w, None, (1, 1), (1, 1), (1, 1))[0], atol=1e-3)


def test_it_runs_without_compiling():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, test_sparse as t; from lilnetx_mini import conv, sparse\n"
        "r = np.random.default_rng(0); x = r.standard_normal((3, 6, 5)).astype('f')\n"
        "for k, s in ((3, 1), (3, 2), (1, 1)):\n"
        "    w = r.standard_normal((5, 3, k, k)).astype('f'); p = (k // 2, k // 2)\n"
        "    y = conv.conv(x[None], w, None, (s, s), p, (1, 1))[0]\n"
        "    assert np.allclose(t.single_conv(w, None, x.shape, (s, s), p)[0](x), y, atol=1e-5)\n"
        "for kernel in t.ALL:\n"
        "    t.test_two_threads_do_the_halves_of_the_work(kernel)\n"
        "    t.test_a_kernel_computes_what_its_lists_say(kernel, 30, None)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
