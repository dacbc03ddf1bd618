"""rANS: an entropy coder whose whole state is one integer (Duda 2013).

To push a symbol with count f and cumulative count c, the state becomes ``x' = (x // f) * 2**14 + c + x % f``; to pop it,
``slot = x' % 2**14`` says which symbol it was, and ``x = f * (x' // 2**14) + slot - c`` undoes the step exactly.
The last symbol pushed is the first to come out, so the encoder runs backwards and the decoder forwards. Whenever the
state would leave its interval, sixteen bits move between it and the stream.

Two coders stand here. `Coder` is for reading: one state, plain Python, every step recorded. `encode` and `decode` are
for using: eight states take turns, so that a processor can work on eight symbols at once, and Numba compiles them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, LnxError
from .fields import Reader, Writer
from .frequency import TABLE_BITS, TOTAL, Table
from .jit import njit
from .latent import LARGEST, IntArray


@dataclass(frozen=True)
class Constants:
    """Every constant of the coder, derived from three choices."""

    table_bits: int = TABLE_BITS  # counts sum to 2**14; finer tables cost more bits in cache misses than they save
    word_bits: int = 16  # the stream grows by whole words of two bytes
    lanes: int = 8  # states that take turns in a long stream

    @property
    def low(self) -> int:
        """The interval of states between two symbols is [low, low * 2**word_bits), here [2**16, 2**32)."""
        return 1 << self.word_bits

    @property
    def push_shift(self) -> int:
        """A symbol of count f may be pushed on states below ``f << push_shift`` without leaving the interval."""
        return 2 * self.word_bits - self.table_bits

    @property
    def reciprocal_shift(self) -> int:
        """``x // f == x * ceil(2**46 / f) >> 46`` for every f up to 2**14 and every x below f << 18, within 64 bits."""
        return self.push_shift + 2 * self.table_bits

    @property
    def long_stream(self) -> int:
        """From this many symbols on, the 28 bytes that seven more states may take are under 0.002 bits a symbol."""
        return 1 << 17


C = Constants()

# -- the coder to read ------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One push or pop: the symbol, the state after it, and the words that moved."""

    symbol: int
    state: int
    words: tuple[int, ...]


