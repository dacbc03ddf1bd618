"""What masks are compared with: scores by hand, and trainings that choose by them."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from test_options import SMALL
from torch import nn

from lilnetx_mini import InputError
from lilnetx_mini.nn import models, prune, recipes
from lilnetx_mini.nn.criteria import evenly, magnitudes, scales
from lilnetx_mini.nn.train import Run

pytest.importorskip("torch_pruning")


def small(norms: bool = True) -> nn.Module:
    parts = OrderedDict(a=nn.Conv2d(1, 4, 3), n=nn.BatchNorm2d(4) if norms else nn.Identity(), r=nn.ReLU())
    parts |= OrderedDict(b=nn.ConvTranspose2d(4, 3, 3), m=nn.BatchNorm2d(3), s=nn.ReLU(), c=nn.Conv2d(3, 2, 1))
    return nn.Sequential(parts)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(128, 10))  # fmt: skip


SHORT = replace(SMALL, model=normed, method="prune", target_flops=0.5)


def test_magnitudes_are_l1_norms_of_the_kernels_that_make_a_unit_over_their_groups_mean():
    model = small()
    a, b = model.a.weight.detach().abs().sum((1, 2, 3)), model.b.weight.detach().abs().sum((0, 2, 3))
    pruned = prune(model, torch.randn(2, 1, 8, 8))
    parts = magnitudes(model, pruned.channels).split(pruned.channels.units)
    by_group = dict(zip([g.name for g in pruned.channels.groups], parts, strict=True))
    torch.testing.assert_close(by_group["a"], a / a.mean())
    torch.testing.assert_close(by_group["b"], b / b.mean())


def test_magnitudes_and_scales_of_joined_channels_add_up():
    torch.manual_seed(0)
    model = models.cifar_resnet20()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, -1, 1)
    trunk = [model.conv1, *(block.conv2 for block in model.blocks)]  # whose first 16 channels run through
    norms = [model.bn1, *(block.bn2 for block in model.blocks)]
    at = [0] * 4 + [8] * 3 + [24] * 3  # where padded shortcuts have moved them
    sums = [sum(m.weight.detach().abs().flatten(1).sum(1)[k : k + 16] for m, k in zip(trunk, at, strict=True))]
    sums.append(sum(n.weight.detach().abs()[k : k + 16] for n, k in zip(norms, at, strict=True)))
    pruned = prune(model, torch.randn(2, 3, 32, 32))
    (place,) = (n for n, g in enumerate(pruned.channels.groups) if g.name == "conv1")
    torch.testing.assert_close(magnitudes(model, pruned.channels).split(pruned.channels.units)[place], sums[0] / sums[0].mean())
    torch.testing.assert_close(scales(model, pruned.channels).split(pruned.channels.units)[place].detach(), sums[1])


def test_scales_have_a_gradient_and_need_norm_layers():
    model = small()
    pruned = prune(model, torch.randn(2, 1, 8, 8))
    nn.init.constant_(model.n.weight, -0.5)
    scales(model, pruned.channels).sum().backward()
    assert model.n.weight.grad.tolist() == [-1.0] * 4 and model.m.weight.grad.tolist() == [1.0] * 3
    with pytest.raises(InputError, match="what a makes goes through no norm layer"):
        bare = small(norms=False)
        scales(bare, prune(bare, torch.randn(2, 1, 8, 8)).channels)


def test_evenly_takes_the_same_share_of_every_group():
    scores = torch.tensor([5.0, 6, 7, 8, 0.1, 0.4, 0.3, 0.2, 0.8, 0.7])
    even = evenly(scores, [4, 6])
    assert even[:4].tolist() == [0, 0.25, 0.5, 0.75]
    assert even[4:].tolist() == pytest.approx([0, 3 / 6, 2 / 6, 1 / 6, 5 / 6, 4 / 6])


@pytest.mark.parametrize("criterion", ["l1", "scales", "magnitude", "uniform"])
def test_every_criterion_meets_the_target_and_only_l1_trains_masks(criterion, tmp_path):
    run = Run(replace(SHORT, epochs=2, criterion=criterion, arrival=0.25, lam_mask=0.1), 0, tmp_path)
    alpha = run.method.pruned.alpha.detach().clone()
    last = run.fit(progress=False).metrics[-1]
    pruned = run.method.pruned
    assert 0.4 < last["flops_left"] <= 0.5
    assert pruned.alpha.requires_grad == (criterion == "l1")
    assert torch.equal(pruned.alpha[pruned.alive], alpha[pruned.alive]) == (criterion != "l1")
    assert not pruned.alpha[~pruned.alive].any()


def test_the_same_share_everywhere_is_the_same_share_everywhere(tmp_path):
    changes = {"method": "prune", "target_flops": 0.3, "epochs": 1, "criterion": "uniform", "arrival": 0.0}
    run = Run(replace(recipes.get("digits"), images=128, **changes), 0, tmp_path)
    run.fit(progress=False)
    left = [float(part.float().mean()) for part in run.method.pruned.alive.split(run.method.pruned.channels.units)]
    assert max(left) - min(left) <= 1 / min(run.method.pruned.channels.units)


def test_l1_and_scales_shrink_what_they_are_about(tmp_path):
    for criterion in ("l1", "scales"):
        sums = []
        for lam in (0.0, 5.0):
            recipe = replace(SHORT, epochs=12, criterion=criterion, arrival=1.0, target_flops=0.999, lam_mask=lam)
            run = Run(recipe, 0, tmp_path / f"{criterion}{lam}")
            run.fit(progress=False)
            sums.append(run.method.scores().sum().item())
        assert sums[1] < 0.8 * sums[0]
