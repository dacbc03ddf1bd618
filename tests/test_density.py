import numpy as np
import pytest

from lilnetx_mini import InputError, density, frequency, rate
from lilnetx_mini.density import Density


def spread(d: int, seed: int, scale: float = 0.7) -> Density:
    rng = np.random.default_rng(seed)
    return Density(rng.normal(0, scale, (4, d)), rng.normal(0, scale, (4, d)), rng.normal(0, scale, (3, d)))


def test_probabilities_of_all_integers_sum_to_one():
    for seed in range(5):
        dens = spread(3, seed)
        q = np.repeat(np.arange(-3000, 3001)[:, None], 3, axis=1)
        assert np.allclose(np.exp(density.log_prob(q, dens)).sum(0), 1, atol=1e-6)


def test_the_cumulative_distribution_increases():
    z = np.repeat(np.linspace(-30, 30, 2001)[:, None], 4, axis=1)
    assert (np.diff(density.logits(z, spread(4, 3, 2.0)), axis=0) > 0).all()


def steep() -> Density:
    """Logits of about 50 a unit, centred on zero, exactly symmetric."""
    return Density(np.full((4, 1), 2.6), np.zeros((4, 1)), np.zeros((3, 1)))


@pytest.mark.parametrize(
    "dens",
    [spread(1, 0), steep(), Density.start(1), Density(np.full((4, 1), -3.0), np.zeros((4, 1)), np.full((3, 1), -1.0))],
)
def test_values_and_gradients_are_finite_far_out_and_at_the_symmetric_point(dens):
    z = np.array([[0.0], [0.5], [-0.5], [200.0], [-200.0], [1e4], [-1e4]])
    value = density.log_prob(z, dens)
    gz, g = density.log_prob_gradients(z, dens)
    assert np.isfinite(value).all() and (value <= 0).all()
    assert np.isfinite(gz).all() and np.isfinite(g.flat()).all()


def test_a_steep_density_gives_its_centre_nearly_all_probability():
    assert density.log_prob(np.zeros((1, 1)), steep())[0, 0] == pytest.approx(
        0, abs=1e-6
    )  # and not log 0, at logits that cancel


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(5)
    dens, z, weight = spread(3, 7), rng.normal(0, 3, (20, 3)), rng.uniform(0.1, 2, (20, 3))
    gz, g = density.log_prob_gradients(z, dens, weight)

    def total(z, flat):
        return (weight * density.log_prob(z, Density.from_flat(flat, 3))).sum()

    theta, eps = dens.flat(), 1e-6
    for n in range(theta.size):
        step = np.zeros_like(theta)
        step[n] = eps
        assert g.flat()[n] == pytest.approx(
            (total(z, theta + step) - total(z, theta - step)) / (2 * eps), rel=1e-5, abs=1e-6
        )
    for place in [(0, 0), (7, 1), (19, 2)]:
        step = np.zeros_like(z)
        step[place] = eps
        assert gz[place] == pytest.approx(
            (total(z + step, theta) - total(z - step, theta)) / (2 * eps), rel=1e-5, abs=1e-6
        )


def test_a_fitted_density_costs_little_more_than_the_entropy():
    rng = np.random.default_rng(0)
    q = np.stack([np.rint(rng.laplace(0, 0.4, 4000)), np.rint(rng.normal(3, 2, 4000))], axis=1).astype(int)
    fitted = density.fit(q)
    ideal = sum(rate.entropy(column) for column in q.T)
    assert ideal <= rate.rate(q, fitted) / len(q) <= ideal * 1.02


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        density.log_prob(np.zeros((5, 2)), Density.start(3))
    with pytest.raises(InputError, match="cannot fit"):
        density.fit(np.zeros((0, 3), int))


def test_entropy_is_that_of_the_histogram():
    assert rate.entropy(np.array([1, 1, 2, 2])) == 1.0
    assert rate.entropy(np.array([7, 7, 7])) == 0.0
    assert rate.entropy(np.arange(8)) == pytest.approx(3)
    with pytest.raises(InputError, match="empty"):
        rate.entropy(np.array([], int))


def test_the_noise_proxy_overestimates_a_narrow_density():
    q = np.zeros((5000, 1))
    q[::50] = 1
    dens = density.fit(q.astype(int))
    assert rate.noisy_rate(q, dens) > 1.5 * rate.rate(q, dens)


def test_tables_keep_every_symbol_alive_and_sum_up():
    rng = np.random.default_rng(3)
    for size in (1, 2, 3, 17, 256):
        for sharpness in (0.1, 1, 30):
            weights = rng.random(size) ** sharpness
            weights[rng.random(size) < 0.2] = 0
            weights[0] += 1e-9
            counts = frequency.quantise_pmf(weights).astype(int)
            assert counts.sum() == frequency.TOTAL
            assert ((counts > 0) == (weights > 0)).all()


def test_no_single_count_can_move_to_a_better_place():
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(12, 0.15))
    counts = frequency.quantise_pmf(p).astype(int)

    def bits(c):
        return -(p[p > 0] * np.log2(c[p > 0])).sum()

    for i in range(12):
        for j in range(12):
            moved = counts.copy()
            moved[i] -= 1
            moved[j] += 1
            if moved[i] > 0:
                assert bits(moved) >= bits(counts) - 1e-12


@pytest.mark.parametrize("bad", [[], [0.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [1.0] * 257])
def test_unusable_weights_are_refused(bad):
    with pytest.raises(InputError):
        frequency.quantise_pmf(np.array(bad))
