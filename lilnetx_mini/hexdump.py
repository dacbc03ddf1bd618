"""A file's bytes with what they mean beside them: ``lilnetx info FILE --hex``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import lnx
from .fields import Reader


@dataclass(frozen=True)
class Span:
    """Bytes start .. stop of a file, the section they belong to, and what they say."""

    start: int
    stop: int
    section: str
    text: str


def _blocks(name: str, data: bytes, at: int, groups: list[int]) -> Iterator[Span]:
    """The blocks of a section that has one for each group: a length, then that many bytes."""
    src = Reader(data, name)
    for g in groups:
        before = src.at
        block = src.block()
        yield Span(at + before, at + src.at - len(block), name, f"{name} of group {g}: {len(block)} bytes follow")
        if block:
            yield Span(at + src.at - len(block), at + src.at, name, f"{name} of group {g}, coded")


def annotate(data: bytes) -> list[Span]:
    """Every byte of a file in consecutive spans; LnxError if the file is damaged.

    data     the whole file
    returns  spans that begin at 0, follow one another without gaps, and end at len(data)
    """
    model, parts = lnx.decode(data), lnx.split(data)
    spans = [
        Span(0, 4, "header", "magic: 'LNX' and 0x1a"),
        Span(4, 5, "header", f"format version {data[4]}"),
        Span(5, 6, "header", f"{data[5]} sections follow"),
    ]
    for row, name in zip(range(6, 6 + 9 * data[5], 9), list(parts)[1:], strict=True):
        spans += [
            Span(row, row + 1, "header", f"section {data[row]}: {name}"),
            Span(row + 1, row + 5, "header", f"{name}: length {len(parts[name])}"),
            Span(row + 5, row + 9, "header", f"{name}: CRC-32 of its bytes"),
        ]
    at = len(parts["header"])
    spans.append(Span(at - 4, at, "header", "CRC-32 of all bytes so far"))
    what = {
        "network": f"deflated: {len(model.groups)} groups, {len(model.layers)} layers, {len(model.sides)} side parameters, names, graph",
        "decoders": f"{sum(g.decoder.ints.size for g in model.groups)} decoder entries, adaptively coded",
        "side": f"{sum(s.ints.size for s in model.sides)} values of norm layers and biases, adaptively coded",
        "raw": f"deflated: {sum(r.array.size for r in model.raws)} float32 values",
    }
    for name in list(parts)[1:]:
        if name in what:
            spans.append(Span(at, at + len(parts[name]), name, what[name]))
        else:
            static = [i for i, mode in enumerate(lnx.coders(data)) if name != "tables" or mode == "static"]
            spans += _blocks(name, parts[name], at, static)
        at += len(parts[name])
    return spans


def lines(data: bytes, width: int = 16, most: int = 3) -> Iterator[str]:
    """The annotated dump as text: offset, bytes, meaning; a long span shows its first `most` lines and says how many are left."""
    for span in annotate(data):
        rows = range(span.start, span.stop, width)
        for n, row in enumerate(rows):
            if n == most and len(rows) > most + 1:
                yield f"{'':8}  {f'... {span.stop - row} more bytes':{3 * width}}"
                break
            text = span.text if n == 0 else ""
            yield f"{row:08x}  {data[row : min(row + width, span.stop)].hex(' '):{3 * width}}{text}".rstrip()
