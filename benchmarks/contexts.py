"""What each context of the adaptive coder buys: bytes of trained latents with one of them silenced.

    python benchmarks/contexts.py [FILE.lnx ...] [--json]

The table in `lilnetx_mini/context.py` comes from here. For every row, a copy of the package has one expression of context.py changed, so
that the context always says the same, and codes the latents of the files (those of results/files) in a process of
its own: about ten seconds each, most of which is compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lilnetx_mini import lnx, streams
from lilnetx_mini.provenance import circumstances

ROOT = Path(__file__).parents[1]
SILENCED = {
    "all of them speak": ("", ""),
    "flags: row and column": ("(o, most_rows + i), mixer", "(0, 1), mixer"),
    "flags: row": ("(o, most_rows + i), mixer", "(0, most_rows + i), mixer"),
    "flags: column": ("(o, most_rows + i), mixer", "(o, most_rows), mixer"),
    "flags: layer before": ("ctx = 4 * kind + before, 8 + 3 * kind + fed[i]", "ctx = 4 * kind, 8 + 3 * kind"),
    "zero: place and count": ("ctx = 9 * (4 * j + few) + near,", "ctx = near,"),
    "zero: neighbours": ("ctx = 9 * (4 * j + few) + near,", "ctx = 9 * (4 * j + few),"),
    "zero: layer": ("z_layer + d * layer + j", "z_layer + j"),
    "sign: neighbours": ("signs = (s_near + 3 * side + above, s_row + 3 * o + side)", "signs = (s_near, s_row)"),
    "size: neighbours": ("sizes = (m_near + 16 * near,", "sizes = (m_near,"),
    "size: layer": ("m_layer + 16 * layer)\n", "m_layer)\n"),
}
CODE = """
import json, sys
import numpy as np
from lilnetx_mini import streams
arrays = np.load(sys.argv[1], allow_pickle=False)
sizes = {}
for name in arrays.files:
    file, _, shapes, width = json.loads(name)
    sizes[file] = sizes.get(file, 0) + streams.encode_adaptive(arrays[name], shapes, width).size
print(json.dumps(sizes))
"""


def latents(files: list[Path]) -> dict[str, np.ndarray]:
    """Integers of every file's groups, (S, d), named by what else the coder needs: file, group, shapes of its layers, width."""
    out = {}
    for path in files:
        model = lnx.read(path)
        for i, group in enumerate(model.groups):
            shapes = [list(map(int, s)) for s in streams.shapes_of([x for x in model.layers if x.group == i])]
            out[json.dumps([path.stem, i, shapes, streams.last_extent(group.decoder.kernel)])] = np.asarray(group.q)
    return out


def coded(arrays: Path, change: tuple[str, str]) -> dict[str, int]:
    """Bytes of every file's latents, by a copy of the package with this change."""
    before, after = change
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "lilnetx_mini", Path(folder) / "lilnetx_mini", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / "lilnetx_mini" / "context.py"
        source = path.read_text()
        if before not in source:
            raise SystemExit(f"context.py has no {before!r} any more: bring SILENCED up to date")
        path.write_text(source.replace(before, after) if before else source)
        environment = {**os.environ, "PYTHONPATH": folder, "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", CODE, str(arrays)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", type=Path, help="what to code [default: results/files/*.lnx]")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    files = a.files or sorted((ROOT / "results" / "files").glob("*.lnx"))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "latents.npz"
        np.savez(arrays, **latents(files))
        for name, change in SILENCED.items():
            rows[name] = coded(arrays, change)
            if not a.json:
                base = rows["all of them speak"]
                print(f"{name:26}" + "".join(f"{f:>20} {n:7,} {n - base[f]:+6,}" for f, n in rows[name].items()), flush=True)
    if a.json:
        print(json.dumps({"silenced": rows, "made": circumstances()}, indent=1))


if __name__ == "__main__":
    main()
