"""Checkpoints from elsewhere: what fits goes in, what does not leaves the network as it was."""

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from lilnetx_mini.errors import InputError
from lilnetx_mini.nn import models, recipes
from lilnetx_mini.nn.train import Run, accuracy
from lilnetx_mini.nn.weights import load_weights


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), c=nn.Flatten(), d=nn.Linear(16, 2)))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def stored(path: Path, what: object) -> Path:
    torch.save(what, path)
    return path


SHAPES = {
    "as it is": lambda s: s,
    "in a dict": lambda s: {"epoch": 3, "state_dict": s},
    "with a prefix": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "with two": lambda s: {"model": {f"module.net.{k}": v for k, v in s.items()}},
    "under other names": lambda s: {f"{n}.{k.rpartition('.')[2]}": v for n, (k, v) in enumerate(s.items())},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "by name, in another order": lambda s: dict(reversed(s.items())),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_is_read_however_it_is_packed(tmp_path, shape):
    there, here = small(1), small(2)
    there.b.running_mean.fill_(0.5)
    path = stored(tmp_path / "w.pt", SHAPES[shape](there.state_dict()))
    assert load_weights(here, path) == []
    for key, value in there.state_dict().items():
        assert key.endswith("tracked") or torch.equal(here.state_dict()[key], value), key


def test_a_norm_layer_of_pixels_in_front_is_left_alone_where_the_file_has_none(tmp_path):
    there, here = small(1), models.with_pixel_norm(small(2))
    assert load_weights(here, stored(tmp_path / "w.pt", there.state_dict())) == ["pixels.running_mean", "pixels.running_var"]
    assert torch.equal(here.network.a.weight, there.a.weight)
    whole = models.with_pixel_norm(small(3))
    whole.pixels.running_mean.fill_(0.5)
    assert load_weights(here, stored(tmp_path / "v.pt", {"model": whole.state_dict()})) == []
    assert here.pixels.running_mean.tolist() == [0.5] * 3 and torch.equal(here.network.a.weight, whole.network.a.weight)


WRONG = {
    "another shape": (lambda s: s | {"d.weight": torch.zeros(3, 16)}, "2x16, the file has d.weight, 3x16"),
    "one too few": (lambda s: dict(list(s.items())[:-1]), "7 are needed|8 are needed"),
    "one too many": (lambda s: s | {"e.bias": torch.zeros(2)}, "are needed"),
    "another kind": (lambda s: {k.replace("running_var", "gain"): v for k, v in s.items()}, "b.running_var"),
    "no tensors": (lambda s: {"epoch": 3}, "state_dict is needed"),
    "nothing": (lambda s: {}, "state_dict is needed"),
    "code": (lambda s: {"state_dict": s, "hook": os.system}, "no checkpoint that can be read safely"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_checkpoint_is_refused_and_changes_nothing(tmp_path, wrong):
    change, reason = WRONG[wrong]
    here = small(2)
    before = tensors(here)
    with pytest.raises(InputError, match=reason):
        load_weights(here, stored(tmp_path / "w.pt", change(small(1).state_dict())))
    assert all(torch.equal(before[k], v) for k, v in here.state_dict().items())


def test_a_file_that_is_no_checkpoint_or_is_not_there(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"hello")
    with pytest.raises(InputError, match="no checkpoint"):
        load_weights(small(), tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError):
        load_weights(small(), tmp_path / "none.pt")


@pytest.mark.parametrize("more", [{}, {"method": "prune", "target_flops": "0.5"}])
def test_a_run_starts_from_trained_weights(tmp_path, more):
    trained = Run(recipes.get("digits", {"epochs": "6"}), 0, tmp_path / "a", compress=False).fit(progress=False)
    path = stored(tmp_path / "w.pt", {"net": trained.model.state_dict()})
    begun = Run(recipes.get("digits", {"weights": str(path)} | more), 1, tmp_path / "b")
    held = begun.splits.validation
    assert accuracy(trained.model, held) > 0.9
    assert accuracy(begun.model, held) > accuracy(trained.model, held) - 0.03  # rounded, or with masks of 0.99 to 1


def test_resnet20_of_another_project_is_as_accurate_here_as_there(data_dir, tmp_path):
    path = data_dir / "weights" / "resnet20-12fca82f.th"
    if not path.exists() or not (data_dir / "cifar-10-batches-py").exists():
        pytest.skip(f"{data_dir} has no weights/resnet20-12fca82f.th, or no CIFAR-10")
    run = Run(recipes.get("cifar10_resnet20", {"weights": str(path)}), 0, tmp_path, compress=False)
    assert accuracy(run.model, run.splits.test.first(2000)) > 0.9  # 91.73 % of all by its authors' count
