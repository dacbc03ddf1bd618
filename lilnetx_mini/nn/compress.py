"""The whole job in one call: a network and its data in, a smaller network out. The loops that it runs are those of the recipes."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.utils.data import Dataset

from ..data import Split, Splits
from ..errors import InputError, LilnetxError
from . import latency
from .export import load_into
from .method import Surrogate
from .recipes import Recipe, changed
from .report import ASKED, HELP, missed, written
from .shrink import shrink
from .train import Run

HELD_OUT = 10  # of so many items of the data, one is for validation, unless they come split
START = {  # of a network that is trained already
    "epochs": 6, "batch": 128, "lr": 0.03, "plain_lr": 1e-3, "rest_lr": 1e-3, "decoder_lr": 1e-4, "warmup": 0.1, "init": "from_weights",
    "levels": 1.0,
}  # fmt: skip
EARLY = 0.2  # share of the steps after which channels go: trained kernels say at once what matters, and the rest can adapt for longer
FUNCTIONS = ("loss", "score", "score_name")


@dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    model    the smaller network, plain, in eval mode; it computes what the file holds where weights were rounded
    metrics  a line for every epoch: loss, score on the held-out part, what is left of multiply-adds, bits, bytes
    file     the `.lnx` in the folder; None if no folder was named
    """

    model: nn.Module
    metrics: list[dict]
    file: Path | None


def compress(
    model: nn.Module,
    data: Splits | Dataset | tuple[ArrayLike, ArrayLike],
    *,
    target_flops: float = 0.0,
    target_latency_ms: float = 0.0,
    target_size: float = 0.0,
    target_bits: float = 0.0,
    table: str | os.PathLike | None = None,
    runtime: str = "onnxruntime",
    folder: str | os.PathLike | None = None,
    device: str | None = "cpu",
    seed: int = 0,
    progress: bool = True,
    **settings: object,
) -> Compressed:
    """Train a network on, so that it becomes as small or as fast as is asked for. It is not changed: another one comes back.

    model              any module, trained or not
    data               `lilnetx_mini.data.Splits`; or (x, y), arrays or tensors of N inputs and their targets; or a torch data set of such
                       pairs, read once. Of the last two every tenth item is held out for the scores in `metrics`. The network gets x as it
                       is, except that bytes are taken for pixels, 0 to 255, and become float32 in 0 .. 1
    target_flops       multiply-adds that may be left, as a share: channels go, see `prune`; with ``method="low_rank"`` ranks
    target_latency_ms  instead, milliseconds that a call with one input may take in a runtime, here
    target_size        bytes that the file may take: latents with a rate; after the cut, if there is one
    target_bits        instead, mean bits of a weight, 2 to 16, see `quantize`
    table              file with latencies, of `lilnetx latency-table`; None: they are measured first
    runtime            where these are measured, on one thread: "onnxruntime", "torch" or "lilnetx"
    folder             keeps checkpoints, from which the same call with the same weights and data goes on where it was interrupted,
                       and the `.lnx`
    device             "cpu", "cuda", or None for a GPU if there is one
    settings           of `recipes.Recipe`, such as ``epochs=6, batch=128, lr=1e-3, optimizer="adam", threads=2``, and functions
                       ``loss`` and ``score``, both, where the task is not to tell classes apart
    raises             InputError for a target, a setting or data that make no sense; CheckpointError if the folder is another run's

        small = compress(model, (x, y), target_flops=0.5, epochs=3).model
    """
    asked = {"target_flops": target_flops, "target_latency_ms": target_latency_ms, "target_size": target_size, "target_bits": target_bits}
    asked = {k: v for k, v in asked.items() if v}
    functions = {k: settings.pop(k) for k in FUNCTIONS if k in settings}
    if "loss" in functions and "score" not in functions:
        raise InputError("loss= without score=: for other tasks than telling classes apart, one number an item is needed for `metrics`")
    way, threads, splits = _way(asked, settings, table), torch.get_num_threads(), _split(data, "loss" in functions)
    name = type(model).__name__
    own = functions | {"own_model": f"{name} {_fingerprint(model, splits):08x}"}
    recipe = Recipe(name, lambda: copy.deepcopy(model), lambda: splits, **START, threads=threads, **own)
    recipe = changed(recipe, {k: str(v) for k, v in (way | asked | settings).items()})
    with tempfile.TemporaryDirectory() as passing, torch.random.fork_rng():
        home = Path(folder or passing)
        try:
            if target_latency_ms:
                recipe = replace(recipe, latency_table=str(table or _measured(recipe, home, runtime, progress)))
            return _trained(Run(recipe, seed, home, True, device), folder is not None, progress)
        finally:
            torch.set_num_threads(threads)


