"""What a recipe can ask for besides a learning rate: pieces of batches, averages, teachers, quantisers, own networks."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilnetx_mini import data, runtime
from lilnetx_mini.errors import CheckpointError, InputError
from lilnetx_mini.nn import load_into, recipes, report, train
from lilnetx_mini.nn.data import Variation
from lilnetx_mini.nn.latent import Group, soft_round
from lilnetx_mini.nn.objective import distillation
from lilnetx_mini.nn.recipes import Recipe
from lilnetx_mini.nn.train import Run


def some(n: int, seed: int = 0) -> data.Split:
    """Bytes with a class that can be seen: where the bright quarter is."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 100, (n, 1, 8, 8), dtype=np.uint8), rng.integers(0, 4, n)
    for image, k in zip(x, y, strict=True):
        image[0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 120
    return data.Split(x, y)


def quarters() -> data.Splits:
    return data.Splits(some(96), some(32, 1), some(32, 2))


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 4))  # fmt: skip


SMALL = Recipe("quarters", small, quarters, epochs=3, batch=32, lr=0.02, plain_lr=0.02, shift=1)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "quarters", SMALL)


def fitted(folder, **changes) -> Run:
    run = Run(replace(SMALL, **changes), 0, folder)
    run.fit(progress=False)
    return run


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def stopped(recipe, stop, tmp_path):
    """A run to the end, and a fresh one where another stopped after so many epochs."""
    whole = Run(recipe, 0, tmp_path / "whole")
    whole.fit(progress=False)
    part = Run(recipe, 0, tmp_path / "part")
    while part.epoch < stop:
        loss = part._epoch()
        part.epoch += 1
        part.metrics.append(part._line(loss))
        part._save()
    again = Run(recipe, 0, tmp_path / "part")
    return whole, again


def test_a_batch_in_pieces_is_the_same_batch(tmp_path):
    """Without norm layers, and with a rate whose noise does not depend on the pieces."""
    bare = lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))  # noqa: E731
    runs = [Run(replace(SMALL, model=bare, accumulate=n, optimizer="sgd", plain_lr=0.05), 0, tmp_path, compress=False) for n in (1, 4)]
    for run in runs:
        run._epoch()
    assert torch.allclose(weights(runs[0]), weights(runs[1]), atol=1e-5)
    first = next(runs[1].source.steps(torch.arange(96), 0, 0, torch.Generator().manual_seed(3)))
    assert [len(y) for _, y in first] == [8] * 4
    whole = next(runs[0].source.steps(torch.arange(96), 0, 0, torch.Generator().manual_seed(3)))
    assert torch.equal(torch.cat([x for x, _ in first]), whole[0][0])


def test_pieces_are_equal_whatever_the_number_of_images(tmp_path):
    """Left over are here 5 images and 4 pieces: some images come twice in an epoch, and no piece is empty."""
    run = Run(replace(SMALL, images=37, accumulate=4, batch=16), 0, tmp_path)
    taken, ordinary = [], run._take
    run._take = lambda step: (taken.append([len(y) for _, y in step]), ordinary(step))
    assert np.isfinite(run._epoch()) and taken == [[4] * 4, [4] * 4, [2] * 4]
    with pytest.raises(InputError, match="batch=30 cannot be shared evenly"):
        Run(replace(SMALL, accumulate=4, batch=30), 0, tmp_path)


def test_variations_of_images_are_what_they_say():
    x = torch.arange(1.0, 65).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    vary = Variation(50, x.shape, 0, True, 4, torch.Generator().manual_seed(0))
    y = vary(x, 0)
    assert torch.equal(torch.cat([vary(x[:20], 0), vary(x[20:], 20)]), y)
    holes = (y == 0).flatten(1).sum(1)
    assert holes.max() == 16 and holes.min() >= 4  # cut off at the border
    mirrored = [torch.equal(torch.where(a == 0, b.flip(2), a), b.flip(2)) for a, b in zip(y, x, strict=True)]
    assert 10 < sum(mirrored) < 40


