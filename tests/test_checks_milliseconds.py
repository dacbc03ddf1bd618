"""The checkers of notebook 13 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from verdicts import accepted, refused

from lilnetx_mini import InputError
from lilnetx_mini.checks import milliseconds


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def inside(outs, ins, out, into):
    if not (outs[0] <= out <= outs[-1] and ins[0] <= into <= ins[-1]):
        raise ValueError(f"{out}, {into} outside")


def corners(outs, ins, ms, out, into):
    a, b = (min(np.searchsorted(side, at, "right") - 1, len(side) - 2) for side, at in ((outs, out), (ins, into)))
    s, t = (out - outs[a]) / (outs[a + 1] - outs[a]), (into - ins[b]) / (ins[b + 1] - ins[b])
    return s, t, ms[a, b], ms[a, b + 1], ms[a + 1, b], ms[a + 1, b + 1]


def mixed(weigh):
    """A reading whose weights of the four points around are those that `weigh` makes of s and t."""

    def read(outs, ins, ms, out, into):
        inside(outs, ins, out, into)
        s, t, *points = corners(outs, ins, ms, out, into)
        return float(np.dot(weigh(s, t), points))

    return read


bilinear = mixed(lambda s, t: [(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t])


def with_interp(outs, ins, ms, out, into):
    inside(outs, ins, out, into)
    return np.interp(into, ins, [np.interp(out, outs, column) for column in ms.T])


def package_error(outs, ins, ms, out, into):
    try:
        return bilinear(outs, ins, ms, out, into)
    except ValueError as e:
        raise InputError(str(e)) from None


def careless(outs, ins, ms, out, into):
    return np.interp(out, outs, [np.interp(into, ins, line) for line in ms])


def by_index(outs, ins, ms, out, into):
    if out > outs[-1] or into > ins[-1]:
        raise IndexError("list index out of range")
    return bilinear(outs, ins, ms, out, into)


def nearest(outs, ins, ms, out, into):
    inside(outs, ins, out, into)
    return ms[np.abs(outs - out).argmin(), np.abs(ins - into).argmin()]


test_read = accepted(milliseconds.read, [bilinear, with_interp, package_error], 3)
test_wrong_read = refused(
    milliseconds.read,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda *_: None, "returned None"),
        "below": (mixed(lambda s, t: [s < 1 and t < 1, s < 1 and t == 1, s == 1 and t < 1, s == 1 and t == 1]), "the point below"),
        "nearest": (nearest, "nearest point"),
        "outputs alone": (mixed(lambda s, t: [1 - s, 0, s, 0]), "for the outputs alone"),
        "inputs alone": (mixed(lambda s, t: [1 - t, t, 0, 0]), "for the inputs alone"),
        "mean": (mixed(lambda s, t: [0.25] * 4), "the mean of the four"),
        "weights swapped": (mixed(lambda s, t: [s * t, s * (1 - t), (1 - s) * t, (1 - s) * (1 - t)]), "changed places"),
        "two steps": (mixed(lambda s, t: [1 - s - t, t, s, 0]), "corner counts for nothing"),
        "swapped": (lambda o, i, ms, out, into: careless(o, i, ms, into, out), "outputs and inputs have changed places"),
        "clamped": (careless, "raise a ValueError"),
        "index": (by_index, "with a ValueError, not by"),
    },
)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def weighted(power, based=True):
    def fit(sums, measured):
        w = measured**power
        columns = np.stack([np.ones_like(sums), sums], 1)[:, 0 if based else 1 :]
        found = np.linalg.lstsq(columns * w[:, None], measured * w, rcond=None)[0]
        return (*(() if based else (0.0,)), *found)

    return fit


right = weighted(-1.0)


def polynomial(sums, measured):
    factor, base = np.polyfit(sums, measured, 1, w=1 / measured)
    return base, factor


def of_sums(sums, measured):
    factor, base = np.polyfit(sums, measured, 1, w=1 / sums)
    return base, factor


test_fit = accepted(milliseconds.fit, [right, polynomial, lambda s, m: np.array(right(s, m))], 3)
test_wrong_fit = refused(
    milliseconds.fit,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "one": (lambda s, m: right(s, m)[0], "two numbers"),
        "none": (lambda s, m: (None, None), "returned None"),
        "swapped": (lambda s, m: right(s, m)[::-1], "base comes first"),
        "absolute": (weighted(0.0), "divide by what was measured"),
        "no base": (weighted(-1.0, based=False), "the base is missing"),
        "of sums": (of_sums, "not of the sums"),
        "squares weighted": (weighted(-0.5), "not their squares"),
        "guess": (lambda s, m: (0.0, 1.0), "is possible"),
    },
)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def macs(length, width, size, heads):
    inner = size * heads
    return 3 * length * width * inner + 2 * length**2 * inner + length * inner * width


test_attention = accepted(
    milliseconds.attention_macs,
    [macs, lambda t, w, s, h: 2 * t * s * h * (2 * w + t), lambda t, w, s, h: np.int64(macs(t, w, s, h))],
    3,
)
test_wrong_attention = refused(
    milliseconds.attention_macs,
    {
        "not attempted": (not_attempted, "not attempted yet"),
        "none": (lambda *_: None, "returned None"),
        "no products": (lambda t, w, s, h: 4 * t * w * s * h, "are missing"),
        "one product": (lambda t, w, s, h: 4 * t * w * s * h + t * t * s * h, "there are two products"),
        "linear": (lambda t, w, s, h: 4 * t * w * s * h + 2 * t * s * h, "length * length"),
        "three layers": (lambda t, w, s, h: 3 * t * w * s * h + 2 * t * t * s * h, "a layer is missing"),
        "one position": (lambda t, w, s, h: 4 * w * s * h + 2 * t * t * s * h, "length times"),
        "all channels": (lambda t, w, s, h: 4 * t * w * w + 2 * t * t * s * h, "not width"),
        "last layer whole": (lambda t, w, s, h: t * w * (3 * s * h + w) + 2 * t * t * s * h, "the last layer reads"),
        "one head": (lambda t, w, s, h: macs(t, w, s, 1), "that is one head"),
        "products of one": (lambda t, w, s, h: 4 * t * w * s * h + 2 * t * t * s, "products of its own"),
        "twice": (lambda t, w, s, h: 2 * macs(t, w, s, h), "one, not two"),
    },
)


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_the_formula_is_what_an_encoder_counts(heads):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    from lilnetx_mini.nn import models
    from lilnetx_mini.nn.channels import Channels

    model = models.encoder(vocabulary=50, width=64, heads=4, inner=96, layers=1, length=10)
    channels = Channels(model, torch.randint(1, 50, (2, 10)))
    (of_heads,) = [n for n, g in enumerate(channels.groups) if g.units == 4]
    counts = torch.tensor(channels.units, dtype=torch.float64)
    fewer = counts.clone()
    fewer[of_heads] = heads
    assert float(channels.macs(counts) - channels.macs(fewer)) == macs(10, 64, 16, 4) - macs(10, 64, 16, heads)
