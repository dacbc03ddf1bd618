"""Mutated files against the reader: only LnxError or a valid decode, no crash, nothing slow, nothing large.

    python tests/fuzz.py [--cases 200000] [--seed 0]

Works in a child process of bounded memory, so that a crash is seen and survived. Mutations: bit flips, splices, deleted
and repeated ranges, truncations, length and shape fields set to extremes, inside the network section too (which is
inflated, mutated and deflated again). Checksums are then repaired, so that the damage reaches the parsers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from lilnetx_mini import LnxError, lnx

GOLDEN = Path(__file__).parent / "golden"
SLOWEST, LARGEST_KB = 2.0, 500 * 1024
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 24, 1 << 20, (1 << 63) - 1)


def varint(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def seal(parts: dict[str, bytes]) -> bytes:
    """A file of the given sections with correct checksums."""
    present = [(i + 1, parts[n]) for i, n in enumerate(lnx.SECTIONS) if n in parts]
    head = lnx.MAGIC + bytes([lnx.VERSION, len(present)])
    for number, part in present:
        head += bytes([number]) + len(part).to_bytes(4, "little") + zlib.crc32(part).to_bytes(4, "little")
    return head + zlib.crc32(head).to_bytes(4, "little") + b"".join(p for _, p in present)


def mutate(part: bytes, rng: np.random.Generator) -> bytes:
    """One mutation of a section's bytes."""
    data, n = bytearray(part), max(len(part), 1)
    at, end = sorted(int(v) for v in rng.integers(0, n, 2))
    kind = rng.integers(0, 7)
    if kind == 0 and data:
        for place in rng.integers(0, n, rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        data[at:end] = b""
    elif kind == 2:
        data[at:at] = data[at:end][: int(rng.integers(1, 64))]
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at : at + 1] = varint(EXTREMES[rng.integers(0, len(EXTREMES))])
    elif kind == 5:
        data[at:end] = rng.integers(0, 256, int(rng.integers(0, 32)), dtype=np.uint8).tobytes()
    elif data:
        data[at] = int(rng.integers(0, 256))
    return bytes(data)


def mutated_file(seeds: list[dict[str, bytes]], rng: np.random.Generator) -> bytes:
    """A damaged file; most have correct checksums."""
    parts = dict(seeds[rng.integers(0, len(seeds))])
    for _ in range(int(rng.integers(1, 4))):
        name = list(parts)[rng.integers(0, len(parts))] if rng.random() < 0.6 else "network"
        choice = rng.random()
        if choice < 0.05:
            parts[name] = seeds[rng.integers(0, len(seeds))].get(name, b"")  # a section of another file
        elif choice < 0.08 and len(parts) > 1 and name != "network":
            del parts[name]
        else:
            parts[name] = mutate(parts.get(name, b""), rng)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    if "network" in parts:
        parts["network"] = packer.compress(parts["network"]) + packer.flush()
        if rng.random() < 0.1:
            parts["network"] = mutate(parts["network"], rng)
    data = seal(parts)
    return mutate(data, rng) if rng.random() < 0.05 else data


def seeds_from(files: list[bytes]) -> list[dict[str, bytes]]:
    """Sections of whole files, the network section inflated."""
    out = []
    for data in files:
        parts = {k: v for k, v in lnx.split(data).items() if k != "header"}
        out.append(parts | {"network": zlib.decompress(parts["network"], -15)})
    return out


def work(first: int, last: int, files: list[bytes], report) -> None:
    """Child process: cases first .. last - 1; reports (kind of outcome, case) for trouble and counts at the end."""
    seeds = seeds_from(files)
    for data in files:
        lnx.decode(data)  # compiles the kernels, which takes time and memory of its own
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + LARGEST_KB
    refused = valid = 0
    for case in range(first, last):
        data = mutated_file(seeds, np.random.default_rng([case, 1]))
        started = time.monotonic()
        try:
            model = lnx.decode(data)
            assert len(model.tensor_names()) == len(model.tensor_shapes())
            valid += 1
        except LnxError:
            refused += 1
        except BaseException as e:
            report.send(("escaped", case, f"{type(e).__name__}: {e}"))
        if time.monotonic() - started > SLOWEST:
            report.send(("slow", case, f"{time.monotonic() - started:.1f} s"))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > limit:
            report.send(("large", case, "memory"))
            break
        if case % 500 == 0:
            report.send(("alive", case, ""))
    report.send(("done", last, f"{refused} {valid}"))


def run(cases: int, seed: int, files: list[bytes], progress: bool = False) -> tuple[int, int, list[tuple]]:
    """(refused, valid, troubles) over so many cases; a child that dies is a trouble, and a new one goes on behind it."""
    context = multiprocessing.get_context("spawn")
    at, stop, refused, valid, troubles = seed * 10**9, seed * 10**9 + cases, 0, 0, []
    while at < stop:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(at, stop, files, theirs))
        child.start()
        theirs.close()
        try:
            while True:
                kind, case, text = ours.recv()
                at = case + 1
                if kind == "done":
                    refused, valid = (a + int(b) for a, b in zip((refused, valid), text.split(), strict=True))
                elif kind != "alive":
                    troubles.append((kind, case, text))
                elif progress:
                    print(f"\r{case - seed * 10**9:,} cases, {len(troubles)} troubles", end="", flush=True)
        except EOFError:
            child.join()
            if at < stop:
                troubles.append(("died", at, f"exit code {child.exitcode}, within 500 cases behind this one"))
                at += 500
    return refused, valid, troubles


def main() -> int:
    """Exit status 1 if anything but LnxError or a valid decode was seen."""
    from test_lnx import small

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=200_000)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    static = [lnx.encode(small(), coder="static"), lnx.encode(small(), coder="adaptive")]
    refused, valid, troubles = run(a.cases, a.seed, [(GOLDEN / "digits.lnx").read_bytes(), *static], progress=True)
    print(f"\n{a.cases:,} mutated files: {refused:,} refused, {valid:,} decoded, {len(troubles)} troubles")
    for t in troubles[:20]:
        print(*t)
    return bool(troubles)


if __name__ == "__main__":
    sys.exit(main())
