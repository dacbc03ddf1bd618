"""Networks of all kinds: to latents, to the file, and back."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilnetx_mini import ExportError, InputError, LnxError, lnx, runtime
from lilnetx_mini import nn as lx
from lilnetx_mini.errors import MissingExtraError, UnsupportedOpError
from lilnetx_mini.nn import export, models
from lilnetx_mini.nn.export import plain_copy


class Hourglass(nn.Module):
    """Grouped, dilated and transposed convolutions, a skip connection and 1x1 layers."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=4)
        self.mix = nn.Conv2d(8, 12, 1)
        self.up = nn.ConvTranspose2d(12, 6, 4, 2, 1, groups=2)
        self.head = nn.Conv2d(6, 2, 5, padding="same")

    def forward(self, x):
        y = F.relu(self.norm(self.down(x)))
        y = y + torch.sigmoid(self.grouped(y)) * y
        return torch.cat([x, self.head(F.silu(self.up(F.hardswish(self.mix(y)))))], 1)


class OneDimensional(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(3, 8, 5, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 1),
            nn.Flatten(),
            nn.Linear(64, 4),
        )


class ThreeDimensional(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv3d(1, 4, 3),
            nn.ReLU6(),
            nn.ConvTranspose3d(4, 2, 2),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(2, 3),
        )


CASES = [
    (Hourglass, (2, 2, 12, 10)),
    (OneDimensional, (3, 3, 16)),
    (ThreeDimensional, (2, 1, 6, 7, 8)),
    (models.digits_resnet, (2, 1, 8, 8)),
]


@pytest.mark.parametrize("make,shape", CASES)
@pytest.mark.parametrize("kind", [None, "diagonal", "dct"])
def test_a_trained_network_of_ones_own_comes_back_to_the_same_outputs(make, shape, kind, tmp_path):
    torch.manual_seed(0)
    model = make()
    compressor = lx.reparameterize(model, decoder=kind)
    optimizer = torch.optim.Adam(compressor.parameter_groups(0.01))
    x = torch.randn(8, *shape[1:])
    target = torch.randn_like(model(x))
    before = [w.latents.detach().clone() for w in compressor.weights]
    losses = []
    for _ in range(30):
        penalty = compressor.penalty()
        loss = F.mse_loss(model(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + 0.01 * (penalty.rate + penalty.group + penalty.l2)).backward()
        optimizer.step()
    assert min(losses[-5:]) < losses[0]
    assert all(not torch.equal(a, w.latents) for a, w in zip(before, compressor.weights, strict=True))
    compressor.store_decoders()
    saved = compressor.save(tmp_path / "model.lnx", x[: shape[0]])
    assert saved.note == "" and saved.difference < 1e-5
    probe = torch.randn(5, *shape[1:])
    module = lx.load_into(make().eval(), tmp_path / "model.lnx")
    with torch.no_grad():
        want = module(probe).numpy()
        trained = model.eval()(probe).numpy()
    have = runtime.Network.load(tmp_path / "model.lnx")(probe.numpy())
    assert np.abs(have - want).max() <= 1e-4 * max(1, np.abs(want).max())
    assert np.abs(have - trained).max() <= 0.1 * max(1, np.abs(trained).max())  # norm layers and biases have 8 bits


def test_decoded_integers_and_weights_are_those_of_training(tmp_path):
    torch.manual_seed(1)
    compressor = lx.reparameterize(models.digits_resnet())
    compressor.store_decoders()
    compressor.save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8))
    file = lnx.read(tmp_path / "m.lnx")
    weights = dict(zip(file.tensor_names(), file.tensors(), strict=True))
    for w in compressor.weights:
        assert np.allclose(weights[w.name], w.module.weight.detach().numpy(), atol=1e-6)
    assert torch.equal(
        torch.cat([w.latents for w in compressor.weights if w.group.d == 9]).round().int(),
        torch.from_numpy(file.groups[0].q).int(),
    )


def test_the_copy_leaves_the_trained_network_as_it_was():
    compressor = lx.reparameterize(models.digits_resnet())
    plain_copy(compressor)
    assert compressor.model.conv1.weight.shape == (16, 1, 3, 3)
    compressor.penalty().rate.backward()
    assert compressor.weights[0].latents.grad is not None