def _way(asked: dict[str, float], settings: dict[str, object], table: object) -> dict[str, str]:
    """The method that gets there, and what follows its cut; settings may name another method."""
    if not asked:
        raise InputError("compress: a target is needed, such as target_flops=0.5, target_latency_ms=3, target_size=40_000 or target_bits=4")
    for pair in (("target_size", "target_bits"), ("target_flops", "target_latency_ms")):
        if set(pair) <= asked.keys():
            raise InputError(f"{' and '.join(pair)}: a network can have one of them")
    last = "lilnetx" if "target_size" in asked else "quantize" if "target_bits" in asked else ""
    cut = asked.keys() & {"target_flops", "target_latency_ms"}
    first = str(settings.get("method", "prune" if cut else last))
    reached = {
        "prune": cut | {"target_size", "target_bits"}, "low_rank": {"target_flops", "target_size", "target_bits"},
        "lilnetx": {"target_flops", "target_size"}, "quantize": {"target_bits"},
    }.get(first, set(asked))  # fmt: skip
    if wrong := sorted(asked.keys() - reached):
        raise InputError(f"method={first}: it does not lead to {' and '.join(wrong)}")
    if "latency_table" in settings or (table and "target_latency_ms" not in asked):
        raise InputError("a latency table is given as table=, and goes with target_latency_ms=")
    early = {"arrival": str(EARLY)} if first == "prune" else {}
    return {"method": first, "then": last if cut and first in ("prune", "low_rank") else "", **early}


def _fingerprint(model: nn.Module, splits: Splits) -> int:
    """Of weights and training data, so that a folder's run goes on with no others."""
    crc = 0
    for tensor in model.state_dict().values():
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), crc)
    train = splits.train
    images = train.x if isinstance(train, Split) else "\n".join(map(str, train.paths)).encode()
    return zlib.crc32(np.ascontiguousarray(train.y), zlib.crc32(np.ascontiguousarray(images) if isinstance(train, Split) else images, crc))


def _split(data: Splits | Dataset | tuple[ArrayLike, ArrayLike], any_target: bool) -> Splits:
    """The data of a run; its test part is the held-out one, as nothing here looks at a test part."""
    if isinstance(data, Splits):
        return data
    if isinstance(data, Dataset):
        data = tuple(np.stack([_array(part) for part in parts]) for parts in zip(*(data[n] for n in range(len(data))), strict=True))
    if not isinstance(data, tuple) or len(data) != 2:
        raise InputError(f"data of type {type(data).__name__}: Splits, a pair (x, y) of arrays, or a torch data set of pairs is needed")
    x, y = map(_array, data)
    if len(x) != len(y) or len(x) < HELD_OUT:
        raise InputError(f"{len(x)} inputs and {len(y)} targets: as many of both are needed, and at least {HELD_OUT}")
    x, y = (part.astype(np.float32) if part.dtype == np.float64 else part for part in (x, y))
    y = y.astype(np.int64) if y.dtype.kind in "iu" else y
    if y.dtype != np.int64 and not any_target:
        raise InputError(f"targets of type {y.dtype}: classes are whole numbers, and for other targets a loss is needed")
    held = np.arange(len(y)) % HELD_OUT == HELD_OUT - 1
    train, validation = Split(x[~held], y[~held]), Split(x[held], y[held])
    return Splits(train, validation, validation)


def _array(values: ArrayLike) -> NDArray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _measured(recipe: Recipe, folder: Path, runtime: str, progress: bool) -> Path:
    """The file with the network's latencies in a runtime, measured unless the folder has it."""
    path = folder / "latency.json"
    if not path.exists() or latency.load(path).runtime != runtime:
        image = torch.from_numpy(recipe.data().validation.images(slice(1)))
        latency.measure(recipe.model(), image, runtime, progress=progress).save(path)
    return path


def _trained(run: Run, keep: bool, progress: bool) -> Compressed:
    run.resume()
    done, path, got = run.fit(progress), run.folder / "model.lnx", {}
    rounded = not isinstance(run.method, Surrogate)
    if keep or rounded:
        network, plain = run.method.stored()
        got["file_bytes"] = written(run, network, path).file_bytes
    small = _shrunk(load_into(plain, path), run) if rounded else done.model
    got |= done.metrics[-1]
    for name, (key, style) in ASKED.items():
        asked = getattr(run.recipe, name)
        if asked and key in got and missed(name, asked, got[key]):
            warnings.warn(f"asked for {style.format(asked)}, got {style.format(got[key])}{HELP}", stacklevel=3)
    return Compressed(small.eval(), done.metrics, path if keep else None)


def _shrunk(model: nn.Module, run: Run) -> nn.Module:
    """Without the channels that do nothing, where they can be found."""
    try:
        return shrink(model, run.example()).to(run.device)
    except LilnetxError as e:
        warnings.warn(f"channels that do nothing are still in the network: {e}", stacklevel=4)
        return model.to(run.device)
