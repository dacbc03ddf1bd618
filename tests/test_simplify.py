"""Fewer channels, the same outputs: on random graphs, on the cases that go wrong easily, and on real files."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilnetx_mini import lnx
from lilnetx_mini.graph import Graph, Node, infer_shapes, node_shape
from lilnetx_mini.runtime import interpret
from lilnetx_mini.simplify import fold_norms, layer_macs, quieted, simplify

FILES = Path(__file__).parent.parent / "results" / "files"
ONE = (1, 1)


def run(graph, tensors, x):
    return interpret(graph, tensors, x)


def inputs(graph, seed=0, n=3):
    return np.random.default_rng(seed).normal(size=(n, *graph.input_shape)).astype(np.float32)


def assert_same(graph, tensors, new, own, seed=0):
    x = inputs(graph, seed)
    want, have = run(graph, tensors, x), run(new, own, x)
    assert want.shape == have.shape and np.isfinite(want).all()
    assert np.abs(want - have).max() <= 1e-5 * max(1.0, np.abs(want).max())


class Builder:
    """A graph that grows node by node, with multiples of 1/8 as weights, and zero rows and columns among them."""

    def __init__(self, shape, seed=0, holes=0.35):
        self.nodes, self.tensors, self.shapes = [], [], [shape]
        self.rng, self.holes = np.random.default_rng(seed), holes

    def put(self, op, *values, attrs=()):
        node = Node(op, values, tuple(int(a) for a in attrs))
        shape = node_shape(node, [self.shapes[v] for v in values], [t.shape for t in self.tensors])
        self.nodes.append(node)
        self.shapes.append(shape)
        return len(self.nodes)

    def tensor(self, a):
        self.tensors.append(np.asarray(a, np.float32))
        return len(self.tensors)

    def weight(self, *shape):
        w = self.rng.integers(-8, 9, shape) / 8 / max(1, math.isqrt(math.prod(shape[1:])))
        w[self.rng.random(shape[0]) < self.holes] = 0
        w[:, self.rng.random(shape[1]) < self.holes] = 0
        return self.tensor(w)

    def vector(self, n):
        return self.tensor(self.rng.integers(-4, 5, n) / 4 * (self.rng.random(n) > 0.2))

    def conv(self, v, out, kernel=3, padding=1, stride=1, groups=1, biased=True, op="conv"):
        c, *spatial = self.shapes[v]
        axes = len(spatial)
        first, second = (c, out // groups) if op == "conv_transpose" else (out, c // groups)
        w, b = self.weight(first, second, *[kernel] * axes), self.vector(out) if biased else 0
        extra = [0] * axes if op == "conv_transpose" else []
        return self.put(
            op, v, attrs=(w, b, groups, *[stride] * axes, *[min(padding, kernel // 2)] * axes, *[1] * axes, *extra)
        )

    def norm(self, v):
        c = self.shapes[v][0]
        return self.put("scale_shift", v, attrs=(self.vector(c), self.vector(c)))

    def linear(self, v, out, biased=True):
        return self.put("linear", v, attrs=(self.weight(out, self.shapes[v][-1]), self.vector(out) if biased else 0))

    def gate(self, v):
        pooled = self.put("global_avg_pool", v, attrs=(1,))
        squeezed = self.put("relu", self.conv(pooled, 3, 1, 0))
        return self.put("mul", v, self.put("sigmoid", self.conv(squeezed, self.shapes[v][0], 1, 0)))

    def residual(self, v):
        inner = self.put("relu", self.norm(self.conv(v, self.shapes[v][0], biased=False)))
        return self.put("add", self.norm(self.conv(inner, self.shapes[v][0], biased=False)), v)

    def option_a(self, v):
        c = self.shapes[v][0]
        main = self.norm(self.conv(v, c + 3, stride=2))
        short = self.put("pad", self.put("subsample", v, attrs=(2, 2)), attrs=(1, 0, 0, 2, 0, 0))
        return self.put("relu", self.put("add", short, main))

    def graph(self):
        return Graph(self.shapes[0], tuple(self.nodes))


def _other(b, v, pick):
    """A value with the spatial shape of v."""
    fitting = [i for i, s in enumerate(b.shapes) if s[1:] == b.shapes[v][1:]]
    return fitting[pick % len(fitting)]


def _concat(b, v, pick):
    return b.put("concat", _other(b, v, pick), v, _other(b, v, pick // 3))


def _add(b, v, pick):
    other = _other(b, v, pick)
    fits = b.shapes[other][0] in (1, b.shapes[v][0]) or b.shapes[v][0] == 1
    return b.put(("add", "mul")[pick % 2], *((other, v) if fits else (v, v)))


def _pool(b, v, pick):
    kind = (("max_pool", ()), ("avg_pool", (1,)), ("avg_pool", (0,)))[pick % 3]
    return b.put(kind[0], v, attrs=(*kind[1], 3, 2, 1, 2, 1, pick // 3 % 2))


def _grouped(b, v, pick):
    c = b.shapes[v][0]
    return b.conv(v, c * (1 + pick % 2), padding=pick // 2 % 2, groups=2 if c % 2 == 0 and pick % 3 == 0 else c)


def _pad(b, v, pick):
    return b.put("pad", v, attrs=(pick % 3, pick // 3 % 2, 0, pick // 2 % 3, 0, pick // 5 % 2))


ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh")
BLOCKS = {
    "conv": lambda b, v, pick: b.conv(v, 1 + pick % 5, (1, 3)[pick % 2], pick // 2 % 2, 1 + pick // 7 % 2),
    "normed": lambda b, v, pick: b.put("relu", b.norm(b.conv(v, 2 + pick % 4, biased=False))),
    "norm": lambda b, v, pick: b.norm(v),
    "activation": lambda b, v, pick: b.put(ACTIVATIONS[pick % len(ACTIVATIONS)], v),
    "residual": lambda b, v, pick: b.residual(v),
    "option_a": lambda b, v, pick: b.option_a(v),
    "gate": lambda b, v, pick: b.gate(v),
    "grouped": _grouped,
    "transposed": lambda b, v, pick: b.conv(v, 2 + pick % 3, 3, pick % 2, 1 + pick // 2 % 2, op="conv_transpose"),
    "concat": _concat,
    "add": _add,
    "pool": _pool,
    "pad": _pad,
    "rows": lambda b, v, pick: b.linear(v, b.shapes[v][-1]),
}
ANY_SIZE = ("norm", "activation", "add", "concat", "pad", "rows")  # the others have windows of up to three by three
HEADS = {
    "none": lambda b, v: v,
    "pooled": lambda b, v: b.linear(b.norm(b.put("global_avg_pool", v, attrs=(0,))), 3),
    "flat": lambda b, v: b.linear(b.put("relu", b.linear(b.put("flatten", b.conv(v, 3)), 6)), 4, biased=False),
    "normed": lambda b, v: b.norm(b.linear(b.norm(b.linear(b.put("flatten", v), 5)), 3)),
}


@st.composite
def networks(draw):
    b = Builder((draw(st.integers(1, 3)), 6, 5), draw(st.integers(0, 1 << 16)), draw(st.sampled_from([0.2, 0.5, 0.8])))
    v = b.conv(0, draw(st.integers(2, 5)))
    for name, pick in draw(st.lists(st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(0, 60)), max_size=7)):
        if math.prod(b.shapes[v]) < 1500 and (min(b.shapes[v][1:]) > 2 or name in ANY_SIZE):
            v = BLOCKS[name](b, v, pick)
    HEADS[draw(st.sampled_from(sorted(HEADS)))](b, v)
    return b.graph(), b.tensors


@given(networks(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_outputs_stay_work_never_grows_and_a_second_time_changes_nothing(network, fold):
    graph, tensors = network
    new, own, removed = simplify(graph, tensors, fold)
    assert_same(graph, tensors, new, own)
    for before, after in (removed.macs, removed.channels, removed.weights):
        assert before >= after
    assert removed.macs == (sum(layer_macs(graph, tensors)), sum(layer_macs(new, own)))
    again, same, nothing = simplify(new, own, fold)
    assert again == new and all(np.array_equal(s, t) for s, t in zip(own, same, strict=True))
    assert nothing.channels[0] == nothing.channels[1] == removed.channels[1]


@given(networks())
@settings(max_examples=60, deadline=None)
def test_folding_norms_keeps_outputs(network):
    graph, tensors = network
    assert_same(graph, tensors, *fold_norms(graph, tensors))


@given(networks())
@settings(max_examples=200, deadline=None)
def test_quieted_tensors_compute_the_same_in_the_same_shapes(network):
    graph, tensors = network
    new = quieted(graph, tensors)
    assert_same(graph, tensors, graph, new)
    for s, t in zip(tensors, new, strict=True):
        assert s.shape == t.shape and s.dtype == t.dtype
        if s.ndim > 1:  # a weight: its slices are what they were, or zero
            before, after = (x.reshape(*x.shape[:2], -1) for x in (s, t))
            assert ((before == after).all(2) | (after == 0).all(2)).all()
    assert all(np.array_equal(s, t) for s, t in zip(new, quieted(graph, new), strict=True))


def test_what_a_dead_filter_and_an_unread_one_leave_behind():
    """Filter 0 is zero, with a bias that passes the activation; filter 1 is read by nobody; a padded convolution keeps its constant."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 2, 3, 3)).astype(np.float32), rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    first[0], second[:, 1] = 0, 0
    tensors = [first, np.float32([0.5, 0.7, 0.9]), second, np.float32([0.1, 0.2])]
    for padding in (0, 1):
        nodes = (Node("conv", (0,), (1, 2, 1, 1, 1, 0, 0, 1, 1)), Node("relu", (1,), ()),
                 Node("conv", (2,), (3, 4, 1, 1, 1, padding, padding, 1, 1)))  # fmt: skip
        graph = Graph((2, 8, 8), nodes)
        w, b, v, c = quieted(graph, tensors)
        assert not w[1].any() and b[1] == 0 and np.array_equal(w[2], first[2]) and b[2] == tensors[1][2]
        if padding:
            assert b[0] == tensors[1][0] and np.array_equal(v, second) and np.array_equal(c, tensors[3])
        else:
            assert b[0] == 0 and not v[:, 0].any() and np.allclose(c, tensors[3] + 0.5 * second[:, 0].sum((1, 2)))
        assert_same(graph, tensors, graph, [w, b, v, c])


