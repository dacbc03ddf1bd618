import numpy as np
import pytest

from lilnetx_mini import InputError, prior

ORDERS = [1.0, 2.0, float("inf")]


@pytest.mark.parametrize("order", ORDERS)
def test_norms_are_numpys_and_zero_only_for_zero_slices(order):
    z = np.random.default_rng(0).normal(size=(30, 9))
    z[4] = 0
    norms = prior.slice_norms(z, order)
    assert np.allclose(norms, np.linalg.norm(z, order, axis=1))
    assert norms[4] == 0 and (np.delete(norms, 4) > 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_agree_with_finite_differences_and_vanish_at_zero(order):
    z = np.random.default_rng(1).normal(size=(6, 4))
    z[2] = 0
    g = prior.slice_norms_gradient(z, order)
    assert not g[2].any()
    eps = 1e-7
    for i, j in [(0, 0), (1, 3), (5, 2)]:
        step = np.zeros_like(z)
        step[i, j] = eps
        change = prior.slice_norms(z + step, order).sum() - prior.slice_norms(z - step, order).sum()
        assert g[i, j] == pytest.approx(change / (2 * eps), abs=1e-5)


def test_huge_and_tiny_slices_do_not_overflow_or_vanish():
    z = np.array([[3e200, 4e200], [3e-200, 4e-200]])
    assert np.allclose(prior.slice_norms(z) / [5e200, 5e-200], 1)


def test_a_wrong_shape_or_order_is_refused():
    with pytest.raises(InputError, match=r"\(S, d\)"):
        prior.slice_norms(np.zeros(5))
    with pytest.raises(InputError, match="order 3"):
        prior.slice_norms(np.zeros((5, 2)), 3)


def test_zero_slices_are_found():
    assert prior.zero_slices(np.array([[0, 0], [0, 1], [0, 0]])).tolist() == [True, False, True]