@dataclass
class Coder:
    """One rANS state and its stack of words, in plain Python.

    counts  the table: a count for every symbol, summing to ``2**14``
    trace   every step taken so far
    """

    counts: NDArray
    state: int = C.low
    words: list[int] = field(default_factory=list)
    trace: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [int(c) for c in self.counts]
        if sum(self.counts) != TOTAL:
            raise InputError(f"counts sum to {sum(self.counts)}, not to {TOTAL}: make them with frequency.quantise_pmf")
        self.start = [sum(self.counts[:s]) for s in range(len(self.counts))]

    def push(self, symbol: int) -> None:
        """Put a symbol on top. Invariant: the state is in [low, low << 16) before and after."""
        f, c = self.counts[symbol], self.start[symbol]
        if f == 0:
            raise InputError(f"symbol {symbol} has count zero: it cannot be coded")
        moved = ()
        if self.state >= f << C.push_shift:
            moved = (self.state & 0xFFFF,)
            self.words.append(self.state & 0xFFFF)
            self.state >>= C.word_bits
        self.state = (self.state // f << C.table_bits) + c + self.state % f
        self.trace.append(Step(symbol, self.state, moved))

    def pop(self) -> int:
        """Take the top symbol off: the exact inverse of `push`."""
        slot = self.state % TOTAL
        symbol = max(s for s, c in enumerate(self.start) if c <= slot and self.counts[s])
        self.state = self.counts[symbol] * (self.state >> C.table_bits) + slot - self.start[symbol]
        moved = ()
        if self.state < C.low:
            if not self.words:
                raise LnxError("stream", "the coder ran out of words (stream truncated?)")
            moved = (self.words.pop(),)
            self.state = self.state << C.word_bits | moved[0]
        self.trace.append(Step(symbol, self.state, moved))
        return symbol

    def to_bytes(self) -> bytes:
        """The stream: the state, then the words in the order in which the decoder wants them."""
        return self.state.to_bytes(4, "little") + b"".join(w.to_bytes(2, "little") for w in reversed(self.words))


# -- the coder to use -------------------------------------------------------------------------------------------------
# Inside the kernels everything is an unsigned 64-bit integer, compiled or not. No index is checked there: `decode`
# pads the words, and `Tables` makes every slot lead to a symbol of its own table.

_U16, _BITS, _MASK = np.uint64(16), np.uint64(C.table_bits), np.uint64(TOTAL - 1)
_LOW, _PUSH, _RECIPROCAL = np.uint64(C.low), np.uint64(C.push_shift), np.uint64(C.reciprocal_shift)
_WORD, _ONE, _ZERO = np.uint64(0xFFFF), np.uint64(1), np.uint64(0)


class Tables(NamedTuple):
    """Several tables side by side, as the kernels want them: row t belongs to table t."""

    freq: NDArray[np.uint64]  # (T, 256) counts
    start: NDArray[np.uint64]  # (T, 256) cumulative counts
    reciprocal: NDArray[np.uint64]  # (T, 256) ceil(2**46 / count)
    symbol: NDArray[np.uint8]  # (T, 2**14) slot to symbol

    @staticmethod
    def of(counts: list[NDArray]) -> Tables:
        """Build from one row of counts a table; InputError unless each sums to ``2**14``."""
        freq = np.zeros((len(counts), 256), np.uint64)
        start, reciprocal = np.zeros_like(freq), np.zeros_like(freq)
        symbol = np.zeros((len(counts), TOTAL), np.uint8)
        for t, row in enumerate(counts):
            row = np.asarray(row, np.int64)
            if row.ndim != 1 or not 1 <= row.size <= 256 or row.min() < 0 or row.sum() != TOTAL:
                raise InputError(
                    f"table {t}: counts sum to {row.sum()} over {row.size} symbols; "
                    f"a table has 1 to 256 counts that sum to {TOTAL}"
                )
            freq[t, : row.size] = row
            start[t, : row.size] = np.cumsum(row) - row
            reciprocal[t, : row.size] = -(-(1 << C.reciprocal_shift) // np.maximum(row, 1))
            symbol[t] = np.repeat(np.arange(row.size), row)
        return Tables(freq, start, reciprocal, symbol)


@njit(inline="always")
def _push(x, at, words, f, c, r):
    """One symbol onto state x. The word is always written and only kept when it was needed: no branch to mispredict.

    A count of zero does no harm here; whoever calls has to notice it.
    """
    words[at - _ONE] = x & _WORD
    full = x >= (f << _PUSH)
    at -= np.uint64(full)
    x = x >> _U16 if full else x
    quotient = (x * r) >> _RECIPROCAL
    return (quotient << _BITS) + c + (x - quotient * f), at


@njit(inline="always")
def _pop(x, at, words, freq, start, symbol):
    """One symbol off state x; the next word is always read and only used when the state ran low."""
    slot = x & _MASK
    s = symbol[slot]
    x = freq[s] * (x >> _BITS) + slot - start[s]
    refilled = x << _U16 | np.uint64(words[at])
    low = x < _LOW
    return refilled if low else x, at + np.uint64(low), s


@njit
def _encode(symbols, index, freq, start, reciprocal, states, words):
    """Any number of lanes and tables: symbol i belongs to lane i % lanes and table index[i]. Returns where words begin."""
    at = np.uint64(words.size)
    lanes = states.size
    for i in range(symbols.size - 1, -1, -1):
        t, s, lane = index[i], symbols[i], i % lanes
        states[lane], at = _push(states[lane], at, words, freq[t, s], start[t, s], reciprocal[t, s])
    return at


@njit
def _decode(out, index, freq, start, symbol, states, words):
    """The inverse of `_encode`. Returns how many words were used."""
    at = _ZERO
    lanes = states.size
    for i in range(out.size):
        t, lane = index[i], i % lanes
        states[lane], at, out[i] = _pop(states[lane], at, words, freq[t], start[t], symbol[t])
    return at


@njit
def _encode8(symbols, freq, start, reciprocal, states, words):
    """Eight lanes, one table, the lanes written out so that the states stay in registers."""
    at = np.uint64(words.size)
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0],
        states[1],
        states[2],
        states[3],
        states[4],
        states[5],
        states[6],
        states[7],
    )
    for i in range(symbols.size - 8, -1, -8):
        s = symbols[i + 7]
        x7, at = _push(x7, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 6]
        x6, at = _push(x6, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 5]
        x5, at = _push(x5, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 4]
        x4, at = _push(x4, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 3]
        x3, at = _push(x3, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 2]
        x2, at = _push(x2, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i + 1]
        x1, at = _push(x1, at, words, freq[s], start[s], reciprocal[s])
        s = symbols[i]
        x0, at = _push(x0, at, words, freq[s], start[s], reciprocal[s])
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def _decode8(out, freq, start, symbol, states, words):
    """The inverse of `_encode8`."""
    at = _ZERO
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0],
        states[1],
        states[2],
        states[3],
        states[4],
        states[5],
        states[6],
        states[7],
    )
    for i in range(0, out.size, 8):
        x0, at, out[i] = _pop(x0, at, words, freq, start, symbol)
        x1, at, out[i + 1] = _pop(x1, at, words, freq, start, symbol)
        x2, at, out[i + 2] = _pop(x2, at, words, freq, start, symbol)
        x3, at, out[i + 3] = _pop(x3, at, words, freq, start, symbol)
        x4, at, out[i + 4] = _pop(x4, at, words, freq, start, symbol)
        x5, at, out[i + 5] = _pop(x5, at, words, freq, start, symbol)
        x6, at, out[i + 6] = _pop(x6, at, words, freq, start, symbol)
        x7, at, out[i + 7] = _pop(x7, at, words, freq, start, symbol)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


