"""Recipes: everything that defines a training run, as plain data."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from .. import data, text
from ..errors import InputError
from ..prior import FORMS
from . import models
from .probe import blame


@dataclass(frozen=True)
class Recipe:
    """One training run.

    epochs, batch      passes over the training images, images a step
    images             train on the first so many images only; 0 for all
    optimizer          "adam", or "sgd" with Nesterov's momentum. With "sgd", latents step as their weights would: see
                       `Compressor.sgd_groups`
    lr                 peak rate of latents, decoders and the rest; rises over `warmup` of the steps, and falls to zero along a cosine
    plain_lr           the same for the plain network: each side of a comparison trains at its own best
    method             "lilnetx" (latents and their penalties); or masks over channels, "prune", or over the channels in between of layers
                       in two, "low_rank": what `target_flops` asks for is then reached halfway through, see `nn.surrogate`; or weights
                       on grids, "quantize", with `target_bits`, see `nn.bits`
    then               after the cut of "prune" and "low_rank", what is left is made smaller yet: "lilnetx" or "quantize", or nothing, ""
    criterion          what decides which channels go: "surrogate", masks that are learned with the multiply-adds' soft counts; or, to
                       compare, "l1" of masks, "scales" of norm layers, "magnitude" of kernels, or the same share everywhere, "uniform"
    arrival            share of the steps after which they are cut, or bits chosen
    lam_mask           multiplier of the mean of masks, or of norm layers' scales, for "l1" and "scales"
    form               of soft counts: "squared" or "root"
    mask_start         what entries of masks start from: "magnitudes" of kernels, or "ones"
    target_bits        mean bits of a weight that may be left, for "quantize"; 0 for none
    bits_of            what the mean is over: "weights", or their multiply-adds, "macs"
    mask_lr            peak rate of masks and gates, with Adam always; 0 for 10 divided by the steps, with which an entry can go from 1
                       to 0 some three times before masks are cut halfway
    density_lr         the same for the densities, with Adam always
    decoder_lr         the same for decoders, and
    rest_lr            for everything that is not compressed; 0 for both: as the latents (with "sgd", decoders then stay as they are)
    weight_decay       of "sgd", for weights; norm layers and biases have none
    start              share of the steps after which the weights become latents; before, the network is plain
    lam_rate, ...      multipliers of the three penalties, reached linearly over the first `ramp` of the steps with latents
    weigh_macs         1: slice norms count as the multiply-adds of their slices do, those of kernels of one position too; always so
                       with target_flops where these have most of the multiply-adds
    target_size        bytes that the whole file may take, and
    target_latency_ms  milliseconds that the network may take, for "prune" instead of `target_flops`: those that the file
    latency_table      predicts, see `nn.latency`, corrected by the stopwatch when channels are cut, in its runtime
    round_to           every group of channels keeps a multiple of so many, for "prune" and "low_rank"
    target_flops       multiply-adds that may be left, as a share of the dense network's, and
    target_slices      share of slices that should be zero: multipliers then follow the gap, see `nn.targets`; 0 for none
    weights            file with trained weights to start from, of torch, see `nn.weights`; "" for none
    shift              images move by up to this many pixels
    flip               1: half of the images are mirrored left to right
    cutout             side of a square of zeros in every image; 0 for none
    init               how latents start: "random", or "from_weights" for a model that is trained already
    levels             for "from_weights": quantisation steps in a standard deviation of the weights
    decoder            kind of all kernels' decoders: "full", "diagonal", "scalar" or "dct"; "" for what `reparameterize` chooses. A
                       trained full one of 5x5 kernels takes some 600 bytes of the file. Kernels of deep networks become smooth
                       when they are trained for long: as cosines most of such a kernel is in a few latents, and the others are zero
    quantiser          what the network computes with: "straight" (rounded latents, gradients pass; the best at equal size, see
                       benchmarks/quantisers.py), "noise" (latents with uniform noise) or "soft" (rounded ever more sharply); the
                       last two for the first `hard` of the steps with latents
    rate_of            what the rate is estimated for: "noise" (latents with uniform noise), or "rounded" latents
    distill            share of the loss that is the distance to the trained plain network's classes, at this
    temperature        by which both sides' outputs are divided; 0 for none
    label_smoothing    share of the target spread over all classes
    clip               largest norm of the gradient of a step, with "sgd" as that of weights; 0 for any
    ema                share of a moving average of all weights that stays in a step; what is evaluated and stored is then the
                       average. 0 for none
    stored_decoders    share of the steps, at the end, that compute with 8-bit decoders as in the file
    side_bits          bits of the file for every number of norm layers and biases, 2 to 16. Eight cost a deep network up to a third of
                       a point, and two more a hundredth of its file; a shallow one does not need them
    accumulate         pieces into which a batch is cut, for memory; norm layers see a piece at a time
    channels_last      1: compute with channels last in memory; a quarter faster for wide images on a CPU
    compile            1: torch.compile, a quarter faster for ResNet-20 on a CPU after a minute or two; needs a C++ compiler there
    bf16               1: convolutions and dense layers in bfloat16, ResNet-20 1.7 times as fast on a processor with AMX; on a GPU always so
    workers            processes that read images, where they stay on disk
    threads            of the processor, for one run; the numbers depend on it, so it belongs to the recipe
    loss               (outputs, targets) to the mean loss of a batch; cross entropy if it is None
    score, score_name  (outputs, targets) to one number an image, for evaluation, and what it is called; accuracy if it is None
    own_model          where `model` comes from if it is the user's: "package.module:factory"
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], data.Splits]
    epochs: int
    batch: int
    images: int = 0
    optimizer: str = "adam"
    lr: float = 0.01
    plain_lr: float = 0.01
    method: str = "lilnetx"
    then: str = ""
    criterion: str = "surrogate"
    arrival: float = 0.5
    lam_mask: float = 1.0
    form: str = "squared"
    mask_start: str = "magnitudes"
    target_bits: float = 0.0
    bits_of: str = "weights"
    mask_lr: float = 0.0
    density_lr: float = 0.01
    decoder_lr: float = 0.0
    rest_lr: float = 0.0
    weight_decay: float = 0.0
    warmup: float = 0.0
    start: float = 0.0
    lam_rate: float = 1.0
    lam_group: float = 1.0
    lam_l2: float = 0.0
    ramp: float = 0.3
    weigh_macs: int = 0
    target_size: float = 0.0
    target_latency_ms: float = 0.0
    latency_table: str = ""
    round_to: int = 1
    target_flops: float = 0.0
    target_slices: float = 0.0
    weights: str = ""
    shift: int = 0
    flip: int = 0
    cutout: int = 0
    init: str = "random"
    levels: float = 6.0
    decoder: str = ""
    quantiser: str = "straight"
    hard: float = 0.7
    rate_of: str = "noise"
    distill: float = 0.0
    temperature: float = 4.0
    label_smoothing: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    stored_decoders: float = 0.2
    side_bits: int = 8
    accumulate: int = 1
    channels_last: int = 0
    compile: int = 0
    bf16: int = 0
    workers: int = 2
    threads: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    score: Callable[[Tensor, Tensor], Tensor] | None = None
    score_name: str = "accuracy"
    own_model: str = ""


