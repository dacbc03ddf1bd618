"""The benchmarks run and compare equal things: small sizes, no clock is asserted."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lilnetx_mini import data, lnx
from lilnetx_mini.nn import recipes
from lilnetx_mini.nn.train import Run

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layer", [(8, 6, 9, 3), (7, 5, 6, 1)])
def test_every_engine_computes_the_same_layer(layer):
    pytest.importorskip("onnxruntime")
    row = load("conv").measure(layer, 0.5, 1, 1)
    names = ("ours", "ours_call", "onnxruntime", "torch", "channels_last", "scipy_csr", "torch_csr")
    assert set(row) == {f"{n}_ms" for n in names}
    assert min(row.values()) > 0


def test_whole_networks_are_compared_before_they_are_timed(monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    arguments = ["network.py", "--networks", "resnet20,trained", "--threads", "1,2", "--batch", "1,2", "--runs", "1", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    load("network").main()
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 8 and result["resnet20"]["ours_ms"] > 0
    assert all(r["macs_done"] < r["macs"] and r["ms"].keys() >= {"ours", "onnxruntime", "torch"} for r in result["rows"])


def test_sizes_of_a_file_are_measured_and_ours_is_never_above_static(golden, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["size.py", str(golden / "digits.lnx"), "--json"])
    load("size").main()
    row = json.loads(capsys.readouterr().out)["trained"][0]
    assert row["adaptive_bytes"] <= row["static_bytes"] + 8 and row["chosen_bytes"] <= row["adaptive_bytes"]
    assert row["paper_payload_bytes"] < row["paper_bytes"] and row["adaptive_bytes"] < row["paper_bytes"]


def test_the_start_is_timed_part_by_part(golden, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["startup.py", str(golden / "digits.lnx"), "--runs", "1", "--json"])
    load("startup").main()
    parts = json.loads(capsys.readouterr().out)["startup"]
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_step_is_compared_with_the_plain_one(optimizer, monkeypatch, capsys):
    arguments = ["training.py", "--network", "lenet5", "--batch", "4", "--runs", "2", "--optimizer", optimizer, "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    load("training").main()
    result = json.loads(capsys.readouterr().out)
    assert result["step_ratio"]["cpu"] == result["devices"]["cpu"]["ratio"] > 0


def test_every_context_can_still_be_silenced(golden):
    """Each expression that the benchmark changes is there, once; and the latents that it codes are the file's."""
    benchmark = load("contexts")
    source = (benchmark.ROOT / "lilnetx_mini" / "context.py").read_text()
    assert all(source.count(before) == 1 for before, _ in benchmark.SILENCED.values() if before)
    arrays = benchmark.latents([golden / "digits.lnx"])
    groups = lnx.read(golden / "digits.lnx").groups
    assert all(np.array_equal(a, g.q) for a, g in zip(arrays.values(), groups, strict=True))
    for name, q in arrays.items():
        _, _, shapes, _ = json.loads(name)
        assert sum(a * b for a, b in shapes) == len(q)


def test_accuracies_are_compared_at_the_size_that_was_got(tmp_path):
    targets = load("targets")
    todo = targets.tasks("digits", [0, 1], tmp_path)
    assert len(todo) == 2 * (2 + 5) and len({arguments[3] for arguments in todo.values()}) == len(todo)
    assert todo["size", 3000, 1][1] == {"target_size": "3000"} and todo["fixed", 2.5, 0][1]["lam_rate"] == str(2.5 * 1.7)
    made = {}
    for (kind, value, seed), arguments in todo.items():
        size = {"size": 3100 + seed, "flops": 5000, "fixed": 4000 / value}[kind]
        accuracy = 0.9 - seed / 100 - 1 / size
        made[kind, value, seed] = {"changes": arguments[1], "seed": seed, "size": size, "flops": 0.51, "accuracy": accuracy}
    row = targets.summary("digits", made)
    assert row["error"]["size"] == pytest.approx([100 / 3000, 101 / 3000]) and row["error"]["flops"] == pytest.approx([0.02] * 2)
    for seed in (0, 1):  # between the points of 2,667 and 4,000 bytes
        assert 0.9 - seed / 100 - 1 / 2600 < row["fixed_accuracy"]["size"][seed] < 0.9 - seed / 100 - 1 / 4000


