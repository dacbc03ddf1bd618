"""Grids of 2, 4, 8 and 16 bits, and files whose weights lie on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_lnx import same, small

from lilnetx_mini import InputError, LnxError, latent, lnx
from lilnetx_mini.grid import LEVELS, Grid, from_grid, steps, to_grid

RANGES = hnp.arrays(np.float32, 3, elements=st.floats(2**-10, 2**10, width=32))


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-1, 1)), RANGES, st.sampled_from(LEVELS))
def test_every_weight_within_its_range_goes_to_the_nearest_point(shares, ranges, bits):
    w, bits = shares * ranges[:, None], np.full(3, bits)
    q = to_grid(w, ranges, bits)
    assert np.abs(q).max() <= 2 ** (bits[0] - 1) - 1
    inside = np.abs(w) <= ranges[:, None] - steps(ranges, bits)[:, None] / 2  # beyond its last point a grid ends
    error = np.abs(from_grid(q, ranges, bits) - w) / ranges[:, None]
    assert (error[inside] <= 1 / (2.0 ** bits[0] - 1) + 1e-6).all() and (error <= 2 / (2.0 ** bits[0] - 1) + 1e-6).all()


@given(RANGES, st.integers(0, 2))
def test_points_are_points_of_the_next_finer_grid_too_and_signs_do_not_matter(ranges, level):
    coarse, fine = (np.full(3, b) for b in LEVELS[level : level + 2])
    most = 2 ** (coarse[0] - 1) - 1
    q = np.tile(np.unique(np.linspace(-most, most, 99).round()), (3, 1)).astype(np.int32)
    w = from_grid(q, ranges, coarse)
    assert np.array_equal(to_grid(w, ranges, fine), q * (2 ** coarse[0] + 1)) and np.array_equal(to_grid(-w, ranges, coarse), -q)


def test_zero_is_a_point_and_what_lies_beyond_the_range_gets_the_last_one():
    q = to_grid(np.array([[0.0, 9.0, -9.0]]), np.array([1.0]), np.array([4]))
    assert q.tolist() == [[0, 7, -7]]
    assert np.allclose(from_grid(q, np.array([1.5]), np.array([4])), [[0.0, 1.4, -1.4]])  # the middle of the last cell


@pytest.mark.parametrize(
    ("ranges", "bits", "message"),
    [
        ([1.0], [3], "3 bits: 2, 4, 8, 16 are the grids"),
        ([0.0], [4], "must be a positive number"),
        ([np.nan], [4], "must be a positive number"),
        ([1.0, 1.0], [4], "one of each for every channel"),
    ],
)
def test_grids_that_there_are_not_are_refused(ranges, bits, message):
    with pytest.raises(InputError, match=message):
        steps(np.array(ranges), np.array(bits))
    with pytest.raises(InputError, match="2 channels of weights and 1 ranges"):
        to_grid(np.zeros((2, 3)), np.ones(1), np.full(1, 4))


def gridded(ints=(40, 90, 127, 1), bits=(2, 4, 8, 16)) -> lnx.Model:
    """The model of other tests with its first layer on grids."""
    model = small()
    first = lnx.Layer("a.weight", (4, 2, 3, 3), 0, grid=Grid(np.array(ints, np.int32), -7, np.array(bits, np.int32)))
    decoder = latent.Decoder("scalar", (3, 3), np.ones(1, np.int32), 0)
    rng = np.random.default_rng(1)
    most = 2 ** (np.array(bits).repeat(2) - 1)[:, None] - 1
    q = np.concatenate([rng.integers(-most, most + 1, (8, 9)), model.groups[0].q[8:]])
    return small(layers=[first, *model.layers[1:]], groups=[lnx.Group(decoder, q), model.groups[1]])


def test_a_layer_on_grids_comes_back_as_the_same_weights(tmp_path):
    model = gridded()
    lnx.write(tmp_path / "m.lnx", model)
    read = lnx.read(tmp_path / "m.lnx")
    grid = read.layers[0].grid
    assert grid.bits.tolist() == [2, 4, 8, 16] and grid.ints.tolist() == [40, 90, 127, 1] and grid.exponent == -7
    assert read.layers[1].grid is None and read.tensor_names() == model.tensor_names() == small().tensor_names()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(read.tensors(), model.tensors(), strict=True))
    q = model.groups[0].q[:8].reshape(4, 2, 3, 3)
    want = q * (2 * np.array([40, 90, 127, 1]) / 128 / (2.0 ** np.array([2, 4, 8, 16]) - 1)).reshape(4, 1, 1, 1)
    assert np.array_equal(read.tensors()[0], want.astype(np.float32))
    sections = lnx.ledger(tmp_path / "m.lnx").sections
    assert sum(sections.values()) == (tmp_path / "m.lnx").stat().st_size
    assert same(lnx.decode(lnx.encode(small())), small())  # and files without grids are what they were


@pytest.mark.parametrize(
    ("ints", "bits", "message"),
    [
        ((40, 0, 127, 1), (2, 4, 8, 16), "do not fit a.weight"),
        ((40, 90, -1, 1), (2, 4, 8, 16), "do not fit a.weight"),
        ((40, 90, 127), (2, 4, 8), "do not fit a.weight"),
        ((40, 90, 127, 1), (2, 4, 5, 16), "do not fit a.weight"),
    ],
)
def test_a_file_with_impossible_grids_is_refused(ints, bits, message):
    model = gridded()
    wrong = lnx.Layer("a.weight", (4, 2, 3, 3), 0, grid=Grid(np.array(ints, np.int32), -7, np.array(bits, np.int32)))
    with pytest.raises(LnxError, match=message):
        lnx.decode(lnx.encode(lnx.Model(model.groups, [wrong, *model.layers[1:]], model.sides, model.raws, model.graph)))


@pytest.mark.parametrize("lost", [[("nobody", "range"), ("nobody", "bits")], [("a.weight", "range")], [("bn", "bits")]])
def test_ranges_and_bits_that_belong_to_no_layer_are_refused(lost):
    sides = [lnx.Side(name, role, np.full(4, 4), 0) for name, role in lost]
    with pytest.raises(LnxError, match="ranges or bits of no layer"):
        lnx.decode(lnx.encode(small(sides=[*small().sides, *sides])))
