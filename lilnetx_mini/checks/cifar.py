"""Checkers for notebook 09, CIFAR-10: images moved in one step, rates of latents under SGD, bits that a rotation of kernels
saves, claims that recorded runs support."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..latent import DCT_BITS, dct_integers
from . import Verdict, Wrong, judge, number, row

# -- exercise 1 -------------------------------------------------------------------------------------------------------


def _moved(x: NDArray, down: int, right: int) -> NDArray:
    """Images (..., H, W), all moved by the same whole pixels; what comes in is zero."""
    h, w = x.shape[-2:]
    out = np.zeros_like(x)
    if abs(down) < h and abs(right) < w:
        to = [slice(max(m, 0), n + min(m, 0)) for m, n in ((down, h), (right, w))]
        of = [slice(max(-m, 0), n + min(-m, 0)) for m, n in ((down, h), (right, w))]
        out[..., to[0], to[1]] = x[..., of[0], of[1]]
    return out


def _result(answer: Callable, x: NDArray, most: int, seed: int, call: str) -> NDArray:
    """The answer's images, of the right shape and type."""
    given = x.copy()
    got = answer(given, most, np.random.default_rng(seed))
    if got is None:
        raise Wrong(f"{call} returned None: is there a return?")
    got = np.asarray(got)
    if not np.array_equal(given, x):
        raise Wrong(f"{call} changed the images that it was given: the same ones come again in the next epoch")
    if got.shape != x.shape:
        hint = ": was the padding cut off again?" if got.size > x.size else ""
        raise Wrong(f"{call} should keep the shape {x.shape}, and gave {got.shape}{hint}")
    if got.dtype != x.dtype:
        raise Wrong(f"{call} should keep the type {x.dtype}, and gave {got.dtype}: bytes stay bytes until the last moment")
    return got


def _why_not(x: NDArray, got: NDArray, most: int, all_images: NDArray) -> str:
    """What one image (C, H, W) has become, if it is the image moved in some wrong way."""
    span = range(-most, most + 1)
    h, w = x.shape[1:]
    kinds = {"edge": "the border is repeated", "reflect": "the image is mirrored at the border"}
    for down, right in itertools.product(span, span):
        if np.array_equal(got, np.roll(x, (down, right), (1, 2))):
            return "what leaves on one side comes in on the other; what comes in should be zero"
        for mode, name in kinds.items():
            if most < min(h, w):
                wide = np.pad(x, ((0, 0), (most, most), (most, most)), mode=mode)
                if np.array_equal(got, wide[:, most - down : most - down + h, most - right : most - right + w]):
                    return f"{name}; what comes in should be zero"
    if any(np.array_equal(got, _moved(other, d, r)) for other in all_images for d, r in itertools.product(span, span) if other.any()):
        return "that is another image of the batch: index n must stay with image n"
    for down, right in itertools.product(range(-2 * most - 1, 2 * most + 2), repeat=2):
        if np.array_equal(got, _moved(x, down, right)) and got.any():
            return f"it was moved by {down} down and {right} to the right, and at most {most} is allowed"
    if len(x) > 1 and all(any(np.array_equal(a, _moved(b[None], d, r)[0]) for d, r in itertools.product(span, span))
                          for a, b in zip(got, x, strict=True)):  # fmt: skip
        return "its channels were moved apart; all channels of an image move together"
    if h == w and any(np.array_equal(got.transpose(0, 2, 1), _moved(x, d, r)) for d, r in itertools.product(span, span)):
        return "rows and columns have changed places"
    return "it is not the image moved by whole pixels with zeros coming in"


def _offsets(x: NDArray, got: NDArray, most: int, call: str) -> NDArray:
    """(N, 2) by how much every image was moved down and to the right, or Wrong."""
    span, found = range(-most, most + 1), np.full((len(x), 2), 10**6)
    for down, right in itertools.product(span, span):
        found[(_moved(x, down, right) == got).all((1, 2, 3))] = down, right
    bad = np.flatnonzero(found[:, 0] == 10**6)
    if len(bad):
        n = int(bad[0])
        raise Wrong(f"{call}: image {n} came out wrong: {_why_not(x[n], got[n], most, x)}")
    return found


