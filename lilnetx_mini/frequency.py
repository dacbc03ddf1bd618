"""Probabilities as integer tables: what an entropy coder really works with.

A table gives every symbol a count; the counts sum to ``2**14``, and a symbol's probability is its count over that sum.
Symbols stand for consecutive integers from `low` on; the last symbol may be an escape, for values outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .fields import Reader, Writer
from .latent import LARGEST, IntArray

TABLE_BITS = 14
TOTAL = 1 << TABLE_BITS
MOST_SYMBOLS = 256  # a symbol is one byte inside the coder
FORMS = ("exact", "coarse", "geometric")
CODE_BITS = 6
LEVELS = (0, *(math.isqrt(math.isqrt(1 << (n + 24))) for n in range(57)))  # 64 * 2**(n / 4), in integers alone


def quantise_pmf(weights: NDArray, total: int = TOTAL) -> NDArray[np.uint16]:
    """The integer counts, summing to ``2**14``, under which data distributed like `weights` cost the fewest bits.

    weights  (K,) non-negative, any scale; K at most 256
    total    what the counts sum to, at least the number of positive weights
    returns  (K,) counts, at least 1 where the weight is positive and 0 where it is zero

    The cost ``-sum p log2 c`` is convex in every count, so moving single counts from where they are missed least to
    where they help most ends at the optimum. Plain rounding would neither sum to ``2**14`` nor keep rare symbols alive.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not 1 <= weights.size <= MOST_SYMBOLS:
        raise InputError(f"a table needs 1 to {MOST_SYMBOLS} weights in one row, not an array of shape {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise InputError("weights must be finite and non-negative, and one of them positive")
    p = weights / weights.sum()
    used = p > 0
    if used.sum() > total:
        raise InputError(f"{used.sum()} symbols do not fit into counts that sum to {total}")
    c = np.where(used, np.maximum(np.floor(p * total), 1), 0)
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(used, p * np.log2((c + 1) / c), -np.inf)
            loss = np.where(c > 1, p * np.log2(c / (c - 1)), np.inf)
        missing = total - c.sum()
        best, worst = int(gain.argmax()), int(loss.argmin())
        if missing > 0:
            c[best] += 1
        elif missing < 0:
            c[worst] -= 1
        elif gain[best] > loss[worst] * (1 + 1e-12) and best != worst:
            c[best] += 1
            c[worst] -= 1
        else:
            return c.astype(np.uint16)


def _integers(values: IntArray) -> IntArray:
    values = np.asarray(values)
    if values.size and not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise InputError(f"values of type {values.dtype}: a table is for integers; round them first")
    return values


def coarse_levels(counts: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Every count on a scale of quarter octaves: six bits instead of one or two bytes. 0 stays 0."""
    steps = np.rint(4 * np.log2(np.maximum(counts, 1))).astype(np.int64) + 1
    return np.where(counts == 0, 0, steps)


def counts_of_levels(levels: NDArray) -> NDArray[np.uint16]:
    """The integer table that such levels stand for, the same on every machine: no float takes part."""
    weights = np.array(LEVELS, np.int64)[np.asarray(levels, np.int64)]
    counts = np.where(weights > 0, np.maximum(weights * TOTAL // int(weights.sum()), 1), 0)
    counts[counts.argmax()] += TOTAL - int(counts.sum())
    return counts.astype(np.uint16)


def geometric_levels(code: tuple[int, ...], low: int, width: int) -> list[int]:
    """Levels of the values low .. low + width - 1, falling evenly away from zero, and of the escape if there is a sixth number.

    code  levels of 0, 1 and -1, then by how many sixteenths of an octave each further value falls above and below zero
    """
    zero, up, down, fall_up, fall_down, *escape = code

    def level(k: int) -> int:
        if k == 0:
            return zero
        first, fall = (up, fall_up) if k > 0 else (down, fall_down)
        return max(1, first - (fall * (abs(k) - 1) >> 2))

    return [level(k) for k in range(low, low + width)] + escape


def _fit_geometric(table: Table) -> tuple[int, ...]:
    """The code of `geometric_levels` closest to an exact table: each side's weight and mean distance are kept."""
    values, p = table.low + np.arange(table.width), table.counts[: table.width].astype(np.float64)
    firsts, falls = [], []
    for side in (values > 0, values < 0):
        weight = float(p[side].sum())
        further = float((p[side] * (np.abs(values[side]) - 1)).sum()) / max(weight, 1.0)
        ratio = further / (1 + further)
        firsts.append(int(coarse_levels(np.array([weight * (1 - ratio)]))[0]))
        falls.append(min(63, round(-16 * math.log2(max(ratio, 1e-9)))))
    levels = [int(coarse_levels(p[values == 0].sum(keepdims=True))[0]), *firsts]
    escape = [int(coarse_levels(table.counts[-1:])[0])] if table.escape else []
    return (*(max(1, x) for x in levels), *falls, *escape)


@dataclass(frozen=True)
class Table:
    """An integer table over consecutive values.

    low     the value of symbol 0
    counts  (K,) uint16, summing to ``2**14``
    escape  True if the last symbol stands for "a value outside the table"
    form    how the table is written: "exact" counts; "coarse", a quarter-octave level for each; or "geometric", five or six
            numbers for two sides that fall evenly
    code    the six-bit numbers that a coarse or geometric table is rebuilt from, in integers alone
    """

    low: int
    counts: NDArray[np.uint16]
    escape: bool = False
    form: str = "exact"
    code: tuple[int, ...] = ()

    @staticmethod
    def rebuilt(low: int, size: int, escape: bool, form: str, code: tuple[int, ...]) -> Table:
        """A coarse or geometric table of `size` symbols, the escape among them, from its code."""
        levels = code if form == "coarse" else geometric_levels(code, low, size - escape)
        return Table(low, counts_of_levels(levels), escape, form, code)

    @staticmethod
    def of(values: IntArray, escape: bool = False) -> Table:
        """The best table for an integer array: its histogram. With `escape`, other values can be coded as well."""
        values = _integers(values)
        if values.size == 0:
            return Table(0, np.array([TOTAL], np.uint16), True)
        low, high = int(values.min()), int(values.max())
        room = MOST_SYMBOLS - 1
        if high - low + 1 > room:  # keep the window around the median, escape the rest
            low = int(np.clip(np.median(values) - room // 2, low, high - room + 1))
            high, escape = low + room - 1, True
        inside = values[(values >= low) & (values <= high)]
        weights = np.bincount((inside - low).ravel(), minlength=high - low + 1).astype(np.float64)
        if escape:
            weights = np.append(weights, max(values.size - inside.size, 0.5))
        return Table(low, quantise_pmf(weights), escape)

    @property
    def width(self) -> int:
        """How many values the table holds, the escape not counted."""
        return len(self.counts) - self.escape

    def symbols(self, values: IntArray) -> tuple[NDArray[np.uint8], IntArray]:
        """Values as symbols, and those values that need the escape, in order."""
        values = _integers(values).ravel()
        if values.size and self.counts.all() and self.low <= values.min() and values.max() < self.low + self.width:
            return (values - self.low).astype(np.uint8), values[:0]
        s = values.astype(np.int64) - self.low
        outside = (s < 0) | (s >= self.width)
        outside |= self.counts[np.where(outside, 0, s)] == 0
        if outside.any() and not self.escape:
            raise InputError(
                f"value {values[outside][0]} has no place in a table of {self.low} .. {self.low + self.width - 1} "
                "without an escape"
            )
        return np.where(outside, self.width, s).astype(np.uint8), values[outside]

    def bits(self, values: IntArray) -> float:
        """Ideal code length of the values under this table, escapes at their symbol's price alone."""
        s, _ = self.symbols(values)
        n = np.bincount(s, minlength=len(self.counts))
        return float((n[n > 0] * (TABLE_BITS - np.log2(self.counts[n > 0]))).sum())

    @staticmethod
    def cheapest(values: IntArray, escape: bool = False) -> Table:
        """The table with which the values and the table itself take the fewest bits together, of the three forms.

        Coarse counts cost about half a percent on the values and save about a byte a symbol; the geometric form is four or
        five bytes however many symbols there are. Delta-coded exact counts were tried and never came first.
        """
        exact = Table.of(values, escape)
        size = len(exact.counts)
        codes = {"coarse": tuple(int(x) for x in coarse_levels(exact.counts)), "geometric": _fit_geometric(exact)}
        others = [Table.rebuilt(exact.low, size, exact.escape, form, code) for form, code in codes.items()]
        return min(exact, *others, key=lambda t: t.bits(values) + 8 * len(t.to_bytes()))

    def to_bytes(self) -> bytes:
        """The table alone, as `write` appends it."""
        out = Writer()
        self.write(out)
        return bytes(out.data)

    def write(self, out: Writer) -> None:
        """Append the table: low; 6 * symbols + 2 * form + escape; then counts, all but the last, or the code in six bits each."""
        out.sint(self.low).uint(6 * len(self.counts) + 2 * FORMS.index(self.form) + self.escape)
        if self.form == "exact":
            for c in self.counts[:-1]:  # the last follows from the sum
                out.uint(int(c))
            return
        packed = sum(number << (CODE_BITS * n) for n, number in enumerate(self.code))
        out.data += packed.to_bytes(-(-CODE_BITS * len(self.code) // 8), "little")

    @staticmethod
    def read(src: Reader) -> Table:
        """The inverse of `write`; LnxError unless the counts make a usable table."""
        low = src.sint(LARGEST + MOST_SYMBOLS, "a table's lowest value")
        size, form = divmod(src.uint(6 * MOST_SYMBOLS + 5, "a table's size"), 6)
        form, escape = FORMS[form // 2], bool(form % 2)
        if size < 1:
            raise src.fail("a table without symbols")
        if form == "exact":
            counts = [src.uint(TOTAL, "a table's count") for _ in range(size - 1)]
            last = TOTAL - sum(counts)
            if last < 0:
                raise src.fail(f"frequencies sum to {sum(counts)}, more than {TOTAL}")
            return Table(low, np.array([*counts, last], np.uint16), escape)
        length = size if form == "coarse" else 5 + escape
        packed = int.from_bytes(src.take(-(-CODE_BITS * length // 8), "levels"), "little")
        code = tuple(packed >> (CODE_BITS * n) & (2**CODE_BITS - 1) for n in range(length))
        levels = code if form == "coarse" else (*code[:3], *code[5:])
        lowest = 0 if form == "coarse" else 1
        if max(levels) >= len(LEVELS) or min(levels) < lowest or not any(levels) or packed >> (CODE_BITS * length):
            raise src.fail("a table's levels are out of range")
        return Table.rebuilt(low, size, escape, form, code)