class Tied(nn.Module):
    def __init__(self, tie: bool = True):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 20, bias=False)
        if tie:
            self.out.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.out(self.norm(x + self.attend(x, x, x, need_weights=False)[0]))


def test_tied_weights_are_counted_stored_and_loaded_once(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    compressor = lx.reparameterize(model, init="from_weights")
    assert [w.name for w in compressor.weights] == ["embed.weight", "attend.in_proj_weight", "attend.out_proj.weight"]
    assert compressor.count == 20 * 8 + 24 * 8 + 8 * 8
    assert model.out.parametrizations.weight.original is model.embed.parametrizations.weight.original
    tokens = torch.randint(0, 20, (2, 5))
    with pytest.warns(UserWarning, match="without a graph"):
        saved = compressor.save(tmp_path / "t.lnx", tokens)
    assert "embedding" in saved.note  # the runtime has no such operation, and the file says so
    plain = lx.load_into(Tied().eval(), tmp_path / "t.lnx")
    assert plain.out.weight is plain.embed.weight
    with torch.no_grad():
        assert torch.allclose(plain(tokens), model.eval()(tokens), atol=0.05)
    with pytest.raises(UnsupportedOpError, match="load_into"):
        runtime.Network.load(tmp_path / "t.lnx")


@pytest.mark.parametrize("levels", [0.5, 1.0, 4.0, 16.0])
def test_a_trained_network_starts_with_as_many_levels_as_asked(levels):
    torch.manual_seed(0)
    model = nn.Linear(200, 100)
    before = model.weight.detach().clone()
    compressor = lx.reparameterize(model, init="from_weights", levels=levels)
    step = float(compressor.groups[0].psi.detach().abs())
    assert 0.7 <= levels * step / float(before.std()) <= 1.42
    assert float((model.weight.detach() - before).abs().max()) <= step / 2 + 1e-6
    with pytest.raises(InputError, match="levels"):
        lx.reparameterize(nn.Linear(2, 2), init="from_weights", levels=0)


def test_weights_left_alone_stay_exact_floats(tmp_path):
    model = models.digits_resnet()
    before = model.linear.weight.detach().clone()
    compressor = lx.reparameterize(model, leave=["linear", "blocks.0.*"])
    assert {w.name for w in compressor.weights} == {
        "conv1.weight",
        *(f"blocks.{b}.conv{c}.weight" for b in (1, 2) for c in (1, 2)),
    }
    compressor.save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8))
    assert torch.equal(lx.load_into(models.digits_resnet(), tmp_path / "m.lnx").linear.weight, before)
    assert [r["name"] for r in lnx.ledger(tmp_path / "m.lnx").raws] == ["blocks.0.conv1.weight", "blocks.0.conv2.weight", "linear.weight"]
    assert runtime.Network.load(tmp_path / "m.lnx")(np.zeros((1, 1, 8, 8))).shape == (1, 10)


def test_starting_from_trained_weights_keeps_them():
    torch.manual_seed(0)
    model = models.digits_resnet()
    before = {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    compressor = lx.reparameterize(model, init="from_weights")
    for w in compressor.weights[:-1]:
        error = w.module.weight - before[w.name.removesuffix(".weight")]
        assert error.square().mean() < 0.02 * w.module.weight.square().mean()


@pytest.mark.parametrize("bias", [True, False])
def test_random_latents_decode_to_the_usual_variance(bias):
    torch.manual_seed(0)
    for model in (
        models.cifar_resnet20(),
        nn.Sequential(nn.Conv2d(1, 20, 5, bias=bias), nn.Conv2d(20, 50, 5), nn.Linear(800, 500), nn.Linear(500, 10)),
    ):
        compressor = lx.reparameterize(model)
        for w in compressor.weights:
            fan = w.shape[0] * w.group.d
            assert 0.4 < w.module.weight.detach().square().mean() * fan / 2 < 2.5, w.name
            assert w.latents.detach().round().abs().max() > 0


def test_decoders_are_full_only_where_they_pay():
    compressor = lx.reparameterize(
        nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv2d(4, 64, 3), nn.Conv2d(64, 4, 1), nn.Linear(4, 2))
    )
    assert [g.kind for g in compressor.groups] == ["diagonal", "full", "scalar", "scalar"]
    assert len(lx.reparameterize(models.digits_resnet(), shared_decoders=False).groups) == 8