def _lanes(n: int, lanes: int | None) -> int:
    return lanes or (C.lanes if n >= C.long_stream else 1)


def _index(index: NDArray | None, n: int, tables: Tables, whole: int) -> NDArray[np.uint16]:
    """Table numbers of the symbols from `whole` on, checked; InputError if they do not fit."""
    if index is None:
        return np.zeros(n - whole, np.uint16)
    index = np.ascontiguousarray(index, np.uint16)
    if index.size != n or index.max(initial=0) >= len(tables.freq):
        raise InputError(
            f"{index.size} table numbers up to {index.max(initial=0)} for {n} symbols and {len(tables.freq)} tables"
        )
    return index[whole:]


def encode_symbols(
    symbols: NDArray[np.uint8], tables: Tables, index: NDArray | None = None, lanes: int | None = None
) -> bytes:
    """Symbols (n,) to bytes; `index` (n,) says which table each belongs to, by default the first.

    The stream is the lanes' states, four bytes each, then the words.
    """
    symbols, n = np.ascontiguousarray(symbols, np.uint8), len(symbols)
    lanes = _lanes(n, lanes)
    whole = n - n % C.lanes if lanes == C.lanes and index is None else 0  # so many go through the fast kernel
    index = _index(index, n, tables, whole)
    uncoded = tables.freq == 0
    if uncoded[:, : int(symbols.max(initial=0)) + 1].any():  # only then can a symbol have lacked its count
        bad = uncoded[index if whole == 0 else 0, symbols]
        if bad.any():
            raise InputError(f"symbol {symbols[bad][0]} has count zero in its table: it cannot be coded")
    states = np.full(lanes, C.low, np.uint64)
    words = np.empty(n + 1, np.uint16)  # at most one word a symbol, and one scratch place before the first
    at = _encode(symbols[whole:], index, tables.freq, tables.start, tables.reciprocal, states, words)
    if whole:
        at = _encode8(symbols[:whole], tables.freq[0], tables.start[0], tables.reciprocal[0], states, words[:at])
    return states.astype("<u4").tobytes() + words[at:].astype("<u2", copy=False).tobytes()


def decode_symbols(
    data: bytes, tables: Tables, n: int, index: NDArray | None = None, lanes: int | None = None
) -> NDArray[np.uint8]:
    """The inverse of `encode_symbols`: (n,) uint8. LnxError if the stream does not decode to its very start."""
    lanes = _lanes(n, lanes)
    whole = n - n % C.lanes if lanes == C.lanes and index is None else 0
    index = _index(index, n, tables, whole)
    count = (len(data) - 4 * lanes) // 2
    if len(data) < 4 * lanes or len(data) % 2 or count > n:
        raise LnxError(
            "stream", f"{len(data)} bytes cannot be {lanes} states and words for {n} symbols (stream damaged?)"
        )
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint64)
    if (states < C.low).any():
        raise LnxError("stream", "a state is out of its interval (stream damaged?)")
    words = np.zeros(n + 1, np.uint16)  # each symbol reads ahead by at most one word: no read leaves this array
    words[:count] = np.frombuffer(data, "<u2", count, 4 * lanes)
    out = np.empty(n, np.uint8)
    at = _decode8(out[:whole], tables.freq[0], tables.start[0], tables.symbol[0], states, words) if whole else 0
    at += _decode(out[whole:], index, tables.freq, tables.start, tables.symbol, states, words[at:])
    if at != count or (states != C.low).any():
        raise LnxError("stream", f"decoding used {at} of {count} words and did not end at the coder's start")
    return out


