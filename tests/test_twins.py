"""NumPy and torch say the same: values to 1e-5 relative, gradients to 1e-4, at random and at extreme inputs."""

import numpy as np
import pytest
import torch

from lilnetx_mini import density, latent, prior, rate
from lilnetx_mini.nn import density as tdensity
from lilnetx_mini.nn import latent as tlatent
from lilnetx_mini.nn import prior as tprior
from lilnetx_mini.nn import rate as trate

D = 4


def inputs() -> np.ndarray:
    rng = np.random.default_rng(0)
    z = np.concatenate(
        [
            rng.normal(0, 2, (40, D)),
            rng.uniform(-200, 200, (20, D)),
            np.zeros((2, D)),
            np.full((1, D), 200.0),
            np.full((1, D), -200.0),
        ]
    )
    return np.concatenate([z, np.round(z)])


def module(start: float, dtype: torch.dtype, zero_shift: bool = False, slope: float = 0.0) -> tdensity.Density:
    torch.manual_seed(3)
    out = tdensity.Density(D)
    with torch.no_grad():
        for p in out.parameters():
            p.add_(start * torch.randn_like(p))
        out.h.add_(slope)
        if zero_shift:
            out.b.zero_()
    return out.to(dtype)


CASES = [
    (0.0, False, 0.0),
    (0.5, False, 0.0),
    (1.0, False, 0.0),
    (0.0, True, 0.0),
    (0.3, True, 2.0),
    (0.3, False, 3.0),
]  # the last two are steep


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(
        np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())
        and np.allclose(a, b, rtol=tolerance * 10, atol=tolerance * max(1.0, np.abs(b).max()))
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_values_and_gradients(case, dtype):
    m, z = module(case[0], dtype, *case[1:]), torch.tensor(inputs(), dtype=dtype, requires_grad=True)
    m_numpy = m.to_numpy()
    value = m.log_prob(z)
    want = density.log_prob(z.detach().numpy(), m_numpy)
    assert np.isfinite(want).all() and np.allclose(value.detach().numpy(), want, rtol=1e-5, atol=1e-5)
    value.sum().backward()
    gz, g = density.log_prob_gradients(z.detach().numpy(), m_numpy)
    assert close(z.grad.numpy(), gz, 1e-4)
    for name in ("h", "b", "a"):
        assert close(getattr(m, name).grad.numpy(), getattr(g, name), 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_fused_rate_has_the_gradients_of_the_plain_one(case):
    m, z = module(case[0], torch.float64, *case[1:]), torch.tensor(inputs(), requires_grad=True)
    tensors = [z, *m.parameters()]
    fused = trate.noisy_rate(z, m, torch.zeros_like(z))
    plain = trate.self_information(z, m).sum()
    assert fused.item() == pytest.approx(plain.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(3 * fused, tensors), torch.autograd.grad(3 * plain, tensors), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_rate_of_rounded_latents():
    m, z = module(0.5, torch.float64), inputs()
    assert trate.rate(torch.from_numpy(z), m).item() == pytest.approx(rate.rate(z, m.to_numpy()), rel=1e-5)


def test_the_noise_proxy_with_the_same_noise():
    m, z = module(0.5, torch.float64), inputs()
    u = np.random.default_rng(0).uniform(-0.5, 0.5, z.shape)
    assert trate.noisy_rate(torch.from_numpy(z), m, torch.from_numpy(u)).item() == pytest.approx(
        rate.noisy_rate(z, m.to_numpy(), seed=0), rel=1e-5
    )


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
def test_slice_norms_and_gradients(order):
    z = torch.tensor(inputs(), requires_grad=True)
    norms = tprior.slice_norms(z, order)
    assert np.allclose(norms.detach().numpy(), prior.slice_norms(z.detach().numpy(), order), rtol=1e-5)
    norms.sum().backward()
    assert close(z.grad.numpy(), prior.slice_norms_gradient(z.detach().numpy(), order), 1e-4)


@pytest.mark.parametrize("form", prior.FORMS)
def test_soft_counts_and_gradients(form):
    alpha = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha[[2, 7]] = 0
    alpha.requires_grad_()
    count = tprior.soft_count(alpha, form)
    assert count.item() == pytest.approx(prior.soft_count(alpha.detach().numpy(), form))
    count.backward()
    assert close(alpha.grad.numpy(), prior.soft_count_gradient(alpha.detach().numpy(), form), 1e-9)
    assert tprior.soft_count(torch.zeros(3), form) == 0


@pytest.mark.parametrize("kind", latent.DECODER_KINDS)
def test_decoded_weights_and_the_stored_decoder(kind):
    torch.manual_seed(0)
    group = tlatent.Group((2, 2), kind, 16)
    z = torch.from_numpy(inputs()).float()
    q = latent.round_latents(z.numpy())
    assert np.allclose(
        group.decode(z).detach().numpy(), latent.decode(q, group.psi.detach().numpy()), rtol=1e-5, atol=1e-5
    )
    group.stored_bits = 8
    stored = group.stored(8)
    assert np.allclose(group.psi.detach().numpy(), stored.matrix(), rtol=1e-6, atol=1e-7)
    assert np.allclose(group.decode(z).detach().numpy(), stored.decode(q), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", latent.DECODER_KINDS)
def test_latents_of_a_weight_decode_to_it_and_are_the_same_wherever_it_lies_in_memory(kind):
    torch.manual_seed(0)
    group = tlatent.Group((3, 3), kind, 64)
    if kind == "dct":
        torch.nn.init.constant_(group.free, 2.0**-6)  # as `reparameterize` sets it; sums then lie between two numbers
    weight = 0.05 * torch.randn(64, 64, 3, 3)
    decoded, found, between = tlatent.Decoded(group, weight.shape), [], []
    for offset in range(10):
        between.append(torch.empty(37 * offset + 1))
        moved = torch.empty(weight.numel() + offset)[offset:].view(weight.shape).copy_(weight)
        found.append(decoded.latents_for(moved))
    assert torch.allclose((found[0] @ group.psi).view(weight.shape), weight, atol=1e-4)
    assert all(torch.equal(z, found[0]) for z in found)


@pytest.mark.parametrize("largest", [127.4999, 127.5, 127.50001, 0.99609375, 64.0, 1e-6])
def test_simulated_and_stored_quantisation_agree_at_the_edge_of_a_step(largest):
    x = torch.tensor([largest, -largest / 3, largest / 200], dtype=torch.float64)
    assert np.allclose(tlatent.quantise(x).numpy(), latent.dequantise(*latent.quantise(x.numpy())), rtol=1e-7)


def test_rounding_passes_the_gradient_through():
    z = torch.tensor([-1.5, -0.5, 0.2, 2.5], requires_grad=True)
    out = tlatent.ste_round(z)
    out.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert out.tolist() == [-2, 0, 0, 2] and z.grad.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_a_peaked_density_falls_from_zero_to_both_sides(spread):
    torch.manual_seed(int(spread))
    m = tdensity.Density(D, peaked=True)
    with torch.no_grad():
        m.h.add_(spread * torch.randn_like(m.h))
        m.a.add_(spread * torch.randn_like(m.a))
    m.double()
    q = torch.arange(40, dtype=torch.float64)[:, None].expand(-1, D)
    bits = -m.log_prob(q)
    assert torch.allclose(bits, -m.log_prob(-q), rtol=1e-9) and (bits[1:] >= bits[:-1] - 1e-9).all()
    twin = m.to_numpy()
    assert np.allclose(density.log_prob(q.numpy(), twin), -bits.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("peaked", [False, True])
def test_latents_that_only_pay_gather_at_zero_under_a_peaked_density(peaked):
    torch.manual_seed(0)
    m, z = tdensity.Density(1, peaked=peaked), torch.nn.Parameter(2 * torch.rand(2000, 1) + 3)
    optimizer = torch.optim.Adam([{"params": m.parameters(), "lr": 0.03}, {"params": [z], "lr": 0.01}])
    for _ in range(800):
        optimizer.zero_grad()
        (trate.noisy_rate(z, m) / len(z)).backward()
        optimizer.step()
    assert float((torch.round(z) == 0).float().mean()) == (1.0 if peaked else 0.0)
