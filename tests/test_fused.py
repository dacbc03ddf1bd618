"""The compiled rate against the NumPy functions that define it, everywhere that training may go."""

import numpy as np
import pytest

from lilnetx_mini import InputError, density, fused
from lilnetx_mini.density import Density


def random_density(d, spread, seed=0):
    rng = np.random.default_rng(seed)
    return Density(*(rng.normal(0, spread, (n, d)) for n in (4, 4, 3)))


def check(z, dens, tolerance):
    total, gz, g = fused.bits_and_gradients(z, dens)
    want, (want_z, want_g) = density.log_prob(z, dens), density.log_prob_gradients(z, dens)
    assert total == pytest.approx(-want.sum() / np.log(2), rel=1e-5)
    assert np.allclose(gz, -want_z / np.log(2), atol=tolerance * max(1, np.abs(want_z).max()))
    for name in ("h", "b", "a"):
        one, two = getattr(g, name), -getattr(want_g, name) / np.log(2)
        assert np.allclose(one, two, atol=tolerance * max(1, np.abs(two).max())), name


@pytest.mark.parametrize("d", [1, 9, 25])
@pytest.mark.parametrize("slices", [1, 7, 512, 1300])
@pytest.mark.parametrize("spread", [0.01, 0.5])
def test_bits_and_gradients_are_those_of_the_definition(d, slices, spread):
    z = np.random.default_rng(1).normal(0, 2, (slices, d)).astype(np.float32)
    check(z, random_density(d, spread), 1e-4)


@pytest.mark.parametrize("slope", [-1.0, 2.0, 4.0])
def test_wide_and_steep_densities(slope):
    """From hundreds of integers, where the two logits almost agree in float32, to a step between two."""
    dens = random_density(3, 0.01)
    dens.h[:] = slope
    z = np.linspace(-3, 3, 600, dtype=np.float32).reshape(-1, 3)
    check(z, dens, 2e-3)


def test_the_symmetric_point():
    check(np.zeros((20, 4), np.float32), Density(np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((3, 4))), 1e-5)


def test_far_tails_stay_finite_and_point_home():
    z = np.array([[1e4], [-1e4], [1e6], [-1e6]], np.float32)
    total, gz, g = fused.bits_and_gradients(z, random_density(1, 0.01))
    assert np.isfinite(total) and all(np.isfinite(x).all() for x in (gz, g.h, g.b, g.a))
    assert (np.sign(gz) == np.sign(z)).all()


def test_no_latents_cost_nothing():
    total, gz, g = fused.bits_and_gradients(np.zeros((0, 2), np.float32), random_density(2, 0.1))
    assert total == 0 and gz.shape == (0, 2) and not g.h.any()


def test_arrays_of_another_type_or_shape_are_refused():
    dens = random_density(2, 0.1)
    for z in (np.zeros((3, 2)), np.zeros((3, 1), np.float32), np.zeros(2, np.float32)):
        with pytest.raises(InputError, match="float32"):
            fused.bits_and_gradients(z, dens)
