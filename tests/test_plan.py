"""Planned networks against the reference operations: any graph, any size, any number of threads, the same memory again."""

from __future__ import annotations

import gc
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simplify import Builder, inputs, networks

from lilnetx_mini import InputError, execute, lnx
from lilnetx_mini.errors import UnsupportedOpError
from lilnetx_mini.graph import Graph, Node
from lilnetx_mini.plan import NotPlannable, Plan
from lilnetx_mini.runtime import Network, interpret
from lilnetx_mini.simplify import fold_norms


def as_model(graph, tensors):
    return lnx.Model([], [], raws=[lnx.Raw(f"t{i}.weight", t) for i, t in enumerate(tensors)], graph=graph)


def planned(plan, x):
    """All images, one memory."""
    memory, out = plan.memory(), []
    memory.arena[:] = np.nan  # whatever a run needs it must have written
    for image in x:
        y = np.full(plan.shapes[-1], np.nan, np.float32)
        plan.run(memory, np.ascontiguousarray(image), y)
        out.append(y)
    return np.array(out)


def close(have, want):
    return have.shape == want.shape and np.abs(have - want).max(initial=0) <= 1e-4 * max(1.0, np.abs(want).max(initial=0))


@given(networks())
@settings(max_examples=150, deadline=None)
def test_a_plan_computes_what_the_graph_means(network):
    graph, tensors = network
    x = inputs(graph)
    want = interpret(graph, tensors, x)
    try:
        plan = Plan(graph, tensors)
    except NotPlannable as e:
        assert str(e)
    else:
        assert close(planned(plan, x), want)
    net = Network(as_model(graph, tensors))  # simplified besides, and by the reference operations if need be
    assert close(net(x), want) and bool(net.note) == (net.plan is None)


def test_a_network_without_operations_gives_its_input():
    x = inputs(Graph((3, 5, 4), ()))
    assert np.array_equal(planned(Plan(Graph((3, 5, 4), ()), []), x), x)


@pytest.mark.parametrize("op", ["relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh"])
@pytest.mark.parametrize("shape", [(5,), (3, 1, 1), (3, 7, 5), (2, 16, 16), (1, 1, 40)])
def test_every_activation_alone_and_behind_a_layer(op, shape):
    b = Builder(shape)
    b.put(op, 0)
    if len(shape) == 3:
        b.put(op, b.conv(1, 4))
    else:
        b.put(op, b.linear(1, 4))
    x = 4 * inputs(b.graph(), 1)
    assert close(planned(Plan(b.graph(), b.tensors), x), interpret(b.graph(), b.tensors, x))


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_pools_of_any_window(data):
    def pair(low, high):
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    kernel = pair(1, 5)
    stride, pad = pair(1, 4), tuple(min(p, k // 2) for p, k in zip(pair(0, 2), kernel, strict=True))
    size = tuple(max(n, k - 2 * p) for n, k, p in zip(pair(1, 20), kernel, pad, strict=True))
    b = Builder((2, *size))
    mean = data.draw(st.sampled_from([(), (0,), (1,)]))
    b.put("avg_pool" if mean else "max_pool", 0, attrs=(*mean, *kernel, *stride, *pad))
    x = inputs(b.graph(), 2)
    assert close(planned(Plan(b.graph(), b.tensors), x), interpret(b.graph(), b.tensors, x))


def test_an_addition_and_a_clamp_cost_no_instruction_of_their_own():
    b = Builder((4, 9, 9), holes=0)
    b.put("relu", b.option_a(b.put("relu", b.residual(0))))
    ops = [step.op for step in Plan(*fold_norms(b.graph(), b.tensors)).steps]
    # the residual's two convolutions, a shortcut, and the two of the block, the last with sum and clamp; option A's own
    # ReLU is followed by another one, which nothing is left to take in
    assert ops == ["conv", "conv", "subsample", "pad", "conv", "relu"]


def test_what_cannot_be_planned_runs_all_the_same_and_says_why():
    b = Builder((3, 6, 6))
    b.conv(0, 2, stride=2, op="conv_transpose")
    net = Network(as_model(b.graph(), b.tensors))
    x = inputs(b.graph())
    assert net.plan is None and "transposed" in net.note
    assert close(net(x), interpret(b.graph(), b.tensors, x))
    with pytest.raises(UnsupportedOpError, match="transposed"):
        net.profile(x)


def residual_network(channels=16, size=12):
    b = Builder((3, size, size), holes=0.3)
    v = b.put("relu", b.conv(0, channels))
    v = b.put("relu", b.residual(v))
    v = b.put("max_pool", b.put("relu", b.option_a(v)), attrs=(3, 3, 2, 2, 1, 1))
    v = b.gate(b.put("hardswish", b.conv(v, channels, 1, 0)))
    b.linear(b.put("global_avg_pool", v, attrs=(0,)), 10)
    return b.graph(), b.tensors


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("meeting", [0, 1_000_000])
def test_threads_change_no_bit(threads, n, meeting, monkeypatch):
    monkeypatch.setattr("lilnetx_mini.runtime.MEETING", meeting)
    graph, tensors = residual_network()
    x = np.random.default_rng(0).standard_normal((n, *graph.input_shape)).astype(np.float32)
    one, many = Network(as_model(graph, tensors)), Network(as_model(graph, tensors), threads)
    assert np.array_equal(one(x), many(x)) and one(x).shape == (n, 10)


def test_threads_change_no_bit_of_layers_with_many_passes(monkeypatch):
    monkeypatch.setattr("lilnetx_mini.runtime.MEETING", 0)
    b = Builder((512, 12, 12), holes=0)
    v = b.put("relu", b.conv(0, 256, 1, 0))
    b.conv(b.put("relu", b.conv(v, 512, 1, 0)), 256, 1, 0)
    for t in b.tensors:
        t *= b.rng.random(t.shape[:2] + (1,) * (t.ndim - 2)) < 0.2 if t.ndim > 1 else 1
    one, two = (Network(as_model(b.graph(), b.tensors), n) for n in (1, 2))
    assert max(row[5] for row in two.plan.rows if row[0] == execute.CONV) > 3  # passes
    x = inputs(b.graph())
    want = one(x[:1])
    for _ in range(30):
        assert np.array_equal(two(x[:1]), want)


def test_a_profile_counts_what_is_done_and_what_is_skipped():
    graph, tensors = residual_network()
    net = Network(as_model(graph, tensors))
    profile = net.profile(inputs(graph), runs=2)
    macs = sum(t.macs_done for t in profile)
    assert macs == sum(s.macs for s in net.plan.steps) > 0
    assert macs + sum(t.macs_skipped for t in profile) == net.removed.macs[0]
    assert all(t.milliseconds > 0 or t.op == "removed" for t in profile)
    assert "t0.weight" in str(profile) and str(profile).splitlines()[-1].startswith("sum")
    with pytest.raises(InputError, match="at least one"):
        net.profile(inputs(graph)[:0])


def test_a_layer_whose_output_is_constant_is_listed_as_removed():
    b = Builder((3, 6, 6), holes=0)
    b.conv(0, 4, padding=0)
    b.tensors[0][:] = 0
    b.linear(b.put("global_avg_pool", b.put("relu", b.conv(1, 4, padding=0)), attrs=(0,)), 3)
    profile = Network(as_model(b.graph(), b.tensors)).profile(inputs(b.graph()), runs=1)
    gone = next(t for t in profile if t.name == "t0.weight")
    assert gone.macs_done == 0 and gone.macs_skipped == 3 * 4 * 9 * 16


def test_bad_input_and_bad_numbers_of_threads_are_refused():
    graph, tensors = residual_network()
    net = Network(as_model(graph, tensors))
    for bad, message in (
        (np.zeros((1, 3, 12, 11)), "takes a batch"),
        (np.zeros((3, 12, 12)), "takes a batch"),
        (np.full((1, 3, 12, 12), np.nan), "not finite"),
        (np.full((1, 3, 12, 12), np.inf), "not finite"),
        (np.zeros((1, 3, 12, 12), complex), "real numbers"),
        (np.full((1, 3, 12, 12), "a"), "real numbers"),
    ):
        with pytest.raises(InputError, match=message):
            net(bad)
    large = np.full((1, 3, 12, 12), 1e30, np.float32)  # finite, though its square is not
    assert net(large).shape == (1, 10)
    assert close(net(np.ones((2, 3, 12, 12), np.uint8)), net(np.ones((2, 3, 12, 12))))
    with pytest.raises(InputError, match="at least one"):
        Network(as_model(graph, tensors), threads=0)


def test_a_thousand_calls_take_no_more_memory_than_one(monkeypatch):
    monkeypatch.setattr("lilnetx_mini.runtime.MEETING", 0)
    def pages():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1])

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs Linux's /proc")
    graph, tensors = residual_network()
    for threads in (1, 2):
        net, x = Network(as_model(graph, tensors), threads), inputs(graph)
        for _ in range(50):
            net(x)
        gc.collect()
        before = pages()
        for _ in range(1000):
            net(x)
        assert (pages() - before) * os.sysconf("SC_PAGE_SIZE") < 2 << 20


