"""Where the time goes between `python` and the first prediction: one fresh process a run, warm kernel caches.

    python benchmarks/startup.py [FILE.lnx] [--runs 9] [--json]

Medians in seconds: the interpreter, importing NumPy, importing Numba, importing this package's runtime, decoding the file
(nearly all of it Numba preparing to load its first compiled kernel from the cache), and the first prediction.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lilnetx_mini.provenance import circumstances

CHILD = """
import time; t = [time.perf_counter()]
import numpy as np; t.append(time.perf_counter())
import numba; t.append(time.perf_counter())
from lilnetx_mini.runtime import Network; t.append(time.perf_counter())
import sys; net = Network.load(sys.argv[1]); t.append(time.perf_counter())
net.predict(np.zeros((1, *net.input_shape), np.float32)); t.append(time.perf_counter())
print(*[b - a for a, b in zip(t, t[1:])])
"""
PARTS = ("numpy", "numba", "lilnetx_mini", "decode", "first_prediction")


def main() -> None:
    """Print a table, or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", nargs="?", default=str(Path(__file__).parent.parent / "results/files/digits.lnx"))
    p.add_argument("--runs", type=int, default=9)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    rows = []
    for _ in range(a.runs + 1):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", CHILD, a.file], capture_output=True, text=True, check=True)
        total = time.perf_counter() - start
        parts = [float(x) for x in done.stdout.split()]
        rows.append({"interpreter": total - sum(parts), **dict(zip(PARTS, parts, strict=True)), "total": total})
    median = {k: statistics.median(r[k] for r in rows[1:]) for k in rows[0]}  # the first run may still compile
    if a.json:
        print(json.dumps({"startup": median, "runs": a.runs, "made": circumstances()}, indent=1))
        return
    for name, seconds in median.items():
        print(f"{name:20}{seconds:8.3f} s")


if __name__ == "__main__":
    main()
