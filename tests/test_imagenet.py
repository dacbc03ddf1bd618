"""The path from image files to a stored network, at full resolution, a few steps of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from test_data import image_folder
from test_train import lilnetx

from lilnetx_mini import data, runtime
from lilnetx_mini.nn import load_into, models, recipes, report
from lilnetx_mini.nn.train import Run, accuracy


@pytest.fixture
def photographs(tmp_path, data_dir):
    """Some real photographs of three classes, in ImageNet's layout."""
    source = data_dir / "imagenette-sample"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist: no photographs to test with")
    for part, count in (("train", 8), ("val", 2)):
        for folder in sorted((source / part).iterdir())[:3]:
            target = tmp_path / "imagenet" / part / folder.name
            target.mkdir(parents=True)
            for p in sorted(folder.iterdir())[:count]:
                os.link(p, target / p.name) if p.stat().st_dev == tmp_path.stat().st_dev else shutil.copy(p, target / p.name)
    return tmp_path


def test_a_network_is_trained_stored_and_reloaded_at_full_resolution(photographs, tmp_path, monkeypatch):
    """The narrowest MobileNetV2, for speed."""
    monkeypatch.setenv("LILNETX_DATA", str(photographs))
    narrow = recipes.get("imagenet_mobilenetv2")
    narrow = recipes.dataclasses.replace(narrow, model=lambda: models.with_pixel_norm(models.mobilenet_v2(0.35, 3)))
    monkeypatch.setitem(recipes.RECIPES, "imagenet_mobilenetv2", narrow)
    changes = {"epochs": "1", "batch": "8", "images": "16", "workers": "2"}
    done = report.main_job("imagenet_mobilenetv2", changes, [0], tmp_path / "out", plain=False, progress=False)
    (row,) = done["compressed"]
    assert row["file_bytes"] == os.path.getsize(done["file"]) and row["runtime_difference"] < 1e-3
    assert row["file_accuracy"] == row["module_accuracy"]
    x = data.imagenet().test.images(slice(2))
    module = load_into(narrow.model(), done["file"]).eval()
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    assert abs(runtime.Network.load(done["file"])(x) - want).max() < 1e-3 * abs(want).max()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["recipe"] == "imagenet_mobilenetv2"


def test_damaged_images_are_named_counted_and_skipped(tmp_path, monkeypatch):
    folder = image_folder(tmp_path)
    monkeypatch.setenv("LILNETX_DATA", str(folder))
    bad = [Path(folder / "imagenet" / "train" / "n02" / "n02_1.JPEG"), Path(folder / "imagenet" / "val" / "n01" / "n01_0.JPEG")]
    for path in bad:
        path.write_bytes(b"no image")
    recipe = recipes.get("imagenet_resnet18", {"epochs": "2", "batch": "4", "workers": "0"})
    small = recipes.dataclasses.replace(recipe, model=lambda: torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)))  # fmt: skip
    run = Run(small, 0, tmp_path / "run")
    with pytest.warns(UserWarning, match="n02_1.JPEG is not an image .*skipped") as warned:
        metrics = run.fit(progress=False).metrics
    assert [m["damaged_images"] for m in metrics] == [1, 1] and sum("n02_1" in str(w.message) for w in warned) == 1
    before, held = run.example(), run.splits.validation
    assert before.shape == (2, 3, 224, 224)
    held.paths[0].write_bytes(b"no image")
    assert torch.equal(run.example()[0], before[1]) and not torch.equal(run.example()[1], before[1])
    with pytest.warns(UserWarning, match="n01_0.JPEG"):
        share = accuracy(run.model, run.splits.test)
    assert share * 5 == pytest.approx(round(share * 5))  # of the five that can be read
    run.compressor.save(tmp_path / "model.lnx", run.example())
    done = lilnetx("evaluate", tmp_path / "model.lnx", "--data", "imagenet")
    assert done.stdout.startswith(f"{5 * share:.0f} of 5 right") and "1 that cannot be read" in done.stdout
    assert "n01_0.JPEG is not an image" in done.stderr
    for path in Path(folder / "imagenet" / "val").glob("*/*"):
        path.write_bytes(b"no image")
    done = lilnetx("evaluate", tmp_path / "model.lnx", "--data", "imagenet")
    assert done.returncode == 1 and "none of 6 images can be read" in done.stderr


def test_views_of_images_do_not_depend_on_who_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LILNETX_DATA", str(image_folder(tmp_path)))
    losses = []
    for workers in ("0", "2"):
        recipe = recipes.get("imagenet_resnet18", {"epochs": "1", "batch": "4", "workers": workers})
        run = Run(recipe, 0, tmp_path / workers)
        steps = list(run.source.steps(torch.arange(9), 3, 1, run.generator))
        assert [len(y) for step in steps for _, y in step] == [4, 1]
        losses.append(torch.cat([x for step in steps for x, _ in step]))
    assert torch.equal(*losses)
