"""The file: one ``.lnx`` holds a whole network, and says where every byte of it goes.

Byte by byte (all numbers little-endian; varints and signed varints as in fields.py):

    0   4   magic "LNX" and 0x1A
    4   1   version, 1
    5   1   number of sections n
    6   9n  the directory, for each section: id (1), length (4), CRC-32 of its bytes (4); ids ascend
    ..  4   CRC-32 of everything before it
    ..      the sections, in the directory's order, with nothing between or after them

    id  section        holds
    1   network        raw deflate of: groups, layers, side parameters, raw tensors, graph (see `_write_network`)
    2   tables         for each statically coded group, a block: a table a layer, then a table a latent dimension
    3   significance   for each group, a block: which slices are not zero
    4   coefficients   for each group, a block: the values of those slices
    5   decoders       the integers of all decoders, adaptively coded
    6   side           norm layers, biases and the like, and ranges and bits of weights on grids: integers, adaptively coded around
                       each tensor's median
    7   raw            raw deflate of float32 tensors that were left as they are

A section that would be empty is left out. All checksums are verified before anything is parsed, every length is checked
against the bytes at hand before memory is taken, and nothing in a file is ever executed, imported or unpickled.
"""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import context, streams
from .errors import InputError, LnxError
from .fields import Reader, Writer, deflate, inflate
from .graph import Graph, infer_shapes, read_graph, write_graph
from .grid import LEVELS, Grid
from .latent import DECODER_KINDS, LARGEST, LARGEST_EXPONENT, Decoder, IntArray, free_entries
from .model import Group, Layer, Ledger, Model, Raw, Side

MAGIC = b"LNX\x1a"
VERSION = 1
# of side parameters: a folded norm layer's two, any other tensor, and of a layer that bears the same name the ranges and bits of its grids
ROLES = ("scale", "shift", "parameter", "range", "bits")
SECTIONS = ("network", "tables", "significance", "coefficients", "decoders", "side", "raw")
LARGEST_NETWORK = 1 << 22  # bytes of the network section, unpacked
FREE_WEIGHTS, WEIGHTS_PER_BYTE = 1 << 22, 1024  # how many latents a file of a given length may claim to hold


# -- writing ----------------------------------------------------------------------------------------------------------


def _layers_of(layers: list[Layer], group: int) -> list[Layer]:
    return [x for x in layers if x.group == group]


def _write_network(model: Model, modes: list[str]) -> bytes:
    """groups, layers, sides, raws, graph flag and graph, note."""
    out = Writer().uint(len(model.groups))
    for g, mode in zip(model.groups, modes, strict=True):
        kind = DECODER_KINDS.index(g.decoder.kind) * len(streams.MODES) + streams.MODES.index(mode)
        out.uint(kind).uints(g.decoder.kernel).sint(g.decoder.exponent)
    out.uint(len(model.layers))
    for layer in model.layers:
        out.uint(layer.group * 2 + layer.transposed).uint(layer.conv_groups).uint(layer.shape[0]).uint(layer.shape[1])
    sides = [*model.sides, *_grids(model.layers)]
    out.uint(len(sides))
    for s in sides:
        out.uint(ROLES.index(s.role)).sint(s.exponent).uints(s.ints.shape)
    out.uint(len(model.raws))
    for r in model.raws:
        out.uints(r.array.shape)
    out.uint(model.graph is not None)
    if model.graph is not None:
        write_graph(model.graph, out)
    names = [x.name for x in (*model.layers, *sides, *model.raws)]
    out.text("\n".join([model.note.replace("\n", " "), *names]))
    return deflate(bytes(out.data))


def _grids(layers: list[Layer]) -> list[Side]:
    """Of layers on grids, ranges and bits as they are written."""
    rows = [(x.name, x.grid) for x in layers if x.grid]
    return [Side(n, role, ints, e) for n, g in rows for role, ints, e in (("range", g.ints, g.exponent), ("bits", g.bits, 0))]


