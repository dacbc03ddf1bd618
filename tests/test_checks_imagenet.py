"""The checkers of notebook 10 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import math

import numpy as np
import torch
from verdicts import accepted, refused

from lilnetx_mini.checks import imagenet
from lilnetx_mini.image_files import _any_part
from lilnetx_mini.nn.data import pieces
from lilnetx_mini.nn.distributed import World


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def box_package(width, height, rng):
    return _any_part((width, height), rng)


def make(smallest=0.08, tries=10, root=False, linear=False, clip=False, corner=False, fallback="square", extent=False, swap=False,
         narrow=3 / 4, retry_area=True, integer=False):  # fmt: skip
    """A crop box in the usual way, with one thing changed."""

    def box(width, height, rng):
        share = rng.uniform(smallest, 1)
        for _ in range(tries):
            share = rng.uniform(smallest, 1) if retry_area else share
            share_ = rng.uniform(math.sqrt(smallest), 1) ** 2 if root else share
            aspect = rng.uniform(narrow, 1 / narrow) if linear else math.exp(rng.uniform(math.log(narrow), -math.log(narrow)))
            w, h = math.sqrt(width * height * share_ * aspect), math.sqrt(width * height * share_ / aspect)
            w, h = (h, w) if swap else (w, h)
            if clip:
                w, h = min(w, width), min(h, height)
            if integer:
                w, h = round(w), round(h)
            if 0 < w <= width and 0 < h <= height:
                left, top = (0.0, 0.0) if corner else (rng.uniform(0, width - w), rng.uniform(0, height - h))
                return (left, top, w, h) if extent else (left, top, left + w, top + h)
        if fallback == "whole":
            return 0, 0, width, height
        if fallback == "corner":
            return 0, 0, min(width, height), min(width, height)
        side = min(width, height)
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2

    return box


def box_array(width, height, rng):
    """Right: all ten draws at once, and an array in return."""
    u = rng.random((10, 2))
    share, aspect = 0.08 + 0.92 * u[:, 0], (3 / 4) ** (1 - 2 * u[:, 1])
    size = np.sqrt(width * height * share * np.array([aspect, 1 / aspect]))
    fits = np.flatnonzero((size[0] <= width) & (size[1] <= height))
    if not len(fits):
        size = np.array([[min(width, height)]] * 2)
        start = (np.array([width, height]) - size[:, 0]) / 2
    else:
        size = size[:, fits[:1]]
        start = rng.random(2) * (np.array([width, height]) - size[:, 0])
    return np.concatenate([start, start + size[:, 0]])


def stuck(width, height, rng):
    return make()(width, height, np.random.default_rng(0))


def unseeded(width, height, rng):
    return make()(width, height, np.random.default_rng())


def of_sides(width, height, rng):
    """A share of each side: aspects follow the photograph."""
    scale = math.sqrt(rng.uniform(0.08, 1))
    w, h = scale * width, scale * height
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


def transposed(width, height, rng):
    left, top, right, bottom = make()(width, height, rng)
    return top, left, bottom, right


def never_gives_up(width, height, rng):
    """Draws ten times, and then takes the last box although it does not fit."""
    box = make(fallback="corner")(width, height, rng)
    return box if box[2] - box[0] != min(width, height) else (0, 0, width, 1.2 * min(width, height))


BOX_WRONG = {
    "smallest side instead of area": (make(smallest=0.0), "8 %"),
    "root of the area": (make(root=True), "square root"),
    "aspect not in the logarithm": (make(linear=True), "logarithm"),
    "cut to the photograph": (make(clip=True), "4/3"),
    "always in the corner": (make(corner=True), "uniform"),
    "whole photograph as fall back": (make(fallback="whole"), "largest square"),
    "square in the corner as fall back": (make(fallback="corner"), "largest square"),
    "left, top, width, height": (make(extent=True), "right"),
    "x and y swapped": (transposed, "swapped"),
    "aspects too wide": (make(narrow=1 / 2), "3/4"),
    "one draw only": (make(tries=1), "median"),
    "the area is not drawn again": (make(retry_area=False), "both numbers"),
    "gives up early": (make(tries=6), "ten draws"),
    "as wide as the photograph in proportion": (of_sides, "3/4"),
    "sticks out": (never_gives_up, "sticks out"),
    "its own generator, always the same": (stuck, "make no generator"),
    "its own generator, without a seed": (unseeded, "cannot be repeated"),
    "three numbers": (lambda w, h, rng: (0, 0, 1), "four numbers"),
    "text": (lambda w, h, rng: "0 0 1 1", "left, top"),
    "nan": (lambda w, h, rng: (0, 0, 1, math.nan), "finite"),
    "no return": (lambda w, h, rng: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_boxes_are_accepted = accepted(imagenet.crop_box, [box_package, make(), box_array])
test_wrong_boxes_are_refused_with_a_reason = refused(imagenet.crop_box, BOX_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def steps_package(order, batch, rank, size, accumulate):
    parts = torch.as_tensor(order).split(batch)
    return [[rows.tolist() for _, rows in pieces(part, World(rank, size), accumulate)] for part in parts]


def steps_array_split(order, batch, rank, size, accumulate):
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    return [np.array_split(b, size * accumulate)[rank * accumulate : (rank + 1) * accumulate] for b in batches]


def steps_strided(order, batch, rank, size, accumulate):
    n = size * accumulate
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    return [[b[rank * accumulate + k :: n] for k in range(accumulate)] for b in batches]


def by_rank_first(order, batch, rank, size, accumulate):
    """Shares of the epoch first, batches then: other images in a step, other numbers of steps."""
    return steps_array_split(np.array_split(order, size)[rank], -(-batch // size), 0, 1, accumulate)


def equal_but_mixed(order, batch, rank, size, accumulate):
    mixed = np.concatenate([order[len(order) // 2 :], order[: len(order) // 2]])
    return steps_array_split(mixed, batch, rank, size, accumulate)


def ceil_sizes(order, batch, rank, size, accumulate):
    """Pieces of ceil(len / n): the last get what is left, or nothing."""
    out, n = [], size * accumulate
    for i in range(0, len(order), batch):
        part = order[i : i + batch]
        each = -(-len(part) // n)
        out.append([part[(rank * accumulate + k) * each :][:each] for k in range(accumulate)])
    return out


def no_empty_pieces(order, batch, rank, size, accumulate):
    return [[p for p in step if len(p)] for step in steps_array_split(order, batch, rank, size, accumulate)]


def no_empty_steps(order, batch, rank, size, accumulate):
    return [step for step in steps_array_split(order, batch, rank, size, accumulate) if any(len(p) for p in step)]


def drop_last(order, batch, rank, size, accumulate):
    return steps_array_split(order[: len(order) // batch * batch], batch, rank, size, accumulate)


def padded(order, batch, rank, size, accumulate):
    n = size * accumulate
    return steps_array_split(np.concatenate([order, order[: -len(order) % n]]), batch, rank, size, accumulate)


STEPS_WRONG = {
    "everyone does everything": (lambda o, b, r, s, a: steps_array_split(o, b, 0, 1, a), "its own part"),
    "shares of the epoch first": (by_rank_first, "step"),
    "another order": (equal_but_mixed, "batches first"),
    "unequal pieces": (ceil_sizes, "differ by one"),
    "empty pieces left out": (no_empty_pieces, "even if some are empty"),
    "empty steps left out": (no_empty_steps, "for ever"),
    "last batch left out": (drop_last, "last, smaller batch"),
    "filled up with images from the start": (padded, "one too many"),
    "batch a process": (lambda o, b, r, s, a: steps_array_split(o, b * s, r, s, a), "all processes together"),
    "places, not entries": (lambda o, b, r, s, a: steps_array_split(np.arange(len(o)), b, r, s, a), "not in the order"),
    "flat": (lambda o, b, r, s, a: [o[r::s]], "list of"),
    "no return": (lambda *_: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_steps_are_accepted = accepted(imagenet.my_steps, [steps_package, steps_array_split, steps_strided])
test_wrong_steps_are_refused_with_a_reason = refused(imagenet.my_steps, STEPS_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def ring(size, p, bandwidth):
    return 2 * (p - 1) / p * size / bandwidth


def ring_by_steps(size, p, bandwidth):
    return sum(size / p / bandwidth for _ in range(2 * (p - 1)))


RING_WRONG = {
    "one round": (lambda s, p, b: ring(s, p, b) / 2, "once more"),
    "everything in every step": (lambda s, p, b: 2 * (p - 1) * s / b, "p-th"),
    "p steps to a round": (lambda s, p, b: 2 * s / b, "p - 1"),
    "bits": (lambda s, p, b: 8 * ring(s, p, b), "bytes"),
    "bytes instead of seconds": (lambda s, p, b: 2 * (p - 1) / p * s, "bandwidth"),
    "grows with p": (lambda s, p, b: (p - 1) * s / b, "should be"),
    "a list": (lambda s, p, b: [ring(s, p, b)] * 2, "one number"),
    "no return": (lambda *_: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_ring_times_are_accepted = accepted(imagenet.ring_seconds, [ring, ring_by_steps])
test_wrong_ring_times_are_refused_with_a_reason = refused(imagenet.ring_seconds, RING_WRONG)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def most_closed(size, bandwidth, alone, share):
    return math.floor(1 + share / (1 - share) * alone * bandwidth / (2 * size))


def most_loop(size, bandwidth, alone, share):
    p = 1
    while ring(size, p + 1, bandwidth) <= share * (ring(size, p + 1, bandwidth) + alone / (p + 1)):
        p += 1
    return p


def of_computing(size, bandwidth, alone, share):
    return math.floor(1 + share * alone * bandwidth / (2 * size))


def computing_stays(size, bandwidth, alone, share):
    fits = [p for p in range(1, 5000) if ring(size, p, bandwidth) <= share * (ring(size, p, bandwidth) + alone)]
    return fits[-1]


def strict(size, bandwidth, alone, share):
    p = 1
    while ring(size, p + 1, bandwidth) < share * (ring(size, p + 1, bandwidth) + alone / (p + 1)):
        p += 1
    return p


MOST_WRONG = {
    "share of the computing": (of_computing, "whole step"),
    "computing is not shared": (computing_stays, "should be"),
    "below instead of at most": (strict, "includes"),
    "one too many": (lambda *a: most_closed(*a) + 1, "round down"),
    "without the one": (lambda *a: most_closed(*a) - 1, "should be"),
    "rounded up": (lambda s, b, t, q: math.ceil(1 + q / (1 - q) * t * b / (2 * s)), "round down"),
    "not whole": (lambda s, b, t, q: 1 + q / (1 - q) * t * b / (2 * s), "whole number"),
    "none": (lambda *a: 0, "always possible"),
    "one round": (lambda s, b, t, q: math.floor(1 + q / (1 - q) * t * b / s), "should be"),
    "no return": (lambda *_: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_numbers_of_processes_are_accepted = accepted(imagenet.most_processes, [most_closed, most_loop])
test_wrong_numbers_of_processes_are_refused_with_a_reason = refused(imagenet.most_processes, MOST_WRONG)
