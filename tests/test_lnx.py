import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from itertools import pairwise

import fuzz
import numpy as np
import pytest
from make_golden import fingerprint

from lilnetx_mini import InputError, LnxError, graph, hexdump, latent, lnx, runtime
from lilnetx_mini.graph import Graph, Node


def small(**changes) -> lnx.Model:
    """A model with every kind of content: two groups, a transposed layer, side parameters, a raw tensor and a graph."""
    rng = np.random.default_rng(0)
    q3 = np.rint(rng.laplace(0, 0.7, (4 * 2 + 4 * 3, 9))).astype(np.int16) * (rng.random((20, 1)) < 0.6)
    groups = [
        lnx.Group(latent.Decoder("full", (3, 3), rng.integers(-127, 128, 81), -9), q3),
        lnx.Group(latent.Decoder("scalar", (), np.array([77]), -8), rng.integers(-3, 4, (5 * 3, 1)).astype(np.int16)),
    ]
    layers = [
        lnx.Layer("a.weight", (4, 2, 3, 3), 0),
        lnx.Layer("b.weight", (4, 3, 3, 3), 0, transposed=True),
        lnx.Layer("fc.weight", (5, 3), 1),
    ]
    sides = [
        lnx.Side("bn", "scale", np.array([40, 41, 0, 39]), -5),
        lnx.Side("bn", "shift", np.array([1, -100, 3, 4]), -6),
        lnx.Side("fc.bias", "parameter", np.array([1, 2, 3, -4, 127]), -7),
    ]
    raws = [lnx.Raw("extra", rng.normal(size=(2, 3)).astype(np.float32))]
    nodes = (
        Node("conv", (0,), (1, 0, 1, 1, 1, 1, 1, 1, 1)),
        Node("scale_shift", (1,), (4, 5)),
        Node("relu", (2,)),
        Node("conv_transpose", (3,), (2, 0, 1, 2, 2, 1, 1, 1, 1, 0, 0)),
        Node("global_avg_pool", (4,), (0,)),
        Node("linear", (5,), (3, 6)),
    )
    return replace(lnx.Model(groups, layers, sides, raws, Graph((2, 6, 6), nodes)), **changes)


def same(a: lnx.Model, b: lnx.Model) -> bool:
    return (
        a.layers == b.layers
        and a.graph == b.graph
        and a.note == b.note
        and a.tensor_names() == b.tensor_names()
        and all((x.q == y.q).all() for x, y in zip(a.groups, b.groups, strict=True))
        and all(x.tobytes() == y.tobytes() for x, y in zip(a.tensors(), b.tensors(), strict=True))
    )


def test_everything_comes_back(tmp_path):
    model = small()
    size = lnx.write(tmp_path / "m.lnx", model)
    assert os.path.getsize(tmp_path / "m.lnx") == size
    assert same(lnx.read(tmp_path / "m.lnx"), model)
    bare = small(graph=None, note="no runtime operation for x\n(layer 'y')", raws=[], sides=[])
    assert same(lnx.decode(lnx.encode(bare)), replace(bare, note=bare.note.replace("\n", " ")))


def test_the_ledger_attributes_every_byte(tmp_path):
    lnx.write(tmp_path / "m.lnx", small())
    ledger = lnx.ledger(tmp_path / "m.lnx")
    assert sum(ledger.sections.values()) == ledger.file_bytes == os.path.getsize(tmp_path / "m.lnx")
    assert [x["name"] for x in ledger.layers] == ["a.weight", "b.weight", "fc.weight"]
    latent_bits = 8 * sum(ledger.sections.get(k, 0) for k in ("tables", "significance", "coefficients"))
    assert 0.5 * latent_bits < sum(x["bits"] for x in ledger.layers) <= latent_bits + 8
    assert ledger.layers[0]["slice_sparsity"] == float((~small().groups[0].q[:8].any(1)).mean())


@pytest.mark.parametrize("coder", lnx.streams.MODES)
def test_the_annotated_dump_covers_every_byte_once(coder):
    data = lnx.encode(small(), coder)
    assert lnx.coders(data) == [coder, coder]
    spans = hexdump.annotate(data)
    assert spans[0].start == 0 and spans[-1].stop == len(data)
    assert all(a.stop == b.start and a.start < a.stop for a, b in pairwise(spans))
    assert {s.section for s in spans} == {"header", *lnx.SECTIONS} - (set() if coder == "static" else {"tables"})
    assert any("length" in line and "network" in line for line in hexdump.lines(data))


def test_the_golden_file_decodes_to_the_same_bits(golden):
    record = json.loads((golden / "digits.json").read_text())
    model = lnx.read(golden / "digits.lnx")
    assert {k: record[k] for k in ("integers", "tensors", "names", "nodes")} == fingerprint(model)
    images = np.load(golden / "digits.npz")["x"].astype(np.float32)
    logits = runtime.Network(model)(images)
    assert logits.argmax(1).tolist() == record["classes"]
    assert np.allclose(logits[0], record["first_logits"], atol=1e-3)


def test_the_golden_file_decodes_to_the_same_bits_without_compiling(golden):
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[2]); from make_golden import fingerprint;"
        "from lilnetx_mini import lnx; print(json.dumps(fingerprint(lnx.read(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", script, golden / "digits.lnx", golden.parent]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads((golden / "digits.json").read_text())
    assert json.loads(done.stdout) == {k: record[k] for k in ("integers", "tensors", "names", "nodes")}


