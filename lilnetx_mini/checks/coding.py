"""Checkers for notebook 03, from probabilities to bytes: slot tables, push and pop, the best counts, a stream's decoder."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frequency import TOTAL
from ..rans import C, Coder
from . import Verdict, Wrong, judge


def _ints(x: Any, size: int, call: str) -> list[int]:
    """The answer as a list of Python integers, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    x = np.asarray(x)
    if x.shape != (size,):
        raise Wrong(f"{call} should be {size} integers in one row, and is of shape {x.shape}")
    if size and x.dtype.kind not in "iu":
        raise Wrong(f"{call} should hold integers, and holds {x.dtype}")
    return [int(v) for v in x]


def _int(x: Any, call: str) -> int:
    """The answer as a Python integer of any size, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    if isinstance(x, float | np.floating):
        raise Wrong(f"{call} is a float, {_big(x)}: a state is an integer, so divide with // and not with /")
    try:
        return operator.index(x)
    except TypeError:
        raise Wrong(f"{call} should be an integer, and is a {type(x).__name__}") from None


def _pair(x: Any, call: str, names: str) -> tuple[Any, Any]:
    """The answer as two things, or Wrong."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise Wrong(f"{call} should return two things, {names}, and returned a {type(x).__name__}")
    return x[0], x[1]


def _show(x: Sequence[int] | NDArray, most: int = 10) -> str:
    """A short list as text, without NumPy's type names."""
    items = [f"{v:.6g}" if isinstance(v, float | np.floating) else str(v) for v in list(x)[:most]]
    return "[" + ", ".join(items) + (", ..." if len(x) > most else "") + "]"


def _big(x: Any) -> str:
    """A number of any size as a short text."""
    text = str(x)
    return text if len(text) <= 24 else f"{text[:8]}...{text[-8:]} ({len(text)} digits)"


def _first(got: Sequence[int], want: Sequence[int]) -> int:
    """Where two lists of one length differ first."""
    return next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:s]) for s in range(len(counts))]


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def slots(answer: Callable[[NDArray], tuple[NDArray, NDArray]]) -> Verdict:
    """Exercise 1: ``answer(counts)`` is the start of every symbol (K,) and the owner of every slot (sum of counts,)."""

    def check() -> str:
        rng = np.random.default_rng()
        cases: list[Any] = [[4, 3, 1], [8], [5, 3], [3, 0, 5], [0, 8], [8, 0], [0, 0, 1, 0, 0], [1, 0] * 4, [1] * 9]
        cases += [[*rng.integers(0, 4, rng.integers(2, 20)).tolist(), 1] for _ in range(20)]
        for counts in [np.array(c, np.int64) for c in [*cases, [16000, 0, 383, 1]]]:
            total = int(counts.sum())
            call = f"slots({_show(counts)})"
            start, owner = _pair(answer(counts.copy()), call, "start and owner")
            start = _ints(start, len(counts), f"start of {call}")
            want = _starts(counts.tolist())
            if start != want:
                why = ""
                if start == np.cumsum(counts).tolist():
                    why = ": that is where the symbols end, which is where the next ones start"
                raise Wrong(f"start of {call} is {_show(start)}, and should be {_show(want)}{why}")
            owner = _ints(owner, total, f"owner of {call}")
            right = [s for s, c in enumerate(counts.tolist()) for _ in range(c)]
            if owner != right:
                i = _first(owner, right)
                why = ""
                if 0 <= owner[i] < len(counts) and counts[owner[i]] == 0:
                    why = f"; symbol {owner[i]} has count 0 and owns nothing"
                elif i in want:
                    why = "; a symbol's first slot is its own start"
                raise Wrong(f"{call}: the owner of slot {i} should be {right[i]}, and is {owner[i]}{why}")
        return "30 tables, with zeros at the beginning, in the middle and at the end, and with a single symbol"

    return judge(check)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def _push(x: int, s: int, counts: Sequence[int]) -> int:
    return x // counts[s] * sum(counts) + sum(counts[:s]) + x % counts[s]


