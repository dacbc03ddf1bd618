"""The command line: ``lilnetx train | prune | factor | quantize | latency-table | sweep | info | evaluate | predict | bench | export``."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from . import __version__
from .errors import InputError, LilnetxError

if TYPE_CHECKING:
    from .nn.latency import Table

app = typer.Typer(
    help="Train networks to be small on disk and fast to run, and use the files they become.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[Path, typer.Argument(help="an .lnx file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="digits, mnist_lenet300, mnist_lenet5, cifar10_resnet20, cifar10_resnet20x4, cifar10_vgg16, cifar100_resnet20x4, "
        "imagenet_resnet18, imagenet_resnet50, imagenet_mobilenetv2 or sst2_encoder"
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="folder for checkpoints and results [default: runs/RECIPE, or runs/RECIPE-KEY=VALUE with the settings changed]"),
]
SweepOutOption = Annotated[
    Path | None, typer.Option(help="folder for checkpoints and results [default: runs/sweep-RECIPE, with the settings changed]")
]
SeedsOption = Annotated[str, typer.Option(help="one or more seeds, with commas")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a setting of the recipe; may be repeated. An unknown KEY lists them all"),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="MODULE:NAME", help="train a network of your own, made by a class or function without arguments"),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="start from trained weights: a checkpoint of torch whose tensors fit, by name or in their order"),
]
DataOption = Annotated[
    Path | None, typer.Option("--data-dir", help="folder of the data sets [default: LILNETX_DATA, else they are downloaded]")
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="start again, even where there is a checkpoint to resume")]
JobsOption = Annotated[int | None, typer.Option(min=1, help="runs at a time [default: as many as there are processors for]")]
PlainOption = Annotated[bool, typer.Option(help="train the plain network too, to compare")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="show shapes, memory, steps and time, and train nothing")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU if there is one")]
RuntimeOption = Annotated[
    str, typer.Option(help="whose milliseconds are measured: onnxruntime, torch, or lilnetx for this package's own runtime")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress bars")]


ThenSizeOption = Annotated[
    str | None, typer.Option(metavar="BYTES", help="after the cut, train what is left as LilNetX does, into a file of so many: 40kB, 3000")
]
ThenBitsOption = Annotated[float | None, typer.Option(metavar="BITS", help="after the cut, put weights on grids of so many on average")]


@dataclass(frozen=True)
class Training:
    """What every command that trains a recipe takes besides options of its own: fields are options, see `_trains`."""

    recipe: RecipeArgument
    out: OutOption = None
    seeds: SeedsOption = "0"
    settings: SetOption = None
    model: ModelOption = None
    weights: WeightsOption = None
    data_dir: DataOption = None
    plain: PlainOption = True
    fresh: FreshOption = False
    jobs: JobsOption = None
    device: DeviceOption = "cpu"
    dry_run: DryOption = False
    quiet: QuietOption = False

    def changes(self, asked: dict[str, str]) -> dict[str, str]:
        """Settings of the recipe to change, and what the command asks for."""
        return _changes(self.settings, self.model, self.weights, self.data_dir) | asked

    def run(self, asked: dict[str, str], max_accuracy_drop: float | None = None, out: Path | None = None) -> None:
        """Train, and show what came of it.

        asked  settings of the recipe that the command's own options stand for
        out    folder for the results, if it is not to be chosen by the settings
        """
        from .nn import estimate, recipes, report
        from .nn import sweep as several

        chosen, changes, recipe = _seeds(self.seeds), self.changes(asked), self.recipe
        told = {} if max_accuracy_drop is None else {"max_accuracy_drop": f"{max_accuracy_drop:g}"}
        folder = out or _folder(self.out, recipe, changes | told)
        options = (self.fresh, self.jobs, not self.quiet, _device(self.device))
        if max_accuracy_drop is not None:
            several.check_drop(max_accuracy_drop, changes)
        if self.dry_run:
            typer.echo(estimate.table(estimate.estimate(recipes.get(recipe, changes), _device(self.device))))
            several_sizes = "" if max_accuracy_drop is None else f"up to {several.TRIES} sizes, each with "
            beside = "and as many of the plain network" if self.plain or several_sizes else "and none of the plain network"
            typer.echo(f"  {several_sizes}{len(chosen)} such training(s), {beside}")
            return
        with _resumable():
            if max_accuracy_drop is None:
                result = report.main_job(recipe, changes, chosen, folder, self.plain, *options)
            else:
                named = dict(zip(("fresh", "jobs", "progress", "device"), options, strict=True))
                result = several.smallest(recipe, changes, max_accuracy_drop, chosen, folder, typer.echo, **named)
        if result is None:  # another process of torchrun
            return
        report.picture(result, folder / "report.png")
        typer.echo(report.table(result))
        typer.echo(f"picture: {folder / 'report.png'}")


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a `Training`: on the command line its fields are options like the command's own."""
    own, hints = list(inspect.signature(command, eval_str=True).parameters.values())[1:], get_type_hints(Training, include_extras=True)
    shared = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name],
            default=inspect.Parameter.empty if f.default is MISSING else f.default,
        )
        for f in fields(Training)
    ]  # fmt: skip

    def with_options(**given: object) -> None:
        command(Training(**{p.name: given.pop(p.name) for p in shared}), **given)

    together = [shared[0], *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared[1:]]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = inspect.Signature(together)
    with_options.__annotations__ = {p.name: p.annotation for p in together}
    return with_options


