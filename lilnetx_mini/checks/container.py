"""Checkers for notebook 04: varints that can be trusted, powers of two, a directory of offsets, a write that survives a crash."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from . import Verdict, Wrong, judge

# -- exercise 1 -------------------------------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    out = []
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


class _Watched(bytes):
    """Bytes that know how many of them have been looked at, and end an endless loop."""

    looks = 0

    def _look(self, much: int = 1) -> None:
        self.looks += much
        if self.looks > 10_000:
            raise Wrong("your reader goes on for ever: it has looked at more than 10,000 bytes of a short field")

    def __getitem__(self, key: Any) -> Any:
        got = super().__getitem__(key)
        self._look(1 if isinstance(got, int) else 0)
        return got

    def __iter__(self) -> Iterator[int]:
        for byte in super().__iter__():
            self._look()
            yield byte


def _shown(data: bytes, most: int = 12) -> str:
    return (data[:most].hex(" ") + (f" ... ({len(data)} bytes)" if len(data) > most else "")) or "no bytes"


def _refuses(call: str, answer: Callable[[], Any], why: str) -> None:
    """Wrong unless the answer raises ValueError."""
    try:
        got = answer()
    except ValueError as e:
        if isinstance(e, UnicodeError):
            raise Wrong(f"{call} raised {type(e).__name__}, but nothing there is text") from None
        return
    except (Wrong, NotImplementedError):
        raise
    except Exception as e:
        raise Wrong(f"{call} raised {type(e).__name__}, and should raise ValueError: {why}") from None
    shown = repr(got)
    raise Wrong(
        f"{call} returned {shown if len(shown) < 80 else shown[:80] + '...'}, and should raise ValueError: {why}"
    )


def read_varint(answer: Callable[[bytes, int, int], tuple[int, int]]) -> Verdict:
    """Exercise 1: ``answer(data, at, limit)`` is (value, next place) of a shortest varint up to limit, or ValueError."""

    def check() -> str:
        rng = np.random.default_rng()
        tops = [0, 1, 127, 128, 300, 16383, 16384, 2**21 - 1, 2**21, 2**32, 2**63 - 1]
        cases = [(n, limit) for limit in tops for n in {0, min(1, limit), limit // 2, limit - 1, limit} if n >= 0]
        cases += [(n, 10**6) for n in rng.integers(0, 10**6, 40).tolist()]
        for n, limit in cases:
            before, after = rng.bytes(int(rng.integers(0, 4))), rng.bytes(int(rng.integers(0, 3)))
            data = before + _varint(n) + after
            call = f"read_varint({_shown(data)}, {len(before)}, {limit})"
            try:
                got = answer(_Watched(data), len(before), limit)
            except ValueError as e:
                raise Wrong(f"{call} raised ValueError ({e}), but {n} stands there and is within the limit") from None
            want = (n, len(before) + len(_varint(n)))
            if not isinstance(got, tuple) or len(got) != 2:
                raise Wrong(f"{call} returned {got!r}: a pair is wanted, the value and the place after it")
            if tuple(got) != want:
                raise Wrong(f"{call} is {tuple(got)}, and should be {want}")
        cut = _varint(2**30)
        bad = [(b"", 0, 9, "there is no byte"), (b"\5", 1, 9, "it begins behind the last byte")]
        bad += [
            (b"\1" * 3, 7, 9, "it begins far behind the last byte"),
            (b"\1\2\3", -1, 9, "no field begins before the file"),
        ]
        bad += [(cut[:k], 0, 2**40, "the data end inside the number") for k in range(1, len(cut))]
        bad += [(_varint(limit + 1), 0, limit, f"{limit + 1} is above the limit {limit}") for limit in tops]
        bad += [
            (_varint(limit + (1 << 7 * k)), 0, limit, "the number is above the limit")
            for limit in tops
            for k in range(10)
        ]
        bad += [(_varint(n)[:-1] + bytes([_varint(n)[-1] | 128]) + b"\x80" * k + b"\0", 0, 2**63, "it is longer than it need be")
                for n in (0, 1, 127, 128, 300) for k in (0, 1, 5)]  # fmt: skip
        for data, at, limit, why in bad:
            _refuses(
                f"read_varint({_shown(data)}, {at}, {limit})",
                lambda d=data, a=at, m=limit: answer(_Watched(d), a, m),
                why,
            )
        for filler in (b"\xff", b"\x80"):
            for limit in (1000, 2**63 - 1):
                data = _Watched(filler * 3000)
                _refuses(
                    f"read_varint({_shown(data)}, 0, {limit})", lambda d=data, m=limit: answer(d, 0, m), "it never ends"
                )
                if data.looks > 40:  # ten bytes hold every number up to 2**63, each may be looked at a few times
                    raise Wrong(
                        f"with a limit of {limit} your reader looks {data.looks} times into 3000 times {filler.hex()}: "
                        "stop as soon as no number up to the limit can be that long"
                    )
        return (
            f"{len(cases)} numbers read, {len(bad) + 4} damaged ones refused: cut off, above the limit, padded, endless"
        )

    return judge(check)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def quantise(answer: Callable[[NDArray, int], tuple[NDArray, int]]) -> Verdict:
    """Exercise 2: ``answer(x, bits)`` is (integers, smallest exponent) with every x within half a step."""

    def check() -> str:
        rng = np.random.default_rng()
        cases = [(np.array(v, np.float64), 8) for v in
                 ([127.0], [127.4], [127.49999], [127.50001], [127.6], [-127.4, 3], [-127.6, 3], [-128.0, 127.0], [1.0], [-1.0, 0.25],
                  [2.0**-30, -(2.0**-31)], [3e20, -1e19], [1e-20, 0], [0.31, -1.87, 0.052, 0.9], [64.0], [63.75], [63.7])]  # fmt: skip
        cases += [(np.array([0.7, -0.1]), bits) for bits in (2, 3, 4, 12, 16)]
        for _ in range(60):
            cases.append(
                (rng.normal(size=(3, rng.integers(1, 9))) * 10.0 ** rng.integers(-6, 7), int(rng.integers(2, 17)))
            )
        cases += [(np.zeros(5), 8), (np.zeros((0,)), 8), (np.zeros((2, 3)), 4)]
        for x, bits in cases:
            limit = 2 ** (bits - 1) - 1
            call = f"quantise({np.array2string(x.ravel()[:4], precision=9)}{' ...' if x.size > 4 else ''}, bits={bits})"
            got = answer(x.copy(), bits)
            if not isinstance(got, tuple) or len(got) != 2:
                raise Wrong(f"{call} returned {type(got).__name__}: a pair is wanted, integers and exponent")
            ints, e = np.asarray(got[0]), got[1]
            if ints.shape != x.shape:
                raise Wrong(f"{call}: integers of shape {ints.shape} for values of shape {x.shape}")
            if not np.issubdtype(ints.dtype, np.integer):
                raise Wrong(f"{call}: the integers are of type {ints.dtype}; convert them with .astype(int)")
            if not isinstance(e, (int, np.integer)):
                raise Wrong(f"{call}: the exponent is {e!r}, not an integer: the step must be a power of two")
            ints, e = ints.astype(np.int64), int(e)
            if not x.any():
                if ints.any() or e != 0:
                    raise Wrong(f"{call}: zeros, or no values, are zeros with exponent 0; you returned exponent {e}")
                continue
            if np.abs(ints).max() > limit:
                raise Wrong(
                    f"{call}: integer {ints.ravel()[np.abs(ints).argmax()]} does not fit; {bits} bits hold -{limit} .. {limit}"
                )
            error = np.abs(ints * 2.0**e - x).max() / 2.0**e
            largest = float(np.abs(x).max())
            if error > 0.5 + 1e-9:
                raise Wrong(
                    f"{call}: an error of {error:.4g} steps of 2**{e}; rounded to nearest, "
                    "and with a step that fits, it is at most half a step"
                )
            if round(largest / 2.0 ** (e - 1)) <= limit:
                raise Wrong(
                    f"{call}: exponent {e}, but {e - 1} still fits: the largest value is {largest / 2.0 ** (e - 1):.6g} such steps"
                )
        return f"{len(cases)} tensors: large, tiny, at the edge of fitting, of 2 to 16 bits, zeros and none"

    return judge(check)


# -- exercise 3 -------------------------------------------------------------------------------------------------------

Row = tuple[int, int, int, int]  # id, offset, length, CRC-32


def _u32(n: int) -> bytes:
    return n.to_bytes(4, "little")


def _box(rows: list[Row], body: bytes, magic: bytes = b"BOX1") -> bytes:
    head = magic + bytes([len(rows)])
    for number, offset, length, crc in rows:
        head += bytes([number]) + _u32(offset) + _u32(length) + _u32(crc)
    return head + _u32(zlib.crc32(head)) + body


def _good(rng: np.random.Generator, count: int) -> tuple[list[Row], bytes, dict[int, bytes]]:
    """Rows in one order, parts in another; the body; what a reader should return."""
    ids = rng.choice(256, count, replace=False).tolist()
    parts = {i: rng.bytes(int(rng.integers(1, 30))) for i in ids}
    rows, body, start = {}, b"", 4 + 1 + 13 * count + 4
    for i in rng.permutation(ids).tolist():
        rows[i] = (i, start + len(body), len(parts[i]), zlib.crc32(parts[i]))
        body += parts[i]
    return [rows[i] for i in ids], body, parts


def _lies(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Files that break one rule each, their checksums as right as they can be, with the rule."""
    rows, body, _ = _good(rng, 3)
    data = _box(rows, body)
    start = len(data) - len(body)
    first, last = (pick(range(3), key=lambda k: rows[k][1]) for pick in (min, max))

    def change(k: int, row: Row, extra: bytes = b"") -> bytes:
        """Row k replaced, its CRC-32 computed anew over the bytes that it names, wherever they are."""
        whole = _box(rows, body + extra)
        crc = zlib.crc32(whole[row[1] : row[1] + row[2]])
        return _box([*rows[:k], (*row[:3], crc), *rows[k + 1 :]], body + extra)

    for cut in (*range(0, start), len(data) - 1):
        yield f"the file ends after {cut} of its {len(data)} bytes", data[:cut]
    yield "the magic is not BOX1", _box(rows, body, b"BOX2")
    for at in (4, 5, 7, 12, 5 + 26, start - 1):
        yield "the directory's checksum does not match", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    for k, (_, offset, length, _) in enumerate(rows):
        for at in (offset, offset + length - 1):
            yield (
                f"the checksum of part {rows[k][0]} does not match",
                data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :],
            )
    for a, b in ((0, 1), (0, 2)):
        yield f"two parts have the id {rows[a][0]}", change(b, (rows[a][0], *rows[b][1:]))
    yield "a byte follows the last part", data + b"\0"
    yield (
        "a byte lies between two parts, in none",
        _box(
            [r if k == first else (r[0], r[1] + 1, *r[2:]) for k, r in enumerate(rows)],
            body[: rows[first][2]] + b"!" + body[rows[first][2] :],
        ),
    )
    yield (
        "a byte lies between the header and the first part",
        _box([(i, o + 1, n, c) for i, o, n, c in rows], b"!" + body),
    )
    i, offset, length, _ = rows[first]
    yield "two parts share a byte", change(first, (i, offset, length + 1, 0))
    yield "two parts are the same bytes", change(last, (rows[last][0], offset, length, 0))
    yield "a part lies inside another", change(first, (i, offset, len(body), 0))
    for where in (0, start - 4):
        yield "a part begins inside the header", change(last, (rows[last][0], where, rows[last][2], 0))
    yield "a part begins behind the file's end", change(last, (rows[last][0], len(data) + 5, rows[last][2], 0))
    yield "a part is one byte longer than the file", change(last, (*rows[last][:2], rows[last][2] + 1, 0))
    for length in (1 << 30, 2**32 - 1, 2**32 - offset):
        yield (
            f"a part of {length} bytes is announced in a file of {len(data)}",
            change(last, (*rows[last][:2], length, 0)),
        )
    empty = (next(n for n in range(256) if n not in {r[0] for r in rows}), start + 13, 0, 0)
    shifted = [(n, o + 13, size, c) for n, o, size, c in rows]
    yield "a part has length 0", _box([empty, *shifted], body)
    hole = [(n, o, size, c) for n, o, size, c in rows if n != rows[first][0]]
    yield "bytes after the header belong to no part", _box([(n, o - 13, size, c) for n, o, size, c in hole], body)
    yield "there are no parts, but bytes follow", _box([], b"left over")


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """A function that tells the largest amount of memory taken since."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


def read_box(answer: Callable[[bytes], dict[int, bytes]]) -> Verdict:
    """Exercise 3: ``answer(data)`` is {id: bytes} of a BOX1 file, or ValueError."""

    def check() -> str:
        rng = np.random.default_rng()
        counts = [0, 1, 2, 3, 6, 255, *rng.integers(1, 9, 20).tolist()]
        for count in counts:
            rows, body, want = _good(rng, count)
            data = _box(rows, body)
            about = f"a right file of {len(data)} bytes, {count} parts{'' if count < 2 else ', not in the order of their rows'}"
            try:
                got = answer(data)
            except ValueError as e:
                raise Wrong(f"{about}: you raised ValueError ({e})") from None
            if not isinstance(got, dict):
                raise Wrong(f"{about}: you returned {type(got).__name__}, not a dict of id to bytes")
            if {int(k) for k in got} != set(want) or len(got) != len(want):
                raise Wrong(f"{about}: its ids are {sorted(want)[:9]}, you returned {sorted(got)[:9]}")
            for k, v in want.items():
                if bytes(got[k]) != v:
                    raise Wrong(f"{about}: part {k} is {_shown(v)}, you returned {_shown(bytes(got[k]))}")
        refused = 0
        for _ in range(3):
            for why, data in _lies(rng):
                with _peak() as peak:
                    _refuses("read_box(a bad file)", lambda d=data: answer(d), why)
                    if peak() > 50_000_000:
                        raise Wrong(
                            f"a file of {len(data)} bytes made you take {peak():,} bytes of memory: "
                            f"compare before you allocate ({why})"
                        )
                refused += 1
        return f"{len(counts)} files read, {refused} refused: damaged, overlapping, with gaps, too long, with ids twice"

    return judge(check)


# -- exercise 4 -------------------------------------------------------------------------------------------------------


class _Log:
    """Stands in for os.fsync, os.replace and os.rename: notes what they find, and fails where it is told to."""

    def __init__(self, target: Path, old: bytes | None, new: bytes, fail: dict[str, BaseException]) -> None:
        self.target, self.old, self.new, self.fail = target, old, new, fail
        self.synced = self.renamed = False
        self.real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def content(self) -> bytes | None:
        return self.target.read_bytes() if self.target.exists() else None

    def fsync(self, handle: int) -> None:
        if hasattr(handle, "fileno"):
            handle = handle.fileno()
        if not self.synced and os.fstat(handle).st_size < len(self.new):
            raise Wrong(
                f"at os.fsync {os.fstat(handle).st_size} of {len(self.new)} bytes had left Python's own buffer: call f.flush() before"
            )
        self.synced = True
        if "fsync" in self.fail:
            raise self.fail["fsync"]
        self.real["fsync"](handle)

    def rename(self, source: Any, target: Any, **options: Any) -> None:
        source, target = Path(os.fsdecode(source)), Path(os.fsdecode(target))
        if target.absolute() != self.target.absolute():
            if source.absolute() == self.target.absolute():
                raise Wrong("you move the old file away first: until the new one is in place there is none at all")
            return self.real["replace"](source, target, **options)
        if source.parent.absolute() != self.target.parent.absolute():
            raise Wrong(
                f"the temporary file is in {source.parent}: a rename is atomic only within a file system, "
                "so put it beside the target"
            )
        if source.read_bytes() != self.new:
            raise Wrong(
                f"at the rename the temporary file holds {source.stat().st_size} of {len(self.new)} bytes: "
                "close or flush it before"
            )
        if self.content() != self.old:
            raise Wrong("at the rename the old file was already changed")
        if not self.synced:
            raise Wrong("renamed before os.fsync: after a power cut the new name may lead to an empty file")
        self.renamed = True
        if "rename" in self.fail:
            raise self.fail["rename"]
        return self.real["replace"](source, target, **options)


def _attempt(
    answer: Callable, path: Path, old: bytes | None, new: bytes, fail: dict[str, BaseException], when: str
) -> None:
    """One write, with everything around it checked."""
    if old is not None:
        path.write_bytes(old)
    before = sorted(p.name for p in path.parent.iterdir())
    log, raised = _Log(path, old, new, fail), None
    patches = {"fsync": log.fsync, "replace": log.rename, "rename": log.rename}
    with mock.patch.multiple(os, **patches):
        try:
            answer(path, new)
        except (Wrong, NotImplementedError):
            raise
        except BaseException as e:  # what was thrown in, among them KeyboardInterrupt, or an error of the answer's own
            raised = next((x for x in (e, e.__cause__, e.__context__) if x is not None and x in fail.values()), None)
            if raised is None:
                raise
    after = sorted(p.name for p in path.parent.iterdir())
    content, left = log.content(), [n for n in after if n not in before and n != path.name]
    if fail and content != old:
        state = "gone" if content is None else f"{len(content)} bytes of something else"
        raise Wrong(f"{when}: the old file should be untouched, and is {'the new one' if content == new else state}")
    if not fail and content != new:
        raise Wrong(f"{when}: the file does not hold the new data afterwards")
    if not fail and not log.renamed:
        raise Wrong("the file was written in place, with no os.replace: a crash in between leaves half of it")
    if left:
        raise Wrong(f"{when}: {left} is left in the folder; remove the temporary file when something fails"
                    + (", also for KeyboardInterrupt, which is no Exception" if isinstance(raised, KeyboardInterrupt) else ""))  # fmt: skip
    if fail and raised is None:
        if not (log.renamed or log.synced):
            raise Wrong("neither os.fsync nor os.replace was called: nothing protects the old file")
        raise Wrong(
            f"{when}: your function returned as if all were well; pass the error on, or the caller believes the file is saved"
        )
    if [n for n in before if n not in after]:
        raise Wrong(f"{when}: {[n for n in before if n not in after]} disappeared; only the target is yours to replace")


def write_atomic(answer: Callable[[Path, bytes], None]) -> Verdict:
    """Exercise 4: ``answer(path, data)`` leaves the old file or the new one, whatever happens, and nothing else."""

    def check() -> str:
        rng = np.random.default_rng()
        full = OSError(errno.ENOSPC, "No space left on device")
        situations = [("undisturbed", {}), ("interrupted at the rename by Ctrl-C", {"rename": KeyboardInterrupt()}),
                      ("the rename fails", {"rename": PermissionError(errno.EACCES, "Permission denied")}),
                      ("the disk is full at os.fsync", {"fsync": full})]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.lnx"
            (Path(folder) / "other.lnx").write_bytes(b"somebody else's")
            for when, fail in situations:
                for size in (int(rng.integers(1, 1000)), 300_000, 0):
                    _attempt(answer, path, rng.bytes(500), rng.bytes(size), fail, when)
                path.unlink()
                _attempt(answer, path, None, rng.bytes(100), fail, f"{when}, no old file")
                path.unlink(missing_ok=True)
            if (Path(folder) / "other.lnx").read_bytes() != b"somebody else's":
                raise Wrong("another file in the folder was changed")
        return "old or new, never half: undisturbed, interrupted, refused, and with a full disk"

    return judge(check)