def _pixels(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: models.with_pixel_norm(make())


# fmt: off
SGD = {"optimizer": "sgd", "init": "from_weights", "levels": 2.0, "channels_last": 1}
CIFAR = SGD | {
    "batch": 128, "lr": 0.2, "plain_lr": 0.2, "weight_decay": 5e-4, "warmup": 0.15, "lam_rate": 0.3, "lam_group": 0.3, "shift": 4,
    "flip": 1, "decoder": "dct", "side_bits": 10, "threads": 2,
}
IMAGENET = SGD | {
    "epochs": 90, "batch": 256, "lr": 0.1, "plain_lr": 0.1, "weight_decay": 1e-4, "warmup": 0.06, "lam_rate": 0.3, "lam_group": 0.3,
    "decoder": "dct", "side_bits": 10, "workers": 8, "threads": 2,
}
RECIPES = {r.name: r for r in (
    Recipe("digits", models.digits_resnet, data.digits, epochs=60, batch=128, lr=0.03, lam_rate=1.7, lam_group=1.7, shift=1),
    Recipe("mnist_lenet300", models.lenet300, data.mnist, epochs=30, batch=128, lr=0.1, plain_lr=0.1, weight_decay=1e-4, warmup=0.1,
           lam_rate=0.3, lam_group=0.3, **SGD),
    Recipe("mnist_lenet5", models.lenet5, data.mnist, epochs=30, batch=128, lr=0.01, rest_lr=0.001, decoder_lr=1e-4, plain_lr=0.001,
           warmup=0.1, start=0.15, decoder="diagonal", init="from_weights", levels=1.0, shift=1, channels_last=1),
    Recipe("cifar10_resnet20", _pixels(models.cifar_resnet20), data.cifar10, epochs=20, **CIFAR),
    Recipe("cifar10_resnet20x4", _pixels(lambda: models.cifar_resnet20(4)), data.cifar10, epochs=200, **CIFAR),
    Recipe("cifar10_vgg16", _pixels(models.cifar_vgg16), data.cifar10, epochs=200, **CIFAR | {"lr": 0.1, "plain_lr": 0.1}),
    Recipe("cifar100_resnet20x4", _pixels(lambda: models.cifar_resnet20(4, classes=100)), data.cifar100, epochs=200, **CIFAR),
    Recipe("imagenet_resnet18", _pixels(models.resnet18), data.imagenet, **IMAGENET),
    Recipe("imagenet_resnet50", _pixels(models.resnet50), data.imagenet, **IMAGENET),
    Recipe("imagenet_mobilenetv2", _pixels(models.mobilenet_v2), data.imagenet,
           **IMAGENET | {"epochs": 150, "lr": 0.05, "plain_lr": 0.05, "weight_decay": 4e-5}),
    Recipe("sst2_encoder", models.encoder, text.sst2, epochs=3, batch=128, lr=5e-4, plain_lr=5e-4, warmup=0.1, init="from_weights"),
)}
# fmt: on

CRITERIA = ("surrogate", "l1", "scales", "magnitude", "uniform")
CHOICES = {
    "optimizer": ("adam", "sgd"),
    "method": ("lilnetx", "prune", "low_rank", "quantize"),
    "then": ("", "lilnetx", "quantize"),
    "criterion": CRITERIA,
    "form": FORMS,
    "mask_start": ("magnitudes", "ones"),
    "bits_of": ("weights", "macs"),
    "init": ("random", "from_weights"),
    "decoder": ("", "full", "diagonal", "scalar", "dct"),
    "quantiser": ("straight", "noise", "soft"),
    "rate_of": ("noise", "rounded"),
}
TEXTS = ("weights", "latency_table")
FROM_ZERO = (  # whole numbers that may be 0
    "images", "shift", "flip", "cutout", "channels_last", "compile", "bf16", "workers", "weigh_macs",
)  # fmt: skip
SHARES = ("arrival", "start", "ramp", "warmup", "distill", "label_smoothing", "ema", "stored_decoders", "hard")


def get(name: str, changes: dict[str, str] | None = None) -> Recipe:
    """A recipe by name, with some of its settings changed; InputError lists what there is.

    changes  texts by setting; ``"own_model": "package.module:factory"`` trains that network instead of the recipe's
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}{_meant(name, RECIPES)}: there are {', '.join(RECIPES)}")
    recipe, changes = RECIPES[name], dict(changes or {})
    own = changes.pop("own_model", "")
    if own:
        recipe = dataclasses.replace(recipe, model=_factory(own), own_model=own)
    return changed(recipe, changes)


def changed(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """A recipe with other settings; InputError names what is no setting, or no value for it."""
    types = {f.name: type(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    types = {k: t for k, t in types.items() if t in (int, float) or k in CHOICES or k in TEXTS}
    return dataclasses.replace(recipe, **{k: _value(k, text, types) for k, text in changes.items()})


def _factory(where: str) -> Callable[[], nn.Module]:
    """What ``package.module:name`` names: a class or function without arguments that makes a network. The working folder counts."""
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise InputError(f"a model {where!r}: package.module:factory is needed, for example coursework.networks:MyNet")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as e:  # whatever the user's module raises
        raise InputError(f"the module {module} of the model {where!r} cannot be imported: {blame(e)}") from None
    factory = getattr(found, name, None)
    if not callable(factory):
        raise InputError(f"{module} has no class or function {name!r}")
    try:
        made = factory()
    except Exception as e:
        raise InputError(f"{where}() failed: {blame(e)}") from None
    if not isinstance(made, nn.Module):
        raise InputError(f"{where} makes a {type(made).__name__}, not a torch module")
    return factory


def _value(key: str, text: str, types: dict[str, type]) -> int | float | str:
    if key not in types:
        raise InputError(f"the recipe has no setting {key!r}{_meant(key, types)}: there are {', '.join(types)}")
    if key in TEXTS:
        return text
    if key in CHOICES:
        if text not in CHOICES[key]:
            raise InputError(f"{key}={text!r}: {' and '.join(map(repr, CHOICES[key]))} are the choices")
        return text
    try:
        value = types[key](text)
    except ValueError:
        raise InputError(f"{key}={text!r}: {'a whole number' if types[key] is int else 'a number'} is needed") from None
    if key in SHARES and value > 1:
        raise InputError(f"{key}={text}: a share between 0 and 1 is needed")
    if key == "side_bits" and not 2 <= value <= 16:
        raise InputError(f"side_bits={text}: 2 to 16 are possible")
    if key == "target_bits" and value and not 2 <= value < 16:
        raise InputError(f"target_bits={text}: 2 to less than 16 are possible")
    least = 1 if types[key] is int and key not in FROM_ZERO else 0
    if not least <= value < float("inf"):
        raise InputError(f"{key}={text}: a number from {least} on is needed")
    return value


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
