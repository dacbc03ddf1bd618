"""Layers in two: the same function, fewer channels in between, one layer again where that is cheaper."""

import copy

import pytest
import torch
from test_channels import macs, weights
from test_shrink import KINDS, settle
from torch import nn

from lilnetx_mini import InputError
from lilnetx_mini.nn import low_rank, models
from lilnetx_mini.nn.factored import Factored, factorise, merge

pytest.importorskip("torch_pruning")

LAYERS = {
    "dense": (lambda: nn.Linear(12, 7), (3, 12)),
    "dense without bias": (lambda: nn.Linear(5, 9, bias=False), (3, 4, 5)),
    "one axis": (lambda: nn.Conv1d(3, 8, 5, 2, 1, dilation=2), (2, 3, 20)),
    "two axes": (lambda: nn.Conv2d(3, 10, (3, 5), (2, 1), 1), (2, 3, 9, 9)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 8, 8)),
    "three axes": (lambda: nn.Conv3d(2, 4, 2), (1, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_two_layers_and_the_singular_values_in_between_compute_what_one_did(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    factored = Factored(layer)
    between = factored.first(x).movedim(-1 if isinstance(layer, nn.Linear) else 1, -1) * factored.values
    out = factored.second(between.movedim(-1, -1 if isinstance(layer, nn.Linear) else 1))
    assert torch.allclose(out, layer(x), atol=1e-5)
    assert factored.values[0] == 1 and (factored.values.diff() <= 0).all()
    assert torch.allclose(factored.merged()(x), factored(x), atol=1e-5)


def test_layers_become_two_where_that_can_pay_and_shared_ones_stay_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.small, self.one = nn.Linear(20, 20), nn.Linear(3, 3), nn.Linear(20, 1)
            self.b, self.depthwise = self.a, nn.Conv2d(8, 8, 3, groups=8)

    model = Shared()
    assert factorise(model) == ["a", "b"] and model.a is model.b and isinstance(model.a, Factored)
    assert isinstance(model.small, nn.Linear) and isinstance(model.one, nn.Linear)


@pytest.mark.parametrize("rank,pays", [(9, True), (10, False)])
def test_two_layers_become_one_where_that_costs_no_more(rank, pays):
    model = nn.Sequential(nn.Linear(20, 20))
    factorise(model)
    factored = model[0]
    factored.first = nn.Linear(20, rank, bias=False)
    factored.second = nn.Linear(rank, 20)
    assert merge(model) == ([] if pays else ["0"]) and isinstance(model[0], Factored if pays else nn.Linear)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("name", ["vgg", "hourglass", "gated", "dense", "digits"])
def test_masked_and_shrunk_networks_compute_the_same_and_cost_what_was_counted(name, channels):
    torch.manual_seed(0)
    make, shape = (models.digits_resnet, (2, 1, 8, 8)) if name == "digits" else (KINDS[name][0], KINDS[name][2])
    x = torch.randn(shape)
    model = settle(make(), x)
    want, dense = copy.deepcopy(model), macs(model, x)
    pruned = low_rank(model, x, channels)
    assert (model(x) - want(x)).abs().max() < 0.1 * want(x).abs().max()
    assert pruned.counts().dense_macs == pruned.counts().macs == dense
    with torch.no_grad():
        pruned.alpha *= torch.rand(pruned.alpha.shape, generator=torch.Generator().manual_seed(1))
    pruned.keep(0.6)
    small, counts = pruned.shrink(), pruned.counts()
    assert (model.eval()(x) - small(x)).abs().max() <= 1e-5 * model(x).abs().max()
    assert counts.macs == macs(small, x) <= 0.6 * dense and counts.weights == weights(small)


def test_of_a_weight_of_low_rank_the_rest_goes_first_and_costs_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(40, 4) @ torch.randn(4, 30))
    x, want = torch.randn(50, 30), copy.deepcopy(model)
    pruned = low_rank(model, x)
    pruned.keep((4 * 70 + 400) / 1600)
    small = pruned.shrink()
    assert small[0].first.out_features == 4 and torch.allclose(small(x), want(x), atol=1e-4)


def test_a_network_without_a_layer_that_could_be_two_is_refused():
    with pytest.raises(InputError, match="no layer that could cost less in two"):
        low_rank(nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3))