def test_a_norm_is_folded_in_float64_and_rounded_once():
    b = Builder((3, 5, 5), holes=0)
    rng = np.random.default_rng(1)
    b.norm(b.conv(0, 4))
    tensors = [rng.normal(size=t.shape).astype(np.float32) for t in b.tensors]
    w, bias, scale, shift = (t.astype(np.float64) for t in tensors)
    graph, own = fold_norms(b.graph(), tensors)
    assert [n.op for n in graph.nodes] == ["conv"]
    assert np.array_equal(own[0], (w * scale[:, None, None, None]).astype(np.float32))
    assert np.array_equal(own[1], (bias * scale + shift).astype(np.float32))


def test_a_norm_that_is_not_the_only_reader_stays():
    b = Builder((3, 5, 5), holes=0)
    v = b.conv(0, 4)
    b.put("add", b.norm(v), v)
    graph, _ = fold_norms(b.graph(), b.tensors)
    assert [n.op for n in graph.nodes] == ["conv", "scale_shift", "add"]


def two_convs(padding, dead=(1, 2, 4)):
    """conv, relu, conv; channels `dead` of the first are constants 1, 2, ..."""
    b = Builder((2, 6, 6), holes=0)
    v = b.put("relu", b.conv(0, 6))
    b.tensors[0][list(dead)] = 0
    b.tensors[1][list(dead)] = 1 + np.arange(len(dead))
    b.conv(v, 3, padding=padding)
    return b.graph(), b.tensors