def random_crop(answer: Callable[[NDArray, int, np.random.Generator], NDArray]) -> Verdict:
    """Exercise 1: ``answer(x, most, rng)`` moves every image (N, C, H, W) by its own random offsets, zeros coming in."""

    def check() -> str:
        rng = np.random.default_rng()
        shapes = [((5, 3, 8, 8), 2), ((3, 3, 3, 3), 1), ((1, 1, 6, 4), 2), ((4, 2, 4, 7), 3), ((7, 1, 9, 5), 4), ((2, 3, 8, 8), 0),
                  ((6, 1, 1, 1), 1), ((3, 2, 2, 3), 5), ((0, 3, 8, 8), 4), ((8, 8, 8, 8), 2)]  # fmt: skip
        for number_of, (shape, most) in enumerate(shapes):
            kind = (np.uint8, np.float32)[number_of % 2]
            x = rng.integers(1, 256, shape).astype(kind)
            call = f"random_crop of {shape} {np.dtype(kind)}, most {most}"
            seed = int(rng.integers(2**31))
            got = _result(answer, x, most, seed, call)
            _offsets(x, got, most, call)
            if not np.array_equal(got, _result(answer, x, most, seed, call)):
                raise Wrong(f"{call} gives other images for an rng in the same state: draw from rng alone, or no run can be repeated")
        most, count = 3, 3000
        x = np.broadcast_to(rng.integers(1, 256, (1, 1, 8, 8)).astype(np.uint8), (count, 1, 8, 8)).copy()
        call = f"random_crop of {count} equal images, most {most}"
        got = _result(answer, x, most, 1, call)
        if np.array_equal(got, _result(answer, x, most, 2, call)):
            raise Wrong(f"{call} does not depend on rng: it would be the same in every epoch")
        _statistics(_offsets(x, got, most, call), most)
        return f"{len(shapes)} batches, among them oblong, tiny and empty ones, and the offsets of {count:,} images"

    return judge(check)


def _statistics(offsets: NDArray, most: int) -> None:
    """Wrong unless offsets (N, 2) are uniform, independent of each other, and of an image's own."""
    if (offsets == offsets[0]).all():
        raise Wrong("all images of a batch are moved alike: draw one pair of offsets for every image")
    if (offsets[:, 0] == offsets[:, 1]).all() or (offsets[:, 0] == -offsets[:, 1]).all():
        raise Wrong("every image moves along a diagonal: draw the two directions independently")
    n, values = len(offsets), 2 * most + 1
    for name, column in zip(("down", "to the right"), offsets.T, strict=True):
        counts = np.bincount(column + most, minlength=values)
        if not counts.all():
            missing = int(np.flatnonzero(counts == 0)[0]) - most
            hint = ": rng.integers leaves its upper end out" if abs(missing) == most and (counts == 0).sum() == 1 else ""
            raise Wrong(f"of {n:,} images none was moved by {missing} {name}; -{most} .. {most} are asked for, both ends included{hint}")
        expected = n / values
        spread = math.sqrt(expected * (1 - 1 / values))
        worst = int(np.abs(counts - expected).argmax())
        if abs(counts[worst] - expected) > 6 * spread:
            raise Wrong(f"of {n:,} images {counts[worst]:,} were moved by {worst - most} {name}, and about {expected:.0f} should be: "
                        "all whole numbers are to be equally likely")  # fmt: skip
    together = float(np.corrcoef(offsets.T)[0, 1])
    neighbours = float(np.corrcoef(offsets[:-1, 0], offsets[1:, 0])[0, 1])
    if abs(together) > 6 / math.sqrt(n) or abs(neighbours) > 6 / math.sqrt(n):
        which = "the two directions" if abs(together) > 6 / math.sqrt(n) else "one image and the next"
        raise Wrong(f"the offsets of {which} depend on each other: draw all of them independently")


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def _agrees(a: NDArray, b: NDArray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-9, atol=0.0))