@app.command(epilog="Example: lilnetx train digits --seeds 0,1,2 --set epochs=30")
@_trains
def train(
    training: Training,
    target_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="bytes that the whole file should take: 40kB, 1.5MB, 3000")
    ] = None,
    target_flops: Annotated[
        str | None, typer.Option(metavar="SHARE", help="multiply-adds that should be left: 0.35, or 35%")
    ] = None,
    target_slices: Annotated[
        str | None, typer.Option(metavar="SHARE", help="share of kernel slices that should be zero: 0.9, or 90%")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="find the smallest file at most so many points below the plain network: several runs"),
    ] = None,
) -> None:
    """Train a recipe, write its .lnx file, evaluate it in a fresh process, and show sizes and accuracies.

    With a target, the multipliers of the penalties follow the gap to it. A run that was interrupted continues where its last
    checkpoint stands, to the same numbers. torchrun ... -m lilnetx_mini train ... uses several processes or machines.
    """
    given = {"target_size": target_size, "target_flops": target_flops, "target_slices": target_slices}
    training.run({key: str(_OVER[key](text)) for key, text in given.items() if text is not None}, max_accuracy_drop)


def _then(target_size: str | None, target_bits: float | None) -> dict[str, str]:
    """Settings for what follows a cut."""
    if target_size is not None and target_bits is not None:
        raise InputError("--target-size and --target-bits: what is left after the cut can have one of them")
    if target_size is not None:
        return {"then": "lilnetx", "target_size": str(_OVER["target_size"](target_size))}
    return {} if target_bits is None else {"then": "quantize", "target_bits": f"{target_bits:g}"}


@app.command(epilog="Example: lilnetx prune digits --target-flops 0.5 --target-size 3kB")
@_trains
def prune(
    training: Training,
    target_flops: Annotated[str | None, typer.Option(metavar="SHARE", help="multiply-adds that should be left: 0.5, or 50%")] = None,
    target_size: ThenSizeOption = None,
    target_bits: ThenBitsOption = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", min=0.0, help="instead: milliseconds that a call of the network should take here")
    ] = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(help="what `lilnetx latency-table` wrote [default: measured first, and kept in the folder of the results]"),
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
) -> None:
    """Train a recipe so that channels can go: fewer multiply-adds, or milliseconds, and a narrower network.

    The network that is trained, or that --weights holds, has an entry of a mask for every channel that can go; at half of the steps
    (--set arrival=0.5) the smallest are cut until no more is left than was asked for, and the rest of the training makes the best of
    it. The file holds the smaller network. It is `lilnetx train RECIPE --set method=prune`, with the same options.
    """
    if (target_flops is None) == (target_latency_ms is None):
        raise InputError("--target-flops 0.5, or --target-latency-ms 3: one of them is needed")
    then = _then(target_size, target_bits)
    if target_flops is not None:
        training.run({"method": "prune", "target_flops": str(_share(target_flops))} | then)
        return
    asked = {"method": "prune", "target_latency_ms": f"{target_latency_ms:g}"} | then
    changes = training.changes(asked)
    out = _folder(training.out, training.recipe, changes)
    path = latency_table or out / "latency.json"
    if latency_table is None and not path.exists():
        _measure_latency(training.recipe, changes, runtime, 1, 1, path, training.quiet)
    training.run(asked | {"latency_table": str(path)}, out=out)