def test_constants_before_a_padded_convolution_become_one_channel():
    graph, tensors = two_convs(1)
    new, own, removed = simplify(graph, tensors)
    assert_same(graph, tensors, new, own)
    assert removed.channels == (9, 7) and removed.layers[0].rows == (0, 1, 3, 5)
    x = inputs(graph)
    naive = [t.copy() for t in tensors]  # what a bias alone would do: right inside, wrong at the border
    naive[2][:, [1, 2, 4]] = 0
    naive[3] += tensors[2][:, [1, 2, 4]].sum(axis=(2, 3)) @ tensors[1][[1, 2, 4]]
    wrong, right = run(graph, naive, x), run(new, own, x)
    assert np.abs(wrong - right)[:, :, 1:-1, 1:-1].max() < 1e-5 < 0.1 < np.abs(wrong - right).max()


def test_constants_before_a_convolution_without_padding_go_into_its_bias():
    graph, tensors = two_convs(0)
    new, own, removed = simplify(graph, tensors)
    assert_same(graph, tensors, new, own)
    assert removed.layers[0].rows == removed.layers[1].columns == (0, 3, 5)


def test_what_is_kept_is_numbered_as_before():
    b = Builder((2, 6, 6), seed=3, holes=0)
    v = b.put("tanh", b.conv(0, 6, biased=False))
    v = b.put("flatten", b.conv(v, 4, biased=False))
    b.linear(v, 3, biased=False)
    b.tensors[0][2] = 0  # a constant zero
    b.tensors[1][:, 5] = 0  # read by nobody
    b.tensors[2][:, 36:72] = 0  # a run of features that nobody reads
    new, own, removed = simplify(b.graph(), b.tensors)
    assert_same(b.graph(), b.tensors, new, own)
    assert [k.rows for k in removed.layers] == [(0, 1, 3, 4), (0, 2, 3), (0, 1, 2)]
    for k in removed.layers:
        assert np.array_equal(own[k.now], b.tensors[k.tensor][np.ix_(k.rows, k.columns)])
    assert removed.layers[2].columns == (*range(36), *range(72, 144))


