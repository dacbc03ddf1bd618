"""Trains the files that benchmarks/size.py measures, on real data: a LeNet5 on MNIST and a ResNet-20 on CIFAR-10.

    python benchmarks/train_files.py mnist_lenet5 | cifar10_resnet20 [--out runs/files] [--weights resnet20-12fca82f.th]

LILNETX_DATA names the folder with mnist/ and cifar-10-batches-py/. Each starts from a trained plain network, the one it is
compared with, and is fine-tuned with the penalties: the LeNet5 from one trained here for as many epochs, the ResNet-20 from
the weights of akamaster/pytorch_resnet_cifar10.
Runs resume from their checkpoints. Writes NAME.lnx and NAME.json (accuracies, settings, machine) into results/files/.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import torch

from lilnetx_mini import data, lnx
from lilnetx_mini.nn import models
from lilnetx_mini.nn.recipes import Recipe
from lilnetx_mini.nn.train import Run, accuracy
from lilnetx_mini.provenance import circumstances
from lilnetx_mini.runtime import Network

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # what the trained weights expect


def normalised_cifar10() -> data.Splits:
    """CIFAR-10 as the trained weights want it."""
    splits = data.cifar10()
    parts = (splits.train, splits.validation, splits.test)
    return data.Splits(*(data.Split((p.images() - MEAN[:, None, None]) / STD[:, None, None], p.y) for p in parts))


def trained_resnet20(weights: str) -> torch.nn.Module:
    """Our ResNet-20 with the given checkpoint's weights, matched by order."""
    model = models.cifar_resnet20()
    theirs = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    theirs = [v for k, v in theirs.items() if not k.endswith("num_batches_tracked")]
    names = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, theirs, strict=True)), strict=False)
    return model


def recipes(weights: str | None) -> dict[str, Recipe]:
    """Multipliers were chosen on the validation images."""
    lenet = Recipe(
        "mnist_lenet5", models.lenet5, data.mnist, epochs=4, batch=128, lr=0.01, plain_lr=0.001, decoder_lr=1e-4,
        rest_lr=1e-3, lam_rate=5.0, lam_group=5.0, ramp=0.2, init="from_weights", levels=1.0,
    )  # fmt: skip
    resnet = Recipe(
        "cifar10_resnet20", functools.partial(trained_resnet20, weights), normalised_cifar10, epochs=4, batch=128,
        lr=0.03, decoder_lr=1e-4, rest_lr=1e-3, lam_rate=2.0, lam_group=2.5, ramp=0.2, shift=4, flip=1, init="from_weights",
        levels=2.0, channels_last=1,
    )  # fmt: skip
    return {"mnist_lenet5": lenet, "cifar10_resnet20": resnet}


def main() -> None:
    """Train, write, evaluate the file itself, and record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=["mnist_lenet5", "cifar10_resnet20"])
    p.add_argument("--out", default="runs/files", help="folder for checkpoints")
    p.add_argument("--results", default="results/files", help="folder for the file and its record")
    p.add_argument("--weights", help="the trained ResNet-20 checkpoint")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    a = p.parse_args()
    recipe = recipes(a.weights)[a.name]
    changes = {k: type(getattr(recipe, k))(v) for k, v in (s.split("=") for s in a.set)}
    recipe = dataclasses.replace(recipe, **changes)
    if a.name == "mnist_lenet5":  # first the plain network, then the compressed one from its weights
        plain_run = Run(recipe, 0, Path(a.out) / f"{a.name}_plain", compress=False)
        plain_run.resume()
        network = plain_run.fit().model
        recipe = dataclasses.replace(recipe, model=lambda: copy.deepcopy(network))
    run = Run(recipe, 0, Path(a.out) / a.name)
    run.resume()
    trained = run.fit()
    test = run.splits.test
    plain = accuracy(recipe.model(), test)
    saved = trained.compressor.save(Path(a.results) / f"{a.name}.lnx", torch.from_numpy(test.images(slice(2))), recipe.side_bits)
    own = float((Network.load(saved.path).predict(test.images()) == test.y).mean())
    numbers = {k: v for k, v in dataclasses.asdict(recipe).items() if isinstance(v, (int, float, str))}
    record = {"accuracy": own, "plain_accuracy": plain, "file_bytes": saved.file_bytes, "float_bytes": models.count_bytes(recipe.model()),
              "slices_zero": trained.metrics[-1]["slices_zero"], "weights_zero": trained.metrics[-1]["weights_zero"],
              "recipe": numbers, "seed": 0, "made": circumstances()}  # fmt: skip
    lnx.write_atomic(Path(a.results) / f"{a.name}.json", json.dumps(record, indent=1).encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
