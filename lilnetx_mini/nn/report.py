"""The main job: train a recipe plain and with LilNetX for several seeds, write the files, evaluate them elsewhere, show all."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from .. import lnx
from ..data import Split
from ..errors import CheckpointError, LilnetxError
from ..jobs import run_jobs
from ..provenance import circumstances
from .export import Saved, Storable, load_into, save
from .models import count_bytes
from .recipes import Recipe, get
from .targets import slice_macs
from .train import Run, evaluate, right


def train_one(
    name: str,
    changes: dict[str, str],
    seed: int,
    folder: str,
    compress: bool,
    fresh: bool,
    progress: bool,
    device: str | None,
    position: int,
) -> dict:
    """One run, resumed if its folder holds a checkpoint; writes the network beside it and returns what there is to report."""
    recipe = get(name, changes)
    teacher = _finished(recipe, seed, Path(folder).parent / "plain", device) if compress and recipe.distill else None
    run = Run(recipe, seed, folder, compress, device, teacher)
    if fresh and run.world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    run.world.wait()
    if run.resume() and progress and run.world.rank == 0:
        known = "trained already" if run.epoch == recipe.epochs else f"continues after epoch {run.epoch} of {recipe.epochs}"
        tqdm.write(f"{folder}: {known}", file=sys.stderr)
    trained = run.fit(progress, position)
    if progress and run.world.rank == 0:
        tqdm.write(f"{folder}: evaluated on {len(run.splits.test):,} test images", file=sys.stderr)
    test = partial(evaluate, split=run.splits.test, score=recipe.score or right, world=run.world, workers=recipe.workers)
    result = {"seed": seed, f"test_{recipe.score_name}": test(trained.model), **trained.metrics[-1]}
    if compress:
        network, plain = run.method.stored()
        saved = written(run, network, Path(folder) / "model.lnx")
        file = lnx.read(saved.path)
        result |= {
            "file_bytes": saved.file_bytes,
            f"module_{recipe.score_name}": test(load_into(plain, saved.path).to(run.device)),
            "runtime_difference": None if saved.note else saved.difference,
            "rounding_difference": None if saved.note else saved.rounding,
            "no_graph": saved.note,
        }
        if "flops_left" not in result:
            dense, left = slice_macs(file) if file.graph is not None else (1, None)
            result["flops_left"] = None if left is None else left / dense
    elif run.world.rank == 0:
        state = trained.model.state_dict()
        data = b"".join(t.float().cpu().numpy().tobytes() for t in state.values())
        result |= {"float_bytes": len(data), "zip_bytes": _write_float(Path(folder), data)}
        assert len(data) == count_bytes(trained.model)
    return result


def written(run: Run, network: Storable, path: Path) -> Saved:
    """The file, written by the first process; the others wait for it, and know what it says."""
    saved = save(network, path, run.example(), run.recipe.side_bits) if run.world.rank == 0 else None
    run.world.wait()
    return saved or Saved(str(path), path.stat().st_size, "", math.nan)


def _finished(recipe: Recipe, seed: int, folder: Path, device: str | None) -> nn.Module:
    """The plain network of a finished run."""
    run = Run(recipe, seed, folder, compress=False, device=device)
    if not run.resume() or run.epoch < recipe.epochs:
        raise CheckpointError(f"{folder} holds no finished plain network, from which distill={recipe.distill} would learn")
    return run.fit(progress=False).model


def _write_float(folder: Path, data: bytes) -> int:
    """The network as plain float32 values and as a zip of them; returns the zip's size."""
    lnx.write_atomic(folder / "float32.bin", data)
    with zipfile.ZipFile(folder / "float32.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        z.write(folder / "float32.bin", "float32.bin")
    return os.path.getsize(folder / "float32.zip")


def evaluate_elsewhere(path: Path, data: Path | str, progress: bool = False) -> dict:
    """What ``lilnetx evaluate`` says of a file, in a fresh process with the torch-free runtime: accuracy, right, images, damaged_images.

    progress  let that process show its progress and its warnings
    """
    command = [sys.executable, "-m", "lilnetx_mini", "evaluate", str(path), "--data", str(data), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None if progress else subprocess.PIPE, text=True)
    if done.returncode:
        raise LilnetxError(f"{' '.join(command)} failed: {(done.stderr or 'see above').strip()}")
    return json.loads(done.stdout)


def _at_a_time(recipe: Recipe, device: str | None) -> int:
    alone = device != "cpu" or int(os.environ.get("WORLD_SIZE", "1")) > 1
    return 1 if alone else max(1, (os.cpu_count() or 1) // recipe.threads)


def main_job(
    name: str,
    changes: dict[str, str],
    seeds: list[int],
    out: str | os.PathLike,
    plain: bool = True,
    fresh: bool = False,
    jobs: int | None = None,
    progress: bool = True,
    device: str | None = "cpu",
) -> dict | None:
    """Train every seed, as many at a time as there are processors, and return the report; it is in ``out/report.json`` too.

    On a GPU they train one after the other, unless `jobs` says otherwise. The first seed's file becomes ``out/model.lnx``. Of the
    processes of ``torchrun``, the first returns the report and the others None.
    """
    out, recipe = Path(out), get(name, changes)
    out.mkdir(parents=True, exist_ok=True)
    kinds = [True, False] if plain else [True]
    stages = [[False], [True]] if recipe.distill else [kinds]  # a teacher comes first
    results: dict[bool, list[dict]] = {True: [], False: []}
    for stage in stages:
        tasks = [
            (name, changes, seed, str(out / f"seed{seed}" / ("lilnetx" if c else "plain")), c, fresh, progress, device)
            for c in stage
            for seed in seeds
        ]
        for task, result in run_jobs(train_one, tasks, jobs or _at_a_time(recipe, device)):
            results[task[4]].append(result)
    if int(os.environ.get("RANK", "0")):
        return None
    report = _collect(
        recipe, sorted(results[True], key=lambda r: r["seed"]), sorted(results[False], key=lambda r: r["seed"]), out, progress
    )
    lnx.write_atomic(out / "report.json", json.dumps(report, indent=1).encode())
    return report


def _collect(recipe: Recipe, compressed: list[dict], plain: list[dict], out: Path, progress: bool) -> dict:
    test, source = recipe.data().test, "imagenet"
    if isinstance(test, Split):
        source = out / "test.npz"
        with open(source, "wb") as f:
            np.savez(f, x=test.x, y=test.y)
    for r in compressed:
        file = out / f"seed{r['seed']}" / "lilnetx" / "model.lnx"
        seen = {"accuracy": r["module_accuracy"]} if r["no_graph"] else evaluate_elsewhere(file, source, progress)
        r["file_accuracy"] = seen["accuracy"]
        if seen.get("damaged_images"):
            r["damaged_test_images"] = seen["damaged_images"]
    first = out / f"seed{compressed[0]['seed']}" / "lilnetx" / "model.lnx"
    lnx.write_atomic(out / "model.lnx", first.read_bytes())
    return {
        "recipe": recipe.name,
        "asked": {k: getattr(recipe, k) for k in ASKED if getattr(recipe, k)},
        "made": circumstances(),
        "compressed": compressed,
        "plain": plain,
        "file": str(out / "model.lnx"),
    }


def _accuracies(rows: list[dict], key: str) -> str:
    return f"{100 * np.mean([r[key] for r in rows]):6.2f} %  ({', '.join(f'{100 * r[key]:.2f}' for r in rows)})"


MISSED = 0.05  # of what was asked
HELP = "; missed: more epochs, or a target that is less far, would help"
ASKED = {  # what was asked for, what became of it, and how to show both
    "target_size": ("file_bytes", "{:,.0f} bytes"),
    "target_flops": ("flops_left", "{:.1%} of the multiply-adds"),
    "target_slices": ("slices_zero", "{:.1%} of the slices zero"),
    "target_latency_ms": ("measured_ms", "{:.3g} ms"),
    "target_bits": ("bits", "{:.3g} bits a weight"),
}


def _mean_percent(rows: list[dict], key: str) -> str:
    if rows[0][key] is None:
        return "unknown"
    return f"{100 * np.mean([r[key] for r in rows]):.1f} %"


def table(report: dict) -> str:
    """The report for people: sizes, ratios and test accuracies, mean over the seeds and each seed's own."""
    rows, plain = report["compressed"], report["plain"]
    file = ".lnx, loaded into torch" if rows[0]["no_graph"] else ".lnx, torch-free runtime"
    size = float(np.mean([r["file_bytes"] for r in rows]))
    lines = [f"{'':24}{'bytes':>13}{'ratio':>8}   test accuracy: mean (each seed)"]
    if plain:
        full, packed = (float(np.mean([r[k] for r in plain])) for k in ("float_bytes", "zip_bytes"))
        lines += [
            f"{'float32 file':24}{full:13,.0f}{1:8.1f}   {_accuracies(plain, 'test_accuracy')}",
            f"{'zip of it':24}{packed:13,.0f}{full / packed:8.1f}   the same",
            f"{file:24}{size:13,.0f}{full / size:8.1f}   {_accuracies(rows, 'file_accuracy')}",
        ]
    else:
        lines += [f"{file:24}{size:13,.0f}{'':8}   {_accuracies(rows, 'file_accuracy')}"]
    lines += [
        f"{'  as torch module':24}{'':21}   {_accuracies(rows, 'module_accuracy')}",
        f"{'  network in training':24}{'':21}   {_accuracies(rows, 'test_accuracy')}",
        f"weights zero {_mean_percent(rows, 'weights_zero')}, slices zero {_mean_percent(rows, 'slices_zero')}, "
        f"multiply-adds left {_mean_percent(rows, 'flops_left')}",
        *_promises(report),
        *[f"accuracies are the torch module's, as the runtime cannot run it: {r['no_graph']}" for r in rows[:1] if r["no_graph"]],
        f"bytes of each seed: {', '.join(str(r['file_bytes']) for r in rows)}; the first is {report['file']}",
    ]
    return "\n".join(lines)


def missed(name: str, asked: float, got: float) -> bool:
    """Is what became of a target further beyond it than is welcome? More zeros, fewer bytes and less work are welcome."""
    off = got / asked - 1
    return (-off if name == "target_slices" else off) > MISSED


def _promises(report: dict) -> list[str]:
    """A line for every target: what was asked for, what each seed has, and how far off that is."""
    lines = []
    for name, asked in report["asked"].items():
        key, style = ASKED[name]
        got = [r[key] for r in report["compressed"]]
        shown = ", ".join(f"{style.format(x).split(' ')[0]} ({x / asked - 1:+.1%})" for x in got)
        lines.append(f"asked for {style.format(asked)}: {shown}{HELP if any(missed(name, asked, x) for x in got) else ''}")
    return lines


def picture(report: dict, path: str | os.PathLike) -> None:
    """One PNG: byte map of the file beside the size-accuracy points of all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from .. import plots

    fig, (left, right) = plots.plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=[1, 1])
    plots.byte_map(lnx.ledger(report["file"]), left)
    points = [
        (kind, r[key], r["test_accuracy"])
        for r in report["plain"]
        for kind, key in (("float32", "float_bytes"), ("zip of float32", "zip_bytes"))
    ]
    plots.size_accuracy(points + [(".lnx", r["file_bytes"], r["file_accuracy"]) for r in report["compressed"]], right)
    fig.savefig(path, dpi=120)
    plots.plt.close(fig)
