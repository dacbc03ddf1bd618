"""The ONNX export against the package's own runtime, operation by operation and on whole files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lilnetx_mini import InputError, LnxError, cli, lnx
from lilnetx_mini.errors import UnsupportedOpError
from lilnetx_mini.graph import OPS, Graph, Node
from lilnetx_mini.runtime import Network

onnx = pytest.importorskip("onnx", reason="onnx is in the dev extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the dev extra")

from lilnetx_mini import onnx_export  # noqa: E402

FILES = ["digits", "mnist_lenet5", "cifar10_resnet20"]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto | bytes, x: np.ndarray) -> np.ndarray:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"]).run(["output"], {"input": x})[0]


def network(shape: tuple[int, ...], nodes: list[Node], tensors: list[np.ndarray]) -> Network:
    raws = [lnx.Raw(f"t.{i}", t) for i, t in enumerate(tensors)]
    return Network(lnx.Model([], [], [], raws, Graph(shape, tuple(nodes))))


def close(have: np.ndarray, want: np.ndarray) -> None:
    assert have.shape == want.shape and have.dtype == np.float32
    assert np.abs(have - want).max(initial=0) <= 1e-4 * np.abs(want).max(initial=1e-3)


def agree(shape: tuple[int, ...], nodes: list[Node], *tensors: np.ndarray, scale: float = 1.0) -> onnx.ModelProto:
    """Both runtimes give the same for a batch of one and of three."""
    ours = network(shape, nodes, list(tensors))
    model = onnx_export.to_onnx(Graph(shape, tuple(nodes)), list(tensors))
    for n in (1, 3):
        x = scale * normal(n, *shape)
        close(run(model, x), ours(x))
    return model


ONE = {  # a name: input shape, operation, attributes, tensors
    "conv of 1 axis": ((3, 11), "conv", (1, 0, 1, 2, 1, 1), [(4, 3, 3)]),
    "conv of 2 axes": ((4, 9, 7), "conv", (1, 2, 2, 2, 3, 1, 0, 1, 2), [(6, 2, 3, 2), (6,)]),
    "conv of 3 axes": ((4, 5, 6, 7), "conv", (1, 2, 2, 1, 2, 1, 1, 0, 1, 1, 1, 2), [(2, 2, 3, 2, 1), (2,)]),
    "depthwise conv": ((5, 7, 8), "conv", (1, 0, 5, 1, 2, 2, 1, 1, 1), [(5, 1, 4, 3)]),
    "padding wider than the kernel": ((2, 3, 3), "conv", (1, 0, 1, 1, 2, 3, 2, 1, 1), [(3, 2, 1, 2)]),
    "conv_transpose of 1 axis": ((4, 5), "conv_transpose", (1, 2, 2, 3, 1, 2, 2), [(4, 3, 3), (6,)]),
    "conv_transpose of 2 axes": (
        (6, 5, 4), "conv_transpose", (1, 2, 3, 2, 3, 1, 0, 1, 2, 1, 2), [(6, 2, 3, 2), (6,)]),
    "conv_transpose of 3 axes": (
        (2, 3, 4, 3), "conv_transpose", (1, 0, 1, 2, 1, 2, 0, 1, 1, 1, 1, 1, 1, 0, 1), [(2, 3, 2, 3, 3)]),
    "conv_transpose that crops": ((2, 5, 6), "conv_transpose", (1, 0, 1, 1, 2, 2, 1, 1, 1, 0, 1), [(2, 3, 2, 1)]),
    "output padding beyond the stride": (
        (2, 4, 5), "conv_transpose", (1, 2, 1, 1, 2, 0, 1, 3, 3, 2, 2), [(2, 3, 2, 3), (3,)]),
    "linear of a vector": ((7,), "linear", (1, 2), [(3, 7), (3,)]),
    "linear without bias": ((7,), "linear", (1, 0), [(3, 7)]),
    "linear of a sequence": ((5, 7), "linear", (1, 2), [(3, 7), (3,)]),
    "linear of a volume": ((2, 3, 5, 7), "linear", (1, 0), [(1, 7)]),
    "scale_shift of a vector": ((5,), "scale_shift", (1, 2), [(5,), (5,)]),
    "scale_shift of an image": ((3, 5, 4), "scale_shift", (1, 2), [(3,), (3,)]),
    "max_pool of 1 axis": ((3, 10), "max_pool", (3, 2, 1), []),
    "max_pool, last row left over": ((3, 8, 9), "max_pool", (3, 2, 2, 2, 1, 0), []),
    "max_pool of 3 axes": ((2, 5, 6, 7), "max_pool", (2, 3, 2, 2, 1, 3, 1, 1, 0), []),
    "avg_pool with padding counted": ((3, 8, 9), "avg_pool", (1, 3, 2, 2, 3, 1, 1), []),
    "avg_pool without": ((3, 8, 9), "avg_pool", (0, 3, 2, 2, 3, 1, 1), []),
    "avg_pool of 1 axis": ((3, 8), "avg_pool", (0, 4, 3, 2), []),
    "avg_pool of 3 axes": ((2, 5, 6, 7), "avg_pool", (1, 2, 3, 2, 2, 1, 3, 1, 1, 0), []),
    "global_avg_pool": ((3, 5, 7), "global_avg_pool", (0,), []),
    "global_avg_pool that keeps axes": ((3, 5, 7), "global_avg_pool", (1,), []),
    "global_avg_pool of 1 axis": ((3, 5), "global_avg_pool", (0,), []),
    "global_avg_pool of 3 axes": ((3, 5, 2, 3), "global_avg_pool", (1,), []),
    "flatten": ((3, 5, 7), "flatten", (), []),
    "flatten of a vector": ((5,), "flatten", (), []),
    "flatten of a number": ((), "flatten", (), []),
    "subsample": ((3, 8, 7), "subsample", (3, 2), []),
    "subsample of 1 axis": ((3, 8), "subsample", (5,), []),
    "pad": ((3, 4, 5), "pad", (2, 0, 1, 1, 3, 0), []),
    "pad of a vector": ((3,), "pad", (1, 4), []),
}  # fmt: skip
ACTIVATIONS = ["relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh"]
SEVERAL = ["add", "mul", "concat"]


@pytest.mark.parametrize("name", ONE)
def test_one_operation(name):
    shape, op, attrs, tensors = ONE[name]
    agree(shape, [Node(op, (0,), attrs)], *(normal(*t) for t in tensors))


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("scale", [4, 1000])
def test_an_activation(op, scale):
    agree((3, 5, 7), [Node(op, (0,))], scale=scale)


def test_operations_on_several_values():
    gate = [Node("global_avg_pool", (0,), (1,)), Node("sigmoid", (1,)), Node("mul", (0, 2)), Node("add", (1, 3))]
    agree((3, 5, 7), [*gate, Node("add", (4, 4)), Node("concat", (0, 5, 2, 5)[:2]), Node("mul", (6, 6))])
    agree((5,), [Node("concat", (0, 0, 0)), Node("concat", (1,))])


def test_every_operation_has_a_test():
    assert {op for _, op, _, _ in ONE.values()} | {*ACTIVATIONS, *SEVERAL} == set(OPS)


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(st.booleans(), st.sampled_from([1, 2]), PAIR, PAIR, PAIR, PAIR, st.tuples(*[st.integers(0, 2)] * 4))
@settings(max_examples=60, deadline=None)
def test_convolutions_of_all_kinds(transposed, groups, channels, kernel, stride, dilation, pads):
    into, out = channels
    padding, extra = pads[:2], [min(e, max(s, d) - 1) for e, s, d in zip(pads[2:], stride, dilation, strict=True)]
    attrs = (1, 2, groups, *stride, *padding, *dilation, *(extra if transposed else ()))
    weight = (into * groups, out, *kernel) if transposed else (out * groups, into, *kernel)
    node = Node("conv_transpose" if transposed else "conv", (0,), attrs)
    agree((into * groups, 7, 8), [node], normal(*weight), normal(out * groups))


def test_one_tensor_serves_values_of_different_ranks():
    t = [normal(3), normal(3)]
    nodes = [Node("scale_shift", (0,), (1, 2)), Node("global_avg_pool", (1,), (0,)), Node("scale_shift", (2,), (1, 1))]
    model = agree((3, 4, 5), [*nodes, Node("scale_shift", (1,), (2, 1)), Node("global_avg_pool", (4,), (0,))], *t)
    assert len(model.graph.initializer) == 3  # the second scale_shift of an image stores nothing new


def test_a_network_without_operations_gives_its_input():
    agree((2, 3), [])


def test_names_shapes_and_versions():
    tensors = [normal(4, 3), normal(4), normal(9, 9), normal(3, 4)]
    graph = Graph((3,), (Node("linear", (0,), (1, 2)), Node("relu", (1,)), Node("linear", (2,), (4, 0))))
    names = ["input", "relu_2", "unread", ""]  # the first two are taken by values
    model = onnx_export.to_onnx(graph, tensors, names)
    assert [t.name for t in model.graph.initializer] == ["input_", "relu_2_", "tensor_4"]
    close(run(model, normal(2, 3)), network((3,), list(graph.nodes), tensors)(normal(2, 3)))
    twice = onnx_export.to_onnx(graph, tensors, ["w"] * 4)
    assert [t.name for t in twice.graph.initializer] == ["w", "w_", "w__"]
    ends = [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)]  # fmt: skip
    assert ends == [
        ("input", ["batch", 3]),
        ("linear_1", ["batch", 4]),
        ("relu_2", ["batch", 4]),
        ("output", ["batch", 3]),
    ]
    assert model.producer_name == "lilnetx-mini" and model.opset_import[0].version == onnx_export.OPSET


def test_what_does_not_fit_is_refused():
    with pytest.raises(LnxError, match=r"node 0 \(linear\)"):
        onnx_export.to_onnx(Graph((3,), (Node("linear", (0,), (1, 0)),)), [normal(4, 2)])
    with pytest.raises(InputError, match="1 names for 0"):
        onnx_export.to_onnx(Graph((3,), ()), [], ["a"])
    with pytest.raises(UnsupportedOpError, match="over 4 axes"):
        onnx_export.to_onnx(Graph((1, 2, 2, 2, 2), (Node("max_pool", (0,), (1,) * 8 + (0,) * 4),)), [])


def test_tensors_that_no_onnx_file_can_hold_are_refused(monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST_MODEL", 40)
    with pytest.raises(onnx_export.ExportError, match="at most 40"):
        onnx_export.to_onnx(Graph((3,), (Node("linear", (0,), (1, 0)),)), [normal(4, 3)])


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_trained_file_computes_the_same(name, shrink, golden, tmp_path):
    source = golden.parent.parent / "results" / "files" / f"{name}.lnx"
    done = onnx_export.export(source, tmp_path / "deep" / "m.onnx", shrink)
    data = (tmp_path / "deep" / "m.onnx").read_bytes()
    assert (done["bytes"], done["source_bytes"]) == (len(data), source.stat().st_size)
    ours = Network.load(source)
    for n in (1, 3):
        x = np.abs(normal(n, *ours.input_shape)).clip(0, 1)
        close(run(data, x), ours(x))
    stored = {t.name: tuple(t.dims) for t in onnx.load_from_string(data).graph.initializer}
    model = lnx.read(source)
    weights = {k: v for k, v in zip(model.tensor_names(), model.tensor_shapes(), strict=True) if len(v) > 1}
    if shrink:
        kept = {k: v for k, v in stored.items() if k in weights}
        assert len(kept) > len(weights) / 2 and all(v[0] <= weights[k][0] for k, v in kept.items())
        assert done["weights"] == [sum(map(np.prod, weights.values())), sum(map(np.prod, kept.values()))]
        assert {k.removesuffix(".bias") + ".weight" for k in stored if k.endswith(".bias")} <= kept.keys()
    else:
        assert weights.items() <= stored.items() and "weights" not in done


def test_a_norm_layer_that_stays_is_named_after_its_node(tmp_path):
    raws = [lnx.Raw("bn.scale", normal(3)), lnx.Raw("bn.shift", normal(3))]
    nodes = (Node("scale_shift", (0,), (1, 2)), Node("relu", (1,)))
    lnx.write(tmp_path / "m.lnx", lnx.Model([], [], [], raws, Graph((3, 4), nodes)))
    onnx_export.export(tmp_path / "m.lnx", tmp_path / "m.onnx")
    stored = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert [t.name for t in stored] == ["scale_shift_1.scale", "scale_shift_1.shift"]


def test_exporting_twice_gives_the_same_bytes(golden, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        onnx_export.export(golden / "digits.lnx", tmp_path / name, shrink=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_damaged_file_leaves_the_old_model(golden, tmp_path):
    data = bytearray((golden / "digits.lnx").read_bytes())
    data[-5] ^= 1
    (tmp_path / "m.lnx").write_bytes(data)
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(LnxError, match="checksum"):
        onnx_export.export(tmp_path / "m.lnx", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_a_file_without_a_graph_says_why(tmp_path):
    lnx.write(tmp_path / "m.lnx", lnx.Model([], [], [], [lnx.Raw("a", normal(2))], None, "it sorts"))
    with pytest.raises(UnsupportedOpError, match=r"no graph to run \(it sorts\).*load_into"):
        onnx_export.export(tmp_path / "m.lnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("options", [[], ["--keep-channels"]])
def test_the_command_writes_beside_the_file_or_where_it_is_told(options, golden, tmp_path):
    source = tmp_path / "m.lnx"
    source.write_bytes((golden / "digits.lnx").read_bytes())
    done = CliRunner().invoke(cli.app, ["export", str(source), "--onnx", *options])
    data = (tmp_path / "m.onnx").read_bytes()
    assert done.exit_code == 0 and f"{len(data):,} bytes" in done.stdout and f"{source.stat().st_size:,}" in done.stdout
    x = np.load(golden / "digits.npz")["x"][:16].astype(np.float32)
    hint = [line.strip() for line in done.stdout.splitlines() if " = " in line]  # the printed recipe is run as printed
    scope = {"onnxruntime": onnxruntime, "x": x}
    exec("\n".join(hint), scope)
    close(scope["outputs"], Network.load(source)(x))
    other = CliRunner().invoke(cli.app, ["export", str(source), "--onnx", str(tmp_path / "b.onnx"), *options, "--json"])
    assert json.loads(other.stdout)["bytes"] == len(data) and (tmp_path / "b.onnx").read_bytes() == data


def test_without_onnx_the_error_says_what_to_install(golden, tmp_path):
    code = "import sys; sys.modules['onnx'] = None; from lilnetx_mini.cli import main; main()"
    command = [sys.executable, "-c", code, "export", str(golden / "digits.lnx"), "--onnx", str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'lilnetx-mini[onnx]'" in done.stderr and done.stderr.count("\n") == 1
