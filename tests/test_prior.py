import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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


masks = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e3)).filter(lambda a: a.max() > 1e-3)


@given(masks, st.sampled_from(prior.FORMS), st.floats(1e-3, 1e3))
def test_soft_counts_lie_between_one_and_all_and_do_not_depend_on_scale(alpha, form, scale):
    count = prior.soft_count(alpha, form)
    least = 1.0 if form == "squared" else math.sqrt(len(alpha))
    assert least * (1 - 1e-9) <= count <= len(alpha) * (1 + 1e-9)
    assert prior.soft_count(scale * alpha, form) == pytest.approx(count, rel=1e-9)


@given(st.integers(1, 30), st.integers(0, 30), st.floats(1e-6, 1e6))
def test_of_equal_entries_among_zeros_the_squared_form_is_exact_and_the_root_is_not(ones, zeros, value):
    alpha = np.r_[np.full(ones, value), np.zeros(zeros)]
    assert prior.soft_count(alpha) == pytest.approx(ones)
    assert prior.soft_count(alpha, "root") == pytest.approx(math.sqrt(len(alpha) * ones))


@pytest.mark.parametrize("form", prior.FORMS)
def test_gradients_of_soft_counts_agree_with_finite_differences(form):
    alpha = np.random.default_rng(2).uniform(0, 3, 12)
    alpha[[3, 8]] = 0
    gradient = prior.soft_count_gradient(alpha, form)
    for i in (0, 3, 11):
        step = np.zeros(12)
        step[i] = 1e-6
        change = prior.soft_count(alpha + step, form) - prior.soft_count(np.maximum(alpha - step, 0), form)
        assert gradient[i] == pytest.approx(change / (1e-6 if alpha[i] == 0 else 2e-6), rel=1e-4)


@given(masks, st.sampled_from(prior.FORMS))
def test_entries_below_the_balance_shrink_and_those_above_grow(alpha, form):
    gradient = prior.soft_count_gradient(alpha, form)
    balance = np.square(alpha).sum() / alpha.sum()
    assert (gradient[alpha < balance * (1 - 1e-6)] > 0).all() and (gradient[alpha > balance * (1 + 1e-6)] < 0).all()


@given(st.integers(1, 30), st.floats(1e-3, 1e3), st.sampled_from(prior.FORMS))
def test_at_equal_entries_the_gradient_is_zero(size, value, form):
    alpha = np.full(size, value)
    assert np.abs(prior.soft_count_gradient(alpha, form) * alpha).max() < 1e-12 * size


def test_soft_counts_of_zero_huge_and_tiny_masks():
    for form in prior.FORMS:
        assert prior.soft_count(np.zeros(4), form) == 0 and not prior.soft_count_gradient(np.zeros(4), form).any()
    assert prior.soft_count(np.array([1e200, 1e200, 0])) == pytest.approx(2)
    assert prior.soft_count(np.array([1e-200, 1e-200, 0])) == pytest.approx(2)


@pytest.mark.parametrize("alpha", [np.zeros((2, 2)), np.zeros(0), np.array([1.0, -1e-9]), np.array([np.nan, 1])])
def test_what_is_no_mask_is_refused(alpha):
    with pytest.raises(InputError, match="mask"):
        prior.soft_count(alpha)
    with pytest.raises(InputError, match="mask"):
        prior.soft_count_gradient(alpha)
    with pytest.raises(InputError, match="'squared' and 'root'"):
        prior.soft_count(np.ones(2), "cubed")
