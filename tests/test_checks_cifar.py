"""The checkers of notebook 09 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import math

import numpy as np
import torch
from verdicts import accepted, refused

from lilnetx_mini.checks import cifar
from lilnetx_mini.nn.data import shifted


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def gathered(x, most, rng, by=None, mode="constant", high=1):
    """Right as it is; with other draws or another padding it is wrong."""
    n, c, h, w = x.shape
    by = rng.integers(0, 2 * most + high, (2, n, 1)) if by is None else by
    rows, columns = by[0] + np.arange(h), by[1] + np.arange(w)
    wide = np.pad(x, ((0, 0), (0, 0), (most, most), (most, most)), mode=mode)
    return wide[np.arange(n)[:, None, None, None], np.arange(c)[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def windows(x, most, rng):
    n = len(x)
    wide = np.pad(x, ((0, 0), (0, 0), (most, most), (most, most)))
    view = np.lib.stride_tricks.sliding_window_view(wide, x.shape[2:], (2, 3))
    return view[np.arange(n), :, rng.integers(0, 2 * most + 1, n), rng.integers(0, 2 * most + 1, n)]


def one_by_one(x, most, rng):
    out = np.zeros_like(x)
    wide = np.pad(x, ((0, 0), (0, 0), (most, most), (most, most)))
    for k in range(len(x)):
        i, j = rng.integers(-most, most + 1, 2) + most
        out[k] = wide[k, :, i : i + x.shape[2], j : j + x.shape[3]]
    return out


def taken_along(x, most, rng):
    n, _, h, w = x.shape
    wide = np.pad(x, ((0, 0), (0, 0), (most, most), (most, most)))
    down, right = rng.integers(0, 2 * most + 1, (2, n, 1))
    wide = np.take_along_axis(wide, (down + np.arange(h))[:, None, :, None], 2)
    return np.take_along_axis(wide, (right + np.arange(w))[:, None, None, :], 3)


def packaged(x, most, rng):
    return shifted(torch.from_numpy(x), most, torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()


def rolled(x, most, rng):
    return np.stack([np.roll(i, tuple(rng.integers(-most, most + 1, 2)), (1, 2)) for i in x]) if len(x) else x


def per_channel(x, most, rng):
    n, c, h, w = x.shape
    return gathered(x.reshape(n * c, 1, h, w), most, rng).reshape(x.shape)


def same_for_all(x, most, rng):
    return gathered(x, most, rng, np.broadcast_to(rng.integers(0, 2 * most + 1, (2, 1, 1)), (2, len(x), 1)))


def diagonal(x, most, rng):
    return gathered(x, most, rng, np.broadcast_to(rng.integers(0, 2 * most + 1, (1, len(x), 1)), (2, len(x), 1)))


def of_its_own(x, most, rng):
    return gathered(x, most, np.random.default_rng())


def frozen(x, most, rng):
    return gathered(x, most, np.random.default_rng(0))


def triangular(x, most, rng):
    return gathered(x, most, rng, rng.integers(0, most + 1, (2, len(x), 1)) + rng.integers(0, most + 1, (2, len(x), 1)))


def normal(x, most, rng):
    return gathered(x, most, rng, np.clip(np.rint(rng.normal(most, most / 2, (2, len(x), 1))).astype(int), 0, 2 * most))


def in_order(x, most, rng):
    first = rng.integers(0, 2 * most + 1, (2, 1, 1))
    return gathered(x, most, rng, (first + np.array([1, 2])[:, None, None] * np.arange(len(x))[None, :, None]) % (2 * most + 1))


def in_place(x, most, rng):
    x[:] = gathered(x, most, rng)
    return x


def shuffled(x, most, rng):
    return gathered(x, most, rng)[rng.permutation(len(x))]


def transposed(x, most, rng):
    return gathered(x, most, rng).swapaxes(2, 3) if x.shape[2] == x.shape[3] else gathered(x, most, rng)


def too_far(x, most, rng):
    return gathered(x, 2 * most, rng)


CROP_WRONG = {
    "rolled": (rolled, "comes in on the other"),
    "border repeated": (lambda x, m, r: gathered(x, m, r, mode="edge"), "border is repeated"),
    "border mirrored": (lambda x, m, r: gathered(x, m, r, mode="reflect") if m < min(x.shape[2:]) else gathered(x, m, r), "mirrored"),
    "one offset for the batch": (same_for_all, "moved alike"),
    "the same in both directions": (diagonal, "diagonal"),
    "upper end left out": (lambda x, m, r: gathered(x, m, r, high=0) if m else x, "upper end"),
    "channels apart": (per_channel, "channels"),
    "another generator": (of_its_own, "rng alone"),
    "always the same": (frozen, "every epoch"),
    "sums of two draws": (triangular, "equally likely"),
    "normal offsets": (normal, "equally likely"),
    "offsets in a row": (in_order, "depend on each other"),
    "images shuffled": (shuffled, "another image"),
    "twice as far": (too_far, "allowed"),
    "in place": (in_place, "changed the images"),
    "padding stays": (lambda x, m, r: np.pad(x, ((0, 0), (0, 0), (m, m), (m, m))), "keep the shape"),
    "floats": (lambda x, m, r: gathered(x, m, r) / 255, "keep the type"),
    "rows and columns": (transposed, "rows and columns"),
    "noise": (lambda x, m, r: (gathered(x, m, r) // 2).astype(x.dtype), "whole pixels"),
    "nothing": (lambda x, m, r: x, "does not depend on rng"),
    "no return": (lambda x, m, r: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_crops_are_accepted = accepted(cifar.random_crop, [gathered, windows, one_by_one, taken_along, packaged], times=3)
test_wrong_crops_are_refused_with_a_reason = refused(cifar.random_crop, CROP_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def rates(psi, lr, weight_decay):
    return lr / psi**2, weight_decay * psi**2


def rates_by_list(psi, lr, weight_decay):
    p = np.abs(np.asarray(psi, float))
    return [lr / p / p, weight_decay * p * p]


def rates_by_loop(psi, lr, weight_decay):
    if np.ndim(psi) == 0:
        return lr / (psi * psi), weight_decay * psi * psi
    return tuple(np.array(v) for v in zip(*[(lr / p**2, weight_decay * p**2) for p in psi], strict=True))


def in_place_rates(psi, lr, weight_decay):
    if np.ndim(psi):
        psi *= psi
        return lr / psi, weight_decay * psi
    return rates(psi, lr, weight_decay)


RATES_WRONG = {
    "no psi": (lambda p, r, d: (r + 0 * p, d * p**2), "left out"),
    "one psi": (lambda p, r, d: (r / np.abs(p), d * p**2), "another psi"),
    "one psi with its sign": (lambda p, r, d: (r / p, d * p**2), "another psi"),
    "a sign for negative ones": (lambda p, r, d: (r / (p * np.abs(p)), d * p**2), "should be"),
    "multiplied twice": (lambda p, r, d: (r * p**2, d * p**2), "wrong way round"),
    "multiplied": (lambda p, r, d: (r * np.abs(p), d * p**2), "instead of divided"),
    "three psi": (lambda p, r, d: (r / np.abs(p) ** 3, d * p**2), "one psi too many"),
    "mean square for all": (lambda p, r, d: (r / np.mean(p**2) + 0 * p, d * p**2), "own"),
    "mean square, one number": (lambda p, r, d: (r / np.mean(p**2), d * p**2), "own"),
    "decay as it was": (lambda p, r, d: (r / p**2, d + 0 * p), "too fast"),
    "decay divided": (lambda p, r, d: (r / p**2, d / p**2), "wrong way round"),
    "decay times one psi": (lambda p, r, d: (r / p**2, d * np.abs(p)), "stay what it was"),
    "no decay": (lambda p, r, d: (r / p**2, 0 * p), "need weight decay"),
    "decay, one number": (lambda p, r, d: (r / p**2, d * np.mean(p**2)), "should be"),
    "decay first": (lambda p, r, d: (d * p**2, r / p**2), "should be"),
    "only the rate": (lambda p, r, d: r / p**2, "two things"),
    "in place": (in_place_rates, "changed psi"),
    "text": (lambda p, r, d: ("a", "b"), "numbers"),
    "no return": (lambda p, r, d: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_rates_are_accepted = accepted(cifar.latent_rates, [rates, rates_by_list, rates_by_loop])
test_wrong_rates_are_refused_with_a_reason = refused(cifar.latent_rates, RATES_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def saves(w, basis, factor=0.5, log=np.log2, turned=True, centred=False, inside=False):
    """Right as it is; every option makes a usual mistake."""
    squares = [np.var(x, 0) if centred else (x**2).mean(0) for x in (w, w @ (basis.T if turned else basis))]
    before, after = (log(s.mean()) if inside else log(s).mean() for s in squares)
    return factor * (before - after)


def saves_by_loop(w, basis):
    bits = 0.0
    for j in range(w.shape[1]):
        turned = sum(basis[j, i] * w[:, i] for i in range(w.shape[1]))
        bits += math.log2(math.sqrt((w[:, j] ** 2).sum()) / math.sqrt((turned**2).sum()))
    return bits / w.shape[1]


def saves_with(**options):
    return lambda w, basis: saves(w, basis, **options)


def in_place_turn(w, basis):
    got = saves(w, basis)
    w[:] = w @ basis.T
    return got


SAVES_WRONG = {
    "nats": (saves_with(log=np.log), "nats"),
    "no half": (saves_with(factor=1), "twice too much"),
    "decibels": (saves_with(factor=10, log=np.log10), "decibels"),
    "a whole kernel": (lambda w, b: w.shape[1] * saves(w, b), "whole kernel"),
    "sign": (saves_with(factor=-0.5), "sign"),
    "turned back": (saves_with(turned=False), "other way"),
    "the mean first": (saves_with(inside=True), "does not change the sum"),
    "around the mean": (saves_with(centred=True), "around the mean"),
    "nothing": (lambda w, b: 0.0, "should be"),
    "in place": (in_place_turn, "changed"),
    "each place": (lambda w, b: np.log2((w**2).mean(0)), "one number"),
    "no return": (lambda w, b: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_savings_are_accepted = accepted(cifar.rotation_saves, [saves, saves_by_loop], times=3)
test_wrong_savings_are_refused_with_a_reason = refused(cifar.rotation_saves, SAVES_WRONG)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def claim(compressed, plain, at_least, at_most, size="file_bytes", score="file_accuracy", floats="float_bytes", pair=True, points=100,
          ddof=1, root=True, of_mean=True, limits="both", strict=False, bits=1, swap=False, relative=False):  # fmt: skip
    """Right as it is; every option makes a usual mistake."""
    by_seed = {p["seed"]: p for p in plain}
    others = [by_seed[c["seed"]] for c in compressed] if pair else plain[: len(compressed)]
    full, kept = (np.array([r[k] for r in rows]) for rows, k in ((others, "test_accuracy"), (compressed, score)))
    before, after = (np.array([r[k] for r in rows], float) for rows, k in ((others, floats), (compressed, size)))
    drops, ratios, n = points * (full - kept) / (full if relative else 1), bits * before / after, len(compressed)
    error = (drops.std(ddof=ddof) / (math.sqrt(n) if root else 1)) if n > ddof else math.nan
    ratio = bits * before.mean() / after.mean() if of_mean else ratios.mean()
    enough = (lambda r: r > at_least) if strict else (lambda r: r >= at_least)
    good = {"both": lambda r, d: enough(r) & (d <= at_most), "size": lambda r, d: enough(r), "drop": lambda r, d: d <= at_most}[limits]
    each, mean = bool(np.all(good(ratios, drops))), bool(good(ratio, drops.mean()))
    if swap:
        each, mean = mean, each
    return {"ratio": ratio, "drop": drops.mean(), "error": error, "each": each, "mean": mean}


def claim_by_loop(compressed, plain, at_least, at_most):
    drops, sizes, floats, each = [], [], [], True
    for c in compressed:
        p = next(p for p in plain if p["seed"] == c["seed"])
        drops.append(100 * p["test_accuracy"] - 100 * c["file_accuracy"])
        sizes.append(c["file_bytes"])
        floats.append(p["float_bytes"])
        each = each and floats[-1] / sizes[-1] >= at_least and drops[-1] <= at_most
    n, mean = len(drops), sum(drops) / len(drops)
    error = math.sqrt(sum((d - mean) ** 2 for d in drops) / (n - 1) / n) if n > 1 else float("nan")
    ratio = sum(floats) / sum(sizes)
    return {"each": each, "mean": ratio >= at_least and mean <= at_most, "ratio": ratio, "drop": mean, "error": error}


def claim_with(**options):
    return lambda *a: claim(*a, **options)


def changed(key, how):
    """A right answer with one entry changed."""

    def answer(compressed, plain, at_least, at_most):
        got = claim(compressed, plain, at_least, at_most)
        return {**got, key: how(got, compressed, plain)}

    return answer


def unpaired(got, compressed, plain):
    of = {p["seed"]: p["test_accuracy"] for p in plain}
    full, kept = np.array([of[c["seed"]] for c in compressed]), np.array([c["file_accuracy"] for c in compressed])
    n = len(kept)
    return 100 * math.sqrt((full.var(ddof=1) + kept.var(ddof=1)) / n) if n > 1 else math.nan


CLAIM_WRONG = {
    "payload instead of file": (claim_with(size="latent_bytes"), "payload"),
    "bits instead of bytes": (claim_with(bits=8), "bits"),
    "bytes instead of bits": (claim_with(bits=1 / 8), "bits"),
    "against the zip": (claim_with(floats="zip_bytes"), "float32"),
    "wrong way round": (changed("ratio", lambda g, c, p: 1 / g["ratio"]), "how many times smaller"),
    "mean of ratios": (claim_with(of_mean=False), "mean of the seeds' ratios"),
    "best seed's size": (changed("ratio", lambda g, c, p: p[0]["float_bytes"] / min(r["file_bytes"] for r in c)), "best seed's"),
    "first seed's size": (changed("ratio", lambda g, c, p: p[0]["float_bytes"] / c[0]["file_bytes"]), "seed's"),
    "share instead of points": (claim_with(points=1), "share"),
    "per cent of the accuracy": (claim_with(relative=True), "points are a difference"),
    "sign": (changed("drop", lambda g, c, p: -g["drop"]), "sign"),
    "network in training": (claim_with(score="test_accuracy"), "in training"),
    "not paired by seed": (claim_with(pair=False), "different seeds"),
    "all plain networks": (
        changed("drop", lambda g, c, p: 100 * (np.mean([r["test_accuracy"] for r in p]) - np.mean([r["file_accuracy"] for r in c]))),
        "pair those",
    ),
    "deviation": (claim_with(root=False), "root of n"),
    "divided by n": (claim_with(ddof=0), "n - 1"),
    "error as a share": (changed("error", lambda g, c, p: g["error"] / 100), "points are asked for"),
    "two sides independent": (changed("error", unpaired), "differences of each seed"),
    "one seed, no error": (changed("error", lambda g, c, p: 0.0 if len(c) == 1 else g["error"]), "one seed says nothing"),
    "size only": (claim_with(limits="size"), "both"),
    "accuracy only": (claim_with(limits="drop"), "both"),
    "limits left out": (claim_with(strict=True), "include them"),
    "each for mean": (claim_with(swap=True), "one seed"),
    "mean as each": (changed("mean", lambda g, c, p: g["each"]), "one seed"),
    "each as mean": (changed("each", lambda g, c, p: g["mean"]), "one seed"),
    "always": (changed("mean", lambda g, c, p: True), "should be False"),
    "text": (changed("each", lambda g, c, p: "yes"), "True or False"),
    "a key is missing": (lambda *a: {k: v for k, v in claim(*a).items() if k != "error"}, "keys"),
    "a tuple": (lambda *a: tuple(claim(*a).values()), "dict"),
    "an array": (changed("drop", lambda g, c, p: np.zeros(3)), "one number"),
    "no return": (lambda *a: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_claims_are_accepted = accepted(cifar.claim, [claim, claim_by_loop], times=3)
test_wrong_claims_are_refused_with_a_reason = refused(cifar.claim, CLAIM_WRONG)