def test_quantisers_are_trained_to_the_same_size(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    quantisers = load("quantisers")
    monkeypatch.setitem(quantisers.CASES, "digits", ({"epochs": "1", "images": "256"}, 5000, 0.5, ()))
    arguments = ["quantisers.py", "digits", "--seeds", "0", "--jobs", "1", "--out", str(tmp_path), "--json", str(tmp_path / "q.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    quantisers.main()
    written = json.loads((tmp_path / "q.json").read_text())["digits"]
    rows, beside = written["kinds"], written["straight_at_these_sizes"]
    fixed = json.loads(quantisers.TARGETS.read_text())["digits"]["fixed"]
    assert beside == {kind: quantisers.at_equal("size", fixed, each) for kind, each in rows.items()}
    ends = [sorted((r["size"], r["accuracy"]) for r in fixed if r["seed"] == s)[0] for s in (0, 1)]
    assert quantisers.at_equal("size", fixed, [{"seed": s, "size": size} for s, (size, _) in enumerate(ends)]) == [a for _, a in ends]
    assert set(rows) == set(quantisers.KINDS) and all(r[0]["size"] > 1000 for r in rows.values())
    monkeypatch.setattr(sys, "argv", ["quantisers.py", "digits", "--seeds", "77", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no fixed multipliers of digits with seed 77"):
        quantisers.main()
    assert "straight at the same sizes" in capsys.readouterr().out


def test_fixed_multipliers_are_remembered_and_targets_are_not(tmp_path):
    targets = load("targets")
    todo = targets.tasks("digits", [0, 1], tmp_path)
    key = ("fixed", 0.5, 1)
    known = {"changes": todo[key][1], "seed": 1, "size": 7}
    steered = {"changes": todo["size", 3000, 0][1], "seed": 0, "size": 8}
    made = targets.circumstances()
    row = {"made": made, "fixed": [known, known | {"seed": 5}, steered]}
    assert targets.remembered(row, todo) == {key: known}
    assert targets.remembered({}, todo) == {}
    assert targets.remembered(row | {"made": made | {"machine": "another processor"}}, todo) == {}
    assert targets.remembered(row | {"made": made | {"machine": "another processor"}, "fixed_made": made}, todo) == {key: known}


def test_norm_layers_of_a_finished_training_are_stored_more_and_more_finely(tmp_path, monkeypatch, capsys):
    changes = {"epochs": "2", "images": "256", "side_bits": "5"}
    Run(recipes.get("digits", changes), 1, tmp_path).fit(progress=False)
    monkeypatch.setattr(sys, "argv", ["side_bits.py", str(tmp_path), "--bits", "5,16", "--json"])
    load("side_bits").main()
    (result,) = json.loads(capsys.readouterr().out)["side_bits"]
    coarse, fine = result["rows"]
    assert result["recipe"] == "digits" and result["settings"]["side_bits"] == 5 and result["settings"]["seed"] == 1
    assert coarse["bytes"] < fine["bytes"] and fine["accuracy"] == pytest.approx(result["trained"], abs=0.01)
    monkeypatch.setattr(sys, "argv", ["side_bits.py", str(tmp_path), "--bits", "16"])
    load("side_bits").main()
    assert f"16 {fine['bytes']:,} {fine['accuracy']:.2%} none {result['trained']:.2%}" in " ".join(capsys.readouterr().out.split())


def test_criteria_are_compared_at_equal_multiply_adds_after_equal_trials(tmp_path, monkeypatch, capfd):
    pytest.importorskip("torch_pruning")
    file, small = tmp_path / "p.json", ["--set", "epochs=1,images=256", "--trial", "images=128", "--jobs", "1"]

    def compare(*options):
        out = ["--out", str(tmp_path / "runs"), "--json", str(file)]
        monkeypatch.setattr(sys, "argv", ["pruning.py", "digits", *small, *out, *options])
        pruning.main()
        return json.loads(file.read_text())["digits"]

    pruning = load("pruning")
    rows = compare("--target-flops", "0.5", "--criteria", "kernels,whole")["0.5"]
    assert len(rows["whole"]["trials"]) == 2 and len(rows["l1 of kernels"]["trials"]) == 4
    (final,) = rows["l1 of kernels"]["final"]
    best = max(rows["l1 of kernels"]["trials"], key=lambda r: r["accuracy"])["changes"]
    assert 0.4 < final["flops_left"] <= 0.5 and final["changes"] == best | {"images": "256"}
    assert final["test_accuracy"] and not any(r["test_accuracy"] for r in rows["whole"]["trials"])
    assert "50.0% of the multiply-adds asked for" in capfd.readouterr().out
    both = compare("--target-flops", "0.7", "--settings-of", "0.5", "--criteria", "kernels")
    assert both["0.5"] == rows and both["0.7"]["l1 of kernels"]["trials"] == rows["l1 of kernels"]["trials"]
    assert 0.5 < both["0.7"]["l1 of kernels"]["final"][0]["flops_left"] <= 0.7
    monkeypatch.setattr(pruning, "run_jobs", None)  # nothing is left to be trained
    assert compare("--target-flops", "0.5", "--criteria", "kernels") == both
    with pytest.raises(SystemExit, match="no trials with 0.5 of l1 of masks"):
        compare("--target-flops", "0.7", "--settings-of", "0.5", "--criteria", "l1 of masks")


def test_predictions_are_compared_with_a_stopwatch(tmp_path, monkeypatch, capfd):
    pytest.importorskip("torch_pruning")
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"other": {"runtimes": {}}}))
    options = ["--runtimes", "torch", "--count", "2", "--runs", "1", "--repeats", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["latency.py", "digits", *options])
    load("latency").main()
    known = json.loads(file.read_text())
    row = known["digits"]["runtimes"]["torch"]
    assert "other" in known and len(row["runs"]) == 2
    for run in row["runs"]:
        errors = [p / m - 1 for p, m in zip(run["predicted_ms"][1:], run["measured_ms"][1:], strict=True)]
        assert len(errors) == 2 and run["errors"] == pytest.approx(errors)
    off = sorted(abs(e) for run in row["runs"] for e in run["errors"])
    assert row["median_error"] == pytest.approx((off[1] + off[2]) / 2) and "median error" in capfd.readouterr().out


def test_trainings_that_search_are_timed_against_a_plain_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_pruning")
    file = tmp_path / "s.json"
    options = ["--set", "epochs=1,images=256", "--runs", "2", "--only", "prune to 1/2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["search.py", "digits", *options])
    load("search").main()
    rows = json.loads(file.read_text())["rows"]
    assert set(rows) == {"plain", "prune to 1/2"} and all(len(r["seconds"]) == 2 for r in rows.values())
    ratios = sorted(s / p for s, p in zip(rows["prune to 1/2"]["seconds"], rows["plain"]["seconds"], strict=True))
    assert rows["plain"]["ratio"] == 1 and rows["prune to 1/2"]["ratio"] == pytest.approx(sum(ratios) / 2)
    assert " x" in capsys.readouterr().out


def test_priors_are_compared_at_equal_bytes_and_multiply_adds(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_pruning")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    priors, file = load("priors"), tmp_path / "p.json"
    monkeypatch.setitem(priors.CASES, "digits", ({"epochs": "6"}, (0.6,)))
    arguments = ["priors.py", "digits", "--seeds", "0", "--jobs", "1", "--out", str(tmp_path), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    priors.main()
    (row,) = json.loads(file.read_text())["digits"]["points"]
    (slices,), masks = row["slices"], row["masks"]
    assert [m["changes"]["target_size"] for m in masks] == [f"{slices['size']:g}"] * 3
    assert [m["changes"]["target_flops"] for m in masks] == ["0.6", "0.84", "0.99"]
    assert all(m["flops"] <= float(m["changes"]["target_flops"]) for m in masks)
    assert "mean: slices" in capsys.readouterr().out
    points = [{"seed": 0, "flops": f, "accuracy": a} for f, a in ((0.25, 0.5), (0.5, 0.7), (0.6, 0.9))]
    assert priors._equal({"seed": 0, "flops": 0.5}, points) == 0.7 and np.isnan(priors._equal({"seed": 0, "flops": 0.7}, points))


def test_networks_move_to_another_data_set_whole_pruned_or_narrow(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_pruning")
    transfer, file = load("transfer"), tmp_path / "t.json"

    def some(count):
        rng = np.random.default_rng(count)
        y = rng.integers(0, 10, count)
        return data.Split((rng.integers(0, 90, (count, 3, 32, 32)) + 16 * y[:, None, None, None]).astype(np.uint8), y)

    def ten():
        return data.Splits(some(256), some(40), some(50))

    monkeypatch.setattr(transfer, "mnist", ten)
    monkeypatch.setattr(transfer.data, "cifar10", ten)
    options = ["--source-epochs", "1", "--epochs", "1", "--jobs", "1", "--out", str(tmp_path), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["transfer.py", *options])
    transfer.main()
    report = json.loads(file.read_text())
    left = {r["way"]: r["macs"] / report["whole_macs"] for r in report["results"]}
    assert list(left) == list(transfer.WAYS) and left["whole"] == left["whole, without MNIST"] == 1
    assert all(0.75 < share <= 0.85 for way, share in left.items() if not way.startswith("whole"))
    had = {r["way"]: r["source_accuracy"] is not None for r in report["results"]}
    assert not had.pop("whole, without MNIST") and all(had.values())
    assert "CIFAR-10" in capsys.readouterr().out
