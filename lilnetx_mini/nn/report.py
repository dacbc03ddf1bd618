"""The main job: train a recipe plain and with LilNetX for several seeds, write the files, evaluate them elsewhere, show all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import lnx
from ..errors import LilnetxError
from ..provenance import circumstances
from .export import load_into
from .models import count_bytes
from .recipes import Recipe, get
from .train import Run, accuracy


def _start_worker(lock) -> None:
    """Bars share the terminal; and a worker whose parent was killed stops too, rather than train on unseen."""
    tqdm.set_lock(lock)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    run = Run(recipe, seed, folder, compress, device)
    run.resume()
    trained = run.fit(progress, position)
    test = run.splits.test
    result = {"seed": seed, "test_accuracy": accuracy(trained.model, test), **trained.metrics[-1]}
    if compress:
        example = torch.from_numpy(run.splits.validation.x[:2])
        saved = trained.compressor.save(Path(folder) / "model.lnx", example)
        plain = load_into(recipe.model(), saved.path)
        result |= {
            "file_bytes": saved.file_bytes,
            "module_accuracy": accuracy(plain, test),
            "runtime_difference": saved.difference,
        }
    else:
        state = trained.model.state_dict()
        data = b"".join(t.float().cpu().numpy().tobytes() for t in state.values())
        result |= {"float_bytes": len(data), "zip_bytes": _write_float(Path(folder), data)}
        assert len(data) == count_bytes(trained.model)
    return result


def _write_float(folder: Path, data: bytes) -> int:
    """The network as plain float32 values and as a zip of them; returns the zip's size."""
    lnx.write_atomic(folder / "float32.bin", data)
    with zipfile.ZipFile(folder / "float32.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        z.write(folder / "float32.bin", "float32.bin")
    return os.path.getsize(folder / "float32.zip")


def evaluate_elsewhere(path: Path, data: Path) -> float:
    """Accuracy of a file in a fresh process, through the command line and the torch-free runtime."""
    command = [sys.executable, "-m", "lilnetx_mini", "evaluate", str(path), "--data", str(data), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LilnetxError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)["accuracy"]


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
) -> dict:
    """Train every seed, as many at a time as there are processors, and return the report; it is in ``out/report.json`` too.

    On a GPU they train one after the other, unless `jobs` says otherwise. The first seed's file becomes ``out/model.lnx``.
    """
    out, recipe = Path(out), get(name, changes)
    out.mkdir(parents=True, exist_ok=True)
    kinds = [True, False] if plain else [True]
    tasks = [
        (name, changes, seed, str(out / f"seed{seed}" / ("lilnetx" if c else "plain")), c, fresh, progress, device)
        for c in kinds
        for seed in seeds
    ]
    alone = 1 if device != "cpu" else max(1, (os.cpu_count() or 1) // recipe.threads)
    jobs = min(len(tasks), jobs or alone)
    results: dict[bool, list[dict]] = {True: [], False: []}
    if jobs == 1:
        for task in tasks:
            results[task[4]].append(train_one(*task, 0))
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(context.RLock(),)) as pool:
            futures = {pool.submit(train_one, *task, n): task[4] for n, task in enumerate(tasks)}
            for f in as_completed(futures):
                results[futures[f]].append(f.result())
    report = _collect(
        recipe, sorted(results[True], key=lambda r: r["seed"]), sorted(results[False], key=lambda r: r["seed"]), out
    )
    lnx.write_atomic(out / "report.json", json.dumps(report, indent=1).encode())
    return report


def _collect(recipe: Recipe, compressed: list[dict], plain: list[dict], out: Path) -> dict:
    test = recipe.data().test
    with open(out / "test.npz", "wb") as f:
        np.savez(f, x=test.x, y=test.y)
    for r in compressed:
        r["file_accuracy"] = evaluate_elsewhere(out / f"seed{r['seed']}" / "lilnetx" / "model.lnx", out / "test.npz")
    first = out / f"seed{compressed[0]['seed']}" / "lilnetx" / "model.lnx"
    lnx.write_atomic(out / "model.lnx", first.read_bytes())
    return {
        "recipe": recipe.name,
        "made": circumstances(),
        "compressed": compressed,
        "plain": plain,
        "file": str(out / "model.lnx"),
    }


def _accuracies(rows: list[dict], key: str) -> str:
    return f"{100 * np.mean([r[key] for r in rows]):6.2f} %  ({', '.join(f'{100 * r[key]:.2f}' for r in rows)})"


def _mean_percent(rows: list[dict], key: str) -> str:
    return f"{100 * np.mean([r[key] for r in rows]):.1f} %"


def table(report: dict) -> str:
    """The report for people: sizes, ratios and test accuracies, mean over the seeds and each seed's own."""
    rows, plain = report["compressed"], report["plain"]
    size = float(np.mean([r["file_bytes"] for r in rows]))
    lines = [f"{'':24}{'bytes':>9}{'ratio':>8}   test accuracy: mean (each seed)"]
    if plain:
        full, packed = (float(np.mean([r[k] for r in plain])) for k in ("float_bytes", "zip_bytes"))
        lines += [
            f"{'float32 file':24}{full:9,.0f}{1:8.1f}   {_accuracies(plain, 'test_accuracy')}",
            f"{'zip of it':24}{packed:9,.0f}{full / packed:8.1f}   the same",
            f"{'.lnx, torch-free runtime':24}{size:9,.0f}{full / size:8.1f}   {_accuracies(rows, 'file_accuracy')}",
        ]
    else:
        lines += [f"{'.lnx, torch-free runtime':24}{size:9,.0f}{'':8}   {_accuracies(rows, 'file_accuracy')}"]
    lines += [
        f"{'  as torch module':24}{'':17}   {_accuracies(rows, 'module_accuracy')}",
        f"{'  network in training':24}{'':17}   {_accuracies(rows, 'test_accuracy')}",
        f"weights zero {_mean_percent(rows, 'weights_zero')}, slices zero {_mean_percent(rows, 'slices_zero')}",
        f"bytes of each seed: {', '.join(str(r['file_bytes']) for r in rows)}; the first is {report['file']}",
    ]
    return "\n".join(lines)


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
