"""Weights on nested grids: gates that are learned, and the files that they make."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_options import SMALL, stopped
from torch import nn
from typer.testing import CliRunner

from lilnetx_mini import InputError, lnx
from lilnetx_mini.cli import app
from lilnetx_mini.grid import LEVELS, from_grid, to_grid
from lilnetx_mini.nn import load_into, models, quantize
from lilnetx_mini.nn.method import Bits
from lilnetx_mini.nn.train import Run
from lilnetx_mini.runtime import Network

BITS = {"method": "quantize", "target_bits": 3.0, "epochs": 6}


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


@torch.no_grad()
def randomise(quantised, seed=0):
    quantised.gates.copy_(torch.rand(quantised.gates.shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("level", range(4))
def test_with_open_and_closed_gates_a_weight_is_the_nearest_point_of_its_grid(level):
    model = small().double()
    before = model[0].weight.detach().numpy().copy()
    quantised = quantize(model)
    with torch.no_grad():
        quantised.gates.zero_()
        quantised.gates[:level] = 1
        quantised.ranges[0].mul_(1.1)  # some weights lie beyond
    ranges, bits = quantised.ranges[0].exp().detach().numpy(), np.full(8, LEVELS[level])
    want = from_grid(to_grid(before, ranges, bits), ranges, bits)
    assert np.allclose(model[0].weight.detach().numpy(), want, rtol=0, atol=1e-6 * ranges.max())
    assert quantised.bits().tolist() == [LEVELS[level]] * 13


def test_a_fresh_network_computes_nearly_what_it_did_and_gradients_reach_weights_ranges_and_gates():
    model = models.digits_resnet().eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(x).detach()
    quantised = quantize(model)
    assert (model(x) - before).abs().max() < 1e-2 * before.abs().max()
    assert quantised.penalty().item() == pytest.approx(1, abs=1e-2) and quantised.counts().bits == 16
    randomise(quantised)
    (model(x).square().sum() + quantised.penalty()).backward()
    assert quantised.gates.grad.abs().min() > 0 and all(r.grad.abs().sum() > 0 for r in quantised.ranges)
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith("original"))


def test_what_lies_beyond_the_range_gets_no_gradient_and_everything_else_passes_it():
    model = nn.Linear(2, 1, bias=False)
    quantised = quantize(model)
    with torch.no_grad():
        model.parametrizations.weight.original.copy_(torch.tensor([[3.0, 0.2]]))
        quantised.ranges[0].zero_()
        quantised.gates.zero_()
    (model.weight * torch.tensor([5.0, 7.0])).sum().backward()
    assert model.parametrizations.weight.original.grad.flatten().tolist() == pytest.approx([0.0, 7.0])


@pytest.mark.parametrize("form", ["squared", "root"])
def test_soft_bits_go_from_two_to_sixteen_and_their_gradient_is_right(form):
    quantised = quantize(small(), form=form)
    with torch.no_grad():
        quantised.gates.fill_(1)
        assert torch.allclose(quantised.soft_bits(), torch.full((2,), 16.0))
        quantised.gates.zero_()
        assert torch.allclose(quantised.soft_bits(), torch.full((2,), 2.0))
        quantised.gates[0] = 1
        assert torch.allclose(quantised.soft_bits(), torch.full((2,), 4.0))
    quantised.gates = nn.Parameter(torch.rand(3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1)
    assert torch.autograd.gradcheck(lambda g: (setattr(quantised, "gates", g), quantised.soft_bits())[1], (quantised.gates,))


def test_soft_bits_of_gates_that_are_open_or_closed_are_nearly_their_number():
    quantised = quantize(nn.Sequential(nn.Linear(4, 200), nn.Linear(200, 200)))
    with torch.no_grad():
        quantised.gates.copy_((torch.rand(400, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.9], [0.5], [0.1]])).float())
    hard = torch.stack([b.double().mean() for b in quantised.bits().split(200)])
    assert torch.allclose(quantised.soft_bits().double(), hard, atol=0.1)


@pytest.mark.parametrize("target", [2.0, 3.0, 7.5, 15.9])
def test_the_gates_that_stay_are_nested_the_largest_and_as_many_as_fit(target):
    quantised = quantize(models.digits_resnet())
    randomise(quantised)
    before = quantised.gates.detach().cumprod(0)
    quantised.keep(target)
    opened = quantised.gates.bool()
    assert (opened[1:] <= opened[:-1]).all() and target - 0.1 < quantised.counts().bits <= target
    assert target == 2 or before[opened].min() >= before[~opened].max()
    assert quantised.counts().bytes == pytest.approx(quantised.counts().bits * quantised.counts().weights / 8)
    assert set(quantised.gates.unique().tolist()) <= {0.0, 1.0} and not quantised.gates.requires_grad


def test_projected_gates_stay_between_closed_and_open_and_closed_ones_stay_closed():
    quantised = quantize(small())
    with torch.no_grad():
        quantised.gates.copy_(torch.linspace(-1, 2, 39).view(3, 13))
    quantised.open[0, 12] = False
    quantised.project()
    assert quantised.gates.min() == 0 and quantised.gates.max() == 1 and quantised.gates[0, 12] == 0


def test_bits_can_be_weighed_by_what_they_cost():
    cheap, dear = (quantize(small(), costs={"0.weight": 1.0, "4.weight": w}) for w in (1.0, 99.0))
    for quantised in (cheap, dear):
        with torch.no_grad():
            quantised.gates.fill_(1)
            quantised.gates[:, 8:] = 0  # the dense layer has 2 bits, and the convolution 16
    assert cheap.counts().bits == 9 and dear.counts().bits == pytest.approx(2.14)
    assert 16 * dear.penalty().item() == pytest.approx(2.14)


def test_a_network_on_grids_is_stored_and_run_with_its_integers(tmp_path):
    model = models.digits_resnet().eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    quantised = quantize(model)
    randomise(quantised)
    with pytest.raises(InputError, match="choose with keep"):
        quantised.save(tmp_path / "m.lnx", x)
    quantised.keep(4)
    quantised.store_ranges()
    want = model(x).detach()
    saved = quantised.save(tmp_path / "m.lnx", x)
    file = lnx.read(saved.path)
    assert saved.difference < 1e-5 and saved.rounding < 0.05 and saved.note == ""
    plain = dict(quantised.plain().named_parameters())
    for layer, tensor, q in zip(file.layers, file.tensors(), file.latents(), strict=False):
        assert np.allclose(tensor, plain[layer.name].detach().numpy(), rtol=1e-6, atol=0)
        most = np.repeat(2 ** (layer.grid.bits - 1) - 1, len(q) // layer.shape[0])
        assert (np.abs(q).max(1) <= most).all() and np.abs(q).max() > 1
    assert [b for layer in file.layers for b in layer.grid.bits] != [4] * len(quantised.bits())
    outputs = Network.load(saved.path)(x.numpy())
    assert np.abs(outputs - want.numpy()).max() < 0.01 * want.abs().max()  # norm layers have 8 bits there
    back = load_into(models.digits_resnet(), saved.path).eval()
    assert torch.allclose(back(x), torch.from_numpy(outputs), atol=1e-4)
    layers = {x["name"]: x for x in lnx.ledger(saved.path).layers}
    assert sum(x["bits"] for x in layers.values()) / 8 < saved.file_bytes


def test_embeddings_attention_and_transposed_convolutions_go_on_grids_too(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.words, self.heads = nn.ConvTranspose2d(3, 4, 2), nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            e = self.words(x)
            return self.heads(e, e, e)[0].sum() + self.up(torch.ones(1, 3, 2, 2)).sum()

    model = Odd().eval()
    quantised = quantize(model)
    randomise(quantised)
    quantised.keep(5)
    quantised.store_ranges()
    saved = quantised.save(tmp_path / "m.lnx")
    x = torch.arange(6).view(1, 6)
    assert torch.allclose(load_into(Odd(), saved.path).eval()(x), quantised.plain()(x), rtol=1e-2, atol=1e-2)
    assert {x.name for x in lnx.read(saved.path).layers} == {"up.weight", "words.weight", "heads.in_proj_weight", "heads.out_proj.weight"}


def test_what_cannot_go_on_grids_is_refused():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="0.weight is shared by two modules"):
        quantize(tied)
    with pytest.raises(InputError, match="to reparameterise"):
        quantize(nn.ReLU())
    with pytest.raises(InputError, match="costs: positive numbers"):
        quantize(small(), costs={"0.weight": -1.0})
    quantised = quantize(small(), leave=["4"])
    assert quantised.names == ["0.weight"]
    with pytest.raises(InputError, match="1 bits a weight: 2 are the least"):
        quantised.keep(1)


def test_a_training_comes_down_to_its_bits_and_what_is_stored_is_what_was_trained(tmp_path):
    run = Run(replace(SMALL, **BITS, stored_decoders=0.3), 0, tmp_path)
    metrics = run.fit(progress=False).metrics
    assert isinstance(run.method, Bits) and run.method.chosen
    assert metrics[0]["bits"] > 6 and metrics[1]["soft_bits"] < metrics[0]["soft_bits"]
    assert all(2.8 < line["bits"] <= 3 for line in metrics[3:])
    x = torch.from_numpy(run.splits.validation.images())
    saved = run.method.quantised.save(tmp_path / "m.lnx", x[:2], 16)
    assert saved.rounding < 1e-3  # ranges were stored before the training ended


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_stopped_before_or_after_bits_are_chosen_resumes_to_the_same_numbers(stop, tmp_path):
    recipe = replace(SMALL, **BITS)
    whole, again = stopped(recipe, stop, tmp_path)
    assert again.resume() and again.method.chosen == (stop == 4)
    again.fit(progress=False)
    assert again.metrics == whole.metrics
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_gates_and_ranges_have_an_optimiser_of_their_own_without_weight_decay(tmp_path):
    run = Run(replace(SMALL, **BITS, optimizer="sgd", weight_decay=0.1, bits_of="macs"), 0, tmp_path)
    weights, own = run.optimizers
    quantised = run.method.quantised
    assert {id(p) for g in own.param_groups for p in g["params"]} == {id(p) for p in (quantised.gates, *quantised.ranges)}
    assert all(g["weight_decay"] == 0 for g in own.param_groups)
    assert sum(len(g["params"]) for o in (weights, own) for g in o.param_groups) == len(list(run.model.parameters()))
    with pytest.raises(InputError, match="--target-bits"):
        Run(replace(SMALL, method="quantize"), 0, tmp_path)


def test_the_command_writes_a_file_that_runs_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["quantize", "digits", "--target-bits", "3", "--set", "epochs=6", "--no-plain", "--quiet"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "runs" / "digits-epochs=6-method=quantize-target_bits=3" / "report.json").read_text())
    (row,) = report["compressed"]
    assert 2.8 < row["bits"] <= 3 and row["runtime_difference"] < 1e-5
    assert row["file_accuracy"] == pytest.approx(row["module_accuracy"], abs=1e-6) and row["file_accuracy"] > 0.5
    assert 2 / 8 < row["file_bytes"] / 75002 < 3.4 / 8
    assert "asked for 3 bits a weight" in done.output
    wrong = CliRunner().invoke(app, ["quantize", "digits", "--target-bits", "1"])
    assert isinstance(wrong.exception, InputError) and "2 to less than 16" in str(wrong.exception)


def test_a_dry_run_of_a_surrogate_counts_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["quantize", "digits", "--target-bits", "3"], ["train", "digits"]):
        done = CliRunner().invoke(app, [*command, "--dry-run"])
        assert done.exit_code == 0 and "75,002 parameters, 74,512 of them to be compressed" in done.output, done.output


def test_a_copy_of_the_network_keeps_its_gates():
    model = small().eval()
    quantised = quantize(model)
    randomise(quantised)
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