def push_pop(push: Callable[[int, int, list[int]], int], pop: Callable[[int, list[int]], tuple[int, int]]) -> Verdict:
    """Exercise 2: ``push(x, symbol, counts)`` and ``pop(x, counts)``, exact inverses for integers of any size."""

    def check_push(x: int, s: int, counts: list[int]) -> int:
        call, want, f = f"push({_big(x)}, {s}, {_show(counts)})", _push(x, s, counts), counts[s]
        got = _int(push(x, s, list(counts)), call)
        if got == want:
            return want
        shown = f"{call} is {_big(got)}, and should be {_big(want)}"
        suspects = {
            "the symbol's start is missing": want - sum(counts[:s]),
            "the remainder x % f is missing": want - x % f,
            "that is where the symbol ends: the start is the sum of the counts before it": want + f,
            "that multiplies before it divides, so several x share a result and pop cannot tell them apart": x
            * sum(counts)
            // f
            + sum(counts[:s]),
            "the 8 of the first table is still in there; it should be this table's total": x // f * 8
            + sum(counts[:s])
            + x % f,
        }
        for name, value in suspects.items():
            if got == value:
                raise Wrong(f"{shown}: {name}")
        if x > 2**53 and abs(got - want) <= want // 2**40:
            raise Wrong(f"{shown}: nearly, but a float has been at work, and it knows only 16 digits; use // and %")
        raise Wrong(shown)

    def check_pop(x: int, s: int, counts: list[int]) -> None:
        n = _push(x, s, counts)
        call = f"pop({_big(n)}, {_show(counts)})"
        symbol, state = _pair(pop(n, list(counts)), call, "the symbol and the state")
        symbol, state = _int(symbol, f"the symbol of {call}"), _int(state, f"the state of {call}")
        if (symbol, state) == (s, x):
            return
        shown = f"{call} is ({_big(symbol)}, {_big(state)}), and should be ({s}, {_big(x)})"
        if (symbol, state) == (x, s):
            raise Wrong(f"{shown}: the symbol comes first, then the state")
        if symbol != s:
            why = ""
            if 0 <= symbol < len(counts) and counts[symbol] == 0:
                why = f": symbol {symbol} has count 0 and owns no slot"
            elif n % sum(counts) in _starts(counts):
                why = ": a symbol's first slot is its own start"
            raise Wrong(shown + why)
        if state == x + sum(counts[:s]) and x != state:
            raise Wrong(f"{shown}: the slot is counted from 0, not from the symbol's start")
        if x > 2**53 and abs(state - x) <= x // 2**40:
            raise Wrong(f"{shown}: nearly, but a float has been at work, and it knows only 16 digits; use // and %")
        raise Wrong(shown)

    def check() -> str:
        rng = np.random.default_rng()
        tables = [[4, 3, 1], [8], [3, 0, 5], [0, 8], [8, 0], [0, 0, 1, 0, 1, 0], [5, 3, 2], [1, 1], [16383, 1]]
        tables += [[*rng.integers(0, 9, rng.integers(1, 9)).tolist(), 1] for _ in range(8)]
        tables += [[16384], [1, 2**40, 3]]
        states = [0, 1, 2, 5, 7, 8, 9, 100, 65535, 65536]
        states += [2**53 + 1, 10**30 + 7, int.from_bytes(rng.bytes(400), "little") + 2**3200]
        for counts in tables:
            for s in (s for s, c in enumerate(counts) if c):
                for x in states:
                    check_push(x, s, counts)
                    check_pop(x, s, counts)
        counts, x = [1, 0, 5, 3], 1
        message = rng.choice([0, 2, 3], 300).tolist()
        for s in message:
            x = check_push(x, s, counts)
        for s in reversed(message):
            symbol, x = pop(x, list(counts))
            if symbol != s:
                raise Wrong("a message of 300 symbols did not come back in reverse order")
        return f"{len(tables)} tables, states from 0 to a thousand digits, and a message there and back"

    return judge(check)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def _best_counts(weights: NDArray, total: int) -> NDArray[np.int64]:
    """The optimum, slot by slot: a further slot always goes where it gains most, and gains only get smaller."""
    p = weights / weights.sum()
    c = (p > 0).astype(np.int64)
    heap = [(-float(q), i) for i, q in enumerate(p) if q > 0]  # p * log2(2 / 1)
    heapq.heapify(heap)
    for _ in range(total - int(c.sum())):
        _, i = heap[0]
        c[i] += 1
        heapq.heapreplace(heap, (-float(p[i] * np.log2((c[i] + 1) / c[i])), i))
    return c


