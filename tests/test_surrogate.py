"""Masks that are learned, and the smaller networks that they make."""

import copy

import pytest
import torch
from test_channels import macs, weights
from test_shrink import KINDS, assert_same, settle
from torch import nn
from torch.nn import functional as F

from lilnetx_mini import InputError
from lilnetx_mini.nn import models, prune
from lilnetx_mini.nn.criteria import magnitudes
from lilnetx_mini.nn.prior import soft_count

pytest.importorskip("torch_pruning")

NETWORKS = {name: (make, shape) for name, (make, _, shape, _) in KINDS.items()} | {
    "digits": (models.digits_resnet, (2, 1, 8, 8)),
    "resnet20": (models.cifar_resnet20, (2, 3, 32, 32)),
    "resnet50": (lambda: models.resnet50(10).double(), (2, 3, 32, 32)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(1.0, 10).double(), (2, 3, 32, 32)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(10).double(), (2, 3, 32, 32)),
    "efficientnet_b0": (lambda: models.efficientnet_b0(10).double(), (2, 3, 32, 32)),
}


def made(name, seed=0):
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = make()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    return settle(model, x), x


@torch.no_grad()
def randomise(pruned, zeros, seed=0):
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(pruned.alpha.shape, generator=g)
    pruned.alpha.copy_(torch.where(values < zeros, -values, values))
    pruned.project()


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_and_shrunk_networks_compute_the_same_and_cost_what_was_counted(name):
    model, x = made(name)
    pruned = prune(model, x)
    randomise(pruned, 0.4)
    small, counts = pruned.shrink(), pruned.counts()
    with torch.no_grad():
        a, b = model.eval()(x), small(x)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    assert_same(model, small, torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)))
    assert counts.macs == macs(small, x) < counts.dense_macs == macs(model, x)
    assert counts.weights == weights(small) < counts.dense_weights


@pytest.mark.parametrize("start", ["magnitudes", "ones"])
def test_a_fresh_mask_changes_nothing_and_starts_where_it_was_told_to(start):
    model, x = made("digits")
    want = copy.deepcopy(model)(x)
    pruned = prune(model, x, start=start)
    assert torch.equal(model(x), want) and torch.equal(pruned.plain()(x), copy.deepcopy(pruned.plain())(x))
    entries = magnitudes(model, pruned.channels).clamp_min(0.1) if start == "magnitudes" else torch.ones_like(pruned.alpha)
    ratio = pruned.alpha.detach() / entries
    assert ratio.min() >= 0.99 and ratio.max() <= 1 and ratio.std() > 0.001
    counts = pruned.counts()
    assert counts.macs == counts.dense_macs and float(pruned.penalty()) == pytest.approx(counts.soft_macs / counts.dense_macs, rel=1e-6)
    assert (float(pruned.penalty()) > 0.999) == (start == "ones")


def test_a_channel_without_weights_starts_faintly_and_another_start_is_refused():
    model, x = made("digits")
    with torch.no_grad():
        model.blocks[0].conv1.weight[3] = 0
    pruned = prune(model, x)
    (unit,) = (layer.makes[3] for layer in pruned.channels.layers if layer.name == "blocks.0.conv1")
    assert 0.099 <= pruned.alpha[unit] <= 0.1
    with pytest.raises(InputError, match="start 'zeros': 'magnitudes' and 'ones'"):
        prune(models.digits_resnet(), x, start="zeros")


def test_a_mask_of_ones_is_the_network_itself():
    model, x = made("gated")
    want = copy.deepcopy(model)(x)
    pruned = prune(model, x)
    with torch.no_grad():
        pruned.alpha.fill_(1)
        pruned.starts.fill_(1)
    assert torch.equal(model(x), want) and torch.equal(pruned.plain()(x), want)
    pruned.penalty().backward()
    assert pruned.alpha.grad.abs().max() < 1e-6  # equal entries: no direction