def test_a_run_stopped_within_an_epoch_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    options = {"epochs": 4, "ema": 0.9, "start": 0.2, "accumulate": 2, "cutout": 3, "batch": 4, "quantiser": "soft"}
    whole = fitted(tmp_path / "whole", **options)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)  # a checkpoint every ten steps
    part = Run(replace(SMALL, **options), 0, tmp_path / "part")
    ordinary, taken = part._take, []

    def stop(step):
        if len(taken) == 24 * 2 + 17:
            raise KeyboardInterrupt
        taken.append(1)
        ordinary(step)

    monkeypatch.setattr(part, "_take", stop)
    with pytest.raises(KeyboardInterrupt):
        part.fit(progress=False)
    again = Run(replace(SMALL, **options), 0, tmp_path / "part")
    assert again.resume() and (again.epoch, again.step) == (2, 10)
    again.fit(progress=False)
    assert torch.equal(weights(again), weights(whole)) and again.metrics == whole.metrics


def test_averages_change_little_and_end_up_in_the_network(tmp_path):
    run = fitted(tmp_path, ema=0.9)
    live = [t.clone() for t in run.average.mean]  # swapped at the end
    assert any(not torch.equal(a, b) for a, b in zip(live, run.average.live, strict=True))
    assert run.metrics[-1]["validation_accuracy"] == train.accuracy(run.model, run.splits.validation)
    with run.average.used():
        assert all(torch.equal(a, b) for a, b in zip(run.average.live, live, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_gradients_are_clipped(tmp_path, optimizer):
    """With SGD, as gradients of weights: those of latents divided by their decoder."""
    run = Run(replace(SMALL, clip=1e-3, batch=96, optimizer=optimizer, init="from_weights"), 0, tmp_path)
    run._epoch()
    known = [p for g in run.optimizers[0].param_groups for p in g["params"] if p.requires_grad]
    squares = [p.grad.square().sum() for p in known]
    if optimizer == "sgd":
        owner = {id(w.latents): w.group for w in run.compressor.weights}
        scale = {p: g.psi.square().sum() / g.d for p, g in owner.items()}
        squares = [s / scale.get(id(p), 1.0) for p, s in zip(known, squares, strict=True)]
    assert float(torch.stack(squares).sum().detach().sqrt()) == pytest.approx(1e-3, rel=0.02)


def test_slices_can_weigh_what_they_cost(tmp_path):
    """The first layer has 9 slices' work at 64 pixels, the second at 16, the dense layer a multiply-add each."""
    run = Run(replace(SMALL, weigh_macs=1), 0, tmp_path)
    costs = {w.name: float(run.compressor._costs[w.group][-1]) for w in run.compressor.weights}
    assert run.compressor.dense_prior and costs["6.weight"] == pytest.approx(costs["3.weight"] / (9 * 16))
    first = float(run.compressor._costs[run.compressor.weights[0].group][0])
    assert first == pytest.approx(4 * costs["3.weight"])


def test_soft_rounding_lies_between_the_identity_and_rounding():
    z = torch.linspace(-3, 3, 1001)
    assert torch.allclose(soft_round(z, torch.tensor(1e-3)), z, atol=1e-3)
    off = (z - torch.floor(z) - 0.5).abs() > 0.01
    assert torch.allclose(soft_round(z, torch.tensor(1000.0))[off], torch.round(z)[off], atol=1e-4)
    whole = torch.arange(-3.0, 4)
    assert torch.allclose(soft_round(whole, torch.tensor(5.0)), whole, atol=1e-5)


@pytest.mark.parametrize("changes", [{"quantiser": "noise"}, {"quantiser": "soft"}, {"rate_of": "rounded"}])
def test_other_quantisers_end_with_rounded_latents(tmp_path, changes):
    run = fitted(tmp_path, epochs=10, lam_rate=5.0, **changes)
    assert all(g.quantiser == "straight" for g in run.compressor.groups)
    other = fitted(tmp_path, epochs=10, lam_rate=5.0)
    assert not torch.equal(weights(run), weights(other))
    assert run.metrics[-1]["validation_accuracy"] > 0.6


def test_in_training_the_network_sees_what_its_quantiser_says_and_in_evaluation_rounded_latents():
    group = Group((3, 3), "scalar", 8)
    z = torch.linspace(-3, 3, 90).view(10, 9)
    for name in ("straight", "noise", "soft"):
        group.quantiser = name
        seen, again = group.train().quantised(z), group.quantised(z)
        assert torch.equal(group.eval().quantised(z), torch.round(z))
        if name == "noise":
            assert not torch.equal(seen, again) and (seen - z).abs().max() <= 0.5
        else:
            assert torch.equal(seen, torch.round(z) if name == "straight" else soft_round(z, group.sharpness))


def test_a_teacher_is_followed():
    torch.manual_seed(0)
    outputs, known = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    want = 4 * (F.softmax(known / 2, 1) * (F.log_softmax(known / 2, 1) - F.log_softmax(outputs / 2, 1))).sum(1).mean()
    assert torch.allclose(distillation(outputs, known, 2.0), want, atol=1e-6)
    assert float(distillation(known, known, 2.0)) == pytest.approx(0, abs=1e-6)


def test_distillation_trains_the_teacher_first_and_wants_one(tmp_path):
    changes = {"distill": "0.5", "epochs": "2"}
    with pytest.raises(InputError, match="no teacher"):
        Run(recipes.get("quarters", changes), 0, tmp_path)
    with pytest.raises(CheckpointError, match="no finished plain network"):
        report.train_one("quarters", changes, 0, str(tmp_path / "x" / "lilnetx"), True, False, False, "cpu", 0)
    done = report.main_job("quarters", changes, [0], tmp_path / "out", progress=False)
    assert done["compressed"][0]["file_bytes"] and done["plain"][0]["epoch"] == 2


OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12, 10)
    def forward(self, x):
        return self.two(self.one(x).relu().amax((2, 3)))
not_a_network = dict
class Argument(nn.Module):
    def __init__(self, width):
        super().__init__()
"""


def test_a_network_of_ones_own_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "coursework").mkdir()
    (tmp_path / "coursework" / "networks.py").write_text(OWN)
    (tmp_path / "coursework" / "broken.py").write_text("import torch\nNet = undefined\n")
    (tmp_path / "coursework" / "comma.py").write_text("Net = (1,\n")
    settings = ["--set", "epochs=2", "--set", "images=256", "--out", "out", "--quiet", "--no-plain", "--model", "coursework.networks:Net"]
    command = [sys.executable, "-m", "lilnetx_mini", "train", "digits", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 100 < out["compressed"][0]["file_bytes"] == os.path.getsize(tmp_path / "out" / "model.lnx") < 1500
    assert "cannot run it" in done.stdout and "amax" in done.stdout  # stored, and said so
    monkeypatch.chdir(tmp_path)
    for wrong, message in [("coursework.networks", "module:factory"), ("coursework.absent:Net", "cannot be imported"),
                           ("coursework.networks:Nothing", "no class or function"),
                           ("coursework.networks:not_a_network", "not a torch"),
                           ("coursework.networks:Argument", r"Argument\(\) failed: TypeError: .*missing 1 required"),
                           ("coursework.broken:Net", r"cannot be imported: NameError: .*undefined.* \(.*broken.py, line 2\)"),
                           ("coursework.comma:Net", "cannot be imported: SyntaxError: .*comma.py, line 1")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            recipes.get("digits", {"own_model": wrong})
    text = (tmp_path / "out" / "report.json").read_text()
    assert "NaN" not in text and out["compressed"][0]["runtime_difference"] is None  # JSON for strict readers
    assert ".lnx, loaded into torch" in done.stdout and "torch-free" not in done.stdout


class Wide(nn.Sequential):
    """Three input channels, where quarters has one."""

    def __init__(self, channels: int = 3, outputs: int = 4):
        super().__init__(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, outputs))


class Typing(nn.Linear):
    def forward(self, x):
        return self.wieght * x


@pytest.mark.parametrize("network, message", [
    (Wide, r"of quarters does not take a batch of shape \(2, 1, 8, 8\): RuntimeError: .*expected input"),
    (lambda: Wide(1, 3), r"makes \(2, 3\) of two images, and quarters needs \(2, 4\): an output for each of 4 classes"),
    (lambda: Typing(3, 3), r"AttributeError: .*wieght.* \(.*test_options.py, line \d+\)"),
    (nn.Flatten, "has no parameters to train")])  # fmt: skip
def test_networks_that_do_not_fit_are_refused_before_training(network, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Run(replace(SMALL, model=network), 0, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_not_continued_with_another_network(tmp_path):
    run = Run(replace(SMALL, model=lambda: Wide(1)), 0, tmp_path)
    run.epoch = 2
    run._schedule(6)
    run._save()

    def from_elsewhere() -> nn.Module:
        """The same network, whose first values do not come from torch's generator."""
        network = Wide(1)
        nn.init.constant_(network[0].weight, np.random.default_rng().random())
        return network

    for same in (lambda: Wide(1), from_elsewhere):
        assert Run(replace(SMALL, model=same), 0, tmp_path).resume()
    for other in (lambda: Wide(1, 7), lambda: nn.Sequential(*[nn.Tanh() if isinstance(m, nn.ReLU) else m for m in Wide(1)])):
        with pytest.raises(CheckpointError, match="another network .*--fresh"):
            Run(replace(SMALL, model=other), 0, tmp_path).resume()
    with pytest.raises(CheckpointError, match=r"other settings, batch 32 and not 16: .*--out"):
        Run(replace(SMALL, model=lambda: Wide(1), batch=16), 0, tmp_path).resume()


def test_targets_that_are_missed_are_said_to_be():
    row = {"file_bytes": 3100, "flops_left": 0.2, "slices_zero": 0.5}
    asked = {"compressed": [row, row | {"file_bytes": 1000}], "asked": {"target_size": 3000.0, "target_flops": 0.1}}
    assert report._promises(asked) == [
        "asked for 3,000 bytes: 3,100 (+3.3%), 1,000 (-66.7%)",
        "asked for 10.0% of the multiply-adds: 20.0% (+100.0%), 20.0% (+100.0%); missed: more epochs, or a target that is less far, "
        "would help",
    ]
    for slices, missed in ((0.95, False), (0.5, True)):
        (line,) = report._promises({"compressed": [{"slices_zero": slices}], "asked": {"target_slices": 0.6}})
        assert ("missed" in line) is missed


def test_a_run_killed_at_any_step_resumes_to_the_same_latents(tmp_path):
    """The process gets SIGKILL at a random moment, with checkpoints as often as they can be written."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); import test_options as t; from lilnetx_mini.nn import train;"
        "from dataclasses import replace; train.SAVE_SECONDS = 0.0;"
        "run = train.Run(replace(t.SMALL, epochs=12, batch=8), 0, sys.argv[1]); run.resume(); run.fit(progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")])
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = Run(replace(SMALL, epochs=12, batch=8), 0, tmp_path / "killed")
    assert again.resume()
    again.fit(progress=False)
    whole = fitted(tmp_path / "whole", epochs=12, batch=8)
    assert torch.equal(weights(again), weights(whole)) and again.metrics == whole.metrics


class Autoencoder(nn.Module):
    """Images (N, 1, 8, 8) through 16 numbers and back."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2))

    def forward(self, x):
        return self.up(self.down(x))


def test_a_network_that_is_no_classifier_goes_to_a_file_and_back(tmp_path):
    def images():
        s = data.digits()
        return data.Splits(*(data.Split(p.x, p.x) for p in (s.train, s.validation, s.test)))

    recipe = Recipe("autoencoder", Autoencoder, images, epochs=20, batch=32, lr=0.03, lam_rate=0.002, lam_group=0.002, loss=F.mse_loss,
                    score=lambda outputs, x: -10 * (outputs - x).square().mean((1, 2, 3)).log10(), score_name="psnr")  # fmt: skip
    run = Run(recipe, 0, tmp_path)
    metrics = run.fit(progress=False).metrics
    assert metrics[-1]["validation_psnr"] > metrics[0]["validation_psnr"] + 2 and metrics[-1]["validation_psnr"] > 12
    saved = run.compressor.save(tmp_path / "model.lnx", run.example())
    assert saved.note == "" and saved.file_bytes < 1200
    x = run.splits.test.x
    stored, module = runtime.Network.load(saved.path)(x), load_into(Autoencoder(), saved.path).eval()
    with torch.no_grad():
        assert np.abs(stored - module(torch.from_numpy(x)).numpy()).max() < 1e-4
    assert train.evaluate(module, run.splits.test, recipe.score) > 12


@pytest.mark.parametrize("asked, kinds", [("", {"scalar", "full"}), ("diagonal", {"scalar", "diagonal"})])
def test_a_recipe_may_choose_the_decoders(tmp_path, asked, kinds):
    """Those of kernels; single weights have a scalar anyway."""
    assert {g.kind for g in Run(replace(SMALL, decoder=asked), 0, tmp_path).compressor.groups} == kinds