@app.command(epilog="Example: lilnetx factor digits --target-flops 0.5 --set epochs=20")
@_trains
def factor(
    training: Training,
    target_flops: Annotated[str, typer.Option(metavar="SHARE", help="multiply-adds that should be left: 0.5, or 50%")],
    target_size: ThenSizeOption = None,
    target_bits: ThenBitsOption = None,
) -> None:
    """Train a recipe whose layers become two each, with few channels in between: fewer multiply-adds.

    The channels in between have entries of a mask that start at the singular values of the layer's weight; see `lilnetx prune` for what
    becomes of them. It is `lilnetx train RECIPE --set method=low_rank`, with the same options.
    """
    training.run({"method": "low_rank", "target_flops": str(_share(target_flops))} | _then(target_size, target_bits))


@app.command(epilog="Example: lilnetx quantize digits --target-bits 3 --set epochs=20")
@_trains
def quantize(
    training: Training,
    target_bits: Annotated[float, typer.Option(metavar="BITS", help="mean bits of a weight that may be left, from 2 on")],
) -> None:
    """Train a recipe with weights on grids of 2, 4, 8 or 16 bits, as many for every output channel as it turns out to need.

    At half of the steps (--set arrival=0.5) it is settled how many, and the rest of the training makes the best of it. The file holds
    the integers, coded as those of other files are. It is `lilnetx train RECIPE --set method=quantize`, with the same options;
    --set bits_of=macs counts a weight as often as it is used.
    """
    training.run({"method": "quantize", "target_bits": f"{target_bits:g}"})


@app.command("latency-table", epilog="Example: lilnetx latency-table cifar10_resnet20 --out resnet20.json")
def latency_table(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("latency.json"),
    runtime: RuntimeOption = "onnxruntime",
    batch: Annotated[int, typer.Option(min=1, help="images in a call")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="threads of the runtime")] = 1,
    settings: SetOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time a recipe's layers on this machine at a grid of widths, for `lilnetx prune --target-latency-ms`.

    Whatever else the machine does meanwhile is in the numbers: let it rest.
    """
    table = _measure_latency(recipe, _changes(settings, model, None, data_dir), runtime, batch, threads, out, quiet)
    typer.echo(f"{out}: {runtime}, batch {batch}, {threads} thread{'s' * (threads > 1)}, {table.made['machine']}")
    for name, grid in table.kinds.items():
        typer.echo(f"  {name:44}{grid.ms[-1][-1]:9.4f} ms   ({grid.ms[0][0]:.4f} ms at its narrowest)")
    typer.echo(f"a network takes {table.base:.3f} ms and {table.factor:.3f} times the sum of its layers")


def _measure_latency(recipe: str, changes: dict[str, str], runtime: str, batch: int, threads: int, path: Path, quiet: bool) -> Table:
    """The latency table of a recipe's network, written to a file."""
    import torch

    from .data import batches
    from .nn import latency, recipes

    known = recipes.get(recipe, {k: v for k, v in changes.items() if k == "own_model"})
    image = torch.from_numpy(next(iter(batches(known.data().validation, [], 1)))[0])
    table = latency.measure(known.model(), image.expand(batch, *image.shape[1:]), runtime, threads, progress=not quiet)
    table.save(path)
    return table


