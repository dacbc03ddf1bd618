"""Tables of milliseconds: their points, what lies between and outside, and trainings that are told how long a call may take."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_options import SMALL
from torch import nn
from typer.testing import CliRunner

from lilnetx_mini import InputError
from lilnetx_mini.bench import Row
from lilnetx_mini.cli import app
from lilnetx_mini.nn import latency, models, prune, recipes
from lilnetx_mini.nn.channels import Channels
from lilnetx_mini.nn.latency import Grid, Table
from lilnetx_mini.nn.train import Run

pytest.importorskip("torch_pruning")

FIRST, SECOND = "Conv2d 1>8 3x3 +1 at 8x8", "Linear 8>4"


def network():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *head)


def table(**changes):
    kinds = {FIRST: Grid([1, 4, 8], [1], [[1.0], [2.0], [4.0]]), SECOND: Grid([4], [1, 2, 8], [[0.5, 0.4, 1.0]])}
    return replace(Table("torch", 1, 1, kinds, base=0.25, factor=2.0), **changes)


def predictor(t=None):
    model, x = network(), torch.zeros(1, 1, 8, 8)
    return (t or table()).of(model, x, Channels(model, x))


@pytest.mark.parametrize(("width", "layers"), [(1, [1, 0.5]), (2, [4 / 3, 0.4]), (4, [2, 0.6]), (6, [3, 0.8]), (8, [4, 1.0])])
def test_between_its_points_a_table_is_bilinear(width, layers):
    counts = torch.tensor([float(width)])
    assert predictor().layers(counts).tolist() == pytest.approx(layers)
    assert predictor()(counts).item() == pytest.approx(0.25 + 2 * sum(layers))


def test_two_sides_of_a_layer_are_interpolated_at_once():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    x = torch.zeros(1, 1, 5, 5)
    names = ("Conv2d 1>4 1x1 +0 at 5x5", "Conv2d 4>6 1x1 +0 at 5x5", "Conv2d 6>2 1x1 +0 at 5x5")
    flat = {names[0]: Grid([1, 4], [1], [[0.1], [0.1]]), names[2]: Grid([2], [1, 6], [[0.1, 0.1]])}
    middle = Grid([1, 6], [1, 4], [[1.0, 2.0], [3.0, 10.0]])
    p = Table("torch", 1, 1, flat | {names[1]: middle}).of(model, x, Channels(model, x))
    counts = torch.tensor([2.5, 3.5], dtype=torch.float64, requires_grad=True)
    s, t = 2.5 / 5, 1.5 / 3
    want = (1 - s) * ((1 - t) * 1 + t * 2) + s * ((1 - t) * 3 + t * 10)
    assert p.layers(counts)[1].item() == pytest.approx(want) and p(counts).item() == pytest.approx(want + 0.2)
    assert torch.autograd.gradcheck(p, (counts,))


def test_steady_milliseconds_never_fall_with_the_width():
    widths = torch.arange(1, 9).double()
    raw, steady = (torch.stack([predictor().layers(w.view(1), s)[1] for w in widths]) for s in (False, True))
    assert (raw.diff() < 0).any() and (steady.diff() >= 0).all() and (steady <= raw + 1e-12).all() and steady[-1] == raw[-1]


def test_outside_a_table_and_for_layers_that_it_lacks_there_is_no_prediction():
    for width in (0.5, 9.0):
        with pytest.raises(InputError, match=r"channels of Conv2d 1>8 3x3 \+1 at 8x8 are outside the latency table"):
            predictor()(torch.tensor([width]))
    with pytest.raises(InputError, match=r"the latency table has no Linear 8>4 \(5\)"):
        predictor(table(kinds={FIRST: table().kinds[FIRST]}))


def test_a_table_comes_back_from_its_file_and_other_files_are_refused(tmp_path):
    path = tmp_path / "t.json"
    table(made={"machine": "mine"}).save(path)
    assert latency.load(path) == table(made={"machine": "mine"})
    good = json.loads(path.read_text())
    grid = good["kinds"][FIRST]
    wrong = [
        {"version": 2},
        {"runtime": "abacus"},
        {"factor": -1.0},
        {"base": float("nan")},
        {"unheard": 1},
        {"kinds": []},
        {"kinds": {FIRST: grid | {"outs": [4, 1, 8]}}},
        {"kinds": {FIRST: grid | {"ms": [[1.0], [0.0], [1.0]]}}},
        {"kinds": {FIRST: grid | {"ms": [[1.0]]}}},
        {"kinds": {FIRST: grid | {"ms": "fast"}}},
    ]
    for change in wrong:
        path.write_text(json.dumps(good | change))
        with pytest.raises(InputError, match="is no latency table"):
            latency.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is no latency table"):
        latency.load(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        latency.load(tmp_path / "none.json")


@pytest.mark.parametrize("runtime", latency.RUNTIMES)
def test_a_measured_table_fits_its_network(runtime):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, x = network(), torch.zeros(2, 1, 8, 8)
    before, threads = [p.clone() for p in model.parameters()], torch.get_num_threads()
    t = latency.measure(model, x, runtime, runs=1, progress=False)
    assert (t.runtime, t.batch, t.threads) == (runtime, 2, 1) and set(t.kinds) == {FIRST, SECOND}
    assert t.kinds[FIRST].outs == [1, 3, 5, 7, 8] and t.kinds[FIRST].ins == [1]
    assert t.kinds[SECOND].outs == [4] and t.kinds[SECOND].ins == [1, 3, 5, 7, 8]
    assert all(ms > 0 for g in t.kinds.values() for row in g.ms for ms in row) and t.factor > 0 and t.whole > 0 and t.made["machine"]
    assert t.of(model, x, Channels(model, x))(torch.tensor([8.0])) > 0
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.get_num_threads() == threads


def test_a_machine_whose_speed_drifts_gives_the_same_table(monkeypatch):
    model, x, tables = network(), torch.zeros(2, 1, 8, 8), []
    for speeds in ([1.0] * 4, [1.0, 3.0, 0.5, 1.0]):  # while either kind, and the whole networks, are timed
        now = iter(speeds)

        def timed(calls, runs, now=now):
            speed = next(now)
            return [Row(name, speed * (n + 1), (0.0, 0.0)) for n, name in enumerate(calls)]

        monkeypatch.setattr(latency, "turn_by_turn", timed)
        tables.append(latency.measure(model, x, "torch", progress=False))
    usual, drifting = ([np.array(g.ms) / t.whole for g in t.kinds.values()] for t in tables)
    assert all(np.allclose(a, b) for a, b in zip(usual, drifting, strict=True)) and tables[0].whole != tables[1].whole


def test_layers_have_names_that_say_what_takes_equally_long():
    image, tokens = (1, 4, 9, 9), (1, 7, 6)
    assert latency.kind(nn.Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2), dilation=2), image) == "Conv2d 4>8 3x5 /2 +1x2 *2 at 9x9"
    assert latency.kind(nn.Conv2d(4, 4, 3, groups=4), image) == "Conv2d 4>4 3x3 +0 depthwise at 9x9"
    assert latency.kind(nn.Conv2d(4, 4, 3, padding="same"), image) == "Conv2d 4>4 3x3 +same at 9x9"
    assert latency.kind(nn.Linear(6, 2), tokens) == "Linear 6>2 of 7" and latency.kind(nn.Linear(6, 2), (1, 6)) == "Linear 6>2"


def test_what_cannot_be_measured_is_refused():
    model, x = network(), torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match="runtime 'abacus'"):
        latency.measure(model, x, "abacus")
    prune(model, x)
    with pytest.raises(InputError, match="parametrised"):
        latency.measure(model, x)
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1))
    with pytest.raises(InputError, match="only depthwise ones"):
        latency.measure(grouped, torch.zeros(1, 4, 8, 8), "torch", runs=1, progress=False)


def digits_table(model, x, base=0.0):
    """As if a layer took a microsecond for every thousand multiply-adds."""
    channels, kinds = Channels(model, x), {}
    shapes = latency._inputs(model, x, [layer.name for layer in channels.layers])
    for layer in channels.layers:
        outs, ins = sorted({1, len(layer.makes)}), sorted({1, len(layer.reads)})
        name = latency.kind(model.get_submodule(layer.name), shapes[layer.name])
        kinds[name] = Grid(outs, ins, [[1e-6 * layer.cost * o * i for i in ins] for o in outs])
    return Table("torch", 1, 1, kinds, base=base)


@pytest.mark.parametrize("round_to", [1, 4])
def test_with_a_table_masks_count_milliseconds_and_cut_to_a_share_of_them(round_to):
    model, x = models.digits_resnet(), torch.zeros(1, 1, 8, 8)
    pruned = prune(model, x, start="ones", table=digits_table(model, x, base=0.2))
    assert pruned.penalty().item() == pytest.approx(1, abs=1e-3)
    counts = pruned.counts()
    assert counts.dense_ms == pytest.approx(0.2 + 1e-6 * counts.dense_macs) and counts.ms == counts.dense_ms
    with torch.no_grad():
        pruned.alpha.copy_(torch.rand(pruned.alpha.shape, generator=torch.Generator().manual_seed(0)))
    pruned.keep(0.6, round_to)
    counts = pruned.counts()
    assert 0.5 < counts.ms / counts.dense_ms <= 0.6
    left = pruned.channels.counts(pruned.alpha.detach() > 0)
    assert (left % round_to == 0).all()
    with pytest.raises(InputError, match="of the milliseconds are out of reach"):
        pruned.keep(0.1)


def stopwatch(slower, timed):
    """Of `latency.milliseconds`, a stand-in that finds networks so much slower than `digits_table`."""

    def milliseconds(networks, example, runtime, threads, runs=31):
        (small,) = networks.values()
        channels = Channels(small, example)
        timed.append(slower * 1e-6 * channels.macs(torch.tensor(channels.units)).item())
        return {"": timed[-1]}

    return milliseconds


@pytest.mark.parametrize("slower", [0.8, 1.4])
def test_where_the_stopwatch_differs_from_the_table_the_cut_goes_by_the_stopwatch(slower, tmp_path, monkeypatch):
    recipe, x, timed = recipes.get("digits", {"epochs": "4", "images": "512"}), torch.zeros(1, 1, 8, 8), []
    model = recipe.model()
    digits_table(model, x).save(tmp_path / "t.json")
    whole = prune(model, x, table=latency.load(tmp_path / "t.json")).counts().dense_ms
    monkeypatch.setattr(latency, "milliseconds", stopwatch(slower, timed))
    asked = {"method": "prune", "target_latency_ms": 0.5 * whole, "latency_table": str(tmp_path / "t.json")}
    line = Run(replace(recipe, **asked), 0, tmp_path / "run").fit(progress=False).metrics[-1]
    assert line["measured_ms"] == pytest.approx(0.5 * whole, rel=0.02) and line["measured_ms"] in timed and len(timed) > 1
    assert line["predicted_ms"] == pytest.approx(line["measured_ms"] / slower)
    with pytest.raises(InputError, match="out of reach: the narrowest network takes"):
        Run(replace(recipe, **asked | {"target_latency_ms": 1e-5}), 0, tmp_path / "run2")


def test_targets_that_make_no_sense_are_refused_before_training(tmp_path):
    model, x = SMALL.model(), torch.zeros(1, 1, 8, 8)
    digits_table(model, x).save(tmp_path / "t.json")
    latencies = {"target_latency_ms": 0.1, "latency_table": str(tmp_path / "t.json")}
    with pytest.raises(InputError, match="one of them is needed"):
        Run(replace(SMALL, method="prune", target_flops=0.5, **latencies), 0, tmp_path)
    with pytest.raises(InputError, match="a latency_table is needed with it"):
        Run(replace(SMALL, method="prune", target_latency_ms=0.1), 0, tmp_path)
    with pytest.raises(InputError, match="method=prune is needed with it"):
        Run(replace(SMALL, method="low_rank", **latencies), 0, tmp_path)
    with pytest.raises(InputError, match="ms are predicted for the whole network already"):
        Run(replace(SMALL, method="prune", **latencies | {"target_latency_ms": 1e6}), 0, tmp_path)


def test_commands_measure_a_table_and_train_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["latency-table", "digits", "--runtime", "torch", "--quiet", "--out", "t.json"])
    assert done.exit_code == 0 and "Conv2d 16>16 3x3 +1 at 8x8" in done.output and len(latency.load("t.json").kinds) == 7
    model, x = models.digits_resnet(), torch.zeros(1, 1, 8, 8)
    digits_table(model, x).save("t.json")
    monkeypatch.setattr(latency, "milliseconds", stopwatch(1.1, []))
    small = ["--set", "epochs=1", "--set", "images=256", "--no-plain", "--quiet"]
    done = CliRunner().invoke(app, ["prune", "digits", "--target-latency-ms", "0.4", "--latency-table", "t.json", *small])
    assert done.exit_code == 0 and "asked for 0.4 ms" in done.output, done.output
    wrong = CliRunner().invoke(app, ["prune", "digits", "--target-latency-ms", "1", "--target-flops", "0.5"])
    assert isinstance(wrong.exception, InputError) and "one of them is needed" in str(wrong.exception)