def test_a_feature_of_a_run_keeps_its_channel():
    b = Builder((2, 3, 3), holes=0)
    b.linear(b.put("flatten", b.conv(0, 4)), 3)
    b.tensors[2][:, :17] = 0  # the last feature of channel 1 is read
    _, _, removed = simplify(b.graph(), b.tensors)
    assert removed.layers[0].rows == (1, 2, 3) and len(removed.layers[1].columns) == 27


def test_the_padding_of_an_option_a_shortcut_shrinks_with_its_channels():
    b = Builder((2, 8, 8), holes=0)
    v = b.put("relu", b.conv(0, 4))
    v = b.option_a(v)  # channels: one of padding, four of v, two of padding
    b.conv(v, 3)
    b.tensors[-2][:, [0, 3, 6]] = 0
    b.tensors[2][:, 2] = 0  # nobody reads channel 2 of v: channel 3 of the sum was its only use
    new, own, removed = simplify(b.graph(), b.tensors)
    assert_same(b.graph(), b.tensors, new, own)
    (pad,) = (n for n in new.nodes if n.op == "pad")
    assert pad.attrs == (0, 0, 0, 1, 0, 0)
    assert [k.rows for k in removed.layers] == [(0, 1, 3), (1, 2, 4, 5), (0, 1, 2)]


def test_channels_of_a_sum_stay_while_any_of_its_values_needs_them():
    b = Builder((2, 6, 6), holes=0)
    v = b.put("relu", b.conv(0, 4))
    w = b.residual(v)
    b.conv(w, 2)
    b.tensors[-2][:, 1] = 0  # not read after the sum ...
    _, _, removed = simplify(b.graph(), b.tensors)
    assert removed.layers[0].rows == (0, 1, 2, 3)  # ... but inside the block
    b.tensors[2][:, 1] = 0
    new, own, removed = simplify(b.graph(), b.tensors)
    assert removed.layers[0].rows == removed.layers[2].rows == (0, 2, 3)
    assert_same(b.graph(), b.tensors, new, own)


@pytest.mark.parametrize("fold", [True, False])
def test_a_residual_branch_that_is_constant_disappears(fold):
    b = Builder((2, 6, 6), holes=0)
    v = b.put("relu", b.conv(0, 4))
    b.conv(b.put("relu", b.residual(v)), 3)
    b.tensors[5][:] = 0  # the block's second convolution; the norm layer after it shifts
    assert b.tensors[7].any()
    new, own, removed = simplify(b.graph(), b.tensors, fold)
    assert_same(b.graph(), b.tensors, new, own)
    assert [n.op for n in new.nodes] == ["conv", "relu", "scale_shift", "relu", "conv"]
    assert removed.layers[1].now == removed.layers[2].now == -1


def test_a_chain_that_only_a_concatenation_reads_in_vain_disappears():
    b = Builder((2, 6, 6), holes=0)
    v = b.conv(0, 4)
    dead = b.conv(b.put("relu", b.conv(v, 5)), 3)
    b.conv(b.put("concat", v, dead), 2)
    b.tensors[-2][:, 4:] = 0
    new, own, removed = simplify(b.graph(), b.tensors)
    assert_same(b.graph(), b.tensors, new, own)
    assert [n.op for n in new.nodes] == ["conv", "conv"] and removed.channels == (14, 6)