@app.command(epilog="Example: lilnetx sweep digits --lam-rate 0.5,1,2,4")
def sweep(
    recipe: RecipeArgument,
    lam_rate: Annotated[str | None, typer.Option(metavar="A,B,C", help="multipliers of the rate; that of the groups follows")] = None,
    target_size: Annotated[str | None, typer.Option(metavar="A,B,C", help="sizes of the whole file: 20kB,40kB,80kB")] = None,
    target_flops: Annotated[str | None, typer.Option(metavar="A,B,C", help="shares of multiply-adds that should be left")] = None,
    target_slices: Annotated[str | None, typer.Option(metavar="A,B,C", help="shares of slices that should be zero")] = None,
    out: SweepOutOption = None,
    seeds: SeedsOption = "0",
    settings: SetOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data_dir: DataOption = None,
    fresh: FreshOption = False,
    jobs: JobsOption = None,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Train a recipe once for each of several values: the curve of size against accuracy, as JSON and PNG.

    What has been trained is kept: the same command continues, and with more values adds their points.
    """
    from .nn import sweep as several

    given = {"lam_rate": lam_rate, "target_size": target_size, "target_flops": target_flops, "target_slices": target_slices}
    given = {k: v for k, v in given.items() if v is not None}
    if len(given) != 1:
        options = ", ".join("--" + k.replace("_", "-") for k in _OVER)
        raise InputError(f"{'only ' if given else ''}one of {options} is needed, with values and commas")
    ((key, text),) = given.items()
    values = [_OVER[key](v) for v in text.split(",")]
    changes, chosen = _changes(settings, model, weights, data_dir), _seeds(seeds)
    folder = _folder(out, f"sweep-{recipe}", changes)
    options = {"fresh": fresh, "jobs": jobs, "progress": not quiet, "device": _device(device)}
    with _resumable():
        result = several.sweep(recipe, changes, key, values, chosen, folder, **options)
    if result is None:
        return
    several.picture(result, folder / "sweep.png")
    typer.echo(several.table(result))
    typer.echo(f"{folder / 'sweep.json'}, picture: {folder / 'sweep.png'}")


@app.command(epilog="Example: lilnetx info model.lnx --json")
def info(
    file: FileArgument,
    as_json: JsonOption = False,
    as_hex: Annotated[bool, typer.Option("--hex", help="show the bytes with their meaning")] = False,
) -> None:
    """Show where every byte of a file goes: sections, then bits a weight and slice sparsity by layer."""
    from . import hexdump, lnx

    if as_hex:
        for line in hexdump.lines(lnx.load_bytes(file)):
            typer.echo(line)
        return
    ledger = lnx.ledger(file)
    if as_json:
        typer.echo(json.dumps(asdict(ledger)))
        return
    typer.echo(f"{file}: {ledger.file_bytes:,} bytes")
    for name, size in ledger.sections.items():
        typer.echo(f"  {name:14}{size:10,} B  {100 * size / ledger.file_bytes:5.1f} %")
    typer.echo(f"\n  {'layer':40}{'shape':>18}{'bits/weight':>13}{'weights zero':>14}{'slices zero':>13}")
    for x in ledger.layers:
        shape = "x".join(map(str, x["shape"]))
        typer.echo(
            f"  {x['name']:40}{shape:>18}{x['bits_per_weight']:13.3f}{100 * x['weights_zero']:12.1f} %{100 * x['slice_sparsity']:11.1f} %"
        )
    for x in ledger.raws:
        typer.echo(f"  {x['name']:40}{'x'.join(map(str, x['shape'])):>18}   stored as it is, {x['values']} floats")
    if ledger.note:
        typer.echo(f"\n  no graph: {ledger.note}")


@app.command(epilog="Example: lilnetx evaluate runs/digits/model.lnx --data digits")
def evaluate(
    file: FileArgument,
    data: Annotated[
        str, typer.Option(help="digits, mnist, cifar10, cifar100 or imagenet, or an .npz file with x and y")
    ],
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test accuracy of a file, with the torch-free runtime. Image files that cannot be read are named and do not count."""
    from tqdm import tqdm

    from .data import batches, test_split
    from .runtime import Network

    _use_data(data_dir)
    split, network = test_split(data), Network.load(file)
    damaged: list[str] = []
    right, count, named = 0, 0, 0
    with tqdm(total=len(split), desc=str(file), unit="image", leave=False, disable=None) as bar:  # on terminals only
        for x, y in batches(split, damaged):
            right, count = right + int((network.predict(x) == y).sum()), count + len(y)
            for message in damaged[named:]:
                bar.write(f"warning: {message}; it is skipped", file=sys.stderr)
            named = len(damaged)
            bar.update(count + named - bar.n)
    if not count:
        raise InputError(f"{data}: none of {len(split)} images can be read")
    if as_json:
        typer.echo(json.dumps({"accuracy": right / count, "right": right, "images": count, "damaged_images": named}))
    else:
        skipped = f"; {named} that cannot be read left out" if named else ""
        typer.echo(f"{right} of {count} right: {100 * right / count:.2f} %{skipped}")


@app.command(epilog="Example: lilnetx predict runs/digits/model.lnx seven.png")
def predict(
    file: FileArgument,
    image: Annotated[
        Path,
        typer.Argument(
            help="an image file (digits: bright ink on black), or an .npy/.npz array of the network's input shape"
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """The class of one image, or of every image of an array, with the torch-free runtime."""
    from .data import load_images
    from .runtime import Network

    network = Network.load(file)
    outputs = network(load_images(image, network.input_shape)).reshape(-1, network.shapes[-1][0])
    classes = outputs.argmax(1)
    if as_json:
        typer.echo(json.dumps({"classes": classes.tolist(), "outputs": outputs.tolist()}))
    elif len(classes) == 1:
        best = outputs[0].argsort()[::-1][:3]
        typer.echo(f"class {classes[0]}   (largest outputs: {', '.join(f'{k}: {outputs[0][k]:.2f}' for k in best)})")
    else:
        typer.echo(" ".join(map(str, classes)))


@app.command(epilog="Example: lilnetx bench model.lnx --layers --plot speed.png")
def bench(
    file: FileArgument,
    batch: Annotated[int, typer.Option(min=1, help="images in a call")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="threads of every engine")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="how often each engine is timed; medians are shown")] = 41,
    layers: Annotated[bool, typer.Option("--layers", help="show milliseconds and multiply-adds of every layer too")] = False,
    plot: Annotated[Path | None, typer.Option(help="write bars of both to an image file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a file's network on this machine: on its sparse weights, on dense ones, and in onnxruntime if it is installed."""
    from . import bench as timing
    from . import lnx
    from .provenance import circumstances
    from .runtime import Network

    model = lnx.read(file)
    network = Network(model, threads)
    rows = timing.measure(model, batch, threads, runs)
    profile = network.profile(timing.noise(model, 1)) if network.plan and (layers or plot or as_json) else []
    if plot:
        from . import plots

        plots.speed(rows, profile, f"{file.name}, batch {batch}, {threads} thread{'s' * (threads > 1)}", plot)
    if as_json:
        made = {"batch": batch, "threads": threads, "engines": [asdict(r) for r in rows]}
        typer.echo(json.dumps({**made, "layers": [asdict(t) for t in profile], "made": circumstances()}))
        return
    slowest = max(r.milliseconds for r in rows)
    typer.echo(f"{file}: batch {batch}, {threads} thread{'s' * (threads > 1)}, medians of {runs}")
    for r in rows:
        bar = "█" * max(1, round(40 * r.milliseconds / slowest))
        typer.echo(f"  {r.name:20}{r.milliseconds:10.3f} ms{r.milliseconds / rows[0].milliseconds:7.2f} x  {bar}")
    if len(rows) == 2:
        typer.echo("  (pip install onnx onnxruntime: then they are compared with it as well)")
    if network.note:
        typer.echo(f"  the reference operations run this network: {network.note}")
    if layers and profile:
        typer.echo(f"\n{profile}")


@app.command(epilog="Example: lilnetx export model.lnx --onnx model.onnx")
def export(
    file: FileArgument,
    out: Annotated[Path | None, typer.Argument(help="where to write [default: FILE with another suffix]")] = None,
    as_onnx: Annotated[bool, typer.Option("--onnx", help="the format: ONNX, the only one so far")] = False,
    keep_channels: Annotated[
        bool, typer.Option("--keep-channels", help="keep the channels that have no effect")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a file's network in a format that other programs run; an older file of that name is replaced."""
    if not as_onnx:
        raise InputError(f"export to what? ONNX is the only format so far: lilnetx export {file} --onnx")
    from .onnx_export import export as to_file

    done = to_file(file, out or file.with_suffix(".onnx"), shrink=not keep_channels)
    if as_json:
        typer.echo(json.dumps(done))
        return
    typer.echo(f"{file}: {done['source_bytes']:,} bytes")
    typer.echo(f"{done['target']}: {done['bytes']:,} bytes, weights as plain float32")
    if not keep_channels:
        (channels, left), (weights, used) = done["channels"], done["weights"]
        typer.echo(f"  without effect and left out: {channels - left:,} of {channels:,} channels, ", nl=False)
        typer.echo(f"{weights - used:,} of {weights:,} weights")
    typer.echo("\nto run it, with onnxruntime installed:")
    typer.echo(f"  session = onnxruntime.InferenceSession({done['target']!r})")
    shape = ", ".join(["N", *map(str, done["input_shape"])])
    typer.echo(f'  outputs = session.run(None, {{"input": x}})[0]    # x: ({shape}) float32')


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is not a number") from None


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command continues from the last checkpoint", err=True)
        raise typer.Exit(130) from None


def _changes(settings: list[str] | None, model: str | None, weights: str | None, data_dir: Path | None) -> dict[str, str]:
    """Settings of the recipe to change; the data folder goes to the environment, for all processes to see."""
    _use_data(data_dir)
    named = {"own_model": model, "weights": weights}
    return dict(_pair(s) for s in settings or []) | {k: v for k, v in named.items() if v}


def _use_data(data_dir: Path | None) -> None:
    if data_dir:
        if not data_dir.is_dir():
            raise InputError(f"--data-dir {data_dir} is not a folder")
        os.environ["LILNETX_DATA"] = str(data_dir.resolve())


def _folder(out: Path | None, name: str, changes: dict[str, str]) -> Path:
    """Where a command writes: what it was told, or a folder of its own for every combination of settings."""
    named = "-".join([name, *(f"{k}={v}".replace(":", ".").replace(os.sep, "_") for k, v in sorted(changes.items()))])
    folder = out or Path("runs") / named
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise InputError(f"--out {folder}: {part} is a file, and a folder is needed")
    return folder


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: KEY=VALUE expected, for example --set epochs=30")
    return key, value


def _device(text: str) -> str | None:
    if text not in ("cpu", "cuda", "auto"):
        raise InputError(f"--device {text}: cpu, cuda and auto are the choices")
    return None if text == "auto" else text


def _bytes(text: str) -> float:
    """"40kB", "1.5 MB", "3000", "64KiB" as a number of bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kKM]?)(i?)[bB]?\s*", text)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if number <= 0:
        raise InputError(f"a size of {text!r}: write it as 40kB, 1.5MB or 3000")
    power = {"": 0, "k": 1, "m": 2}[match[2].lower()]
    return number * (1024 if match[3] else 1000) ** power


def _share(text: str) -> float:
    """"0.35" or "35%" as a share."""
    value = _number(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    if not 0 < value < 1:
        raise InputError(f"a share of {text!r}: a number between 0 and 1 is needed, such as 0.35 or 35%")
    return value


_OVER = {"lam_rate": _number, "target_size": _bytes, "target_flops": _share, "target_slices": _share}


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text}: whole numbers with commas expected, for example 0,1,2") from None
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds {text}: different numbers from 0 on are needed")
    return seeds


def main() -> None:
    """Entry point: our own errors become one line and exit status 1."""
    try:
        app()
    except (LilnetxError, OSError) as e:
        typer.echo(f"lilnetx: {e}", err=True)
        sys.exit(1)
