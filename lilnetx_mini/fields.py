"""Bytes as fields: the few number formats that files and streams are made of, with every read checked.

A varint holds seven bits a byte, lowest first, with the top bit set on all but the last byte. A signed value v is
stored as the varint of ``2*v`` for v >= 0 and ``-2*v - 1`` for v < 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from .errors import InputError, LnxError


class Writer:
    """Collects bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def uint(self, value: int) -> Writer:
        """Append one non-negative integer as a varint."""
        if value < 0:
            raise InputError(f"{value} is negative: an unsigned field cannot hold it")
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)
        return self

    def sint(self, value: int) -> Writer:
        """Append one signed integer as a varint."""
        return self.uint(2 * value if value >= 0 else -2 * value - 1)

    def uints(self, values: Iterable[int]) -> Writer:
        """Append a list: its length, then its items."""
        values = [int(v) for v in values]
        self.uint(len(values))
        for v in values:
            self.uint(v)
        return self

    def block(self, data: bytes) -> Writer:
        """Append a length and that many bytes."""
        self.uint(len(data))
        self.data += data
        return self

    def text(self, value: str) -> Writer:
        """Append a string as UTF-8, length first."""
        return self.block(value.encode())


class Reader:
    """Reads what a Writer wrote; anything that does not fit raises LnxError with the section's name."""

    def __init__(self, data: bytes, section: str) -> None:
        self.data, self.section, self.at = data, section, 0

    def fail(self, message: str) -> LnxError:
        """The error to raise for a problem at this place."""
        return LnxError(self.section, f"{message} (at byte {self.at} of {len(self.data)}; file damaged?)")

    def uint(self, limit: int, what: str = "value") -> int:
        """One varint of at most `limit`."""
        value = shift = 0
        start = self.at
        while True:
            if self.at >= len(self.data):
                raise self.fail(f"ends inside {what}")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift == 63:
                raise self.fail(f"{what} has more than nine bytes")
        if byte == 0 and self.at > start + 1:
            raise self.fail(f"{what} is padded")
        if value > limit:
            raise self.fail(f"{what} is {value}, more than the {limit} possible")
        return value

    def sint(self, limit: int, what: str = "value") -> int:
        """One signed varint of at most `limit` in magnitude."""
        value = self.uint(2 * limit, what)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def uints(self, limit: int, most: int, what: str = "list") -> list[int]:
        """A list of at most `most` varints of at most `limit` each."""
        return [self.uint(limit, what) for _ in range(self.uint(most, f"length of {what}"))]

    def block(self, what: str = "block") -> bytes:
        """A length and that many bytes."""
        n = self.uint(len(self.data) - self.at, f"length of {what}")
        if n > len(self.data) - self.at:
            raise self.fail(f"{what} of {n} bytes is longer than what is left")
        self.at += n
        return bytes(self.data[self.at - n : self.at])

    def take(self, n: int, what: str = "bytes") -> bytes:
        """The next n bytes."""
        if n > len(self.data) - self.at:
            raise self.fail(f"ends inside {what}")
        self.at += n
        return bytes(self.data[self.at - n : self.at])

    def text(self, what: str = "text") -> str:
        """A UTF-8 string, length first."""
        try:
            return self.block(what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def finish(self) -> None:
        """Raise unless every byte has been read."""
        if self.at != len(self.data):
            raise self.fail(f"{len(self.data) - self.at} bytes too many")


def deflate(data: bytes) -> bytes:
    """Raw deflate, at the highest level."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def inflate(data: bytes, limit: int, section: str) -> bytes:
    """The inverse of `deflate`; LnxError on damage or if more than `limit` bytes would come out."""
    unpacker = zlib.decompressobj(-15)
    try:
        out = unpacker.decompress(data, limit + 1)
    except zlib.error as e:
        raise LnxError(section, f"compressed data damaged ({e})") from None
    if len(out) > limit:
        raise LnxError(section, f"unpacks to more than the {limit} bytes possible")
    if not unpacker.eof or unpacker.unused_data:
        raise LnxError(section, "compressed data do not end where the section ends")
    return out