def _side_ints(sides: list[Side]) -> tuple[IntArray, IntArray]:
    """Each tensor as its median and the differences from it, with the kind of every number."""
    values, kinds = [], []
    for s in sides:
        flat = np.asarray(s.ints, np.int64).ravel()
        middle = int(np.median(flat)) if flat.size else 0
        values += [[middle], flat - middle]
        kinds += [[len(ROLES)], [ROLES.index(s.role)] * flat.size]
    return (
        np.concatenate([np.asarray(v, np.int64) for v in x]) if x else np.zeros(0, np.int64) for x in (values, kinds)
    )


def _check(model: Model) -> None:
    """InputError for a model that the format cannot hold."""
    names = model.tensor_names()
    if len(set(names)) != len(names) or any("\n" in n for n in names):
        raise InputError("layer and parameter names must be unique and on one line")
    if not all(x.size for x in (*(s.ints for s in model.sides), *(r.array for r in model.raws))):
        raise InputError("a parameter without values cannot be stored: leave it out")
    for i, g in enumerate(model.groups):
        slices = sum(x.slices for x in _layers_of(model.layers, i))
        if g.q.ndim != 2 or g.q.shape[0] != slices or slices == 0:
            raise InputError(f"group {i} has latents of shape {g.q.shape} for {slices} slices: an empty or wrong group")
        if not np.issubdtype(g.q.dtype, np.integer) or np.abs(g.q.astype(np.int64)).max() > LARGEST:
            raise InputError(
                f"group {i}: latents must be integers up to {LARGEST}; round them with latent.round_latents"
            )


def encode(model: Model, coder: str | None = None) -> bytes:
    """A model as the bytes of a file; `coder` is "static", "adaptive", or None for the smaller in each group."""
    _check(model)
    coded = [
        streams.encode(
            g.q, streams.shapes_of(_layers_of(model.layers, i)), streams.last_extent(g.decoder.kernel), coder
        )
        for i, g in enumerate(model.groups)
    ]
    parts = {"network": _write_network(model, [c.mode for c in coded])}
    for name in ("tables", "significance", "coefficients"):
        block = Writer()
        for c in coded:
            if name != "tables" or c.mode == "static":
                block.block(getattr(c, name))
        parts[name] = bytes(block.data)
    entries = [np.asarray(g.decoder.ints).ravel() for g in model.groups]
    parts["decoders"] = (
        context.encode_ints(np.concatenate(entries), np.zeros(sum(e.size for e in entries), np.int64))[0]
        if entries
        else b""
    )
    parts["side"] = context.encode_ints(*_side_ints([*model.sides, *_grids(model.layers)]))[0]
    parts["raw"] = deflate(b"".join(r.array.astype("<f4").tobytes() for r in model.raws)) if model.raws else b""
    present = [(i + 1, parts[name]) for i, name in enumerate(SECTIONS) if parts[name]]
    head = MAGIC + bytes([VERSION, len(present)])
    for number, data in present:
        head += bytes([number]) + len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little")
    data = head + zlib.crc32(head).to_bytes(4, "little") + b"".join(data for _, data in present)
    weights = sum(g.q.size for g in model.groups)
    if weights > FREE_WEIGHTS + WEIGHTS_PER_BYTE * len(data):
        raise InputError(
            f"{weights} weights in {len(data)} bytes: almost all are zero, and a reader would suspect an attack"
        )
    return data


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of either."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write(path: str | os.PathLike, model: Model) -> int:
    """Write a model atomically; returns the file's length in bytes."""
    data = encode(model)
    write_atomic(path, data)
    return len(data)


# -- reading ----------------------------------------------------------------------------------------------------------