def largest_pair(plan):
    """Floats of the largest input and output of one node."""
    sizes = [math.prod(s) for s in plan.shapes]
    return max(sum(sizes[i] for i in {*n.inputs, k + 1}) for k, n in enumerate(plan.graph.nodes))


def bottlenecks():
    """ResNet-50's graph at 224 pixels, weights of which few are not zero."""
    rng, nodes, tensors = np.random.default_rng(0), [], []

    def conv(v, into, out, kernel=1, stride=1):
        w = np.zeros((out, into, kernel, kernel), np.float32)
        w[rng.integers(0, out, 4 * out), rng.integers(0, into, 4 * out)] = 0.1
        tensors.append(w)
        nodes.append(Node("conv", (v,), (len(tensors), 0, 1, stride, stride, kernel // 2, kernel // 2, 1, 1)))
        return len(nodes)

    def put(op, *values, attrs=()):
        nodes.append(Node(op, values, attrs))
        return len(nodes)

    v = put("max_pool", put("relu", conv(0, 3, 64, 7, 2)), attrs=(3, 3, 2, 2, 1, 1))
    into = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for k in range(blocks):
            stride = 2 if stage and not k else 1
            y = put("relu", conv(v, into, width))
            y = conv(put("relu", conv(y, width, width, 3, stride)), width, 4 * width)
            short = v if k else conv(v, into, 4 * width, 1, stride)
            v, into = put("relu", put("add", y, short)), 4 * width
    tensors.append((rng.random((1000, 2048)) < 0.01).astype(np.float32))
    put("linear", put("global_avg_pool", v, attrs=(0,)), attrs=(len(tensors), 0))
    return Graph((3, 224, 224), tuple(nodes)), tensors


def test_buffers_of_a_resnet50_are_little_more_than_its_largest_pair_of_activations():
    graph, tensors = bottlenecks()
    plan = Plan(graph, tensors)
    assert plan.arena_size <= 1.5 * largest_pair(plan)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    assert close(planned(plan, x), interpret(graph, tensors, x))
