"""The whole job in one call: what comes back, what is left alone, what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_latency import digits_table, stopwatch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from lilnetx_mini import InputError, data
from lilnetx_mini.errors import CheckpointError
from lilnetx_mini.nn import compress, latency, models
from lilnetx_mini.nn.channels import multiply_adds
from lilnetx_mini.nn.train import accuracy
from lilnetx_mini.runtime import Network

pytest.importorskip("torch_pruning")

QUICK = {"epochs": 8, "progress": False, "threads": 1}


@pytest.fixture(scope="module")
def digits():
    """A network that knows digits, and the training part."""
    splits = data.digits()
    torch.manual_seed(0)
    model = models.digits_resnet()
    x, y = torch.from_numpy(splits.train.images()), torch.from_numpy(splits.train.y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        for rows in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval(), (x, y), splits.test


def macs(model: nn.Module, x: torch.Tensor) -> float:
    return sum(multiply_adds(model, x[:2]).values())


def test_half_of_the_multiply_adds_and_nothing_of_the_callers_changes(digits):
    model, (x, y), test = digits
    before, state, threads = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    made = compress(model, (x, y), target_flops=0.5, **QUICK)
    assert 0.45 < macs(made.model, x) / macs(model, x) <= 0.5 and not made.model.training
    assert not any(parametrize.is_parametrized(m) for m in made.model.modules())
    assert accuracy(made.model, test) > 0.93
    assert made.file is None and len(made.metrics) == 8
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_arrays_tensors_and_a_torch_data_set_give_the_same(digits):
    model, (x, y), _ = digits
    x, y = x[:300], y[:300]
    kinds = ((x, y), (x.double().numpy(), y.int().numpy()), TensorDataset(x, y))
    some = [compress(model, given, target_flops=0.6, **QUICK | {"epochs": 1}).metrics for given in kinds]
    assert some[0] == some[1] == some[2]


@pytest.mark.parametrize("asked", [{"target_size": 9000}, {"target_flops": 0.6, "target_size": 9000}])
def test_a_file_of_the_size_that_was_asked_for_holds_what_the_network_computes(asked, digits, tmp_path):
    model, (x, y), test = digits
    made = compress(model, (x, y), **asked, folder=tmp_path, **QUICK | {"epochs": 14})
    assert made.file.stat().st_size < 1.05 * 9000 and accuracy(made.model, test) > 0.9
    with torch.no_grad():
        assert np.allclose(Network.load(made.file)(x[:50].numpy()), made.model(x[:50]).numpy(), atol=1e-3)
    assert macs(made.model, x) / macs(model, x) <= asked.get("target_flops", 1.0)


def test_bits(digits):
    model, (x, y), test = digits
    made = compress(model, (x, y), target_bits=4, **QUICK | {"epochs": 20})
    assert 3.5 < made.metrics[-1]["bits"] <= 4 and accuracy(made.model, test) > 0.93
    row = made.model.linear.weight[0].detach().double()
    steps = row / row.unique().diff().min()
    assert torch.allclose(steps, steps.round(), atol=0.05) and len(row.unique()) < len(row)


def test_milliseconds(digits, tmp_path, monkeypatch):
    model, (x, y), _ = digits
    digits_table(model, x[:1]).save(tmp_path / "table.json")
    monkeypatch.setattr(latency, "milliseconds", stopwatch(1.2, timed := []))
    asked = 0.6 * 1.2e-6 * macs(model, x)
    made = compress(model, (x, y), target_latency_ms=asked, table=tmp_path / "table.json", **QUICK | {"epochs": 2})
    assert made.metrics[-1]["measured_ms"] == pytest.approx(asked, rel=0.05) and made.metrics[-1]["measured_ms"] in timed
    assert macs(made.model, x) / macs(model, x) == pytest.approx(0.6, rel=0.05)


def test_a_table_that_is_there_counts_for_its_runtime_only(digits, tmp_path, monkeypatch):
    model, (x, y), _ = digits
    digits_table(model, x[:1]).save(tmp_path / "latency.json")  # of torch
    monkeypatch.setattr(latency, "milliseconds", stopwatch(1.0, []))
    monkeypatch.setattr(latency, "measure", lambda *_, **__: replace(digits_table(model, x[:1]), runtime="lilnetx"))
    asked = {"target_latency_ms": 0.6e-6 * macs(model, x), "folder": tmp_path, **QUICK, "epochs": 1}
    compress(model, (x, y), **asked, runtime="torch")
    assert latency.load(tmp_path / "latency.json").runtime == "torch"
    compress(model, (x, y), **asked | {"folder": tmp_path / "other"}, runtime="lilnetx")
    assert latency.load(tmp_path / "other" / "latency.json").runtime == "lilnetx"


def test_a_folder_keeps_a_run_and_refuses_that_of_another_network(digits, tmp_path):
    model, (x, y), _ = digits
    asked = {"target_flops": 0.6, "folder": tmp_path, **QUICK, "epochs": 2}
    first = compress(model, (x, y), **asked)
    changed = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = compress(model, (x, y), **asked)
    assert again.metrics == first.metrics and (tmp_path / "checkpoint.pt").stat().st_mtime_ns == changed
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="target_flops 0.6 and not 0.7"):
        compress(model, (x, y), **asked | {"target_flops": 0.7})
    other = copy.deepcopy(model)
    other.linear.bias.data += 1
    for network, labels in ((other, y), (model, y.flip(0))):
        with pytest.raises(CheckpointError, match="belongs to a run with other settings, own_model"):
            compress(network, (x, labels), **asked)


def test_a_task_that_tells_no_classes_apart():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)), torch.randn(600, 4)
    y = x.sum(1, keepdim=True).abs()
    own = {"loss": F.mse_loss, "score": lambda out, y: -(out - y).square().mean(1), "score_name": "minus_error"}
    made = compress(model, (x, y), target_flops=0.5, **own, **QUICK | {"epochs": 40, "plain_lr": 0.01})
    assert macs(made.model, x) / macs(model, x) <= 0.5 and made.metrics[-1]["validation_minus_error"] > -0.3


def test_a_target_that_is_missed_is_told(digits):
    model, (x, y), _ = digits
    with pytest.warns(UserWarning, match="asked for 2,000 bytes, got .*missed"):
        compress(model, (x, y), target_size=2000, **QUICK | {"epochs": 1})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "a target is needed"),
        ({"target_size": 3000, "target_bits": 4}, "can have one of them"),
        ({"target_flops": 0.5, "target_latency_ms": 3, "table": "none.json"}, "can have one of them"),
        ({"target_bits": 4, "method": "lilnetx"}, "does not lead to target_bits"),
        ({"target_latency_ms": 3, "method": "low_rank"}, "does not lead to target_latency_ms"),
        ({"target_flops": 0.5, "table": "none.json"}, "goes with target_latency_ms"),
        ({"target_flops": 0.5, "then": "quantize"}, "mean bits of a weight are needed"),
        ({"target_flops": 0.5, "loss": F.mse_loss}, "without score="),
        ({"target_flops": 1.5}, "a share between 0 and 1"),
        ({"target_bits": 1}, "2 to less than 16"),
        ({"target_flops": 0.5, "epoch": 3}, "did you mean epochs"),
        ({"target_flops": 0.5, "epochs": 0}, "a number from 1 on"),
    ],
)
def test_targets_and_settings_that_make_no_sense(asked, message, digits):
    model, pairs, _ = digits
    with pytest.raises(InputError, match=message):
        compress(model, pairs, progress=False, **asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2, 3], "a pair"),
        ((np.zeros((20, 1, 8, 8)), np.zeros(19)), "as many of both"),
        ((np.zeros((5, 1, 8, 8)), np.zeros(5)), "at least 10"),
        ((np.zeros((20, 1, 8, 8)), np.zeros(20)), "whole numbers"),
        ((np.zeros((20, 3, 8, 8)), np.zeros(20, int)), "does not take a batch"),
    ],
)
def test_data_that_make_no_sense(given, message, digits):
    with pytest.raises(InputError, match=message):
        compress(digits[0], given, target_flops=0.5, progress=False)