BAD = [
    (nn.Sequential(nn.ReLU()), {}, "no convolution"),
    (nn.Linear(3, 3), {"leave": "*"}, "left alone"),
    (nn.Linear(3, 3).half(), {}, "float16"),
    (nn.Linear(3, 3), {"init": "zeros"}, "from_weights"),
    (nn.Linear(3, 3), {"decoder": "round"}, "diagonal"),
]


@pytest.mark.parametrize("model,options,message", BAD)
def test_networks_that_cannot_be_reparameterised_are_named(model, options, message):
    with pytest.raises(InputError, match=message):
        lx.reparameterize(model, **options)


def test_weights_that_are_not_finite_or_parametrised_already_are_refused():
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight[1, 1] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        lx.reparameterize(model)
    model = nn.Linear(3, 3)
    lx.reparameterize(model)
    with pytest.raises(InputError, match="already"):
        lx.reparameterize(model)


def test_non_contiguous_weights_work(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6))
    model[0].weight = nn.Parameter(torch.randn(4, 6).t())
    compressor = lx.reparameterize(model, init="from_weights")
    compressor.save(tmp_path / "m.lnx", torch.zeros(2, 4))
    loaded = lx.load_into(nn.Sequential(nn.Linear(4, 6)), tmp_path / "m.lnx")[0].weight
    assert torch.equal(loaded, model[0].weight)


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_a_latent_that_cannot_be_stored_is_named_with_its_layer(bad, tmp_path):
    compressor = lx.reparameterize(models.digits_resnet())
    with torch.no_grad():
        compressor.weights[2].latents[5, 1] = bad
    with pytest.raises(InputError, match=r"blocks.0.conv2.weight: latent .* at \(5, 1\)"):
        compressor.save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8))
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """Its output depends on data in a way that no graph holds."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_stored_without_a_graph_and_says_so(tmp_path):
    compressor = lx.reparameterize(Branching(), init="from_weights")
    with pytest.warns(UserWarning, match="without a graph"):
        saved = compressor.save(tmp_path / "m.lnx", torch.ones(2, 4))
    assert "cannot trace Branching" in saved.note and lnx.ledger(tmp_path / "m.lnx").note == saved.note
    assert torch.allclose(lx.load_into(Branching(), tmp_path / "m.lnx").fc.weight, compressor.model.fc.weight)


def test_a_runtime_that_disagrees_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.lnx"
    path.write_bytes(b"old")
    compressor = lx.reparameterize(models.digits_resnet())
    right = runtime.Network.__call__
    monkeypatch.setattr(runtime.Network, "__call__", lambda self, x: right(self, x) + 0.01)
    with pytest.raises(ExportError, match="differ by"):
        compressor.save(path, torch.zeros(2, 1, 8, 8))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.lnx"]


def test_a_file_of_another_architecture_is_refused(tmp_path):
    lx.reparameterize(models.digits_resnet()).save(tmp_path / "m.lnx")
    with pytest.raises(InputError, match="same architecture"):
        lx.load_into(models.cifar_resnet20(), tmp_path / "m.lnx")
    with pytest.raises(InputError, match="plain network"):
        other = models.digits_resnet()
        lx.reparameterize(other)
        lx.load_into(other, tmp_path / "m.lnx")
    with pytest.raises(LnxError, match="no file"):
        lx.load_into(models.digits_resnet(), tmp_path / "absent.lnx")


def test_frozen_weights_are_left_alone(tmp_path):
    model = models.digits_resnet()
    model.conv1.weight.requires_grad_(False)
    before = model.conv1.weight.clone()
    compressor = lx.reparameterize(model)
    assert "conv1.weight" not in [w.name for w in compressor.weights]
    compressor.save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8))
    assert torch.equal(lx.load_into(models.digits_resnet(), tmp_path / "m.lnx").conv1.weight, before)


def test_a_double_precision_network_works(tmp_path):
    model = models.digits_resnet().double()
    compressor = lx.reparameterize(model)
    assert model(torch.zeros(2, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert compressor.save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8)).difference < 1e-5


@pytest.mark.parametrize("example,error,message", [
    (torch.zeros(2, 3, 8, 8), ExportError, "does not take"), (torch.zeros(1, 8), ExportError, "does not take"),
    (np.zeros((2, 1, 8, 8)), InputError, "ndarray"), ((torch.zeros(2, 1, 8, 8),) * 2, InputError, "tuple"),
    (torch.zeros(0, 1, 8, 8), InputError, "at least one")])  # fmt: skip
def test_a_wrong_example_input_is_an_error_and_keeps_the_old_file(example, error, message, tmp_path):
    (tmp_path / "m.lnx").write_bytes(b"old")
    with pytest.raises(error, match=message):
        lx.reparameterize(models.digits_resnet()).save(tmp_path / "m.lnx", example)
    assert (tmp_path / "m.lnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    "options,message",
    [({"leave": ["haed.*"]}, "no module is called 'haed"), ({"decoder": {3: "dct"}}, "no weight has kernel 3")],
)
def test_options_that_match_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        lx.reparameterize(models.digits_resnet(), **options)


def test_learning_rates_of_zero_are_taken_at_their_word():
    groups = lx.reparameterize(models.digits_resnet()).parameter_groups(0.01, decoder_lr=0.0, density_lr=0.5)
    assert {g["name"]: g["lr"] for g in groups} == {"latents": 0.01, "decoders": 0.0, "densities": 0.5, "rest": 0.01}


def test_folded_norm_layers_come_back_as_scale_and_shift(tmp_path):
    model = models.digits_resnet()
    with torch.no_grad():
        model.bn1.running_var.uniform_(0.5, 2)
        model.bn1.running_mean.normal_()
    lx.reparameterize(model).save(tmp_path / "m.lnx", torch.zeros(2, 1, 8, 8))
    bn = lx.load_into(models.digits_resnet(), tmp_path / "m.lnx").bn1
    assert not bn.running_mean.any() and torch.allclose(bn.running_var, torch.full((16,), 1 - bn.eps))
    scale = model.bn1.weight / (model.bn1.running_var + bn.eps).sqrt()
    assert torch.allclose(bn.weight, scale, atol=0.01)
    assert torch.allclose(bn.bias, model.bn1.bias - model.bn1.running_mean * scale, atol=0.02)


def test_norm_layers_without_weights_are_stored_run_and_loaded(tmp_path):
    def network():
        return nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3))

    torch.manual_seed(0)
    model, x = network(), 0.3 + 0.2 * torch.rand(32, 3, 9, 9)
    compressor = lx.reparameterize(model, init="from_weights")
    for _ in range(60):
        model(x)
    model.eval()
    saved = compressor.save(tmp_path / "a.lnx", x[:2])
    assert saved.note == "" and saved.difference < 1e-5
    back = lx.load_into(network().eval(), tmp_path / "a.lnx")
    outputs = torch.from_numpy(runtime.Network.load(tmp_path / "a.lnx")(x.numpy()))
    with torch.no_grad():
        want, loaded = model(x), back(x)
    assert torch.allclose(loaded, outputs, atol=1e-4)
    assert torch.allclose(loaded, want, atol=0.05 * float(want.abs().max()))  # scale and shift have eight bits


def test_what_has_no_effect_is_not_paid_for_and_the_file_computes_the_same(tmp_path):
    """Dead units with a bias that passes, and units that nobody reads: the file is that of a network without their biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 80), nn.ReLU(), nn.Linear(80, 10))
    compressor = lx.reparameterize(model, init="from_weights", levels=1.0)
    first, second = (w.latents.data for w in compressor.weights)
    first.view(80, 30)[:30] = 0  # units 0 to 29 are constant
    second.view(10, 80)[:, 50:] = 0  # units 50 to 79 are read by nobody
    x = torch.rand(5, 30)
    with torch.no_grad():
        want = model.eval()(x)
    saved = compressor.save(tmp_path / "a.lnx", x)
    file = lnx.read(saved.path)
    w, v, *_ = file.tensors()
    assert not w[:30].any() and not w[50:].any() and not v[:, :30].any() and not v[:, 50:].any()
    assert np.array_equal(w[30:50], model[0].weight.detach().numpy()[30:50])
    (bias,) = (s for s in file.sides if s.name == "0.bias")
    assert not bias.values()[:30].any() and not bias.values()[50:].any() and bias.values()[30:50].any()
    for have in (runtime.Network.load(saved.path)(x.numpy()), lx.load_into(plain_copy(compressor), saved.path)(x).detach().numpy()):
        assert np.abs(have - want.numpy()).max() < 0.02 * np.abs(want.numpy()).max()  # biases have 8 bits
    kept = lx.reparameterize(nn.Sequential(nn.Linear(30, 80), nn.ReLU(), nn.Linear(80, 10)), init="from_weights", levels=1.0)
    for mine, theirs in zip(kept.weights, compressor.weights, strict=True):
        mine.latents.data.copy_(theirs.latents)
    assert saved.file_bytes < kept.save(tmp_path / "b.lnx").file_bytes - 40  # without an example nothing is known to be idle