def encode(
    values: IntArray, table: Table | list[Table], index: NDArray | None = None, lanes: int | None = None
) -> bytes:
    """Integers to bytes.

    values   any integers of at most 16 bits with sign; flattened
    table    one table, or a list of them with `index` (n,) saying which table each value belongs to
    returns  the escaped values, length first, then the rANS stream
    raises   InputError for a value that its table, lacking an escape, has no place for
    """
    tables, which = _by_table(table, index, np.size(values))
    values = np.asarray(values).ravel()
    symbols, escaped = np.zeros(values.size, np.uint8), []
    for one, mine in zip(tables, which, strict=True):
        symbols[mine], out = one.symbols(values[mine])
        escaped.extend(int(v) for v in out)
    extra = Writer()
    for v in escaped:
        extra.sint(v)
    head = Writer().block(bytes(extra.data))
    return bytes(head.data) + encode_symbols(symbols, Tables.of([t.counts for t in tables]), index, lanes)


def _by_table(
    table: Table | list[Table], index: NDArray | None, n: int
) -> tuple[list[Table], list[slice] | list[NDArray]]:
    """The tables, and for each which values are its own."""
    tables = [table] if isinstance(table, Table) else list(table)
    if index is None and len(tables) == 1:
        return tables, [slice(None)]
    which = np.zeros(n, np.int64) if index is None else np.asarray(index).ravel()
    if which.size != n or (n and not 0 <= which.min() <= which.max() < len(tables)):
        raise InputError(f"{which.size} table numbers do not fit {n} values and {len(tables)} tables")
    return tables, [np.flatnonzero(which == t) for t in range(len(tables))]


def decode(
    data: bytes, table: Table | list[Table], n: int, index: NDArray | None = None, lanes: int | None = None
) -> NDArray[np.int32]:
    """The inverse of `encode`: (n,) int32. LnxError if the bytes are not such a stream."""
    tables, which = _by_table(table, index, n)
    src = Reader(data, "stream")
    extra = Reader(src.block("escaped values"), "stream")
    symbols = decode_symbols(data[src.at :], Tables.of([t.counts for t in tables]), n, index, lanes)
    values = np.zeros(n, np.int32)
    for one, mine in zip(tables, which, strict=True):
        own = symbols[mine]
        out = own.astype(np.int32) + one.low
        if one.escape:
            places = np.flatnonzero(own == one.width)
            out[places] = [extra.sint(LARGEST + 1, "an escaped value") for _ in places]
        values[mine] = out
    extra.finish()
    return values


# -- streams longer than memory ---------------------------------------------------------------------------------------


def encode_blocks(blocks: Iterable[IntArray], table: Table) -> Iterator[bytes]:
    """Code arrays one after another, each as a frame of its own: number of values, length, stream. Holds one at a time."""
    for values in blocks:
        stream = encode(values, table)
        yield bytes(Writer().uint(np.size(values)).block(stream).data)


def decode_blocks(read: Callable[[int], bytes], table: Table, largest: int = 1 << 24) -> Iterator[NDArray[np.int32]]:
    """The inverse, from a function like a file's ``read``, until it returns nothing.

    largest  frames that announce more values or bytes than this are refused before memory is taken
    """
    while first := read(1):
        n = _varint(first, read, largest, "number of values")
        length = _varint(read(1), read, 4 * largest + 64, "length")
        stream = read(length)
        if len(stream) != length:
            raise LnxError("stream", f"{length} bytes announced, {len(stream)} left (stream truncated?)")
        yield decode(stream, table, n)


def _varint(data: bytes, read: Callable[[int], bytes], limit: int, what: str) -> int:
    while data and data[-1] >= 0x80 and len(data) < 10:
        more = read(1)
        if not more:
            break
        data += more
    return Reader(data, "stream").uint(limit, what)