@pytest.mark.parametrize("form", ["squared", "root"])
def test_the_penalty_is_the_cost_of_soft_counts_and_its_gradient_theirs(form):
    model, x = made("mobilenet_v3_small")
    pruned = prune(model, x, form=form)
    randomise(pruned, 0.3)
    channels = pruned.channels
    counts = torch.stack([soft_count(a.detach(), form) for a in pruned.alpha.split(channels.units)])
    full = torch.tensor(channels.units)
    assert pruned.penalty().item() == pytest.approx(float(channels.macs(counts) / channels.macs(full)), rel=1e-5)
    pruned.penalty().backward()
    direction = pruned.alpha.grad / pruned.alpha.grad.norm()
    before, step = pruned.penalty().item(), 0.1
    with torch.no_grad():
        pruned.alpha += step * direction
    want = step * float(pruned.alpha.grad.norm())
    assert pruned.penalty().item() - before == pytest.approx(want, rel=0.1)


def test_projection_makes_exact_zeros_and_leaves_one_of_every_group():
    model, x = made("vgg")
    pruned = prune(model, x)
    with torch.no_grad():
        pruned.alpha.copy_(torch.linspace(-1, -0.1, len(pruned.alpha)))
    pruned.project()
    units = pruned.channels.units
    assert [int((a > 0).sum()) for a in pruned.alpha.split(units)] == [1] * len(units)
    assert all(int(a.argmax()) == len(a) - 1 for a in pruned.alpha.split(units))  # the largest that there was
    assert pruned.shrink()(x).shape == model(x).shape


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_keeping_a_share_meets_it_and_what_is_cut_never_comes_back(share):
    model, x = made("digits")
    pruned = prune(model, x)
    randomise(pruned, 0.0)
    pruned.keep(share)
    counts = pruned.counts()
    assert 0.9 * share < counts.macs / counts.dense_macs <= share
    zero = pruned.alpha.detach() == 0
    with torch.no_grad():
        pruned.alpha += 0.5
    pruned.project()
    assert torch.equal(pruned.alpha == 0, zero)


def test_the_units_that_are_cut_have_the_smallest_scores():
    model, x = made("vgg")
    pruned = prune(model, x)
    scores = torch.rand(len(pruned.alpha), generator=torch.Generator().manual_seed(1))
    pruned.cut(scores, 0.6)
    left = pruned.alpha > 0
    best = torch.cat([s == s.max() for s in scores.split(pruned.channels.units)])
    assert scores[left & ~best].min() > scores[~left].max()


def test_shares_out_of_reach_are_refused():
    model, x = made("vgg")
    pruned = prune(model, x)
    with pytest.raises(InputError, match=r"out of reach: the fewest channels that may stay leave \d"):
        pruned.keep(0.001)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="share"):
            pruned.keep(share)


def test_only_what_the_named_layers_make_can_go():
    model, x = made("digits")
    pruned = prune(model, x, "blocks.1.*")
    assert [g.name for g in pruned.channels.groups] == ["blocks.1.conv1"] and len(pruned.alpha) == 32
    randomise(pruned, 0.5)
    small = pruned.shrink()
    assert small.blocks[1].conv1.out_channels < 32 and small.blocks[0].conv1.out_channels == 16
    with pytest.raises(InputError, match=r"no channels that could go in layers called head\.\*"):
        prune(made("digits")[0], x, "head.*")


def test_a_network_with_parametrised_weights_is_refused():
    model, x = made("vgg")
    prune(model, x)
    with pytest.raises(InputError, match="parametrised already"):
        prune(model, x)


def test_a_copy_has_a_mask_of_its_own():
    model, x = made("vgg")
    pruned = prune(model, x)
    other = copy.deepcopy(pruned)
    want = model(x)
    randomise(other, 0.5)
    assert torch.equal(model(x), want) and not torch.equal(other.model(x), want)


def test_training_with_the_penalty_removes_the_channels_that_do_nothing():
    """Of twelve channels four carry the answer; the penalty leaves about these."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = F.relu(x @ torch.randn(4, 4))
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[2].weight[:, 4:] *= 0.1
    pruned = prune(model, x[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first = F.mse_loss(model(x), y).item()
    for _ in range(600):
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) + 0.2 * pruned.penalty()).backward()
        optimizer.step()
        pruned.project()
    counts = pruned.counts()
    assert counts.macs <= counts.dense_macs / 2 and F.mse_loss(model(x), y).item() < first
    small = pruned.shrink()
    assert small[0].out_features <= 6 and (small(x) - model(x)).abs().max() < 1e-5