def _with_biases_before_norms(shared: bool) -> tuple[nn.Module, torch.Tensor]:
    """Trained in part: biases and averages that differ, and channel 2 of each layer dead, with a variance of nothing."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12)
            self.dense, self.after = nn.Linear(12, 12), nn.BatchNorm1d(12)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            y = self.conv(x)
            pooled = F.relu(self.norm(y)).mean((2, 3))
            pooled = pooled + y.mean((2, 3)) if shared else pooled
            return self.head(torch.tanh(self.after(self.dense(pooled))))

    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        for layer, norm in ((model.conv, model.norm), (model.dense, model.after)):
            layer.bias.uniform_(-1, 1)
            norm.running_mean.copy_(layer.bias + 0.1 * torch.randn(12))
            norm.running_var.uniform_(0.5, 2)
            norm.running_var[2] = 1e-9
    return model, torch.rand(6, 1, 8, 8)


@pytest.mark.parametrize("shared", [False, True])
def test_biases_before_norm_layers_and_scales_of_dead_channels_do_not_spoil_the_file(tmp_path, shared):
    model, x = _with_biases_before_norms(shared)
    compressor = lx.reparameterize(model, init="from_weights")
    for w in compressor.weights[:2]:
        w.latents.data.view(12, -1)[2] = 0
    for layer, norm in ((model.conv, model.norm), (model.dense, model.after)):
        norm.running_mean[2] = layer.bias[2].item()
    model.eval()
    saved = compressor.save(tmp_path / "a.lnx", x)
    sides = {f"{s.name}.{s.role}": s.values() for s in lnx.read(saved.path).sides}
    assert sides["conv.bias.parameter"].any() == shared  # if somebody else reads what the convolution gives
    assert not sides["dense.bias.parameter"].any() and abs(sides["after.scale"]).max() < 2
    assert saved.rounding < 0.02 or shared
    loaded = lx.load_into(plain_copy(compressor), saved.path)
    with torch.no_grad():
        off = float((loaded(x) - model(x)).abs().max() / model(x).abs().max())
    assert saved.rounding == pytest.approx(off, rel=1e-3)
    fine = compressor.save(tmp_path / "b.lnx", x, side_bits=16)
    assert fine.rounding < 0.002 and fine.file_bytes > saved.file_bytes


def test_a_file_that_is_far_from_the_trained_network_comes_with_a_warning(tmp_path, monkeypatch):
    model, x = _with_biases_before_norms(shared=False)
    compressor = lx.reparameterize(model, init="from_weights")
    monkeypatch.setattr(export, "COARSE", 0.002)
    with pytest.warns(UserWarning, match=r"% of the largest off the trained network's: side_bits=6 "):
        compressor.save(tmp_path / "a.lnx", x, side_bits=2)


@pytest.mark.parametrize("first, norm, shape", [
    (lambda: nn.Conv2d(1, 8, 3), lambda: nn.BatchNorm2d(8, affine=False), (2, 1, 5, 5)),
    (lambda: nn.Linear(6, 8), lambda: nn.BatchNorm1d(8, affine=False), (2, 6))])  # fmt: skip
def test_a_layer_that_is_all_zero_before_a_norm_layer_without_weights_is_stored(first, norm, shape, tmp_path):
    model = nn.Sequential(first(), norm(), nn.Flatten(), nn.LazyLinear(3))
    model.eval()(torch.zeros(shape))
    compressor = lx.reparameterize(model, init="from_weights")
    compressor.weights[0].latents.data.zero_()
    assert compressor.save(tmp_path / "a.lnx", torch.rand(shape)).rounding < 0.02


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_that_a_file_cannot_have_are_refused(bits, tmp_path):
    with pytest.raises(InputError, match="2 to 16"):
        lx.reparameterize(models.digits_resnet()).save(tmp_path / "a.lnx", torch.zeros(2, 1, 8, 8), side_bits=bits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [LnxError("tables", "too short"), MissingExtraError("torch", "train")])
def test_errors_come_through_from_other_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
