import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilnetx_mini import LnxError, context, streams


def latents(shapes, d, alive, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    slices = sum(r * c for r, c in shapes)
    return np.rint(rng.laplace(0, scale, (slices, d))).astype(int) * (rng.random(slices) < alive)[:, None]


def test_the_logistic_table_is_the_logistic_function():
    exact = 65536 / (1 + np.exp(-np.arange(-2048, 2048) / 256))
    assert np.abs(context.SQUASH - np.clip(exact, 24, 65512)).max() <= 0.51
    assert (np.diff(context.STRETCH) >= 0).all()
    assert abs(int(context.STRETCH[2048])) <= 16


@given(st.integers(0, 10**6), st.sampled_from([1, 4, 9]), st.floats(0, 1), st.floats(0.2, 400))
@settings(max_examples=40, deadline=None)
def test_any_latents_come_back_in_either_mode(seed, d, alive, scale):
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(v) for v in rng.integers(1, 9, 2)) for _ in range(rng.integers(1, 4))]
    q = np.clip(latents(shapes, d, alive, seed, scale), -32767, 32767)
    for coded in (streams.encode_adaptive(q, shapes, 3 if d == 9 else 1), streams.encode_static(q, shapes)):
        back, bits = streams.decode(coded, shapes, d, 3 if d == 9 else 1)
        assert (back == q).all() and len(bits) == len(shapes) and (bits >= 0).all()


@given(st.lists(st.tuples(st.integers(-100_000, 100_000), st.integers(0, 3)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_plain_integers_come_back(pairs):
    values, kinds = np.array([p[0] for p in pairs], int), np.array([p[1] for p in pairs], int)
    data, _ = context.encode_ints(values, kinds)
    assert (context.decode_ints(data, kinds)[0] == values).all()


def test_dead_rows_and_columns_make_flags_cheap():
    rng = np.random.default_rng(0)
    flags = np.outer(rng.random(64) < 0.3, rng.random(64) < 0.3).ravel()
    structured, _ = context.encode_flags(flags, [(64, 64)])
    shuffled, _ = context.encode_flags(rng.permutation(flags), [(64, 64)])
    assert len(structured) < 0.5 * len(shuffled)


@pytest.mark.parametrize("rows", [0, 1, 3, 30])
@pytest.mark.parametrize("columns", [0, 1, 2, 50])
def test_layers_with_few_live_rows_and_columns_come_back(rows, columns):
    """Dead rows and columns are coded once; flags that follow from them are not coded, and must come back all the same."""
    rng = np.random.default_rng(rows + columns)
    one = np.zeros((30, 50), np.int64)
    one[:rows, :columns] = rng.random((rows, columns)) < 0.4
    shuffled = one[rng.permutation(30)][:, rng.permutation(50)]
    shapes = [(30, 50), (50, 30), (1, 1), (30, 50)]
    flags = np.concatenate([shuffled.ravel(), shuffled.T.ravel(), [1], one.ravel()])
    data, bits = context.encode_flags(flags, shapes)
    back, again = context.decode_flags(data, shapes, flags.size)
    assert (back == flags).all() and bits == pytest.approx(again)
    if rows * columns <= 6:
        assert len(data) < 60


def test_independent_flags_cost_little_more_than_their_entropy():
    flags = np.random.default_rng(1).random(40_000) < 0.1
    p = flags.mean()
    ideal = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * flags.size / 8
    data, bits = context.encode_flags(flags, [(200, 200)])
    assert ideal * 0.99 <= len(data) <= ideal * 1.04
    assert bits.sum() / 8 == pytest.approx(len(data), rel=0.01)


def test_the_smaller_of_both_ways_is_taken():
    q = latents([(30, 30)], 9, 0.2)
    assert streams.encode(q, [(30, 30)], 3).size == min(
        streams.encode_adaptive(q, [(30, 30)], 3).size, streams.encode_static(q, [(30, 30)]).size
    )


def test_an_overlong_stream_is_noticed():
    data, _ = context.encode_flags(np.ones(4), [(2, 2)])
    with pytest.raises(LnxError, match="damaged"):
        context.decode_flags(data + b"\1" * 20, [(2, 2)], 4)


def test_compiled_and_interpreted_coders_write_the_same_bytes(tmp_path):
    q = latents([(6, 5), (4, 6)], 9, 0.4, seed=3)
    coded = streams.encode_adaptive(q, [(6, 5), (4, 6)], 3)
    np.save(tmp_path / "q.npy", q)
    script = (
        "import numpy as np, sys; from lilnetx_mini import streams; q = np.load(sys.argv[1]);"
        "a = streams.encode_adaptive(q, [(6, 5), (4, 6)], 3); b = streams.encode_static(q, [(6, 5), (4, 6)]);"
        "print(a.significance.hex(), a.coefficients.hex(), b.tables.hex() + b.significance.hex() + b.coefficients.hex())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, tmp_path / "q.npy"],
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )
    assert done.returncode == 0, done.stderr
    static = streams.encode_static(q, [(6, 5), (4, 6)])
    expected = [
        coded.significance.hex(),
        coded.coefficients.hex(),
        static.tables.hex() + static.significance.hex() + static.coefficients.hex(),
    ]
    assert done.stdout.split() == expected