def split(data: bytes) -> dict[str, bytes]:
    """A file's sections, "header" first, after verifying every checksum and length; LnxError otherwise."""
    if len(data) < 6 or data[:4] != MAGIC:
        raise LnxError("header", f"not an .lnx file: it begins with {bytes(data[:4])!r}, not {MAGIC!r}")
    if data[4] != VERSION:
        raise LnxError(
            "header",
            f"format version {data[4]}, but this program reads version {VERSION}: update lilnetx-mini, or file damaged",
        )
    end = 6 + 9 * data[5]
    if len(data) < end + 4 or zlib.crc32(data[:end]) != int.from_bytes(data[end : end + 4], "little"):
        raise LnxError("header", "the directory's checksum does not match (file damaged or truncated?)")
    out, at, before = {"header": data[: end + 4]}, end + 4, 0
    for row in range(6, end, 9):
        number, size = data[row], int.from_bytes(data[row + 1 : row + 5], "little")
        if not before < number <= len(SECTIONS):
            raise LnxError("header", f"section number {number} is unknown or out of order: written by a newer version?")
        name, before = SECTIONS[number - 1], number
        if size > len(data) - at:
            raise LnxError(name, f"{size} bytes announced, {len(data) - at} left (file truncated?)")
        out[name] = data[at : at + size]
        if zlib.crc32(out[name]) != int.from_bytes(data[row + 5 : row + 9], "little"):
            raise LnxError(name, "checksum does not match (file damaged?)")
        at += size
    if at != len(data):
        raise LnxError("header", f"{len(data) - at} bytes after the last section (file damaged?)")
    return out


@contextmanager
def _naming(section: str | None, path: str | os.PathLike | None = None) -> Iterator[None]:
    """Errors of a stream get the name of the section that it stands in, those of a file the file's name."""
    try:
        yield
    except LnxError as e:
        message = e.message if path is None or str(path) in e.message else f"{e.message} [{path}]"
        raise LnxError(e.section if section is None else section, message) from None


@dataclass(frozen=True)
class _Head:
    """The network section, parsed."""

    kinds: list[tuple[str, str, tuple[int, ...], int]]  # decoder kind, coder, kernel, exponent of every group
    layers: list[Layer]
    sides: list[tuple[str, str, int, tuple[int, ...]]]  # name, role, exponent, shape
    raws: list[tuple[str, tuple[int, ...]]]
    graph: Graph | None
    note: str