def latent_rates(answer: Callable[[Any, float, float], tuple]) -> Verdict:
    """Exercise 2: ``answer(psi, lr, weight_decay)`` is the rate and the weight decay of latents z with w = z psi."""

    def check() -> str:
        rng = np.random.default_rng()
        psis: list[Any] = [0.3, 2.0**-5, np.array([0.5, 0.01, 2.0]), -0.2, np.array([-0.3, 0.07]), np.array([0.125]), 1.0, 40.0]
        psis += [rng.normal(0, 10.0 ** rng.uniform(-3, 1), 9) for _ in range(15)]
        for psi in psis:
            lr, decay = float(rng.uniform(0.01, 0.5)), float(rng.choice([0.0, 1e-4, 5e-4, 0.03]))
            decay = 5e-4 if psi is psis[0] or psi is psis[2] else decay
            p = np.asarray(psi, np.float64)
            call = f"latent_rates({row(p)}, {lr:.4g}, {decay:g})"
            given = psi.copy() if isinstance(psi, np.ndarray) else psi
            got = answer(given, lr, decay)
            if not np.array_equal(given, psi):
                raise Wrong(f"{call} changed psi: work on a copy")
            if got is None:
                raise Wrong(f"{call} returned None: is there a return?")
            if not isinstance(got, (tuple, list)) or len(got) != 2:
                raise Wrong(f"{call} should be two things, the rate and the weight decay, and is {type(got).__name__}")
            rate, shrink = (np.asarray(v) for v in got)
            if rate.dtype.kind not in "fiu" or shrink.dtype.kind not in "fiu":
                raise Wrong(f"{call}: numbers are needed, not {rate.dtype} and {shrink.dtype}")
            _check_rate(call, rate.astype(float), p, lr)
            _check_decay(call, shrink.astype(float), p, decay)
        return f"{len(psis)} decoders, scalar and diagonal, with negative entries and large ones"

    return judge(check)


def _check_rate(call: str, rate: NDArray, psi: NDArray, lr: float) -> None:
    want, size = lr / psi**2, np.abs(psi)
    if _agrees(rate, want):
        return
    suspects = {
        "that is the plain network's rate, and psi is left out": np.full(psi.shape, lr),
        "that turns the gradient into one of w and stops; the step of z must still become one of w, which is another psi": lr / size,
        "that has the sign of psi: a negative rate walks uphill": lr / psi,
        "that is the wrong way round: small psi means that z must move far": lr * psi**2,
        "psi was multiplied instead of divided": lr * size,
        "that is one psi too many": lr / size**3,
        "that shares one rate among all latents; each entry of a diagonal decoder has its own": np.full(
            psi.shape, lr / float((psi**2).mean())
        ),
    }  # fmt: skip
    named = next((n for n, v in suspects.items() if _agrees(rate, v)), "")
    if not named and rate.shape != psi.shape:
        one = rate.size == 1 and np.isclose(float(rate.reshape(())), lr / float((psi**2).mean()))
        named = "one rate for all: each entry of a diagonal decoder has its own" if one else f"a rate of shape {psi.shape} is needed"
    raise Wrong(f"{call}: the rate is {row(rate, 3)}, and should be {row(want, 3)}" + (f": {named}" if named else ""))


def _check_decay(call: str, got: NDArray, psi: NDArray, decay: float) -> None:
    want, size = decay * psi**2, np.abs(psi)
    if _agrees(got, want):
        return
    suspects = {
        "with the larger rate the plain network's decay would shrink z, and so w, 1 / psi**2 times too fast": np.full(psi.shape, decay),
        "that is the wrong way round; rate times decay must stay what it was": decay / psi**2,
        "rate times decay must stay what it was, and the rate was divided by psi**2": decay * size,
        "latents need weight decay too, or the weights have none": np.zeros(psi.shape),
        "that shares one decay among all latents; each entry of a diagonal decoder has its own": np.full(
            psi.shape, decay * float((psi**2).mean())
        ),
    }  # fmt: skip
    named = next((n for n, v in suspects.items() if _agrees(got, v)), "")
    if not named and got.shape != psi.shape:
        named = f"a weight decay of shape {psi.shape} is needed"
    raise Wrong(f"{call}: the weight decay is {row(got, 3)}, and should be {row(want, 3)}" + (f": {named}" if named else ""))


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def _kernels(rng: np.random.Generator) -> list[tuple[str, NDArray, NDArray]]:
    """Name, kernels (S, d) and an orthonormal basis (d, d), one coordinate a row."""
    cosine = dct_integers((3, 3)) / 2.0**DCT_BITS
    wide = dct_integers((5, 5)) / 2.0**DCT_BITS
    sizes = 10.0 ** rng.uniform(-1.5, 0, 9)
    out = [
        ("smooth kernels", (rng.normal(size=(400, 9)) * np.array([3, 2, 1, 2, 1, 0.5, 1, 0.5, 0.2])) @ cosine, cosine),
        ("smooth kernels of 5 x 5, not centred", (rng.normal(size=(300, 25)) / np.arange(1, 26) + 0.3) @ wide, wide),
        ("kernels whose positions differ in size", rng.normal(size=(500, 9)) * sizes, cosine),
        ("kernels left as they are", rng.normal(size=(50, 9)) * sizes, np.eye(9)),
    ]
    for d in (2, 4, 9):
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        out.append((f"kernels of {d} numbers", rng.normal(size=(200, d)) @ rng.normal(size=(d, d)), basis))
    w = rng.normal(size=(300, 9)) @ rng.normal(size=(9, 9))
    return [*out, ("kernels in the basis of their own covariance", w, np.linalg.eigh(w.T @ w)[1].T)]


