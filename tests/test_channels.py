"""Units of channels that go together, and what they cost: against networks that are narrower by construction, and by hand."""

import math

import pytest
import torch
from test_shrink import KINDS, Net
from torch import nn
from torch.nn import functional as F

from lilnetx_mini import InputError
from lilnetx_mini.nn import models
from lilnetx_mini.nn.channels import STAYS, Channels

pytest.importorskip("torch_pruning")


def groups(channels):
    return {g.name: g.units for g in channels.groups}


def macs(model, x):
    """Multiply-adds of one image, by torch's own counter of operations."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() // (2 * len(x))


def weights(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear))


@pytest.mark.parametrize("name", KINDS)
def test_costs_of_a_whole_network_are_torchs(name):
    make, _, shape, _ = KINDS[name]
    model, x = make(), torch.randn(shape)
    channels = Channels(model, x)
    full = torch.tensor(channels.units)
    assert channels.macs(full) == macs(model, x) and channels.weights(full) == weights(model)


@pytest.mark.parametrize("name", KINDS)
def test_costs_with_fewer_units_are_those_of_a_narrower_network(name):
    make, left, shape, _ = KINDS[name]
    wide, narrow, x = make(), make(*left), torch.randn(shape)
    many, few = Channels(wide, x), Channels(narrow, x)
    assert [g.name for g in many.groups] == [g.name for g in few.groups]
    assert many.macs(torch.tensor(few.units)) == macs(narrow, x)
    assert many.weights(torch.tensor(few.units)) == weights(narrow)


def test_costs_are_linear_in_every_count_and_have_a_gradient():
    channels = Channels(models.lenet5(), torch.randn(2, 1, 28, 28))
    counts = torch.tensor(channels.units, dtype=torch.float64, requires_grad=True)
    half = channels.macs(counts * torch.tensor([0.5, 1.0, 1.0]))
    first, second, dense = 25 * 24 * 24, 25 * 8 * 8, 16  # LeNet5: 20 and 50 kernels of 5x5, 500 neurons, 10 classes
    assert half == 10 * first + 10 * 50 * second + 50 * 500 * dense + 500 * 10
    (gradient,) = torch.autograd.grad(channels.macs(counts), counts)
    assert gradient.tolist() == [first + 50 * second, 20 * second + 500 * dense, 50 * dense + 10]


def test_padded_shortcuts_join_the_channels_that_run_through_and_hold_those_that_they_add():
    channels = Channels(models.cifar_resnet20(), torch.randn(2, 3, 32, 32))
    inner = {f"blocks.{n}.conv1": (16, 32, 64)[n // 3] for n in range(9)}
    assert groups(channels) == {"conv1": 16, **inner}
    last = channels.layers[-1]
    assert last.name == "linear" and (last.makes == STAYS).all()
    assert sorted(set(last.reads[24:40])) == list(range(16)) and (last.reads[:24] == STAYS).all()


def test_a_branch_that_is_added_shares_its_units_and_one_that_is_concatenated_has_its_own():
    def forward(s, x):
        a = F.relu(s.a(x))
        return s.c(torch.cat([a + s.b(a), s.d(x)], 1))

    model = Net(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 6, 1), d=nn.Conv2d(3, 4, 1), c=nn.Conv2d(10, 2, 1))
    channels = Channels(model, torch.randn(2, 3, 4, 4))
    assert groups(channels) == {"a": 6, "d": 4}
    made = {x.name: x.makes.tolist() for x in channels.layers}
    assert made["a"] == made["b"] == [0, 1, 2, 3, 4, 5] and made["d"] == [6, 7, 8, 9] and made["c"] == [STAYS] * 2


def test_what_a_convolution_with_groups_reads_and_makes_stays_and_is_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 6, 6)
    channels = Channels(model, x)
    full = torch.tensor(channels.units)
    assert groups(channels) == {"4": 6} and channels.macs(full) == macs(model, x) and channels.weights(full) == weights(model)


def test_what_leaves_the_network_beside_its_readers_stays():
    model = Net(lambda s, x: (lambda y: (s.b(y), y.mean((2, 3))))(s.a(x)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    with pytest.raises(InputError, match="no channels that could go"):
        Channels(model, torch.randn(2, 3, 4, 4))
    both = Net(lambda s, x: (lambda y: (s.c(F.relu(s.b(y))), y.mean((2, 3))))(s.a(x)),
               a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 5, 1), c=nn.Conv2d(5, 2, 1))  # fmt: skip
    assert groups(Channels(both, torch.randn(2, 3, 4, 4))) == {"b": 5}


@pytest.mark.parametrize("odd", [lambda y: F.softmax(y, 1), lambda y: y[:, :4] * y[:, 2:]])
def test_what_mixes_channels_holds_them(odd):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.LazyConv2d(5, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x):
            return self.c(F.relu(self.b(odd(self.a(x)))))

    model, x = Mixed(), torch.randn(2, 3, 4, 4)
    model(x)
    channels = Channels(model, x)
    assert groups(channels)["b"] == 5
    assert math.isfinite(channels.macs(torch.tensor(channels.units)))


def test_the_network_stays_as_it_was():
    model = models.lenet5().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Channels(model, torch.randn(2, 1, 28, 28))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


class Mixing(nn.Module):
    """Of its hidden channels, each changes what becomes of the others: by a norm over all of them, or as queries and keys do."""

    def __init__(self, how):
        super().__init__()
        self.up, self.norm, self.down, self.how = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3), how

    def forward(self, x):
        h = self.up(x)
        return self.down(self.norm(h) if self.how == "norm" else (h @ h.transpose(1, 2)).softmax(-1) @ h)


@pytest.mark.parametrize("how", ["norm", "attention"])
def test_channels_that_change_each_other_stay(how):
    x = torch.randn(2, 5, 6)
    with pytest.raises(InputError, match="has no channels that could go"):
        Channels(Mixing(how), x)
    more = nn.Sequential(Mixing(how), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [g.name for g in Channels(more, x).groups] == ["0.down", "1"]
