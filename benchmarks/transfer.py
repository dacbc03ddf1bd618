"""A network that was made narrow on one data set, moved to another: against networks that are as narrow everywhere.

    python benchmarks/transfer.py [--share 0.85] [--seeds 0] [--source-epochs 2] [--epochs 6] [--json results/transfer.json]

MobileNetV3-Small on images of 32 x 32 pixels, trained on MNIST and then, with a new last layer, on CIFAR-10. Pruned there: masks take
15 % of its multiply-adds on MNIST, and what is left moves. Pruned here: the whole network moves, and masks take as much on CIFAR-10.
Narrow: MobileNetV3-Small and EfficientNet-B0 with all widths scaled, as wide as 85 % of the multiply-adds allow. Whole: nothing goes;
and once more without MNIST. Equal epochs for all; test accuracy on CIFAR-10. LILNETX_DATA names the folder with mnist/ and
cifar-10-batches-py/. Trainings resume.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lilnetx_mini import data
from lilnetx_mini.jobs import run_jobs
from lilnetx_mini.lnx import write_atomic
from lilnetx_mini.nn import models
from lilnetx_mini.nn.channels import multiply_adds
from lilnetx_mini.nn.recipes import Recipe
from lilnetx_mini.nn.train import Run, accuracy
from lilnetx_mini.provenance import circumstances

ADAM = {"batch": 128, "warmup": 0.15, "plain_lr": 0.002, "threads": 1, "init": "from_weights"}
WAYS = ("whole", "whole, without MNIST", "pruned there", "pruned here", "narrow MobileNetV3-Small", "narrow EfficientNet-B0")
IMAGE = torch.zeros(1, 3, 32, 32)


@cache
def mnist() -> data.Splits:
    """MNIST's digits in three equal channels, with two black pixels around: 32 x 32."""
    parts = data.mnist()
    border = ((0, 0), (0, 0), (2, 2), (2, 2))
    return data.Splits(*(data.Split(np.pad(p.x, border).repeat(3, 1), p.y) for p in (parts.train, parts.validation, parts.test)))


def macs(model: nn.Module) -> int:
    """Multiply-adds of one image."""
    return int(sum(multiply_adds(model, IMAGE).values()))


def made(way: str, share: float) -> nn.Module:
    """The network that a way begins with."""
    whole = models.mobilenet_v3_small(classes=10)
    if not way.startswith("narrow"):
        return models.with_pixel_norm(whole)
    make, most = models.efficientnet_b0 if "Eff" in way else models.mobilenet_v3_small, share * macs(whole)
    widths = (w for w in np.arange(1.0, 0.05, -0.01) if macs(make(classes=10, width=w)) <= most)
    return models.with_pixel_norm(make(classes=10, width=float(next(widths))))


def with_new_head(model: nn.Module) -> nn.Module:
    """The same network, its last dense layer as if it were new."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    layers[-1].reset_parameters()
    return model


def train(way: str, seed: int, share: float, source: int, epochs: int, images: int, folder: str, position: int = 0) -> dict:
    """MNIST, then CIFAR-10: multiply-adds, and test accuracy on both."""
    done = Path(folder) / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    torch.manual_seed(seed)
    model, cut = made(way, share), {"method": "prune", "target_flops": share}
    before = None
    if "without" not in way:
        own = cut if way == "pruned there" else {}
        recipe = Recipe("mnist", lambda: model, mnist, source, images=images, shift=2, **ADAM, **own)
        run = Run(recipe, seed, Path(folder) / "source", compress=bool(own))
        run.resume()
        model = run.fit(progress=False).model
        before = accuracy(model, run.splits.test)
    torch.manual_seed(seed)
    moved, own = with_new_head(model), cut if way == "pruned here" else {}
    recipe = Recipe("cifar10", lambda: moved, data.cifar10, epochs, images=images, shift=4, flip=1, **ADAM, **own)
    run = Run(recipe, seed, Path(folder) / "target", compress=bool(own))
    run.resume()
    trained = run.fit(progress=False)
    result = {
        "way": way, "seed": seed, "macs": macs(trained.model.eval()), "source_accuracy": before,
        "validation_accuracy": trained.metrics[-1]["validation_accuracy"], "test_accuracy": accuracy(trained.model, run.splits.test),
    }  # fmt: skip
    write_atomic(done, json.dumps(result).encode())
    return result


def main() -> None:
    """Train, print a table, and write JSON if asked to."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--share", type=float, default=0.85, help="of MobileNetV3-Small's multiply-adds")
    p.add_argument("--seeds", default="0", type=lambda text: [int(s) for s in text.split(",")])
    p.add_argument("--source-epochs", type=int, default=2)
    p.add_argument("--epochs", type=int, default=6)
    p.add_argument("--images", type=int, default=0, help="of each training set, only the first so many; 0 for all")
    p.add_argument("--ways", default="", help="only those whose names contain one of these, with commas")
    p.add_argument("--out", default="runs/transfer", type=Path, help="folder for checkpoints")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    a = p.parse_args()
    ways = [w for w in WAYS if any(part in w for part in a.ways.split(","))]
    settings = (a.share, a.source_epochs, a.epochs, a.images)
    told = "-".join(f"{s:g}" for s in settings)
    tasks = [(w, s, *settings, str(a.out / told / w.replace(" ", "_").replace(",", "") / f"seed{s}")) for w in ways for s in a.seeds]
    results = sorted((r for _, r in run_jobs(train, tasks, a.jobs)), key=lambda r: (WAYS.index(r["way"]), r["seed"]))
    whole = macs(models.mobilenet_v3_small(classes=10))
    print(f"MNIST for {a.source_epochs} epochs, then CIFAR-10 for {a.epochs}; seeds {', '.join(map(str, a.seeds))}")
    print(f"  {'':26}{'multiply-adds':>14}{'MNIST':>9}{'CIFAR-10':>10}   each seed")
    for w in ways:
        rows = [r for r in results if r["way"] == w]
        had = [r["source_accuracy"] for r in rows if r["source_accuracy"] is not None]
        tests = [r["test_accuracy"] for r in rows]
        shown = f"{np.mean(had):9.2%}" if had else " " * 9
        each, left = ", ".join(f"{t:.2%}" for t in tests), np.mean([r["macs"] for r in rows]) / whole
        print(f"  {w:26}{left:14.1%}{shown}{np.mean(tests):10.2%}   {each}")
    if a.json:
        asked = {"share": a.share, "source_epochs": a.source_epochs, "epochs": a.epochs, "images": a.images}
        report = {"asked": asked, "whole_macs": whole, "results": results, "made": circumstances()}
        write_atomic(a.json, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
