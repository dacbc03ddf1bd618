"""Surrogates as a method of training: the plan, the cut, resuming, and the file at the end."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_options import SMALL, stopped
from torch import nn
from typer.testing import CliRunner

from lilnetx_mini import InputError, lnx
from lilnetx_mini.cli import app
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.method import Surrogate
from lilnetx_mini.nn.report import main_job, table
from lilnetx_mini.nn.targets import slice_macs
from lilnetx_mini.nn.train import Run

pytest.importorskip("torch_pruning")

PRUNE = {"method": "prune", "target_flops": 0.5, "epochs": 6}


@pytest.mark.parametrize("method", ["prune", "low_rank"])
def test_a_training_meets_its_target_and_ends_in_a_smaller_network_that_runs_without_torch(method, tmp_path):
    changes = {"method": method, "target_flops": "0.5", "epochs": "6"}
    report = main_job("digits", changes, [0], tmp_path, plain=False, progress=False)
    (row,) = report["compressed"]
    assert 0.45 < row["flops_left"] <= 0.5 and row["runtime_difference"] < 1e-4
    assert row["file_accuracy"] == pytest.approx(row["module_accuracy"], abs=1e-6) and row["file_accuracy"] > 0.8
    assert abs(row["file_accuracy"] - row["test_accuracy"]) < 0.03
    dense, _ = slice_macs(lnx.read(report["file"]))  # that of the smaller network
    whole, _ = slice_macs(lnx.read(main_job("digits", {"epochs": "1"}, [0], tmp_path / "whole", plain=False, progress=False)["file"]))
    assert dense == pytest.approx(row["flops_left"] * whole)
    assert "asked for 50.0% of the multiply-adds" in table(report)


def test_soft_counts_follow_the_plan_and_what_is_cut_meets_the_target(tmp_path):
    run = Run(replace(recipes.get("digits"), **PRUNE | {"epochs": 20, "arrival": 0.6}), 0, tmp_path)
    metrics = run.fit(progress=False).metrics
    for line in metrics[3:12]:
        plan = 0.5 ** (line["epoch"] / 12)
        assert plan * 0.9 < line["soft_flops_left"] < plan * 1.15
    after = [line["flops_left"] for line in metrics[12:]]
    assert all(0.45 < x <= 0.5 for x in after) and after[0] == after[-1]
    assert metrics[-1]["weights_zero"] > 0.2 and metrics[-1]["slices_zero"] > 0.2


@pytest.mark.parametrize(("stop", "start"), [(1, 0.0), (4, 0.0), (2, 0.2)])
def test_a_run_stopped_before_or_after_the_cut_resumes_to_the_same_numbers(stop, start, tmp_path):
    recipe = replace(SMALL, **PRUNE, start=start)
    whole, again = stopped(recipe, stop, tmp_path)
    assert again.resume() and bool(again.method.left) == (stop == 4)
    again.fit(progress=False)
    assert again.metrics == whole.metrics
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and torch.equal(whole.method.pruned.alive, again.method.pruned.alive)


def test_the_penalty_is_a_spring_above_the_plan_and_nothing_below_it_or_after_the_cut(tmp_path):
    method = Run(replace(SMALL, **PRUNE), 0, tmp_path).method
    assert isinstance(method, Surrogate)
    soft = method.pruned.penalty().item()
    method.plan.now = math.log(soft) - 0.1
    assert method.penalty().item() == pytest.approx(10 * 0.1**2, rel=1e-3)
    method.plan.now = math.log(soft) + 0.1
    assert method.penalty().item() == 0
    method.look(10**6)
    method.plan.now = -10.0
    assert method.left and method.penalty().item() == 0 and method.pruned.counts().macs <= 0.5 * method.pruned.counts().dense_macs


def test_masks_have_an_optimiser_of_their_own_without_weight_decay(tmp_path):
    run = Run(replace(SMALL, **PRUNE, optimizer="sgd", weight_decay=0.1, lr=0.05), 0, tmp_path)
    weights, masks = run.optimizers
    assert [p is run.method.pruned.alpha for g in masks.param_groups for p in g["params"]] == [True]
    assert not any(p is run.method.pruned.alpha for g in weights.param_groups for p in g["params"])
    assert all(g["weight_decay"] == 0 for g in masks.param_groups)


def test_a_surrogate_without_a_target_and_a_network_without_channels_are_refused(tmp_path):
    with pytest.raises(InputError, match="--target-flops"):
        Run(replace(SMALL, method="prune"), 0, tmp_path)
    with pytest.raises(InputError, match="no channels that could go"):
        Run(replace(SMALL, **PRUNE, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), 0, tmp_path)
    with pytest.raises(InputError, match="'lilnetx' and 'prune' and 'low_rank' and 'quantize' are the choices"):
        recipes.get("digits", {"method": "magic"})


THEN = {"lilnetx": {"target_size": 6000.0}, "quantize": {"target_bits": 3.0}}


@pytest.mark.parametrize("then", THEN)
def test_what_a_cut_leaves_is_made_smaller_yet_and_stored(then, tmp_path):
    changes = {"method": "prune", "target_flops": "0.5", "arrival": "0.3", "epochs": "16", "then": then}
    report = main_job("digits", changes | {k: str(v) for k, v in THEN[then].items()}, [0], tmp_path, plain=False, progress=False)
    (row,) = report["compressed"]
    assert 0.45 < row["flops_left"] <= 0.5 and row["file_accuracy"] > 0.6 and row["runtime_difference"] < 1e-4
    assert abs(row["file_accuracy"] - row["test_accuracy"]) < 0.03
    file = lnx.read(report["file"])
    narrow = {layer.name: layer.shape for layer in file.layers}
    wide = {f"{n}.weight": tuple(m.weight.shape) for n, m in recipes.get("digits").model().named_modules() if f"{n}.weight" in narrow}
    assert any(narrow[n][0] < wide[n][0] for n in wide)
    if then == "quantize":
        assert row["bits"] <= 3 and all(layer.grid is not None for layer in file.layers)
    else:
        assert row["file_bytes"] <= 1.05 * 6000 and "asked for 6,000 bytes" in table(report)


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("then", THEN)
def test_a_run_of_two_stages_stopped_in_either_resumes_to_the_same_numbers(then, stop, tmp_path):
    whole, again = stopped(replace(SMALL, **PRUNE, then=then, **THEN[then]), stop, tmp_path)
    assert again.resume() and (again.method.second is not None) == (stop == 4)
    again.fit(progress=False)
    assert again.metrics == whole.metrics
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_a_cut_can_be_followed_and_by_one_thing(tmp_path):
    with pytest.raises(InputError, match="then=quantize follows a cut, and method=lilnetx makes none"):
        Run(replace(SMALL, then="quantize"), 0, tmp_path)
    both = CliRunner().invoke(app, ["prune", "digits", "--target-flops", "0.5", "--target-size", "3kB", "--target-bits", "3"])
    assert isinstance(both.exception, InputError) and "can have one of them" in str(both.exception)


@pytest.mark.parametrize(("command", "method"), [("prune", "prune"), ("factor", "low_rank")])
def test_commands_train_with_masks_from_weights_of_the_users(command, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": recipes.get("digits").model().state_dict()}, "w.pt")
    given = ["digits", "--target-flops", "60%", "--weights", "w.pt", "--set", "epochs=1", "--no-plain", "--quiet"]
    done = CliRunner().invoke(app, [command, *given])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / f"digits-epochs=1-method={method}-target_flops=0.6-weights=w.pt"
    report = json.loads((folder / "report.json").read_text())
    assert report["asked"] == {"target_flops": 0.6} and report["compressed"][0]["flops_left"] <= 0.6
    assert "asked for 60.0% of the multiply-adds" in done.output
    unasked = CliRunner().invoke(app, [command, "digits"])  # what should be left has to be said
    assert unasked.exit_code == {"prune": 1, "factor": 2}[command]
    assert command == "factor" or (isinstance(unasked.exception, InputError) and "one of them is needed" in str(unasked.exception))


def test_from_the_cut_on_the_smaller_network_is_trained_and_computes_what_the_masked_one_did(tmp_path):
    run = Run(replace(SMALL, **PRUNE, arrival=0.5), 0, tmp_path)
    masked, x = run.model, run.splits.validation.images()
    x = torch.from_numpy(x)
    with torch.no_grad():
        run.method.look(run.steps // 2)
        want = masked.eval()(x)
        run._follow()
        assert torch.allclose(run.model.eval()(x), want, atol=1e-5)
    assert run.model is not masked and sum(p.numel() for p in run.model.parameters()) < 0.8 * sum(p.numel() for p in masked.parameters())
    trained = {p for o in run.optimizers for g in o.param_groups for p in g["params"]}
    assert trained == set(run.model.parameters())


def test_a_cut_at_the_end_of_the_training_still_comes(tmp_path):
    run = Run(replace(SMALL, **PRUNE | {"epochs": 2}, arrival=1.0), 0, tmp_path)
    metrics = run.fit(progress=False).metrics
    assert metrics[0]["flops_left"] > 0.5 and metrics[1]["flops_left"] <= 0.5


def test_with_averaged_weights_the_average_is_of_the_smaller_network(tmp_path):
    run = Run(replace(SMALL, **PRUNE, ema=0.9), 0, tmp_path)
    assert run.fit(progress=False).metrics[-1]["flops_left"] <= 0.5
    assert [t.shape for t in run.average.live] == [t.shape for t in run.average.mean]
    assert len(run.average.live) == len([t for t in (*run.model.parameters(), *run.model.buffers()) if t.is_floating_point()])