def _read_network(data: bytes, file_bytes: int) -> _Head:
    src = Reader(inflate(data, LARGEST_NETWORK, "network"), "network")
    room = FREE_WEIGHTS + WEIGHTS_PER_BYTE * file_bytes
    kinds = []
    for _ in range(src.uint(1 << 12, "number of groups")):
        kind = src.uint(len(DECODER_KINDS) * len(streams.MODES) - 1, "kind of decoder and coder")
        kernel = tuple(src.uints(1 << 10, 8, "kernel"))
        if not 1 <= math.prod(kernel) <= 1 << 10:
            raise src.fail(f"a kernel of shape {kernel}")
        mode = streams.MODES[kind % len(streams.MODES)]
        kinds.append(
            (
                DECODER_KINDS[kind // len(streams.MODES)],
                mode,
                kernel,
                src.sint(LARGEST_EXPONENT, "a decoder's exponent"),
            )
        )
    plain, used = [], [0] * len(kinds)
    for _ in range(src.uint(1 << 14, "number of layers")):
        group, transposed = divmod(src.uint(max(2 * len(kinds) - 1, 0), "a layer's group"), 2)
        conv_groups, rows, cols = (src.uint(1 << 20, "a layer's extent") for _ in range(3))
        if not kinds or min(rows, cols, conv_groups) < 1:
            raise src.fail("a layer without a group, or with an extent of zero")
        room -= rows * cols * math.prod(kinds[group][2])
        if room < 0:
            raise src.fail(f"more weights than a file of {file_bytes} bytes can hold")
        used[group] += 1
        plain.append(((rows, cols, *kinds[group][2]), group, bool(transposed), conv_groups))
    if not all(used):
        raise src.fail("a group without layers")
    if sum(free_entries(kind, math.prod(kernel)) for kind, _, kernel, _ in kinds) > 64 * file_bytes:
        raise src.fail(f"decoders too large for a file of {file_bytes} bytes")
    sides = []
    for _ in range(src.uint(1 << 16, "number of side parameters")):
        sides.append(
            (
                ROLES[src.uint(len(ROLES) - 1, "a role")],
                src.sint(LARGEST_EXPONENT, "an exponent"),
                _read_shape(src, 64 * file_bytes),
            )
        )
    raws = [_read_shape(src, 1032 * file_bytes) for _ in range(src.uint(1 << 16, "number of raw tensors"))]
    graph = read_graph(src) if src.uint(1, "graph flag") else None
    note, *names = src.text("names").split("\n")
    src.finish()
    if len(names) != len(plain) + len(sides) + len(raws):
        raise src.fail(
            f"{len(names)} names for {len(plain)} layers, {len(sides)} side parameters and {len(raws)} raw tensors"
        )
    a, b = len(plain), len(plain) + len(sides)
    return _Head(
        kinds,
        [Layer(n, *p) for n, p in zip(names, plain, strict=False)],
        [(n, *s) for n, s in zip(names[a:b], sides, strict=True)],
        list(zip(names[b:], raws, strict=True)),
        graph,
        note,
    )


def _read_shape(src: Reader, most: int) -> tuple[int, ...]:
    shape = tuple(src.uints(1 << 24, 8, "a shape"))
    if not 1 <= math.prod(shape) <= most:
        raise src.fail(f"a tensor of shape {shape} in a file of this length")
    return shape


def _read_sides(head: _Head, data: bytes, file_bytes: int) -> list[Side]:
    sizes = [math.prod(shape) for *_, shape in head.sides]
    if sum(sizes) > 64 * file_bytes:
        raise LnxError("side", f"{sum(sizes)} values announced in a file of {file_bytes} bytes")
    kinds = np.array([k for _, role, *_ in head.sides for k in (len(ROLES), ROLES.index(role))], np.int64)
    values, _ = context.decode_ints(data, np.repeat(kinds, [k for n in sizes for k in (1, n)]))
    out, at = [], 0
    for n, (name, role, exponent, shape) in zip(sizes, head.sides, strict=True):
        ints = values[at] + values[at + 1 : at + 1 + n]
        out.append(Side(name, role, ints.astype(np.int32).reshape(shape), exponent))
        at += 1 + n
    return out


def _with_grids(layers: list[Layer], sides: list[Side]) -> tuple[list[Layer], list[Side]]:
    """Layers with the grids that side parameters of their names hold, and the other side parameters."""
    grids = {(s.name, s.role): s for s in sides if s.role in ("range", "bits")}
    out, used = [], 0
    for layer in layers:
        ranges, bits = (grids.get((layer.name, role)) for role in ("range", "bits"))
        if ranges and bits:
            right = ranges.ints.shape == bits.ints.shape == layer.shape[:1] and ranges.ints.min() > 0
            if not right or not np.isin(bits.ints, LEVELS).all() or bits.exponent:
                raise LnxError("side", f"grids that do not fit {layer.name}")
            layer, used = replace(layer, grid=Grid(ranges.ints, ranges.exponent, bits.ints)), used + 2
        out.append(layer)
    others = [s for s in sides if s.role not in ("range", "bits")]
    if used != len(sides) - len(others):
        raise LnxError("side", "ranges or bits of no layer")
    return out, others


def _read_groups(head: _Head, parts: dict[str, bytes], account: bool) -> tuple[list[Group], list[NDArray[np.float64]]]:
    blocks = {name: Reader(parts.get(name, b""), name) for name in ("tables", "significance", "coefficients")}
    free = [free_entries(kind, math.prod(kernel)) for kind, _, kernel, _ in head.kinds]
    with _naming("decoders"):
        entries, _ = context.decode_ints(parts.get("decoders", b""), np.zeros(sum(free), np.int64))
    groups, costs, at = [], [], 0
    for i, (kind, mode, kernel, exponent) in enumerate(head.kinds):
        tables = blocks["tables"].block() if mode == "static" else b""
        coded = streams.Streams(mode, tables, blocks["significance"].block(), blocks["coefficients"].block())
        shapes = streams.shapes_of(_layers_of(head.layers, i))
        with _naming("coefficients"):
            q, bits = streams.decode(coded, shapes, math.prod(kernel), streams.last_extent(kernel), account)
        groups.append(Group(Decoder(kind, kernel, entries[at : at + free[i]].astype(np.int32), exponent), q))
        costs.append(bits)
        at += free[i]
    for reader in blocks.values():
        reader.finish()
    return groups, costs


def _read_raws(head: _Head, data: bytes) -> list[Raw]:
    sizes = [math.prod(shape) for _, shape in head.raws]
    if head.raws and not data:
        raise LnxError("raw", "missing")
    plain = inflate(data, 4 * sum(sizes), "raw") if head.raws else data
    if len(plain) != 4 * sum(sizes):
        raise LnxError("raw", f"{len(plain)} bytes for {sum(sizes)} float32 values")
    ends = np.cumsum([0, *sizes])
    flat = np.frombuffer(plain, "<f4").astype(np.float32)
    return [
        Raw(name, flat[a:b].reshape(shape)) for (name, shape), a, b in zip(head.raws, ends[:-1], ends[1:], strict=True)
    ]


def decode(data: bytes) -> Model:
    """The bytes of a file as a model; LnxError, with the section's name, for anything else."""
    return _decode(data, account=False)[0]


def _decode(data: bytes, account: bool) -> tuple[Model, _Head, list[NDArray[np.float64]], dict[str, bytes]]:
    parts = split(bytes(data))
    if "network" not in parts:
        raise LnxError("network", "missing")
    head = _read_network(parts["network"], len(data))
    groups, costs = _read_groups(head, parts, account)
    with _naming("side"):
        layers, sides = _with_grids(head.layers, _read_sides(head, parts.get("side", b""), len(data)))
    model = Model(groups, layers, sides, _read_raws(head, parts.get("raw", b"")), head.graph, head.note)
    if model.graph is not None:
        infer_shapes(model.graph, model.tensor_shapes())
    return model, head, costs, parts


def coders(data: bytes) -> list[str]:
    """How each group of a file is coded, "static" or "adaptive"."""
    return [mode for _, mode, _, _ in _read_network(split(data)["network"], len(data)).kinds]


def load_bytes(path: str | os.PathLike) -> bytes:
    """A file's bytes; LnxError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise LnxError("", f"there is no file {path}") from None
    except OSError as e:
        raise LnxError("", f"{path} cannot be read: {e.strerror}") from None


def read(path: str | os.PathLike) -> Model:
    """Read a file; LnxError if it is missing, damaged, foreign or newer than this version."""
    with _naming(None, path):
        return decode(load_bytes(path))


def ledger(path: str | os.PathLike) -> Ledger:
    """Attribute every byte of a file to a section, and the latents' bits to layers."""
    data = load_bytes(path)
    with _naming(None, path):
        model, head, costs, parts = _decode(data, account=True)
    at, rows = [0] * len(model.groups), []
    for layer, q in zip(model.layers, model.latents(), strict=True):
        bits = float(costs[layer.group][at[layer.group]])
        at[layer.group] += 1
        rows.append(
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "weights": math.prod(layer.shape),
                "bits": round(bits, 1),
                "bits_per_weight": round(bits / math.prod(layer.shape), 4),
                "weights_zero": float((q == 0).mean()),
                "slice_sparsity": float((~q.any(1)).mean()),
                "coder": head.kinds[layer.group][1],
            }
        )
    raws = [{"name": r.name, "shape": list(r.array.shape), "values": r.array.size} for r in model.raws]
    return Ledger(len(data), {name: len(part) for name, part in parts.items()}, rows, model.note, raws)