def test_writing_the_golden_model_again_gives_the_golden_bytes(golden):
    data = (golden / "digits.lnx").read_bytes()
    model = lnx.decode(data)
    ours, theirs = lnx.split(lnx.encode(model)), lnx.split(data)
    assert {k: v for k, v in ours.items() if k not in ("header", "network")} == {
        k: v for k, v in theirs.items() if k not in ("header", "network")
    }
    inflate = [
        zlib.decompress(x["network"], -15) for x in (ours, theirs)
    ]  # deflate itself may differ between versions of zlib
    assert inflate[0] == inflate[1]


def test_all_damage_to_the_golden_file_is_noticed_in_under_a_minute(golden):
    data = (golden / "digits.lnx").read_bytes()
    started, tried = time.monotonic(), 0

    def refuse(damaged: bytes) -> None:
        nonlocal tried
        tried += 1
        try:
            lnx.decode(damaged)
        except LnxError as e:
            assert e.section in ("header", *lnx.SECTIONS)
            return
        raise AssertionError(f"a damaged file was accepted (difference number {tried})")

    head = 6 + 9 * data[5] + 4
    for at in range(len(data)):
        changes = range(1, 256) if at < head else (1 << b for b in range(8))
        for change in changes:
            refuse(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
    for end in range(len(data)):
        refuse(data[:end])
    refuse(data + b"\0")
    refuse(data + data)
    assert tried == 255 * head + 8 * (len(data) - head) + len(data) + 2
    assert time.monotonic() - started < 60


def test_damage_behind_correct_checksums_ends_in_lnx_errors_or_a_valid_model(golden):
    files = [(golden / "digits.lnx").read_bytes(), lnx.encode(small(), "static"), lnx.encode(small(), "adaptive")]
    refused, valid, troubles = fuzz.run(3000, 0, files)
    assert not troubles and refused + valid == 3000
    assert refused > 1000 and valid > 20  # the damage gets as far as the parsers, and some of it does no harm


@pytest.mark.parametrize(
    "content,message",
    [(b"", "not an .lnx"), (b"PK\3\4 a zip file", "not an .lnx"), (lnx.MAGIC + b"\2\1" + b"\0" * 99, "version 2")],
)
def test_foreign_and_newer_files_say_so(tmp_path, content, message):
    (tmp_path / "x.lnx").write_bytes(content)
    with pytest.raises(LnxError, match=message):
        lnx.read(tmp_path / "x.lnx")


def test_missing_files_and_folders_are_our_errors(tmp_path):
    with pytest.raises(LnxError, match="no file"):
        lnx.read(tmp_path / "absent.lnx")
    with pytest.raises(LnxError, match="cannot be read"):
        lnx.read(tmp_path)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.lnx"
    lnx.write(path, small())
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lnx.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        lnx.write(path, small(raws=[]))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.lnx"]


def group(q):
    return lnx.Group(latent.Decoder("scalar", (), np.array([1]), 0), np.asarray(q))


@pytest.mark.parametrize(
    "q",
    [
        np.zeros((0, 1), int),
        np.zeros((3, 1), int),
        np.array([[1.5], [2]]),
        np.array([[40000], [0]]),
        np.array([[np.nan], [0]]),
    ],
)
def test_groups_that_the_format_cannot_hold_are_refused(q):
    with pytest.raises(InputError, match="group 0|empty"):
        lnx.encode(lnx.Model([group(q)], [lnx.Layer("a", (2, 1), 0)]))


def test_names_must_be_unique():
    with pytest.raises(InputError, match="unique"):
        lnx.encode(lnx.Model([group(np.ones((4, 1), int))], [lnx.Layer("a", (2, 1), 0), lnx.Layer("a", (2, 1), 0)]))


@pytest.mark.parametrize(
    "node",
    [
        Node("conv", (0,), (3, 0, 1, 1, 1, 1, 1, 1, 1)),
        Node("conv", (0,), (1, 0, 1, 0, 1, 1, 1, 1, 1)),
        Node("conv", (0,), (99, 0, 1, 1, 1, 1, 1, 1, 1)),
        Node("conv", (0,), (1, 0, 1)),
        Node("conv", (0,), (1, 0, 1, 1, 1, 0, 0, 5, 5)),
        Node("linear", (0,), (3, 0)),
        Node("scale_shift", (0,), (4, 5)),
        Node("add", (0,)),
        Node("max_pool", (0,), (9, 9, 1, 1, 0, 0)),
        Node("max_pool", (0,), (2, 2, 0, 1, 0, 0)),
        Node("pad", (0,), (1 << 23,) * 6),
        Node("subsample", (0,), (0, 1)),
        Node("relu", (0,), (1,)),
    ],
)
def test_a_graph_that_does_not_fit_its_tensors_is_refused(node):
    with pytest.raises(LnxError, match="does not fit"):
        graph.infer_shapes(Graph((2, 6, 6), (node,)), small().tensor_shapes())


def test_inputs_of_the_wrong_kind_are_refused():
    net = runtime.Network(small())
    assert net(np.zeros((3, 2, 6, 6), np.float16)[::-1]).shape == (3, 5)
    assert net(np.zeros((0, 2, 6, 6))).shape == (0, 5)
    assert np.allclose(net(np.ones((5, 2, 6, 6))), net(np.ones((5, 2, 6, 6)), batch=2), atol=1e-6)
    for bad, message in [
        (np.zeros((2, 6, 6)), r"\(N, 2, 6, 6\)"),
        (np.zeros((1, 3, 6, 6)), "takes a batch"),
        (np.full((1, 2, 6, 6), np.nan), "not finite"),
        (np.zeros((1, 2, 6, 6), complex), "complex128"),
        (np.array([["a"]]), "shape"),
    ]:
        with pytest.raises(InputError, match=message):
            net(bad)
