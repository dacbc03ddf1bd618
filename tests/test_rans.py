import io

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lilnetx_mini import InputError, LnxError, frequency, rans
from lilnetx_mini.fields import Reader, Writer
from lilnetx_mini.frequency import Table


def sample(n: int, scale: float = 0.8, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).laplace(0, scale, n)).astype(np.int32)


@given(
    arrays(np.int16, st.integers(0, 300), elements=st.integers(-32768, 32767)), st.sampled_from([None, 1, 2, 3, 8, 11])
)
@settings(max_examples=150, deadline=None)
def test_any_integers_come_back_with_any_interleaving(values, lanes):
    table = Table.of(values[: len(values) // 2], escape=True)  # a table that has not seen everything
    data = rans.encode(values, table, lanes=lanes)
    assert (rans.decode(data, table, len(values), lanes=lanes) == values).all()


def test_several_tables_serve_one_stream():
    a, b = sample(5000, 0.3), sample(5000, 4.0, 1) + 20
    values, which = np.concatenate([a, b]), np.repeat([0, 1], 5000)
    order = np.random.default_rng(0).permutation(10000)
    tables = [Table.of(a), Table.of(b)]
    data = rans.encode(values[order], tables, which[order])
    assert (rans.decode(data, tables, 10000, which[order]) == values[order]).all()
    assert len(data) * 8 <= tables[0].bits(a) + tables[1].bits(b) + 200


def test_the_readable_coder_and_the_compiled_one_write_the_same_bytes():
    values = sample(700)
    table = Table.of(values)
    symbols, _ = table.symbols(values)
    readable = rans.Coder(table.counts)
    for s in symbols[::-1]:
        readable.push(int(s))
    data = rans.encode_symbols(symbols, rans.Tables.of([table.counts]), lanes=1)
    assert readable.to_bytes() == data
    assert [readable.pop() for _ in symbols] == symbols.tolist()
    assert readable.state == rans.C.low and not readable.words
    assert (rans.decode_symbols(data, rans.Tables.of([table.counts]), len(symbols), lanes=1) == symbols).all()


def test_the_trace_shows_every_state_inside_its_interval():
    coder = rans.Coder(Table.of(sample(500)).counts)
    for s in [0, 2, 2, 3, 0]:
        coder.push(s)
    assert len(coder.trace) == 5
    assert all(rans.C.low <= step.state < rans.C.low << 16 for step in coder.trace)


def test_constriction_with_the_same_table_agrees_on_symbols_and_length():
    values = sample(10**6)
    table = Table.of(values)
    symbols, _ = table.symbols(values)
    model = constriction.stream.model.Categorical(table.counts / 16384, perfect=False)
    peer = constriction.stream.stack.AnsCoder()
    peer.encode_reverse(symbols.astype(np.int32), model)
    ours = rans.encode_symbols(symbols, rans.Tables.of([table.counts]))
    decoded = rans.decode_symbols(ours, rans.Tables.of([table.counts]), len(symbols))
    theirs_bits = peer.num_bits()
    assert (peer.decode(model, len(symbols)) == decoded).all() and (decoded == symbols).all()
    assert table.bits(values) <= 8 * len(ours) <= table.bits(values) * 1.001
    assert abs(8 * len(ours) - theirs_bits) <= 0.001 * theirs_bits


@given(arrays(np.int16, st.integers(0, 2000), elements=st.integers(-40, 40)))
@settings(max_examples=60, deadline=None)
def test_code_length_is_ideal_but_for_a_constant(values):
    table = Table.of(values)
    assert 8 * len(rans.encode(values, table)) <= 1.001 * table.bits(values) + 8 * 40


def test_a_symbol_with_the_whole_table_costs_nothing():
    data = rans.encode(np.full(10**5, 7), Table.of(np.array([7])))
    assert len(data) == 5


def test_what_a_table_lacks_is_an_error_without_an_escape():
    table = Table.of(np.array([0, 1, 2]))
    with pytest.raises(InputError, match="value 9"):
        rans.encode(np.array([1, 9]), table)
    with pytest.raises(InputError, match="table numbers"):
        rans.encode(np.array([1, 1]), table, index=np.array([0, 1]))


def test_a_wrong_table_is_noticed():
    values = sample(4000)
    table = Table.of(values)
    data = rans.encode(values, table)
    counts = table.counts.copy()
    counts[0] += 1
    counts[1] -= 1
    with pytest.raises(LnxError):
        rans.decode(data, Table(table.low, counts), len(values))


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:-2], lambda d: d[:3], lambda d: d + b"\0\0", lambda d: d[:1] + b"\0\0\0\0" + d[5:], lambda d: b""],
)
def test_damaged_streams_are_noticed(damage):
    values = sample(1000)
    table = Table.of(values)
    with pytest.raises(LnxError):
        rans.decode(damage(rans.encode(values, table)), table, len(values))


