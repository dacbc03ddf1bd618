"""How many bytes do trained latents take? Ours against the paper's scheme, constriction, DeepCABAC and general compressors.

    python benchmarks/size.py [FILE.lnx ...] [--json]

Without files: every results/files/*.lnx that has a record (NAME.json with its accuracies) beside it. Each column counts
everything that a decoder needs: tables go through the serialiser of lilnetx_mini.frequency for everyone who uses tables.

  paper         LilNetX's own: one static table a group and latent dimension over all latents, coded by constriction
  constriction  one static table a layer, coded by constriction
  static        ours: significance flags with a table a layer, coefficients with a table a dimension, rANS
  adaptive      ours: contexts (lilnetx_mini.context)
  DeepCABAC     of NNCodec, where its package is importable
  zstd, xz, brotli   the same integers, one byte each where they fit, at the highest level
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import time
from pathlib import Path

import constriction
import numpy as np

from lilnetx_mini import context, lnx, streams
from lilnetx_mini.fields import Writer
from lilnetx_mini.frequency import TOTAL, Table
from lilnetx_mini.provenance import circumstances

RUNS = 5


def coded(parts: list[np.ndarray]) -> tuple[int, int]:
    """Bytes of the parts, each under its own best table, in one stream of constriction: (with tables, payload alone)."""
    coder, tables = constriction.stream.stack.AnsCoder(), Writer()
    for values in parts:
        table = Table.cheapest(values)
        symbols, escaped = table.symbols(values)
        for v in escaped:
            tables.sint(int(v))
        table.write(tables)
        model = constriction.stream.model.Categorical(table.counts / TOTAL, perfect=False)
        coder.encode_reverse(symbols.astype(np.int32), model)
    payload = coder.get_compressed().nbytes
    return payload + len(tables.data), payload


def deepcabac(layers: list[np.ndarray]) -> int | None:
    """Bytes of NNCodec's DeepCABAC for the layers' integers, whole output channels skipped where zero; None if not installed.

    Its extension module is found as ``nncodec.extensions.deepCABAC``, or as ``deepCABAC`` where it was compiled alone.
    """
    try:
        from nncodec.extensions import deepCABAC
    except ImportError:
        try:
            import deepCABAC
        except ImportError:
            return None
    off = deepCABAC.HdspMode.AlwaysOff, np.zeros(2, np.int8)
    sizes = []
    for flag in (0, 1):  # without and with its search for the contexts' parameters
        encoder = deepCABAC.Encoder()
        for q, (rows, _) in layers:
            rows_first = np.ascontiguousarray(q.reshape(rows, -1), np.int32)
            encoder.initCtxModels(11, flag)
            encoder.encodeLayer(rows_first, 0, 0, 1, 0, 1, (~rows_first.any(1)).astype(np.int32), *off, 0, 0)
        sizes.append(encoder.finish().size)
    return min(sizes)


def general(model: lnx.Model) -> dict[str, int | None]:
    """What general compressors make of the integers."""
    raw = b""
    for g in model.groups:
        raw += g.q.astype(np.int8 if np.abs(g.q.astype(int)).max(initial=0) < 128 else "<i2").tobytes()
    out: dict[str, int | None] = {"xz_bytes": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}
    try:
        import zstandard

        out["zstd_bytes"] = len(zstandard.ZstdCompressor(level=19).compress(raw))
    except ImportError:
        out["zstd_bytes"] = None
    try:
        import brotli

        out["brotli_bytes"] = len(brotli.compress(raw, quality=11))
    except ImportError:
        out["brotli_bytes"] = None
    return out


def speed(groups: list[tuple]) -> tuple[float, float]:
    """Adaptive decoding in million latents and million coded decisions a second, median of several runs."""
    coded_groups = [streams.encode_adaptive(q, shapes, width) for q, shapes, width in groups]
    latents = sum(q.size for q, _, _ in groups)
    decisions = sum(context.count_decisions(q) for q, _, _ in groups)
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        for (q, shapes, width), c in zip(groups, coded_groups, strict=True):
            streams.decode(c, shapes, q.shape[1], width, account=False)
        times.append(time.perf_counter() - start)
    median = statistics.median(times[1:])
    return latents / median / 1e6, decisions / median / 1e6


def measure(path: Path) -> dict:
    """One file's row."""
    model = lnx.read(path)
    record = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
    by_group = [[x for x in model.layers if x.group == i] for i in range(len(model.groups))]
    groups = [
        (g.q, streams.shapes_of(ls), streams.last_extent(g.decoder.kernel))
        for g, ls in zip(model.groups, by_group, strict=True)
    ]
    layers = model.latents()
    paper, paper_payload = coded([column for g in model.groups for column in g.q.T])
    per_layer, per_layer_payload = coded([q.ravel() for q in layers])
    wide = [q for q in layers if q.shape[1] > 1]
    latents_s, decisions_s = speed(groups)
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "accuracy": record.get("accuracy"),
        "plain_accuracy": record.get("plain_accuracy"),
        "slices_zero": float(np.mean(np.concatenate([~q.any(1) for q in wide or layers]))),
        "latents": sum(q.size for q in layers),
        "adaptive_bytes": sum(streams.encode_adaptive(*g).size for g in groups),
        "static_bytes": sum(streams.encode_static(q, shapes).size for q, shapes, _ in groups),
        "chosen_bytes": sum(streams.encode(*g).size for g in groups),
        "paper_bytes": paper,
        "paper_payload_bytes": paper_payload,
        "constriction_bytes": per_layer,
        "constriction_payload_bytes": per_layer_payload,
        "deepcabac_bytes": deepcabac([(q, x.shape[:2]) for q, x in zip(layers, model.layers, strict=True)]),
        **general(model),
        "decode_msym_s": latents_s,
        "coded_msym_s": decisions_s,
    }


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", type=Path)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    default = sorted((Path(__file__).parent.parent / "results" / "files").glob("*.lnx"))
    rows = [measure(f) for f in a.files or default]
    if a.json:
        print(json.dumps({"trained": rows, "made": circumstances()}, indent=1))
        return
    names = ["paper", "constriction", "deepcabac", "xz", "zstd", "brotli", "static", "adaptive"]
    print(
        f"{'file':24}{'slices zero':>12}"
        + "".join(f"{n:>14}" for n in names)
        + f"{'Mlatents/s':>12}{'Mdecisions/s':>14}"
    )
    for r in rows:
        cells = "".join(f"{r[f'{n}_bytes']:>14,}" if r[f"{n}_bytes"] is not None else f"{'-':>14}" for n in names)
        print(
            f"{r['file']:24}{100 * r['slices_zero']:10.1f} %{cells}{r['decode_msym_s']:12.1f}{r['coded_msym_s']:14.1f}"
        )
        ratios = [
            100 * (r[f"{n}_bytes"] / r["paper_bytes"] - 1) if r[f"{n}_bytes"] is not None else None for n in names
        ]
        print(f"{'':24}{'vs paper':>12}" + "".join(f"{x:>12.1f} %" if x is not None else f"{'':14}" for x in ratios))


if __name__ == "__main__":
    main()