def rotation_saves(answer: Callable[[NDArray, NDArray], float]) -> Verdict:
    """Exercise 3: ``answer(w, basis)`` is how many bits a weight it saves to code kernels w (S, d) as ``w @ basis.T``."""

    def check() -> str:
        cases = _kernels(np.random.default_rng())
        for name, w, basis in cases:
            call = f"rotation_saves of {len(w)} {name}"
            given = w.copy(), basis.copy()
            got = number(answer(*given), call)
            if not (np.array_equal(given[0], w) and np.array_equal(given[1], basis)):
                raise Wrong(f"{call} changed what it was given: work on a copy")
            want = _saving((w**2).mean(0), ((w @ basis.T) ** 2).mean(0))
            if math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9):
                continue
            raise Wrong(f"{call}: {got:.5g} bits a weight, and should be {want:.5g}{_suspect(got, want, w, basis)}")
        return f"{len(cases)} sets of kernels, smooth and not, in bases good and bad"

    return judge(check)


def _saving(before: NDArray, after: NDArray) -> float:
    """Bits a weight, from the (d,) variances of its coordinates before and after a rotation."""
    return float(np.log2(before).mean() - np.log2(after).mean()) / 2


def _suspect(got: float, want: float, w: NDArray, basis: NDArray) -> str:
    d, turned, back = w.shape[1], w @ basis.T, w @ basis
    suspects = {
        "those are nats, and bits are asked for": want * math.log(2),
        "that is twice too much: a standard deviation half as large saves one bit, and a variance is its square": 2 * want,
        "those are decibels; 6.02 of them are a bit": 20 * math.log10(2) * want,
        "that is for a whole kernel, and the bits of one weight are asked for": d * want,
        "the sign is the wrong way round: fewer bits after the rotation are a saving": -want,
        "that turns the other way: the coordinates of a kernel are its products with the rows of the basis":
            _saving((w**2).mean(0), (back**2).mean(0)),
        "a rotation does not change the sum of the variances; take each coordinate's logarithm first, then the mean":
            _saving((w**2).mean(), (turned**2).mean()),
        "that takes the variance around the mean; latents have no shift, so a mean costs bits as well: take the mean square":
            _saving(w.var(0), turned.var(0)),
    }  # fmt: skip
    named = next((text for text, value in suspects.items() if math.isclose(got, value, rel_tol=1e-5, abs_tol=1e-12)), "")
    return f": {named}" if named else ""


# -- exercise 4 -------------------------------------------------------------------------------------------------------

Rows = Sequence[dict]
KEYS = ("ratio", "drop", "error", "each", "mean")


def _pairs(compressed: Rows, plain: Rows) -> tuple[NDArray, ...]:
    """Float bytes, plain accuracy, file bytes and file accuracy by seed, for the seeds of the compressed rows."""
    of = {p["seed"]: p for p in plain}
    table = [(of[c["seed"]]["float_bytes"], of[c["seed"]]["test_accuracy"], c["file_bytes"], c["file_accuracy"]) for c in compressed]
    return tuple(np.array(column, float) for column in zip(*table, strict=True))