def test_steps_that_nobody_reads_disappear():
    b = Builder((2, 6, 6), holes=0)
    b.put("relu", b.conv(0, 4))
    b.conv(0, 3)
    new, own, _ = simplify(b.graph(), b.tensors)
    assert [n.op for n in new.nodes] == ["conv"] and len(own) == 2
    assert_same(b.graph(), b.tensors, new, own)


def test_depthwise_convolutions_and_gates_shrink_with_their_channels():
    b = Builder((2, 6, 6), holes=0)
    v = b.put("relu", b.conv(0, 6))
    v = b.gate(b.put("relu", b.conv(v, 12, groups=6)))  # two filters a channel
    b.conv(v, 3, 1, 0)
    w, squeeze = b.tensors[-2], b.tensors[4]
    w[:, [2, 3, 6]] = 0  # both filters of channel 1, one of channel 3
    squeeze[:, [2, 3, 6]] = 0
    new, own, removed = simplify(b.graph(), b.tensors)
    assert_same(b.graph(), b.tensors, new, own)
    assert removed.layers[0].rows == (0, 2, 3, 4, 5)
    assert removed.layers[1].rows == (0, 1, *range(4, 12)) == removed.layers[3].rows
    assert [n.attrs[2] for n in new.nodes if n.op == "conv"] == [1, 5, 1, 1, 1]


def test_input_and_output_keep_their_channels_and_every_value_has_one():
    b = Builder((3, 6, 6), holes=0)
    b.conv(b.put("relu", b.conv(b.put("tanh", 0), 4)), 5)
    for t in b.tensors:
        t[:] = 0
    new, own, removed = simplify(b.graph(), b.tensors)
    assert infer_shapes(new, [t.shape for t in own]) == [(3, 6, 6), (3, 6, 6), (1, 6, 6), (1, 6, 6), (5, 6, 6)]
    assert removed.channels == (9, 6)
    assert_same(b.graph(), b.tensors, new, own)


def test_a_tensor_that_two_layers_share_is_cut_for_each_alone():
    b = Builder((2, 6, 6), holes=0)
    v = b.put("relu", b.conv(0, 4, 1, 0, biased=False))
    w = b.tensor(b.rng.normal(size=(4, 4, 3, 3)))
    v = b.put("relu", b.put("conv", v, attrs=(w, 0, 1, *ONE, *ONE, *ONE)))
    v = b.put("relu", b.put("conv", v, attrs=(w, 0, 1, *ONE, *ONE, *ONE)))
    b.conv(v, 2)
    b.tensors[0][1] = 0
    b.tensors[2][:, 3] = 0
    new, own, removed = simplify(b.graph(), b.tensors)
    assert_same(b.graph(), b.tensors, new, own)
    assert [(k.tensor, k.rows, k.columns) for k in removed.layers[1:3]] == [
        (1, (0, 1, 2, 3), (0, 2, 3)),
        (1, (0, 1, 2), (0, 1, 2, 3)),
    ]


def test_given_tensors_are_left_alone():
    graph, tensors = two_convs(1)
    before = [t.copy() for t in tensors]
    simplify(graph, tensors)
    assert all(np.array_equal(s, t) for s, t in zip(before, tensors, strict=True))


@pytest.mark.parametrize("name", ["digits", "mnist_lenet5", "cifar10_resnet20"])
@pytest.mark.parametrize("fold", [True, False])
def test_a_trained_network_loses_channels_and_nothing_else(name, fold):
    model = lnx.read(FILES / f"{name}.lnx")
    tensors = model.tensors()
    new, own, removed = simplify(model.graph, tensors, fold)
    assert_same(model.graph, tensors, new, own)
    assert removed.channels[1] < removed.channels[0] and removed.macs[1] < removed.macs[0]
    quiet = quieted(model.graph, tensors)
    assert_same(model.graph, tensors, model.graph, quiet)
    assert simplify(model.graph, quiet, fold)[2] == removed  # nothing that can go is hidden by it
    print(f"{name}: channels {removed.channels}, weights {removed.weights}, multiplications {removed.macs}")
    again, same, _ = simplify(new, own, fold)
    assert again == new and all(np.array_equal(s, t) for s, t in zip(own, same, strict=True))