def _cost(weights: NDArray, counts: NDArray) -> float:
    used = weights > 0
    return float(-(weights[used] / weights.sum() * np.log2(counts[used] / counts.sum())).sum())


def best_counts(answer: Callable[[NDArray, int], NDArray]) -> Verdict:
    """Exercise 3: ``answer(weights, total)`` are the counts with that sum under which such data cost the fewest bits."""

    def check() -> str:
        rng = np.random.default_rng()
        cases: list[tuple[Any, int]] = [
            ([0.5, 0.25, 0.25], 8), ([0.55, 0.24, 0.12, 0.06, 0.02, 0.01], 16), ([1.0], 16), ([0.0, 3.0, 0.0], 8),
            ([1.0, 1.0, 1.0], 16), ([1.0, 1.0, 1.0], 4), ([0.9, 0.1, 0.0], 2), ([1e-12, 1.0], 64), ([1.0, 0.0, 1e-9, 0.0], 1024),
            ([0.01] * 15 + [0.85], 16), ([0.1, 0.3, 0.6], 1000), ([900, 80, 0, 15, 4, 1], 256), ([1e-6] * 30 + [1, 2, 3], 64),
        ]  # fmt: skip
        cases += [(rng.dirichlet(np.full(k, 0.3)) * rng.uniform(0.1, 50), 64) for k in rng.integers(2, 40, 15)]
        cases += [(np.bincount(np.minimum(rng.geometric(0.4, 5000), 20), minlength=25), TOTAL)]
        for given, total in cases:
            weights = np.array(given)
            call = f"best_counts({_show(weights)}, {total})"
            with np.errstate(all="ignore"):
                c = np.array(_ints(answer(weights.copy(), total), weights.size, call), np.int64)
            weights = weights.astype(np.float64)
            shown = f"{call} is {_show(c)}"
            if (c < 0).any():
                raise Wrong(f"{shown}: a count cannot be negative")
            if ((c == 0) & (weights > 0)).any():
                i = int(np.flatnonzero((c == 0) & (weights > 0))[0])
                raise Wrong(
                    f"{shown}: symbol {i} has weight {weights[i]:.3g} and no slot, so when it comes it cannot be coded"
                )
            if (c[weights == 0] > 0).any():
                i = int(np.flatnonzero((weights == 0) & (c > 0))[0])
                raise Wrong(f"{shown}: symbol {i} has weight 0 and gets {c[i]} slots that others could use")
            if c.sum() != total:
                raise Wrong(f"{shown}: these sum to {c.sum()}, and should sum to {total}")
            best = _best_counts(weights, total)
            more = _cost(weights, c) - _cost(weights, best)
            if more > 1e-9:
                to, fro = int(np.argmax(best - c)), int(np.argmax(c - best))
                raise Wrong(
                    f"{shown}: valid, but {more:.2g} bits a symbol dearer than {_show(best)}; "
                    f"symbol {to} should have more slots and symbol {fro} fewer"
                )
        return (
            f"{len(cases)} sets of weights, with zeros, tiny ones, a single one, and exactly as many slots as symbols"
        )

    return judge(check)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def _stream(symbols: Sequence[int], counts: Sequence[int]) -> bytes:
    coder = Coder(np.asarray(counts))
    for s in reversed(symbols):
        coder.push(int(s))
    return coder.to_bytes()