def test_tables_survive_their_bytes():
    for values in (sample(1000, 3), np.array([5]), np.arange(-400, 400), np.array([], int)):
        table = Table.of(values)
        out = Writer()
        table.write(out)
        back = Table.read(Reader(bytes(out.data), "tables"))
        assert back.low == table.low and back.escape == table.escape and (back.counts == table.counts).all()


@given(arrays(np.int16, st.integers(1, 300), elements=st.integers(-300, 300)), st.sampled_from([1, 20, 150]))
@settings(max_examples=100, deadline=None)
def test_short_forms_of_tables_are_rebuilt_exactly_and_chosen_only_where_they_pay(values, divisor):
    values = values // divisor
    exact, table = Table.of(values), Table.cheapest(values)
    assert int(table.counts.sum()) == 1 << 14 and (table.counts[exact.counts > 0] > 0).all()
    back = Table.read(Reader(table.to_bytes(), "tables"))
    assert back.low == table.low and (back.counts == table.counts).all()
    assert (back.escape, back.form, back.code) == (table.escape, table.form, table.code)
    assert table.bits(values) + 8 * len(table.to_bytes()) <= exact.bits(values) + 8 * len(exact.to_bytes())
    assert (rans.decode(rans.encode(values, table), back, len(values)) == values).all()


def test_each_form_of_a_table_has_its_place():
    rng = np.random.default_rng(0)
    laplace = np.rint(rng.laplace(0, 3, 300)).astype(int)
    comb = 7 * rng.integers(0, 8, 300)
    assert Table.cheapest(laplace).form == "geometric"
    assert Table.cheapest(comb).form == "coarse"
    assert Table.cheapest(np.tile(comb, 300)).form == "exact"


@pytest.mark.parametrize("code", [(0, 1, 1, 0, 0), (58, 1, 1, 0, 0), (1, 1, 1, 63, 63)])
def test_damaged_geometric_tables_are_refused(code):
    data = Writer().sint(-2).uint(6 * 5 + 4).data + sum(c << 6 * n for n, c in enumerate(code)).to_bytes(4, "little")
    if code[0] == 1:
        assert int(Table.read(Reader(bytes(data), "tables")).counts.sum()) == 1 << 14
    else:
        with pytest.raises(LnxError, match="out of range"):
            Table.read(Reader(bytes(data), "tables"))


def test_coarse_levels_lose_little():
    counts = Table.of(sample(5000, 3)).counts
    coarse = frequency.counts_of_levels(frequency.coarse_levels(counts)).astype(float)
    p = counts[counts > 0] / 16384
    assert (p * np.log2(counts[counts > 0] / coarse[counts > 0])).sum() < 0.01


def test_tables_that_do_not_sum_up_are_refused():
    with pytest.raises(LnxError, match="frequencies sum to"):
        Table.read(Reader(bytes(Writer().sint(0).uint(18).uint(16000).uint(600).data), "tables"))
    with pytest.raises(InputError, match="sum to"):
        rans.Tables.of([np.array([1, 2, 3])])
    with pytest.raises(InputError, match="sum to"):
        rans.Coder([1, 2, 3])


@given(st.lists(st.integers(0, 400), max_size=6), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_streams_longer_than_memory_go_block_by_block(sizes, seed):
    blocks = [sample(n, 2.0, seed + k) for k, n in enumerate(sizes)]
    table = Table.of(sample(50), escape=True)
    file = io.BytesIO(b"".join(rans.encode_blocks(iter(blocks), table)))
    back = list(rans.decode_blocks(file.read, table))
    assert len(back) == len(blocks) and all((a == b).all() for a, b in zip(back, blocks, strict=True))


@pytest.mark.parametrize("data", [b"\x05", b"\x05\x20abc", b"\xff" * 12, b"\xff\xff\xff\xff\x7f\x01"])
def test_damaged_blocks_are_noticed(data):
    with pytest.raises(LnxError):
        list(rans.decode_blocks(io.BytesIO(data).read, Table.of(sample(50))))
