"""The timing of networks: what is compared is equal, and what is shown is what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lilnetx_mini import InputError, bench, lnx
from lilnetx_mini.cli import app
from lilnetx_mini.errors import UnsupportedOpError
from lilnetx_mini.runtime import Network


def test_calls_take_turns_and_each_runs_once_untimed_before_it_is_timed():
    order = []
    rows = bench.turn_by_turn({k: lambda k=k: order.append(k) for k in "ab"}, runs=3)
    assert "".join(order) == "aabb" * 3
    assert [r.name for r in rows] == ["a", "b"]
    assert all(r.quartiles[0] <= r.milliseconds <= r.quartiles[1] for r in rows)


def test_time_is_limited_but_three_turns_are_had():
    order = []
    bench.turn_by_turn({"a": lambda: order.append(0)}, runs=1000, seconds=0)
    assert len(order) == 6


def test_engines_that_disagree_are_not_timed():
    with pytest.raises(InputError, match="wrong differs from the reference"):
        bench.agree({"right": lambda: np.ones(3), "wrong": lambda: np.array([1, 1, 1.01])}, np.ones(3))


def test_dense_weights_have_no_zeros_and_cost_all_multiply_adds(golden):
    model = lnx.read(golden / "digits.lnx")
    full = bench.dense(model)
    assert full.tensor_names() == model.tensor_names()
    assert all(t.all() for t in full.tensors() if t.ndim > 1)
    net = Network(full)
    assert sum(s.macs for s in net.plan.steps) == net.removed.macs[0] == Network(model).removed.macs[0]


def test_every_engine_gives_the_file_s_outputs(golden):
    pytest.importorskip("onnxruntime")
    rows = bench.measure(lnx.read(golden / "digits.lnx"), batch=3, threads=2, runs=1)
    assert [r.name for r in rows] == ["ours", "ours, dense", "onnxruntime", "onnxruntime, shrunk"]
    with pytest.raises(InputError, match="at least one"):
        bench.measure(lnx.read(golden / "digits.lnx"), batch=0)


def test_a_file_without_a_graph_cannot_be_timed(golden):
    model = lnx.read(golden / "digits.lnx")
    with pytest.raises(UnsupportedOpError, match="no graph"):
        bench.measure(lnx.Model(model.groups, model.layers, note="it sorts"))


def test_the_command_shows_bars_layers_and_json_and_draws(golden, tmp_path):
    file = str(golden / "digits.lnx")
    done = CliRunner().invoke(app, ["bench", file, "--runs", "2", "--layers", "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert "ours, dense" in done.output and "█" in done.output and "blocks.0.conv1.weight" in done.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(CliRunner().invoke(app, ["bench", file, "--runs", "1", "--json"]).output)
    assert result["engines"][0]["name"] == "ours" and result["engines"][0]["milliseconds"] > 0
    assert sum(t["macs_done"] for t in result["layers"]) < sum(t["macs_skipped"] + t["macs_done"] for t in result["layers"])
