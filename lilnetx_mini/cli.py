"""The command line: ``lilnetx train | info | evaluate | predict``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import InputError, LilnetxError

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


@app.command(epilog="Example: lilnetx train digits --seeds 0,1,2 --set epochs=30")
def train(
    recipe: Annotated[str, typer.Argument(help="what to train: digits")],
    out: Annotated[Path | None, typer.Option(help="folder for checkpoints and results [default: runs/RECIPE]")] = None,
    seeds: Annotated[str, typer.Option(help="one or more seeds, with commas")] = "0",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a number of the recipe; may be repeated"),
    ] = None,
    plain: Annotated[bool, typer.Option(help="train the plain network too, to compare")] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start again, even where there is a checkpoint to resume")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time [default: one a processor]")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Train a recipe, write its .lnx file, evaluate it in a fresh process, and show sizes and accuracies.

    A run that was interrupted continues where its last checkpoint stands, to the same numbers.
    """
    from .nn import report

    changes = dict(_pair(s) for s in settings or [])
    folder = out or Path("runs") / recipe
    try:
        result = report.main_job(recipe, changes, _seeds(seeds), folder, plain, fresh, jobs, not quiet)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command continues from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    report.picture(result, folder / "report.png")
    typer.echo(report.table(result))
    typer.echo(f"picture: {folder / 'report.png'}")


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
    data: Annotated[str, typer.Option(help="a data set's name (digits), or an .npz with x and y")],
    as_json: JsonOption = False,
) -> None:
    """Test accuracy of a file, with the torch-free runtime."""
    from .data import test_split
    from .runtime import Network

    split = test_split(data)
    right = int((Network.load(file).predict(split.x) == split.y).sum())
    if as_json:
        typer.echo(json.dumps({"accuracy": right / len(split), "right": right, "images": len(split)}))
    else:
        typer.echo(f"{right} of {len(split)} right: {100 * right / len(split):.2f} %")


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


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: KEY=VALUE expected, for example --set epochs=30")
    return key, value


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
