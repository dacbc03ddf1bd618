"""The checkers of notebook 04 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from verdicts import accepted, refused

from lilnetx_mini import LnxError, fields, latent, lnx
from lilnetx_mini.checks import container


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def varint(data, at, limit, *, ends=True, limited=True, padded=True, early=True, negative=True):
    """A right reader, of which every check can be left out."""
    value = shift = 0
    while True:
        if (ends and at >= len(data)) or (negative and at < 0):
            raise ValueError("ends")
        byte = data[at]
        at += 1
        if early and shift and limit >> shift == 0:
            raise ValueError("too long")
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    if padded and byte == 0 and shift > 7:
        raise ValueError("padded")
    if limited and value > limit:
        raise ValueError("too large")
    return value, at


def varint_by_canon(data, at, limit):
    """Read what could be it, write it again, compare."""
    if not 0 <= at < len(data):
        raise ValueError("outside")
    most, value, n = max(1, -(-limit.bit_length() // 7)), 0, 0
    field = data[at : at + most]
    for n in range(len(field)):
        value += (field[n] % 128) * 128**n
        if field[n] < 128:
            break
    else:
        raise ValueError("no end")
    again = fields.Writer().uint(value).data
    if value > limit or bytes(again) != bytes(field[: n + 1]):
        raise ValueError("not the shortest, or too large")
    return value, at + n + 1


def varint_by_try(data, at, limit):
    try:
        return varint(data, at, limit, ends=False)
    except IndexError:
        raise ValueError("cut off") from None


def varint_package(data, at, limit):
    src = fields.Reader(data, "x")
    src.at = at
    return src.uint(limit), src.at


def varint_swallows(data, at, limit):
    try:
        return varint(data, at, limit)
    except ValueError:
        return 0, at


def varint_loops(data, at, limit):
    value = shift = 0
    while True:
        byte = data[min(at, len(data) - 1)] if data else 0
        value, at, shift = value | (byte & 127) << min(shift, 70), at + 1, shift + 7
        if byte < 128:
            return value, at


def endless(data, at, limit):
    if not data:
        raise ValueError
    while True:
        data[0]


VARINT_WRONG = {
    "the end is not checked": (lambda d, a, m: varint(d, a, m, ends=False), "IndexError"),
    "the limit is not checked": (lambda d, a, m: varint(d, a, m, limited=False), "above the limit"),
    "padding is accepted": (lambda d, a, m: varint(d, a, m, padded=False), "longer than it need be"),
    "reads on": (lambda d, a, m: varint(d, a, m, early=False), "looks"),
    "a negative place": (lambda d, a, m: varint(d, a, m, negative=False), "before the file"),
    "limit excluded": (lambda d, a, m: varint(d, a, m - 1), "within the limit"),
    "only one byte": (lambda d, a, m: varint(d[: a + 1], a, m), "within the limit"),
    "highest first": (
        lambda d, a, m: (int.from_bytes(bytes(b & 127 for b in d[a : varint(d, a, m)[1]])), varint(d, a, m)[1]),
        "should be",
    ),
    "length instead of place": (lambda d, a, m: (varint(d, a, m)[0], varint(d, a, m)[1] - a), "should be"),
    "value only": (lambda d, a, m: varint(d, a, m)[0], "pair"),
    "another exception": (varint_package, "LnxError"),
    "zero for what is damaged": (varint_swallows, "should raise ValueError"),
    "goes on for ever": (varint_loops, "should raise ValueError"),
    "endless loop": (endless, "for ever"),
    "no return": (lambda d, a, m: None, "pair"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_varint_readers_are_accepted = accepted(container.read_varint, [varint, varint_by_canon, varint_by_try])
test_wrong_varint_readers_are_refused_with_a_reason = refused(container.read_varint, VARINT_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def quantise(x, bits, *, shift=0, limit=None, round=np.rint, fits=lambda v: math.floor(v + 0.5)):
    largest = float(np.abs(x).max(initial=0))
    limit = 2 ** (bits - 1) - 1 if limit is None else limit(bits)
    if largest == 0:
        return np.zeros(x.shape, int), 0
    e = -400
    while fits(largest / 2.0**e) > limit:
        e += 1
    e += shift
    return round(x / 2.0**e).astype(int), e


def quantise_by_frexp(x, bits):
    """math.frexp says between which powers of two the largest value lies: one of two exponents is right."""
    if not np.any(x):
        return np.zeros(np.shape(x), np.int32), np.int64(0)
    limit, (_, power) = 2 ** (bits - 1) - 1, math.frexp(np.abs(x).max())
    for e in range(power - bits - 1, power + 2):
        n = np.floor(np.ldexp(x, -e) + 0.5)
        if np.abs(n).max() <= limit and np.abs(np.rint(np.ldexp(x, -e))).max() <= limit:
            return n.astype(np.int32), e
    raise AssertionError


QUANTISE_WRONG = {
    "one too large": (lambda x, b: quantise(x, b, shift=1), "still fits"),
    "one too small": (lambda x, b: quantise(x, b, shift=-1), "does not fit"),
    "down instead of nearest": (lambda x, b: quantise(x, b, round=np.floor), ""),
    "towards zero": (lambda x, b: quantise(x, b, round=np.trunc), "half a step"),
    "two's complement range": (lambda x, b: quantise(x, b, limit=lambda b: 2 ** (b - 1)), "does not fit"),
    "sign bit forgotten": (lambda x, b: quantise(x, b, limit=lambda b: 2**b - 1), "does not fit"),
    "always 8 bits": (lambda x, b: quantise(x, 8), ""),
    "ceil of the logarithm": (lambda x, b: _by_log(x, b, math.ceil), ""),
    "floor of the logarithm": (lambda x, b: _by_log(x, b, math.floor), ""),
    "fits before rounding": (lambda x, b: quantise(x, b, fits=math.floor), "does not fit"),
    "clipped into the range": (lambda x, b: _clipped(x, b), "half a step"),
    "any step": (lambda x, b: (np.rint(x / (np.abs(x).max(initial=1e-9) / 127)).astype(int), 1.5), "not an integer"),
    "floats": (lambda x, b: (quantise(x, b)[0].astype(float), quantise(x, b)[1]), "type float64"),
    "flattened": (lambda x, b: (quantise(x, b)[0].ravel(), quantise(x, b)[1]), "shape"),
    "largest without the sign": (lambda x, b: _signed(x, b), ""),
    "zeros divide": (lambda x, b: quantise(x, b) if x.any() else (np.zeros(x.shape, int), -400), "exponent 0"),
    "no return": (lambda x, b: None, "pair"),
    "not attempted": (not_attempted, "not attempted"),
}


def _by_log(x, bits, rounding):
    if not x.any():
        return np.zeros(x.shape, int), 0
    e = rounding(math.log2(np.abs(x).max() / (2 ** (bits - 1) - 1)))
    return np.rint(x / 2.0**e).astype(int), e


def _clipped(x, bits):
    n, e = quantise(x, bits, shift=-1)
    limit = 2 ** (bits - 1) - 1
    return np.clip(n, -limit, limit), e


def _signed(x, bits):
    e = quantise(np.array([x.max(initial=0)]), bits)[1]
    return np.rint(x / 2.0**e).astype(int), e


test_right_quantisers_are_accepted = accepted(container.quantise, [quantise, quantise_by_frexp, latent.quantise])
test_wrong_quantisers_are_refused_with_a_reason = refused(container.quantise, QUANTISE_WRONG)


# -- exercise 3 -------------------------------------------------------------------------------------------------------


CHECKS = frozenset("short magic head crc ids gap overlap inside beyond empty trailing".split())


def box(data, without=()):
    """A right reader, check by check, so that single ones can be left out."""
    do = CHECKS - set(without)
    if "short" in do and (len(data) < 9 or len(data) < 9 + 13 * data[4]):
        raise ValueError("short")
    if "magic" in do and data[:4] != b"BOX1":
        raise ValueError("magic")
    end = 5 + 13 * data[4]
    if "head" in do and zlib.crc32(data[:end]) != struct.unpack_from("<I", data, end)[0]:
        raise ValueError("head")
    rows, out = [struct.unpack_from("<BIII", data, r) for r in range(5, end, 13)], {}
    owners = np.zeros(len(data) + 1, int)
    for number, offset, length, crc in rows:
        if "beyond" in do and offset + length > len(data):
            raise ValueError("beyond")
        if "empty" in do and length == 0:
            raise ValueError("empty")
        if "inside" in do and offset < end + 4:
            raise ValueError("inside")
        if "crc" in do and zlib.crc32(data[offset : offset + length]) != crc:
            raise ValueError("crc")
        if "ids" in do and number in out:
            raise ValueError("ids")
        owners[offset : offset + length] += 1
        out[number] = data[offset : offset + length]
    if "overlap" in do and owners[end + 4 :].max(initial=0) > 1:
        raise ValueError("overlap")
    last = max((o + n for _, o, n, _ in rows), default=end + 4)
    if "gap" in do and (owners[end + 4 : last] == 0).any():
        raise ValueError("gap")
    if "trailing" in do and last < len(data):
        raise ValueError("trailing")
    return out


def box_by_walking(data):
    data = memoryview(data)
    try:
        end = 5 + 13 * data[4]
        (crc,) = struct.unpack_from("<I", data, end)
    except (IndexError, struct.error) as e:
        raise ValueError("cut off") from e
    if bytes(data[:4]) != b"BOX1" or crc != zlib.crc32(data[:end]):
        raise ValueError("header")
    rows = sorted((struct.unpack_from("<BIII", data, r) for r in range(5, end, 13)), key=lambda r: r[1])
    starts = [r[1] for r in rows] + [len(data)]
    ends = [end + 4] + [r[1] + r[2] for r in rows]
    if starts != ends or any(r[2] < 1 for r in rows) or len({r[0] for r in rows}) < len(rows):
        raise ValueError("the parts do not cover the file")
    if any(zlib.crc32(data[o : o + n]) != c for _, o, n, c in rows):
        raise ValueError("damaged")
    return {np.uint8(k): bytearray(data[o : o + n]) for k, o, n, _ in rows}


def box_in_file_order(data):
    """Believes that parts lie in the order of their rows."""
    out, at = box(data), 9 + 13 * data[4]
    for k, part in out.items():
        out[k], at = data[at : at + len(part)], at + len(part)
    return out


def box_allocates(data):
    for r in range(5, 5 + 13 * data[4] if len(data) > 4 else 0, 13):
        if r + 13 <= len(data):
            np.zeros(min(struct.unpack_from("<BIII", data, r)[2], 1 << 28), np.uint8)
    return box(data)


def box_lnx_error(data):
    try:
        return box(data)
    except ValueError as e:
        raise LnxError("box", str(e)) from None


BOX_WRONG = {
    "short files": (lambda d: box(d, ["short"]), "ValueError"),
    "any magic": (lambda d: box(d, ["magic"]), "magic"),
    "directory not verified": (lambda d: box(d, ["head"]), "directory's checksum"),
    "parts not verified": (lambda d: box(d, ["crc"]), "checksum of part"),
    "ids twice": (lambda d: box(d, ["ids", "overlap", "gap"]), "have the id"),
    "ids twice, everything else checked": (lambda d: box(d, ["ids"]), "have the id"),
    "gaps": (lambda d: box(d, ["gap"]), "in none"),
    "overlaps": (lambda d: box(d, ["overlap"]), "byte"),
    "parts in the header": (lambda d: box(d, ["inside", "overlap", "gap"]), ""),
    "lengths beyond the end": (lambda d: box(d, ["beyond"]), "a part"),
    "empty parts": (lambda d: box(d, ["empty"]), "length 0"),
    "trailing bytes": (lambda d: box(d, ["trailing"]), "follow"),
    "nothing verified": (lambda d: box(d, CHECKS), ""),
    "in the order of the rows": (box_in_file_order, "you returned"),
    "memory first": (box_allocates, "memory"),
    "another exception": (box_lnx_error, "LnxError"),
    "a list": (lambda d: list(box(d).items()), "not a dict"),
    "only the ids": (lambda d: dict.fromkeys(box(d), b""), "you returned"),
    "refuses everything": (lambda d: int("x"), "a right file"),
    "refuses the empty box": (lambda d: box(d) or int("x"), "0 parts"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_box_readers_are_accepted = accepted(container.read_box, [box, box_by_walking])
test_wrong_box_readers_are_refused_with_a_reason = refused(container.read_box, BOX_WRONG)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


def atomic(path, data, *, folder=None, flush=True, sync=True, cleanup=BaseException, rename=os.replace, swallow=False):
    handle, temporary = tempfile.mkstemp(dir=folder or Path(path).parent)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            if flush:
                f.flush()
            if sync:
                os.fsync(f.fileno())
        getattr(os, rename.__name__)(temporary, path)
    except cleanup:
        os.unlink(temporary)
        if not swallow:
            raise


def atomic_with_pathlib(path, data):
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        with beside.open("wb", buffering=0) as f:
            while data:
                data = data[f.write(data) :]
            os.fsync(f)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def atomic_that_wraps_errors(path, data):
    try:
        atomic(path, data)
    except OSError as e:
        raise RuntimeError(f"{path} was not saved") from e


def atomic_with_rename(path, data):
    atomic(path, data, rename=os.rename)


def remove_first(path, data):
    Path(path).unlink(missing_ok=True)
    atomic(path, data)


def move_away_first(path, data):
    if path.exists():
        os.replace(path, path.with_suffix(".old"))
    atomic(path, data)


def in_place(path, data):
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def copied(path, data):
    beside = path.with_suffix(".new")
    with open(beside, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    shutil.copy(beside, path)
    beside.unlink()


def half_closed(path, data):
    f = open(path.with_suffix(".new"), "wb")
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
    f.write(b"!")
    f.flush()
    os.replace(f.name, path)
    f.close()


def tidy(path, data):
    atomic(path, data)
    for other in path.parent.iterdir():
        if other.name != path.name:
            other.unlink()


def swallowed(path, data):
    with contextlib.suppress(BaseException):
        atomic(path, data)


ATOMIC_WRONG = {
    "in place": (in_place, "in place"),
    "in place, by one call": (lambda p, d: p.write_bytes(d) and None, "in place"),
    "copied over": (copied, "in place"),
    "old one removed first": (remove_first, "already changed"),
    "old one moved away first": (move_away_first, "move the old file away"),
    "in another folder": (lambda p, d: atomic(p, d, folder=tempfile.gettempdir()), "beside the target"),
    "no fsync": (lambda p, d: atomic(p, d, sync=False), "os.fsync"),
    "no flush": (lambda p, d: atomic(p, d, flush=False), "flush"),
    "no cleaning up": (lambda p, d: atomic(p, d, cleanup=ZeroDivisionError), "left in the folder"),
    "cleans up after Exception only": (lambda p, d: atomic(p, d, cleanup=Exception), "no Exception"),
    "cleans up after OSError only": (lambda p, d: atomic(p, d, cleanup=OSError), "no Exception"),
    "errors swallowed": (lambda p, d: atomic(p, d, swallow=True), "pass the error on"),
    "errors suppressed": (swallowed, "pass the error on"),
    "other data": (lambda p, d: atomic(p, d + b"!"), "bytes"),
    "written after the sync": (half_closed, "at the rename"),
    "removes what is not its own": (tidy, "only the target"),
    "does nothing": (lambda p, d: None, "does not hold"),
    "not attempted": (not_attempted, "not attempted"),
}


@pytest.mark.parametrize(
    "right", [atomic, atomic_with_pathlib, atomic_that_wraps_errors, atomic_with_rename, lnx.write_atomic]
)
def test_right_writers_are_accepted(right):
    verdict = container.write_atomic(right)
    assert verdict, verdict


@pytest.mark.parametrize("name", ATOMIC_WRONG)
def test_wrong_writers_are_refused_with_a_reason(name):
    wrong, reason = ATOMIC_WRONG[name]
    replace, rename, fsync = os.replace, os.rename, os.fsync
    verdict = container.write_atomic(wrong)
    assert not verdict and reason in verdict.message, verdict
    assert (os.replace, os.rename, os.fsync) == (replace, rename, fsync)
