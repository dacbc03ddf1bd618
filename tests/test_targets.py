"""Asking for a size, multiply-adds or zero slices, and the counts on which that rests."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lilnetx_mini import InputError, cli, lnx
from lilnetx_mini.nn import recipes, reparameterize, targets
from lilnetx_mini.nn.models import digits_resnet
from lilnetx_mini.nn.targets import Measured, Steering, Targets, measure, slice_macs
from lilnetx_mini.nn.train import Run

SHORT = {"epochs": "12", "batch": "96", "images": "960"}


def trained(folder, **changes):
    run = Run(recipes.get("digits", SHORT | {k: str(v) for k, v in changes.items()}), 0, folder)
    return run, run.fit(progress=False)


def examples(n=2):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return reparameterize(digits_resnet().eval())


@pytest.mark.parametrize("target", [{"target_size": 5000}, {"target_flops": 0.6}, {"target_slices": 0.6}])
def test_a_target_is_reached(tmp_path, target):
    run, _ = trained(tmp_path, **target)
    now = measure(run.compressor, torch.from_numpy(run.splits.validation.x[:2]))
    (name, asked), = target.items()
    reached = {"target_size": now.size, "target_flops": now.flops, "target_slices": 1 - now.slices}[name]
    assert reached == pytest.approx(1 - asked if name == "target_slices" else asked, rel=0.15)  # in 12 short epochs


def test_the_measured_size_is_the_file_that_is_written(small, tmp_path):
    saved = small.save(tmp_path / "a.lnx", examples())
    now = measure(small, examples())
    assert now.size == saved.file_bytes
    assert measure(small, examples(), lnx.read(saved.path).graph) == now  # not traced again


def test_norm_layers_count_with_the_bits_that_the_file_will_give_them(small, tmp_path):
    with torch.no_grad():
        for name, p in small.model.named_parameters():
            if "bn" in name:
                p.add_(torch.randn(p.shape))
    steering = Steering(Targets(size=20_000), small, examples(), [1.0] * 100, side_bits=12)
    steering.look(0)
    saved = small.save(tmp_path / "a.lnx", examples(), side_bits=12)
    assert steering.history[0]["size"] == measure(small, examples(), side_bits=12).size == saved.file_bytes
    assert saved.file_bytes > measure(small, examples()).size + 100


def test_multiply_adds_are_those_of_slices_that_are_not_zero_and_matter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False)).eval()
    first, second = 8 * 9 * 36, 12 * 9 * 16
    compressor = reparameterize(model, init="from_weights")
    with torch.no_grad():
        z = compressor.weights[0].latents
        z.copy_(torch.where(torch.round(z) == 0, 1.0, z))
    assert measure(compressor, torch.rand(1, 2, 6, 6)).flops == pytest.approx(1, abs=0.02)
    with torch.no_grad():
        compressor.weights[0].latents[0] = 0  # one slice of eight
        compressor.weights[1].latents.copy_(torch.ones(12, 9))
    want = (first * 7 / 8 + second) / (first + second)
    assert measure(compressor, torch.rand(1, 2, 6, 6)).flops == pytest.approx(want)
    with torch.no_grad():
        compressor.weights[1].latents.view(3, 4, 9)[:, 3] = 0  # nobody reads the fourth channel: its slices go as well
    want = (first * 5 / 8 + second * 9 / 12) / (first + second)
    assert measure(compressor, torch.rand(1, 2, 6, 6)).flops == pytest.approx(want)


def test_counts_of_a_stored_network(small, tmp_path):
    small.save(tmp_path / "a.lnx", examples())
    dense, left = slice_macs(lnx.read(tmp_path / "a.lnx"))
    assert 0 < left < dense


def test_a_steered_run_resumes_to_the_same_numbers(tmp_path):
    changes = {"target_size": "5000", "epochs": "4", "batch": "256"}
    one = Run(recipes.get("digits", changes), 0, tmp_path / "one")
    one.fit(progress=False)
    two = Run(recipes.get("digits", changes), 0, tmp_path / "two")
    ordinary, calls = two._epoch, []

    def stop_in_the_third(after_step):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return ordinary(after_step)

    two._epoch = stop_in_the_third
    with pytest.raises(KeyboardInterrupt):
        two.fit(progress=False)
    again = Run(recipes.get("digits", changes), 0, tmp_path / "two")
    assert again.resume() and again.epoch == 2
    again.fit(progress=False)
    assert json.dumps(again.steering.history) == json.dumps(one.steering.history)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(one.compressor.weights, again.compressor.weights, strict=True))


def follow(steering, sizes):
    """Factors of the rate after looks at these sizes."""
    for size in sizes:
        steering._measure = lambda size=size: Measured(size, 1.0, 0.0)
        steering.look(len(steering.history) * steering.every)
    return np.array([h["rate"] for h in steering.history])


@pytest.mark.parametrize(
    "asked, on", [({"target_size": "3000"}, (True, False)), ({"target_flops": "0.5"}, (False, True)),
                   ({"target_size": "3000", "target_slices": "0.5"}, (True, True))])  # fmt: skip
def test_a_multiplier_of_zero_stays_zero_unless_the_target_needs_it(asked, on, tmp_path):
    run = Run(recipes.get("digits", {"lam_rate": "0", "lam_group": "0", **asked}), 0, tmp_path)
    assert tuple(m > 0 for m in run.method.multipliers()) == on
    run = Run(recipes.get("digits", {"lam_rate": "2", "lam_group": "3", **asked}), 0, tmp_path)
    apart = targets.size_plan(run.steps).start / targets.slice_plan(run.steps).start if len(asked) == 2 else 1
    assert np.divide(*run.method.multipliers()) == pytest.approx(2 / 3 * apart)


@pytest.mark.parametrize("steps, power, arrival", [(100, 2, 97), (1000, 2, 97), (4000, 1.25, 97), (8000, 1.125, 97), (10_000, 2, 60)])
def test_at_the_right_speed_a_factor_stays(small, steps, power, arrival):
    steering = Steering(Targets(size=5000), small, examples(), [1.0] * steps)
    left = 1 - np.arange(round(0.63 * arrival)) / arrival  # of the learning to be done on arrival, at the looks of its first part
    sizes = 0.99 * 5000 * np.exp(1.5 * left**power)
    assert follow(steering, sizes) == pytest.approx(max((2000 / steps) ** 1.5, 0.3 if steps <= 8000 else 1.0))


def test_slices_should_go_straight_and_start_in_proportion(small):
    steering = Steering(Targets(flops=0.5, size=5000), small, examples(), [1.0] * 400)
    assert (steering.rate, steering.group) == pytest.approx((5**1.5, 2500 / 400))
    for n in range(80):
        # the square of the learning to be done on arrival, while a look may close that much of it
        size = 0.99 * 5000 * np.exp(1.5 * (1 - min(n, 60) / 97) ** 2)
        steering._measure = lambda size=size: Measured(size, 0.8, 0.0)
        steering._border = lambda share, n=n: 0.5 + 4 * (1 - n / 90)
        steering.look(n * steering.every)
    assert [h["group"] for h in steering.history] == pytest.approx([2500 / 400] * 80)
    assert [h["rate"] for h in steering.history[:61]] == pytest.approx([5**1.5] * 61)


@pytest.mark.parametrize("asked", [{"flops": 0.4}, {"slices": 0.7}])
def test_what_is_left_of_slices_at_the_arrival_is_cut(small, asked):
    steering = Steering(Targets(**asked), small, examples(), [1.0] * 300)
    with torch.no_grad():
        for w in small.weights:
            w.latents.copy_(3 * torch.randn(w.latents.shape, generator=torch.Generator().manual_seed(len(w.latents))))
    before = [w.latents.clone() for w in small.weights]
    steering.look(100 * steering.every // 2)
    assert all(torch.equal(a, w.latents) for a, w in zip(before, small.weights, strict=True))  # there is time yet
    for n in (97, 98, 99):
        steering.look(n * steering.every)
    now = measure(small, examples(), steering.graph)
    if "slices" in asked:
        assert now.slices == pytest.approx(0.7, abs=0.005)
    else:  # channels that the cut leaves without a reader go too
        assert 0.34 < now.flops < 0.402 < steering.history[-3]["flops"]
    tops = torch.cat([a.abs().amax(1) for a, w in zip(before, small.weights, strict=True) if w.group.d > 1 or "flops" in asked])
    kept = torch.cat([torch.round(w.latents).any(1) for w in small.weights if w.group.d > 1 or "flops" in asked])
    assert tops[kept].min() >= tops[~kept].max()  # the smallest went
    for a, w in zip(before, small.weights, strict=True):
        whole = torch.round(w.latents).any(1)
        assert torch.equal(a[whole], w.latents[whole])  # and the others are as they were


def test_kernels_of_one_position_are_priced_where_most_of_the_work_is_theirs(small):
    Steering(Targets(flops=0.5), small, examples(), [1.0] * 300)
    assert not small.dense_prior
    torch.manual_seed(0)
    dense = reparameterize(nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)).eval())
    Steering(Targets(flops=0.5), dense, examples(), [1.0] * 300)
    assert dense.dense_prior
    with pytest.raises(InputError, match="no slices"):
        Steering(Targets(slices=0.5), dense, examples(), [1.0] * 300)


def test_standing_still_a_factor_rises_slowly_and_faster_below_its_start(small):
    steering = Steering(Targets(size=5000), small, examples(), [1.0] * 1000)
    rates = follow(steering, [50_000] * 20)
    assert (rates[:10] == rates[0]).all()  # latents have to shrink first
    assert np.diff(np.log(rates[10:])) == pytest.approx(steering.size.up)
    steering.rate = steering.size.start / 100
    rates = follow(steering, [50_000] * 5)[-5:]
    assert rates[0] == steering.size.floor  # far from the target
    assert np.diff(np.log(rates))[:2] == pytest.approx(targets.BACK)


def test_too_fast_a_factor_falls_but_far_from_the_target_not_below_a_floor(small):
    steering = Steering(Targets(size=5000), small, examples(), [1.0] * 1000)
    rates = follow(steering, [*[20_000] * 10, *np.geomspace(20_000, 5000, 11)[1:]])
    sizes = np.array([h["size"] for h in steering.history])
    assert (np.diff(rates) <= 0).all() and (rates[sizes > targets.FAR * 5000] >= steering.size.floor).all() and rates[-1] < 1


def test_sizes_below_what_is_there_besides_weights_are_refused_at_once(small):
    with pytest.raises(InputError, match="out of reach.*it would take about"):
        Steering(Targets(size=100), small, examples(), [1.0] * 100)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": -3}, {"flops": 1.2}, {"slices": 0}, {"flops": 0.5, "slices": 0.5}])
def test_targets_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match="target|both"):
        Targets(**wrong)


def test_a_slice_weighs_what_it_costs(small):
    z = [w.latents for w in small.weights if w.group.d == 9]
    plain = small.penalty().group
    (even,) = torch.autograd.grad(plain, z[:1])
    convolutions = [w for w in small.weights if w.group.d == 9]
    small.weigh_slices({convolutions[0].name: 3.0, convolutions[1].name: 1.0})
    first, second, third = torch.autograd.grad(small.penalty().group, z[:3])
    assert not third.any()
    slices = [np.prod(w.shape[:2]) for w in convolutions]
    mean = (3 * 3 * slices[0] + slices[1]) / (3 * slices[0] + slices[1])  # of the cost
    assert torch.allclose(first, even * 3 / mean) and second.any()


@pytest.mark.parametrize("text, size", [("40kB", 40e3), ("1.5 MB", 1.5e6), ("3000", 3000), ("64KiB", 65536), ("2KB", 2000)])
def test_sizes_as_people_write_them(text, size):
    assert cli._bytes(text) == size


@pytest.mark.parametrize("text", ["", "kB", "-3kB", "0", "1.2.3kB", "40GBps"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="write it as"):
        cli._bytes(text)
