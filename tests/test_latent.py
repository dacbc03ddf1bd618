import numpy as np
import pytest

from lilnetx_mini import InputError, latent


def test_rounding_goes_to_the_even_neighbour_at_halves():
    z = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49, -0.51])
    assert latent.round_latents(z).tolist() == [-2, -2, 0, 0, 2, 2, 0, -1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 32767.6, -1e9])
def test_a_latent_that_cannot_be_stored_is_named_with_its_position(bad):
    z = np.zeros((3, 4))
    z[1, 2] = bad
    with pytest.raises(InputError, match=r"at \(1, 2\)"):
        latent.round_latents(z)


def test_slices_keep_storage_order_and_accept_strided_and_half_precision_arrays():
    w = np.arange(2 * 3 * 2 * 2, dtype=np.float16).reshape(2, 3, 2, 2)
    rows = latent.to_slices(w)
    assert rows.shape == (6, 4)
    assert (rows[4] == w[1, 1].ravel()).all()
    assert (
        latent.to_slices(w.transpose(1, 0, 2, 3)) == latent.to_slices(np.ascontiguousarray(w.transpose(1, 0, 2, 3)))
    ).all()
    assert latent.to_slices(w[:, :, 0, 0], dense=True).shape == (6, 1)
    for empty in (np.zeros((0, 3, 3)), np.zeros(5)):
        with pytest.raises(InputError, match="slices"):
            latent.to_slices(empty)


def test_decoding_is_the_matrix_product_without_blas():
    rng = np.random.default_rng(0)
    q, psi = rng.integers(-5, 6, (40, 9)), rng.normal(size=(9, 9))
    assert np.allclose(latent.decode(q, psi), q @ psi, atol=1e-12)
    assert not latent.decode(np.zeros((2, 9), int), psi).any()
    with pytest.raises(InputError, match=r"\(S, d\)"):
        latent.decode(q, psi[:8])


@pytest.mark.parametrize("bits", [2, 8, 12])
def test_stored_numbers_use_the_smallest_power_of_two_step_that_fits(bits):
    rng = np.random.default_rng(bits)
    for scale in (1e-9, 0.3, 1.0, 127.5, 128.0, 5e6):
        x = rng.uniform(-scale, scale, 50)
        ints, e = latent.quantise(x, bits)
        limit = 2 ** (bits - 1) - 1
        assert np.abs(ints).max() <= limit
        assert np.abs(np.rint(x / 2.0 ** (e - 1))).max() > limit
        assert np.abs(latent.dequantise(ints, e) - x).max() <= 2.0**e / 2 * (1 + 1e-6)
    assert latent.quantise(np.zeros(3), bits) == (pytest.approx(np.zeros(3)), 0)


def test_tiny_numbers_become_zero_rather_than_an_error():
    ints, e = latent.quantise(np.array([1e-40, -1e-39]))
    assert e == -latent.LARGEST_EXPONENT and not ints.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_numbers_without_a_step_are_refused(bad):
    with pytest.raises(InputError, match="step"):
        latent.quantise(np.array([1.0, bad]))


@pytest.mark.parametrize("kind", latent.DECODER_KINDS)
@pytest.mark.parametrize("kernel", [(3, 3), (5,), (1, 1), ()])
def test_every_decoder_decodes_as_its_matrix_says(kind, kernel):
    d = int(np.prod(kernel))
    rng = np.random.default_rng(1)
    decoder = latent.Decoder(kind, kernel, rng.integers(-127, 128, latent.free_entries(kind, d)), -7)
    q = rng.integers(-300, 300, (30, d))
    assert np.allclose(decoder.decode(q), q @ decoder.matrix().astype(np.float64), rtol=1e-6, atol=1e-4)
    assert decoder.decode(q).dtype == np.float32


def test_the_cosine_basis_is_orthonormal():
    basis = latent.dct_integers((3, 5)) / 2.0**latent.DCT_BITS
    assert np.allclose(basis @ basis.T, np.eye(15), atol=1e-3)


def test_a_large_kernel_does_not_start_at_zero():
    variance = latent.decoder_variance(widest=50)
    assert latent.latent_bound(variance, fan=50 * 25) == 0.75
    assert latent.latent_bound(variance, fan=10) > 0.75