def decode_stream(answer: Callable[[bytes, int, NDArray], Sequence[int]]) -> Verdict:
    """Exercise 4: ``answer(data, n, counts)`` are the n symbols of a stream with one state; ValueError if it is damaged."""

    def good(symbols: Sequence[int], counts: list[int], what: str) -> None:
        data = _stream(symbols, counts)
        call = f"decode_stream of {what} ({len(symbols)} symbols in {len(data)} bytes, counts {_show(counts, 5)})"
        try:
            out = answer(data, len(symbols), np.array(counts, np.int64))
        except ValueError as e:
            raise Wrong(f"{call} raised a ValueError, and the stream is intact: {e}") from None
        got, want = _ints(out, len(symbols), call), [int(s) for s in symbols]
        if got == want:
            return
        i = _first(got, want)
        if got == want[::-1]:
            raise Wrong(
                f"{call} is the message backwards: it was pushed from its end, so what you pop is in order already"
            )
        if 0 <= got[i] < len(counts) and counts[got[i]] == 0:
            raise Wrong(
                f"{call}: symbol number {i} should be {want[i]}, and is {got[i]}, which has count 0 and owns no slot"
            )
        why = "; up to there it needed no word" if i and 2 * i < len(want) else ""
        raise Wrong(f"{call}: symbol number {i} should be {want[i]}, and is {got[i]}{why}")

    def bad(data: bytes, n: int, counts: list[int], what: str) -> None:
        call = f"decode_stream of {what}"
        try:
            answer(data, n, np.array(counts, np.int64))
        except ValueError:
            return
        except Exception as e:
            raise Wrong(
                f"{call} raised {type(e).__name__}: {e}. Notice the damage yourself and raise a ValueError"
            ) from None
        raise Wrong(f"{call} returned symbols as if nothing were wrong: it should raise a ValueError")

    def check() -> str:
        rng = np.random.default_rng()
        plain, holes = [8000, 6000, 2000, 300, 84], [0, 10000, 0, 6383, 0, 1, 0]
        good([0, 1, 0, 2, 0, 1], plain, "a short message")
        good(rng.choice(5, 800, p=np.array(plain) / TOTAL), plain, "a message")
        good([], plain, "an empty message")
        good([2] * 50, [0, 0, TOTAL, 0], "one symbol that has the whole table")
        good([*rng.choice([1, 3, 5], 300), 5, 5, 1], holes, "a message whose table has zeros in it")
        good([0] * 200 + [4] * 200, plain, "the first symbol and then the last")
        good(rng.integers(0, 256, 600), [64] * 256, "256 equally likely symbols")
        good(rng.permutation([0, 1] * 60), [TOTAL - 1, 1], "a symbol with a single slot")
        for _ in range(10):
            counts = rng.multinomial(TOTAL, rng.dirichlet(np.full(12, 0.5))).tolist()
            good(rng.choice(np.flatnonzero(counts), 200), counts, "a random message")
        message = rng.choice(5, 400, p=np.array(plain) / TOTAL)
        data = _stream(message, plain)
        bad(data[:-2], 400, plain, "a stream whose last word is missing")
        bad(data[:3], 400, plain, "three bytes")
        bad(b"", 0, plain, "no bytes at all")
        bad(data[:-1], 400, plain, "a stream whose last byte is missing")
        bad(data + b"\1\0", 400, plain, "a stream with one word too many")
        bad(data + b"\1", 400, plain, "a stream with half a word too many")
        bad(data[:4] + bytes(2) + data[4:], 400, plain, "a stream with a word put in after the state")
        bad(data, 399, plain, "a stream of 400 symbols of which 399 are asked for")
        bad(data, 401, plain, "a stream of 400 symbols of which 401 are asked for")
        bad((C.low + 5).to_bytes(4, "little"), 0, plain, "an empty message whose state is not where the encoder began")
        bad(bytes(4), 3, [TOTAL], "a state of 0, which is outside the interval")
        other = [8001, 5999, *plain[2:]]
        bad(data, 400, other, "a stream whose table is off by one count")
        return "18 streams, with empty, one-sided and zero-count tables and messages, and 12 damaged ones"

    return judge(check)
