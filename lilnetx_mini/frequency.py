"""Probabilities as integer tables: what an entropy coder really works with.

A table gives every symbol a count; the counts sum to ``2**14``, and a symbol's probability is its count over that sum.
Symbols stand for consecutive integers from `low` on; the last symbol may be an escape, for values outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .fields import Reader, Writer
from .latent import LARGEST, IntArray

TABLE_BITS = 14
TOTAL = 1 << TABLE_BITS
MOST_SYMBOLS = 256  # a symbol is one byte inside the coder


def quantise_pmf(weights: NDArray) -> NDArray[np.uint16]:
    """The integer counts, summing to ``2**14``, under which data distributed like `weights` cost the fewest bits.

    weights  (K,) non-negative, any scale; K at most 256
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
    c = np.where(used, np.maximum(np.floor(p * TOTAL), 1), 0)
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(used, p * np.log2((c + 1) / c), -np.inf)
            loss = np.where(c > 1, p * np.log2(c / (c - 1)), np.inf)
        missing = TOTAL - c.sum()
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


@dataclass(frozen=True)
class Table:
    """An integer table over consecutive values.

    low     the value of symbol 0
    counts  (K,) uint16, summing to ``2**14``
    escape  True if the last symbol stands for "a value outside the table"
    """

    low: int
    counts: NDArray[np.uint16]
    escape: bool = False

    @staticmethod
    def of(values: IntArray, escape: bool = False) -> Table:
        """The best table for an integer array: its histogram. With `escape`, other values can be coded as well."""
        values = np.asarray(values)
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
        values = np.asarray(values, np.int64).ravel()
        s = values - self.low
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

    def write(self, out: Writer) -> None:
        """Append the table: low, number of symbols and escape flag, counts."""
        out.sint(self.low).uint(2 * len(self.counts) + self.escape)
        for c in self.counts[:-1]:  # the last follows from the sum
            out.uint(int(c))

    @staticmethod
    def read(src: Reader) -> Table:
        """The inverse of `write`; LnxError unless the counts make a usable table."""
        low = src.sint(LARGEST + MOST_SYMBOLS, "a table's lowest value")
        size = src.uint(2 * MOST_SYMBOLS + 1, "a table's size")
        if size < 2:
            raise src.fail("a table without symbols")
        counts = [src.uint(TOTAL, "a table's count") for _ in range(size // 2 - 1)]
        last = TOTAL - sum(counts)
        if last < 0:
            raise src.fail(f"frequencies sum to {sum(counts)}, more than {TOTAL}")
        return Table(low, np.array([*counts, last], np.uint16), bool(size % 2))
