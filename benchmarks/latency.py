"""How well a table of layers foretells a network: predicted against measured milliseconds of networks with random widths.

    python benchmarks/latency.py [resnet20 mobilenet_v3_small] [--runtimes onnxruntime,torch,lilnetx] [--json results/latency.json]

For each network and runtime a table is measured, as `lilnetx latency-table` does, and then ten networks, in which every group of
channels has lost another share of them. The median of their errors is what to expect of a prediction. Nothing else should run. All of
it is repeated, as the speed of a machine drifts: the whole network is timed beside the layers and beside the ten, and the error without
drift is what is left when the ratio of the two is taken out.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch

from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import latency, models, prune
from lilnetx_mini.provenance import circumstances

NETWORKS = {
    "digits": (models.digits_resnet, (1, 8, 8)),
    "resnet20": (models.cifar_resnet20, (3, 32, 32)),
    "resnet18": (models.resnet18, (3, 112, 112)),
    "mobilenet_v2": (models.mobilenet_v2, (3, 112, 112)),
    "mobilenet_v3_small": (models.mobilenet_v3_small, (3, 112, 112)),
}


def compare(name: str, runtime: str, threads: int, count: int, runs: int) -> dict:
    """Predicted and measured milliseconds of so many networks, and of the whole one."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, *shape)
    table = latency.measure(model, x, runtime, threads, runs)
    generator, networks, predicted = torch.Generator().manual_seed(1), {"whole": model}, []
    for n in range(count):
        pruned = prune(copy.deepcopy(model), x, table=table)
        if n == 0:
            predicted.append(pruned.counts().dense_ms)
        for part in pruned.alive.split(pruned.channels.units):
            part &= torch.rand(len(part), generator=generator) < 0.15 + 0.85 * torch.rand(1, generator=generator)
        pruned.project()
        networks[str(n)] = pruned.shrink()
        predicted.append(pruned.counts().ms)
    measured = list(latency.milliseconds(networks, x, runtime, threads, 2 * runs).values())
    errors = [p / m - 1 for p, m in zip(predicted[1:], measured[1:], strict=True)]
    drift = measured[0] / table.whole
    return {
        "predicted_ms": predicted, "measured_ms": measured, "errors": errors, "median_error": float(np.median(np.abs(errors))),
        "drift": drift, "base_ms": table.base, "factor": table.factor, "kinds": len(table.kinds),
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("networks", nargs="*", default=["resnet20", "mobilenet_v3_small"], help=f"of {', '.join(NETWORKS)}")
    p.add_argument("--runtimes", default=",".join(latency.RUNTIMES), help="with commas")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--count", type=int, default=10, help="networks with random widths")
    p.add_argument("--runs", type=int, default=15, help="timed calls at every point of a table")
    p.add_argument("--repeats", type=int, default=3, help="tables, each with its ten networks")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the results there, beside those of other networks")
    a = p.parse_args()
    for name in a.networks:
        rows: dict[str, dict] = {}
        for runtime in a.runtimes.split(","):
            runs = [compare(name, runtime, a.threads, a.count, a.runs) for _ in range(a.repeats)]
            middle = float(np.median([abs(e) for r in runs for e in r["errors"]]))
            steady = float(np.median([abs((1 + e) * r["drift"] - 1) for r in runs for e in r["errors"]]))
            rows[runtime] = {"median_error": middle, "median_error_without_drift": steady, "runs": runs}
            whole = f"whole network {runs[0]['measured_ms'][0]:.3f} ms, predicted {runs[0]['predicted_ms'][0]:.3f}"
            print(f"{name:20}{runtime:12} median error {middle:.1%}, without drift {steady:.1%}   {whole}")
            for r in runs:
                print(f"{'':34}{r['median_error']:.1%} ({', '.join(f'{e:+.0%}' for e in r['errors'])}), drift {r['drift'] - 1:+.0%}")
        if a.json:
            known = json.loads(a.json.read_text()) if a.json.exists() else {}
            row = {"runtimes": rows, "threads": a.threads, "made": circumstances()}
            write_atomic(a.json, json.dumps(known | {name: row}, indent=1).encode())


if __name__ == "__main__":
    main()
