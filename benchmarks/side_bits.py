"""How many bits norm layers and biases want: bytes of the file and accuracy of a finished training, stored more and more finely.

    python benchmarks/side_bits.py runs/cifar10_resnet20/seed0/lilnetx [more folders] [--bits 6,7,8,9,10,12] [--json]

A folder is that of one training, with its checkpoint.pt. Latents and decoders are the same in every row; `none` is the trained network
with norm layers and biases as they are. Accuracies are on validation images. LILNETX_DATA names the folder with the data.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path

import torch

from lilnetx_mini import lnx
from lilnetx_mini.nn.export import plain_copy, put, to_model
from lilnetx_mini.nn.recipes import RECIPES, Recipe
from lilnetx_mini.nn.train import DEFAULTS, Run, accuracy
from lilnetx_mini.provenance import circumstances


def recipe_of(settings: dict) -> Recipe:
    """The recipe with the settings that a checkpoint tells of."""
    recipe = RECIPES[settings["name"]]
    return dataclasses.replace(recipe, **{k: v for k, v in settings.items() if hasattr(recipe, k)})


def measure(folder: Path, bits: list[int]) -> dict:
    """Bytes and accuracy by bits, and the accuracy of the network as it was trained."""
    settings = DEFAULTS | json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["settings"])
    run = Run(recipe_of(settings), settings["seed"], folder)
    run.resume()
    plain, images = plain_copy(run.compressor).float(), run.splits.validation
    rows = []
    for b in bits:
        model, _ = to_model(run.compressor, run.example(), b)
        data = lnx.encode(model)
        rows.append({"bits": b, "bytes": len(data), "accuracy": accuracy(put(lnx.decode(data), copy.deepcopy(plain)), images)})
    return {"recipe": settings["name"], "settings": settings, "images": len(images), "trained": accuracy(plain, images), "rows": rows}


def main() -> None:
    """Measure, and print a table or JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path)
    p.add_argument("--bits", default="6,7,8,9,10,12", type=lambda text: [int(b) for b in text.split(",")])
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    results = [measure(folder, a.bits) for folder in a.folders]
    if a.json:
        print(json.dumps({"side_bits": results, "made": circumstances()}, indent=1))
        return
    for folder, result in zip(a.folders, results, strict=True):
        print(f"{folder} ({result['recipe']}, {result['images']:,} validation images)")
        print(f"{'bits':>6}{'bytes':>10}{'accuracy':>10}")
        for r in result["rows"]:
            print(f"{r['bits']:>6}{r['bytes']:>10,}{r['accuracy']:>10.2%}")
        print(f"{'none':>6}{'':>10}{result['trained']:>10.2%}")


if __name__ == "__main__":
    main()
