"""How fast and how tight is the static coder? rANS of this package against constriction, with the same table.

    python benchmarks/coder.py [--symbols 1000000] [--runs 15] [--json]

Integers from discretised Laplace distributions with entropies of about 0.2, 1.0 and 2.5 bits. One thread, all coders in one
process, runs interleaved, medians. Tables are prepared outside the timing for everyone; every coder's output is decoded
and compared. Overhead is over the empirical entropy, tables not counted, flush bytes included.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import time
from collections.abc import Callable

import constriction
import numpy as np

from lilnetx_mini import context, rans
from lilnetx_mini.frequency import TOTAL, Table
from lilnetx_mini.provenance import circumstances
from lilnetx_mini.rate import entropy

ENTROPIES = (0.2, 1.0, 2.5)


def sample(bits: float, n: int, seed: int = 0) -> np.ndarray:
    """n integers of a discretised Laplace distribution whose entropy is close to `bits`."""
    low, high = 0.01, 20.0
    for _ in range(60):
        scale = (low * high) ** 0.5
        x = np.rint(np.random.default_rng(seed).laplace(0, scale, n)).astype(np.int32)
        low, high = (scale, high) if entropy(x) < bits else (low, scale)
    return x


def timed(call: Callable) -> tuple[float, object]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def adaptive(symbols: np.ndarray) -> tuple[Callable, Callable]:
    """The context coder on the same integers, as one dense layer."""
    q, shape = symbols.reshape(-1, 1), [(1, symbols.size)]

    def encode() -> tuple[bytes, bytes]:
        return context.encode_flags(q.any(1), shape)[0], context.encode_coefficients(q, shape, 1)[0]

    def decode(data: tuple[bytes, bytes]) -> np.ndarray:
        flags, _ = context.decode_flags(data[0], shape, symbols.size, account=False)
        return context.decode_coefficients(data[1], flags, shape, 1, 1, account=False)[0].ravel()

    return encode, decode


def coders(values: np.ndarray) -> dict[str, tuple[Callable, Callable, Callable]]:
    """Name to (encode, decode, bytes of what encode returned); the first is ours, the second the peer of the ratios."""
    table = Table.of(values)
    symbols, _ = table.symbols(values)
    tables, wide, n = rans.Tables.of([table.counts]), symbols.astype(np.int32), symbols.size
    model = constriction.stream.model.Categorical(table.counts / TOTAL, perfect=False)

    def ans_encode() -> object:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(wide, model)
        return coder

    def range_encode() -> np.ndarray:
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(wide, model)
        return coder.get_compressed()

    own_encode, own_decode = adaptive(values)
    small = values.astype(np.int8).tobytes()
    out = {
        "rans": (lambda: rans.encode_symbols(symbols, tables), lambda d: rans.decode_symbols(d, tables, n), len),
        "constriction ANS": (ans_encode, lambda c: c.decode(model, n), lambda c: c.get_compressed().nbytes),
        "constriction range": (
            range_encode,
            lambda d: constriction.stream.queue.RangeDecoder(d).decode(model, n),
            lambda d: d.nbytes,
        ),
        "adaptive": (own_encode, lambda d: own_decode(d) - table.low, lambda d: len(d[0]) + len(d[1])),
        "xz -9": (
            lambda: lzma.compress(small, preset=9),
            lambda d: np.frombuffer(lzma.decompress(d), np.int8) - table.low,
            len,
        ),
    }
    try:
        import zstandard

        packer = zstandard.ZstdCompressor(level=19)
        out["zstd -19"] = (
            lambda: packer.compress(small),
            lambda d: np.frombuffer(zstandard.decompress(d), np.int8) - table.low,
            len,
        )
    except ImportError:
        pass
    try:
        import brotli

        out["brotli -11"] = (
            lambda: brotli.compress(small),
            lambda d: np.frombuffer(brotli.decompress(d), np.int8) - table.low,
            len,
        )
    except ImportError:
        pass
    return out


SLOW = ("adaptive", "xz -9", "zstd -19", "brotli -11")  # timed twice only


def measure(bits: float, n: int, runs: int) -> dict:
    """Every coder on one sample."""
    values = sample(bits, n)
    ideal, symbols = entropy(values) * n, Table.of(values).symbols(values)[0]
    table = coders(values)
    times: dict[str, tuple[list, list]] = {name: ([], []) for name in table}
    rows = {}
    for turn in range(runs + 1):
        for name, (encode, decode, size) in table.items():
            if name in SLOW and turn > 2:
                continue
            encode_s, data = timed(encode)
            bytes_ = size(data)  # before decoding, which empties constriction's coder
            decode_s, back = timed(lambda decode=decode, data=data: decode(data))
            if turn == 0:  # compiles, and verifies
                assert (back == symbols).all(), name
                rows[name] = {"bytes": bytes_, "overhead_percent": 100 * (8 * bytes_ / ideal - 1)}
            else:
                times[name][0].append(encode_s)
                times[name][1].append(decode_s)
    for name, (encode_s, decode_s) in times.items():
        rows[name] |= {
            "encode_msym_s": n / statistics.median(encode_s) / 1e6,
            "decode_msym_s": n / statistics.median(decode_s) / 1e6,
        }
    return {"entropy": ideal / n, "coders": rows}


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--symbols", type=int, default=10**6)
    p.add_argument("--runs", type=int, default=15)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    full = {bits: measure(bits, a.symbols, a.runs) for bits in ENTROPIES}
    static = {}
    for bits, r in full.items():
        ours, peer = r["coders"]["rans"], r["coders"]["constriction ANS"]
        ratios = {f"{k}_ratio": ours[f"{k}_msym_s"] / peer[f"{k}_msym_s"] for k in ("encode", "decode")}
        static[str(bits)] = {**ratios, "overhead_percent": ours["overhead_percent"]}
    if a.json:
        print(json.dumps({"static": static, "full": full, "symbols": a.symbols, "runs": a.runs, "made": circumstances()}, indent=1))
        return
    for bits, r in full.items():
        print(f"\n{r['entropy']:.3f} bits a symbol, {a.symbols:,} symbols{'':10}encode      decode  Msym/s   overhead")
        for name, row in r["coders"].items():
            print(
                f"  {name:38}{row['encode_msym_s']:10.1f}{row['decode_msym_s']:12.1f}{row['overhead_percent']:16.3f} %"
            )
        s = static[str(bits)]
        print(f"  rans / constriction ANS{'':15}{s['encode_ratio']:10.2f}{s['decode_ratio']:12.2f}")


if __name__ == "__main__":
    main()