def _claim(compressed: Rows, plain: Rows, at_least: float, at_most: float) -> dict:
    floats, full, files, kept = _pairs(compressed, plain)
    drops, ratio = 100 * (full - kept), float(floats.mean() / files.mean())
    n = len(drops)
    return {
        "ratio": ratio,
        "drop": float(drops.mean()),
        "error": float(drops.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "each": bool(((floats / files >= at_least) & (drops <= at_most)).all()),
        "mean": bool(ratio >= at_least and drops.mean() <= at_most),
    }


def _number_suspects(compressed: Rows, plain: Rows) -> dict[str, dict[str, float]]:
    floats, full, files, kept = _pairs(compressed, plain)
    of = {p["seed"]: p for p in plain}
    drops, n, paired = 100 * (full - kept), len(compressed), [of[c["seed"]] for c in compressed]
    seen = 100 * (full - np.array([c["test_accuracy"] for c in compressed]))
    everyone, latents = np.array([p["test_accuracy"] for p in plain]), np.mean([c["latent_bytes"] for c in compressed])
    deviation = float(drops.std(ddof=1)) if n > 1 else math.nan
    in_order = 100 * (everyone[:n] - kept)
    unpaired = 100 * math.sqrt((full.var(ddof=1) + kept.var(ddof=1)) / n) if n > 1 else math.nan
    return {
        "ratio": {
            "those are the latents alone, the payload; who decodes needs the whole file": floats.mean() / latents,
            "one side is in bits and the other in bytes": 8 * floats.mean() / files.mean(),
            "one side is in bytes and the other in bits": floats.mean() / files.mean() / 8,
            "that compares with the zip; the plain network is its float32 bytes": np.mean([p["zip_bytes"] for p in paired]) / files.mean(),
            "that is the wrong way round: how many times smaller": files.mean() / floats.mean(),
            "that is the best seed's": float((floats / files).max()),
            "that is the first seed's": float(floats[0] / files[0]),
            "that is the mean of the seeds' ratios, which a single small file pulls up; the ratio of the mean sizes is asked for":
                float((floats / files).mean()),
        },
        "drop": {
            "that is a share, and points are asked for, hundredths": float(drops.mean()) / 100,
            "the sign is the wrong way round: a drop is positive where the file is worse": -float(drops.mean()),
            "that is the accuracy of the network in training; what the file does is asked for": float(seen.mean()),
            "that is a per cent of the plain network's accuracy; points are a difference": float(100 * ((full - kept) / full).mean()),
            "that is the best seed's": float(drops.min()),
            "that is the first seed's": float(drops[0]),
            "that compares with all plain networks; pair those of the same seed": 100 * float(everyone.mean() - kept.mean()),
            "rows of different seeds were compared; their order need not agree": float(in_order.mean()),
        },
        "error": {
            "that is a share, and points are asked for": deviation / math.sqrt(n) / 100,
            "that is the standard deviation of one seed; the mean of n is surer by the root of n": deviation,
            "divide the sum of squares by n - 1, not by n: the mean was estimated from the same seeds": float(drops.std() / math.sqrt(n)),
            "that divides by n; the error of a mean falls with the root of n": deviation / n,
            "that treats the two sides as independent; take the differences of each seed first": unpaired,
            "rows of different seeds were compared; their order need not agree":
                float(in_order.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        },
    }  # fmt: skip


def _draw(rng: np.random.Generator, n: int) -> tuple[list[dict], list[dict]]:
    """Rows as in a report, for n seeds; the plain ones in another order, and one seed more."""
    seeds = rng.permutation(12)[: n + 1]
    floats = int(rng.integers(200_000, 60_000_000))
    plain = [{"seed": int(s), "float_bytes": floats, "zip_bytes": int(0.92 * floats), "test_accuracy": float(rng.uniform(0.88, 0.96))}
             for s in seeds]  # fmt: skip
    compressed = []
    for p in plain[:n]:
        size, kept = int(floats / rng.uniform(15, 60)), p["test_accuracy"] - float(rng.uniform(-0.002, 0.04))
        compressed.append({"seed": p["seed"], "file_bytes": size, "latent_bytes": int(0.93 * size), "file_accuracy": kept,
                           "test_accuracy": kept + float(rng.uniform(0.001, 0.004))})  # fmt: skip
    return compressed, [plain[i] for i in np.roll(np.arange(n + 1), 1)]


def _made(sizes: Sequence[int], kept: Sequence[float], full: float = 0.90625, floats: int = 1_000_000) -> tuple[list[dict], list[dict]]:
    plain = [{"seed": s, "float_bytes": floats, "zip_bytes": 930_000, "test_accuracy": full} for s in range(len(sizes))]
    compressed = [{"seed": s, "file_bytes": b, "latent_bytes": b - 1300, "file_accuracy": a, "test_accuracy": a + 2**-9}
                  for s, (b, a) in enumerate(zip(sizes, kept, strict=True))]  # fmt: skip
    return compressed, plain


def claim(answer: Callable[[Rows, Rows, float, float], dict]) -> Verdict:
    """Exercise 4: ``answer(compressed, plain, at_least, at_most)`` says what the rows of a report support."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(*_draw(rng, n), 1.0, 50.0) for n in (3, 5, 2, 4)]  # numbers first: these claims hold
        cases += [
            (*_made([38_000, 38_000], [0.765625, 0.765625]), 25.0, 2.0),  # small, and bad
            (*_made([900_000, 900_000], [0.90625, 0.90625]), 25.0, 2.0),  # good, and large
            (*_made([40_000] * 3, [0.875] * 3), 25.0, 3.125),  # exactly at both limits
            (*_made([30_000, 44_000], [0.890625, 0.890625]), 25.0, 2.0),  # the mean holds, one file is too large
            (*_made([30_000, 30_000], [0.90625, 0.875]), 25.0, 2.0),  # the mean holds, one drop is too large
            (*_made([40_600, 40_600], [0.90625, 0.90625]), 25.0, 2.0),  # the payload alone would hold
            (*_made([35_000], [0.890625]), 25.0, 2.0),  # a single seed
            (*_made([40_000, 10_000], [0.921875, 0.9375]), 25.0, 0.0),  # better than the plain network
        ]
        cases += [(*_draw(rng, int(rng.integers(2, 9))), float(rng.uniform(20, 40)), float(rng.uniform(0.5, 3))) for _ in range(20)]
        for compressed, plain, at_least, at_most in cases:
            n = len(compressed)
            call = f"claim of {n} seed{'s' * (n > 1)}, at least {at_least:.4g} times, at most {at_most:.4g} points"
            got = answer([dict(r) for r in compressed], [dict(r) for r in plain], at_least, at_most)
            if got is None:
                raise Wrong(f"{call} returned None: is there a return?")
            if not isinstance(got, dict) or set(got) != set(KEYS):
                raise Wrong(f"{call}: a dict with the keys {', '.join(KEYS)} is needed")
            want, suspects = _claim(compressed, plain, at_least, at_most), _number_suspects(compressed, plain)
            for key in KEYS[:3]:
                _check_number(call, key, number(got[key], f'"{key}" of the {call}'), want[key], suspects[key])
            for key in KEYS[3:]:
                _check_held(call, key, got, want, compressed, plain, (at_least, at_most))
        return f"{len(cases)} reports, among them limits met exactly, a single seed, and seeds in another order"

    return judge(check)


def _check_number(call: str, key: str, got: float, want: float, suspects: dict[str, float]) -> None:
    if math.isnan(want):
        if not math.isnan(got):
            raise Wrong(f"{call}: the {key} is {got:.6g}, and should be nan: one seed says nothing about how much seeds differ")
        return
    if abs(got - want) <= 1e-9 * max(1.0, abs(want)):
        return
    for name, value in suspects.items():
        if abs(got - value) <= 1e-9 * max(1.0, abs(value)):
            raise Wrong(f"{call}: the {key} is {got:.6g}, and should be {want:.6g}: {name}")
    raise Wrong(f"{call}: the {key} is {got:.6g}, and should be {want:.6g}")


def _check_held(call: str, key: str, got: dict, want: dict, compressed: Rows, plain: Rows, limits: tuple[float, float]) -> None:
    value = np.asarray(got[key])
    if value.shape != () or value.dtype.kind != "b":
        raise Wrong(f'{call}: "{key}" should be True or False, and is {got[key]!r}')
    if bool(value) == want[key]:
        return
    floats, full, files, kept = _pairs(compressed, plain)
    ratios, drops = floats / files, 100 * (full - kept)
    if bool((ratios == limits[0]).all() and (drops == limits[1]).all()):
        why = 'both limits are met exactly, and "at least" and "at most" include them'
    elif want["each"] != want["mean"]:
        why = "the mean is within the limits, and one seed is not: \"each\" asks every seed, \"mean\" only the mean"
    elif (ratios >= limits[0]).all() != (drops <= limits[1]).all():
        why = "size and accuracy must both hold"
    else:
        why = f"ratio {want['ratio']:.4g}, drop {want['drop']:.4g} points, seeds' ratios {row(ratios, 4)}, seeds' drops {row(drops, 4)}"
    raise Wrong(f'{call}: "{key}" is {bool(value)}, and should be {want[key]}: {why}')
