"""Recipes, exact resume, and the command line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lilnetx_mini import cli, data, lnx
from lilnetx_mini.errors import CheckpointError, DataError, InputError
from lilnetx_mini.nn import recipes, reparameterize
from lilnetx_mini.nn.data import shifted
from lilnetx_mini.nn.optimise import optimizers, warm_cosine
from lilnetx_mini.nn.train import Run

TINY = {"epochs": "3", "batch": "256"}


def lilnetx(*arguments, process: bool = False):
    """The command line, in a process of its own or, faster, in this one."""
    command = [str(a) for a in arguments]
    if process:
        return subprocess.run([sys.executable, "-m", "lilnetx_mini", *command], capture_output=True, text=True)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["lilnetx", *command])
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def latents(run: Run) -> list[torch.Tensor]:
    return [w.latents.detach().clone() for w in run.compressor.weights]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = Run(recipes.get("digits", TINY), 0, tmp_path_factory.mktemp("reference"))
    run.fit(progress=False)
    return run


def test_a_stopped_run_resumes_to_the_same_numbers(tmp_path, reference, monkeypatch):
    first = Run(recipes.get("digits", TINY), 0, tmp_path / "stopped")
    ordinary, calls = first._epoch, []

    def stop_in_the_second_epoch(after_step):
        if calls:
            torch.rand(7)  # what an interrupted epoch would have drawn
            raise KeyboardInterrupt
        calls.append(1)
        return ordinary(after_step)

    monkeypatch.setattr(first, "_epoch", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        first.fit(progress=False)
    second = Run(recipes.get("digits", TINY), 0, tmp_path / "stopped")
    assert second.resume() and second.epoch == 1
    second.fit(progress=False)
    assert all(torch.equal(a, b) for a, b in zip(latents(reference), latents(second), strict=True))
    assert second.metrics == reference.metrics
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == reference.metrics


def test_the_progress_bar_counts_steps_and_goes_on_where_a_run_was_stopped(tmp_path, capsys, monkeypatch):
    run = Run(recipes.get("digits", TINY), 0, tmp_path)
    ordinary = run._take

    def stop_in_the_second_epoch(step):
        if run.epoch == 1 and run.step == 2:
            run._save()
            raise KeyboardInterrupt
        ordinary(step)

    monkeypatch.setattr(run, "_take", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert f"/{run.steps} [" in capsys.readouterr().err
    again = Run(recipes.get("digits", TINY), 0, tmp_path)
    again.resume()
    again.fit()
    first, *_, last = [line for line in capsys.readouterr().err.split("\r") if line.strip()]
    assert f" {run.steps_an_epoch + 2}/{run.steps} " in first and "epoch=1/3" in first and "acc=" in first
    assert f" {run.steps}/{run.steps} " in last and "epoch=3/3" in last


def test_a_run_killed_at_any_moment_leaves_a_whole_checkpoint_and_resumes_to_the_same_numbers(tmp_path, reference):
    folder = tmp_path / "killed"
    script = (
        "import sys; from lilnetx_mini.nn import recipes; from lilnetx_mini.nn.train import Run;"
        "run = Run(recipes.get('digits', {'epochs': '3', 'batch': '256'}), 0, sys.argv[1]); run.resume(); run.fit(progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.8))
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run(recipes.get("digits", TINY), 0, folder)
    assert run.resume() and 1 <= run.epoch <= 3
    run.fit(progress=False)
    assert all(torch.equal(a, b) for a, b in zip(latents(reference), latents(run), strict=True))
    assert run.metrics == reference.metrics


def test_a_finished_run_comes_back_as_it_was(reference):
    again = Run(recipes.get("digits", TINY), 0, reference.folder)
    assert again.resume()
    x = torch.from_numpy(again.splits.test.x)
    assert torch.equal(again.model.eval()(x), reference.model.eval()(x))


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(tmp_path, reference):
    with pytest.raises(CheckpointError, match="other settings"):
        Run(recipes.get("digits", TINY | {"lr": "0.5"}), 0, reference.folder).resume()
    with pytest.raises(CheckpointError, match="other settings"):
        Run(recipes.get("digits", TINY), 1, reference.folder).resume()
    (tmp_path / "checkpoint.pt").write_bytes((reference.folder / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        Run(recipes.get("digits", TINY), 0, tmp_path).resume()


@pytest.mark.parametrize("decoder,close", [("full", 1e-6), ("dct", 1e-5)])  # the basis is rounded to 14 bits; steps are up to 0.06
def test_latents_step_as_their_weights_would(decoder, close):
    """With SGD and decoders that are scalars, as full ones are at their start, or scalars times the cosine basis; weight decay included."""
    torch.manual_seed(0)
    recipe = recipes.get("digits", {"optimizer": "sgd", "lr": "0.1", "plain_lr": "0.1", "weight_decay": "0.01"})
    model, plain = recipe.model(), recipe.model()
    compressor = reparameterize(model, init="from_weights", decoder=decoder)
    names = {w.name: w for w in compressor.weights}
    with torch.no_grad():
        for w in names.values():
            w.latents.copy_(torch.round(w.latents))
        values = {k.replace(".parametrizations", "").replace(".original", ""): v for k, v in model.state_dict().items()}
        for name, p in plain.named_parameters():
            p.copy_(getattr(names[name].module, names[name].attribute) if name in names else values[name])
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    ours, theirs = optimizers(model, compressor, recipe), optimizers(plain, None, recipe)
    for m, several in ((model, ours), (plain, theirs)):
        F.cross_entropy(m(x), y).backward()
        for o in several[:1]:  # the second is of densities
            o.step()
    for name, p in plain.named_parameters():
        if name in names:
            w = names[name]
            stepped = (w.latents.detach() @ w.group.psi.detach()).view(w.shape)
            assert torch.allclose(stepped, p, atol=close), name
        else:
            assert torch.allclose(dict(model.named_parameters())[name], p, atol=1e-6), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_may_begin_with_the_plain_network_and_resumes_on_either_side(tmp_path, optimizer):
    changes = {"optimizer": optimizer, "start": "0.5", "warmup": "0.2", "epochs": "4", "batch": "128", "images": "256", "lr": "0.05"}
    whole = Run(recipes.get("digits", changes), 0, tmp_path / "whole")
    assert whole.compressor is None
    metrics = whole.fit(progress=False).metrics
    assert ["latent_bytes" in m for m in metrics] == [False, False, True, True]
    for done in (1, 2, 3):
        part = Run(recipes.get("digits", changes), 0, tmp_path / f"part{done}")
        while part.epoch < done:
            part._epoch()
            part.epoch += 1
        part.metrics = metrics[:done]
        part._save()
        again = Run(recipes.get("digits", changes), 0, tmp_path / f"part{done}")
        with torch.no_grad():  # whatever the weights of the new process: what follows from them is in the checkpoint
            for p in again.model.parameters():
                p.mul_(20)
        assert again.resume() and (again.compressor is not None) == (done >= 2)
        assert again.fit(progress=False).metrics == metrics
        assert all(torch.equal(a, b) for a, b in zip(latents(whole), latents(again), strict=True))


def test_latents_must_begin_before_the_end(tmp_path):
    with pytest.raises(InputError, match="below 1"):
        Run(recipes.get("digits", {"start": "1"}), 0, tmp_path)


def test_the_rate_rises_and_falls():
    shares = [warm_cosine(n / 100, 0.2) for n in range(101)]
    assert shares[0] == 0 and max(shares) == shares[20] == 1 and shares[100] == pytest.approx(0, abs=1e-12)
    assert all(np.diff(shares[:21]) > 0) and all(np.diff(shares[20:]) < 0)
    assert warm_cosine(0, 0) == 1


def test_penalties_make_latents_vanish_and_files_small(tmp_path):
    sizes = []
    for lam in ("0", "40"):
        run = Run(recipes.get("digits", TINY | {"lam_rate": lam, "lam_group": lam, "epochs": "6"}), 0, tmp_path / lam)
        sizes.append(run.fit(progress=False).metrics[-1])
    assert sizes[1]["latent_bytes"] < 0.8 * sizes[0]["latent_bytes"]
    assert sizes[1]["slices_zero"] > sizes[0]["slices_zero"] + 0.02


def test_channels_last_computes_the_same(tmp_path):
    """In another order of sums, so to rounding: before batch normalisation and Adam have made much of it."""
    runs = [Run(recipes.get("digits", {"epochs": "1", "channels_last": str(c)}), 0, tmp_path / str(c)) for c in (0, 1)]
    x = torch.from_numpy(runs[0].splits.test.x[:20])
    with torch.no_grad():
        a, b = (r.model.eval()(x) for r in runs)
    assert torch.allclose(a, b, atol=1e-4)
    assert np.isfinite(runs[1].fit(progress=False).metrics[-1]["loss"])


def test_bfloat16_trains_a_little_differently_and_stores_as_much(tmp_path):
    runs = [Run(recipes.get("digits", {"epochs": "1", "bf16": str(b)}), 0, tmp_path / str(b)) for b in (0, 1)]
    full, half = (r.fit(progress=False).metrics[-1]["loss"] for r in runs)
    assert full != half and half == pytest.approx(full, rel=0.05)
    assert all(w.latents.dtype == torch.float32 for w in runs[1].compressor.weights)
    saved = runs[1].compressor.save(tmp_path / "half.lnx", runs[1].example())
    assert not saved.note and saved.difference < 1e-4


def test_images_move_by_whole_pixels_and_zeros_come_in():
    x = torch.arange(1.0, 17).view(1, 1, 4, 4).repeat(200, 1, 1, 1)
    y = shifted(x, 1, torch.Generator().manual_seed(0))
    seen = {tuple(v.flatten().tolist()) for v in y}
    assert len(seen) == 9
    assert tuple(torch.roll(x[0], (1, 0), (1, 2)).index_fill(1, torch.tensor([0]), 0).flatten().tolist()) in seen
    assert shifted(x, 0, torch.Generator()) is x


def test_recipes_take_changes_and_refuse_nonsense():
    assert recipes.get("digits", {"epochs": "7", "lr": "0.5"}).epochs == 7
    for changes, message in [
        ({"epoch": "7"}, "no setting 'epoch'"),
        ({"optimizer": "lion"}, "'adam' and 'sgd' are the choices"),
        ({"epochs": "x"}, "a whole number is needed"),
        ({"lr": "nan"}, "a number from 0 on"),
        ({"batch": "0"}, "a number from 1 on"),
        ({"side_bits": "1"}, "2 to 16"),
        ({"side_bits": "17"}, "2 to 16"),
        ({"ema": "1.5"}, "share between 0 and 1"),
        ({"quantiser": "hard"}, "'straight' and 'noise' and 'soft' are the choices"),
    ]:
        with pytest.raises(InputError, match=message):
            recipes.get("digits", changes)
    with pytest.raises(InputError, match="there are digits"):
        recipes.get("nothing")


def test_the_digits_split_is_fixed_and_does_not_overlap():
    s = data.digits()
    assert (len(s.train), len(s.validation), len(s.test)) == (1257, 180, 360)
    assert np.bincount(s.test.y).min() >= 25 and s.train.x.max() == 1.0
    rows = {p.x[i].tobytes() for p in (s.validation, s.test) for i in range(len(p))}
    assert len(rows & {x.tobytes() for x in s.train.x}) <= 2  # the data set itself holds a few equal images


def test_train_info_evaluate_predict_from_the_command_line(tmp_path):
    out = tmp_path / "runs"
    done = lilnetx(
        "train",
        "digits",
        "--out",
        out,
        "--seeds",
        "3",
        *[x for k, v in (TINY | {"images": "512", "side_bits": "12"}).items() for x in ("--set", f"{k}={v}")],
        "--quiet",
        "--jobs",
        "1",
        process=True,
    )
    assert done.returncode == 0, done.stderr
    assert "float32 file" in done.stdout and ".lnx" in done.stdout and (out / "report.png").stat().st_size > 10_000
    report = json.loads((out / "report.json").read_text())
    assert report["plain"][0]["float_bytes"] == 301_956 == os.path.getsize(out / "seed3" / "plain" / "float32.bin")
    assert 2**10 <= max(abs(side.ints).max() for side in lnx.read(out / "model.lnx").sides) <= 2**11
    info = json.loads(lilnetx("info", out / "model.lnx", "--json").stdout)
    assert info["file_bytes"] == sum(info["sections"].values()) == os.path.getsize(out / "model.lnx")
    assert {"name", "weights", "bits", "slice_sparsity"} <= info["layers"][0].keys()
    assert "blocks.2.conv2.weight" in lilnetx("info", out / "model.lnx").stdout
    by_name = json.loads(lilnetx("evaluate", out / "model.lnx", "--data", "digits", "--json").stdout)
    by_file = json.loads(lilnetx("evaluate", out / "model.lnx", "--data", out / "test.npz", "--json").stdout)
    assert by_name == by_file and by_file["accuracy"] == report["compressed"][0]["file_accuracy"]
    test = data.digits().test
    np.save(tmp_path / "one.npy", test.x[0])
    np.savez(tmp_path / "many.npz", x=test.x[:4])
    one = json.loads(lilnetx("predict", out / "model.lnx", tmp_path / "one.npy", "--json").stdout)
    many = json.loads(lilnetx("predict", out / "model.lnx", tmp_path / "many.npz", "--json").stdout)
    assert one["classes"] == many["classes"][:1] and len(many["classes"]) == 4
    from PIL import Image

    Image.fromarray((test.x[0, 0] * 255).astype(np.uint8)).resize((32, 32)).save(tmp_path / "digit.png")
    assert lilnetx("predict", out / "model.lnx", tmp_path / "digit.png").stdout.startswith("class ")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("info", "absent.lnx"), "no file"),
        (("train", "nothing"), "no recipe"),
        (("train", "digits", "--set", "epochs"), "KEY=VALUE"),
        (("train", "digits", "--seeds", "a"), "whole numbers"),
        (("train", "digit"), "did you mean digits?"),
        (("train", "digits", "--set", "lam_rat=1"), "did you mean lam_rate?"),
        (("train", "digits", "--target-flops", "0"), "between 0 and 1"),
        (("train", "digits", "--target-flops", "150%"), "such as 0.35 or 35%"),
        (("train", "digits", "--target-slices", "-0.2"), "between 0 and 1"),
        (("train", "digits", "--target-size", "3kB", "--max-accuracy-drop", "1"), "leave one of them out"),
        (("train", "digits", "--max-accuracy-drop", "-1", "--dry-run"), "between 0 and 100"),
        (("train", "digits", "--seeds", "0,0", "--dry-run"), "different numbers"),
        (("train", "digits", "--data-dir", "nowhere"), "not a folder"),
        (("train", "digits", "--out", "{text}/below"), "is a file, and a folder is needed"),
        (("sweep", "digits", "--lam-rate", "1,-4"), "lam_rate=-4.0: a number from 0 on"),
        (("sweep", "digits", "--lam-rate", "1", "--target-size", "1kB"), "only one of"),
        (("evaluate", "{golden}", "--data", "mnist", "--data-dir", "nowhere"), "not a folder"),
        (("evaluate", "{golden}", "--data", "nowhere"), "no file nowhere"),
        (("predict", "{golden}", "absent.png"), "no file"),
        (("predict", "{golden}", "{text}"), "not an image"),
        (("info", "{text}"), "not an .lnx"),
        (("export", "{golden}"), "--onnx"),
        (("export", "{text}", "--onnx"), "not an .lnx"),
        (("export", "{golden}", "--onnx", "{golden}"), "another name"),
    ],
)
def test_mistakes_on_the_command_line_are_one_clear_line(arguments, message, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("hello there")
    done = lilnetx(*[a.format(golden=golden / "digits.lnx", text=text) for a in arguments])
    assert (
        done.returncode == 1
        and message in done.stderr
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("lilnetx: ")
    )
    assert list(tmp_path.iterdir()) == [text]  # nothing was begun


def test_every_combination_of_settings_has_a_folder_of_its_own(tmp_path):
    assert cli._folder(None, "digits", {}) == Path("runs/digits")
    changes = {"target_size": "3000.0", "own_model": "mine:Net", "epochs": "3"}
    assert cli._folder(None, "digits", changes) == Path("runs/digits-epochs=3-own_model=mine.Net-target_size=3000.0")
    assert cli._folder(tmp_path, "digits", changes) == tmp_path


def test_help_lists_the_recipes_there_are():
    shown = lilnetx("train", "--help").stdout.split("Options:")[0].split("Arguments:")[1]
    assert set(recipes.RECIPES) == {word for word in re.findall(r"\w+", shown) if word == "digits" or "_" in word}


@pytest.mark.skipif(os.name != "posix", reason="counts the processes of a group")
def test_interrupting_the_main_process_ends_all_and_says_how_to_continue(tmp_path):
    command = [sys.executable, "-m", "lilnetx_mini", "train", "digits", "--set", "epochs=2000", "--jobs", "2", "--out", str(tmp_path)]
    options = {
        "start_new_session": True,
        # of what runs in the background, some shells ignore it; a process inherits that
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with open(tmp_path / "log", "w+") as log, subprocess.Popen(command, stderr=log, stdout=log, **options) as process:
        try:
            until = time.monotonic() + 120
            while len(list(tmp_path.glob("*/*/checkpoint.pt"))) < 2 and time.monotonic() < until:
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)  # and nobody else
            assert process.wait(60) == 130 and "the same command continues" in Path(log.name).read_text()
            with pytest.raises(ProcessLookupError):  # of its group, nobody is left
                for _ in range(200):
                    os.killpg(process.pid, 0)
                    time.sleep(0.1)
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["train", "info", "evaluate", "predict", "export"])
def test_every_command_has_help_with_an_example(command):
    assert f"Example: lilnetx {command}" in lilnetx(command, "--help").stdout


@pytest.mark.parametrize("arrays", [
    {"x": np.zeros((2, 1, 8, 8))}, {"x": np.zeros((2, 1, 8, 8)), "y": np.zeros(3, int)},
    {"x": np.zeros((0, 1, 8, 8)), "y": np.zeros(0, int)},
    {"x": np.array(3.0), "y": np.array([1])}])  # fmt: skip
def test_evaluation_data_without_labels_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match="x .* and y"):
        data.load_npz(tmp_path / "d.npz")


def test_bytes_are_pixels_and_labels_are_whole_numbers(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.full((2, 1, 8, 8), 255, np.uint8), y=np.array([1, 2]))
    assert data.load_npz(tmp_path / "d.npz").x.max() == 1.0
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 1, 8, 8)), y=np.array(["a", "b"]))
    with pytest.raises(InputError, match="whole numbers"):
        data.load_npz(tmp_path / "d.npz")
    with pytest.raises(InputError, match="plain arrays"):
        data.load_npz(__file__)


def test_no_pickle_is_ever_opened(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([0]))
    with pytest.raises(InputError, match="plain arrays"):
        data.load_npz(tmp_path / "evil.npz")
    with pytest.raises(DataError, match="no file"):
        data.load_npz(tmp_path / "absent.npz")


def test_devices_that_are_not_there_are_refused(tmp_path):
    done = lilnetx("train", "digits", "--device", "tpu", "--out", tmp_path)
    assert done.returncode == 1 and "cpu, cuda and auto" in done.stderr
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            Run(recipes.get("digits", TINY), 0, tmp_path, device="cuda")
    assert Run(recipes.get("digits", TINY), 0, tmp_path, device=None).device.type in ("cpu", "cuda")


def test_checkpoints_from_before_a_setting_was_there_still_fit(tmp_path, reference):
    state = torch.load(reference.folder / "checkpoint.pt", weights_only=True)
    settings = json.loads(state["settings"])
    del settings["weigh_macs"], settings["ema"]
    torch.save(state | {"settings": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    assert Run(recipes.get("digits", TINY), 0, tmp_path).resume()
    with pytest.raises(CheckpointError, match="other settings"):
        Run(recipes.get("digits", TINY | {"ema": "0.9"}), 0, tmp_path).resume()
