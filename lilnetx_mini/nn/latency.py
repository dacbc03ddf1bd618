"""Milliseconds of a network as a function of its widths: a table measured on the machine that will run it, read between its points.

Every layer is timed on its own at a grid of widths, on both of its sides, and a few whole networks beside them. Layers alone do not make
a network: additions, pools and calls take their time too. So a network is predicted as ``base + factor`` times the sum of its
layers, and the two numbers are fitted to those whole networks.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from .. import lnx
from ..bench import onnx_session, turn_by_turn
from ..errors import InputError, MissingExtraError
from ..provenance import circumstances
from ..runtime import Network
from ..simplify import simplify
from .channels import STAYS, Channels, Layer, grouped
from .compressor import TRANSPOSED
from .export import capture

RUNTIMES = ("onnxruntime", "torch", "lilnetx")
SHARES = (0.0, 0.25, 0.6)  # of a layer's width, where it is timed, besides all of it and all but one
WHOLE = 16  # whole networks of random widths that are timed beside the one with all of its channels
NARROWEST = 0.2  # of every group's channels
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
VERSION = 1


@dataclass(frozen=True)
class Grid:
    """Milliseconds of one kind of layer, (outs, ins), at so many output and input channels; both rise."""

    outs: list[int]
    ins: list[int]
    ms: list[list[float]]


@dataclass(frozen=True)
class Table:
    """What was measured.

    runtime        "onnxruntime", "torch" or "lilnetx" (this package's own, on weights without zeros)
    batch, threads of every call
    kinds          name of a kind of layer to its grid
    base, factor   milliseconds of a network are base + factor times the sum of its layers'
    whole          milliseconds of the network with all of its channels, in the same turns as its layers; 0 if it is not known
    made           machine, versions, date and command
    """

    runtime: str
    batch: int
    threads: int
    kinds: dict[str, Grid]
    base: float = 0.0
    factor: float = 1.0
    whole: float = 0.0
    made: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        lnx.write_atomic(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode())

    def of(self, model: nn.Module, example_input: Tensor, channels: Channels) -> Predictor:
        """For one network; InputError if the table lacks one of its layers."""
        return Predictor(self, model, example_input, channels)


def load(path: str | os.PathLike) -> Table:
    """A table from its file; InputError if it is none."""
    try:
        data = json.loads(Path(path).read_text())
        version = data.pop("version")
        kinds = {str(name): Grid(**grid) for name, grid in data.pop("kinds").items()}
        table = Table(kinds=kinds, **data)
        right = version == VERSION and table.runtime in RUNTIMES and all(map(_sound, kinds.values()))
        right = right and math.isfinite(table.base) and table.factor > 0
    except OSError as e:
        raise InputError(f"the latency table {path} cannot be read: {e.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        right = False
    if not right:
        raise InputError(f"{path} is no latency table, or one of another version: lilnetx latency-table makes one")
    return table


def _sound(grid: Grid) -> bool:
    ms = np.array(grid.ms, float)
    rising = all(len(side) > 0 and side[0] >= 1 and (np.diff(side) > 0).all() for side in (grid.outs, grid.ins))
    return bool(rising and ms.shape == (len(grid.outs), len(grid.ins)) and (ms > 0).all() and np.isfinite(ms).all())


# -- one layer --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _inputs(model: nn.Module, example: Tensor, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes that layers read, by their names."""
    shapes: dict[str, tuple[int, ...]] = {}
    model = copy.deepcopy(model).eval()

    def remember(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, inputs: shapes.update({name: tuple(inputs[0].shape)})

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(remember(name))
    model(example)
    return shapes


def kind(module: nn.Module, shape: tuple[int, ...]) -> str:
    """What layers have in common that take equally long: "Conv2d 16>32 3x3 /2 at 32x32", by the shape that they read."""
    outs, ins = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else (module.out_channels, module.in_channels)
    name = f"{type(module).__name__} {ins}>{outs}"
    if isinstance(module, nn.Linear):
        rows = math.prod(shape[1:-1])
        return name + (f" of {rows}" if rows > 1 else "")
    x = "x".join
    name += f" {x(map(str, module.kernel_size))}"
    for sign, value, usual in (("/", module.stride, 1), ("+", module.padding, None), ("*", module.dilation, 1)):
        value = (value,) if isinstance(value, (int, str)) else value
        name += "" if set(value) == {usual} else f" {sign}{x(map(str, dict.fromkeys(value)))}"
    name += " depthwise" if grouped(module) else ""
    return f"{name} at {x(map(str, shape[2:]))}"


def _block(module: nn.Module, shape: tuple[int, ...], outs: int, ins: int) -> tuple[nn.Module, Tensor]:
    """A layer like this one with other widths, with what usually follows it, and what it reads."""
    if isinstance(module, nn.Linear):
        return nn.Linear(ins, outs).eval(), torch.randn(*shape[:-1], ins)
    same = {k: getattr(module, k) for k in ("kernel_size", "stride", "padding", "dilation")}
    same |= {"output_padding": module.output_padding} if isinstance(module, TRANSPOSED) else {}
    if grouped(module):
        if module.groups != module.in_channels or module.in_channels != module.out_channels:
            raise InputError(f"{kind(module, shape)}: of convolutions with groups, only depthwise ones have a table")
        ins, same = outs, same | {"groups": outs}
    layer = type(module)(ins, outs, bias=False, **same)
    norm = NORMS[len(module.kernel_size)](outs)
    return nn.Sequential(layer, norm, nn.ReLU()).eval(), torch.randn(shape[0], ins, *shape[2:])


def call(module: nn.Module, example: Tensor, runtime: str, threads: int = 1) -> Callable[[], object]:
    """What runs a network in eval mode once, in a runtime; for torch the number of threads has to be set around it, see `on_threads`.

    raises  InputError for another runtime; MissingExtraError where it is not installed; UnsupportedOpError for what it cannot run
    """
    module = copy.deepcopy(module).cpu().float().eval()
    example = example.detach().cpu()
    if runtime == "torch":
        return torch.no_grad()(lambda: module(example))
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r}: {', '.join(RUNTIMES)} are the choices")
    model, x = capture(module, example), example.numpy()
    if runtime == "lilnetx":
        network = Network(model, threads)
        return lambda: network(x)
    try:
        run = onnx_session(*simplify(model.graph, model.tensors())[:2], threads)
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx") from e
    return lambda: run(x)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def milliseconds(networks: dict[str, nn.Module], example: Tensor, runtime: str, threads: int = 1, runs: int = 31) -> dict[str, float]:
    """Median milliseconds of a call of each network, timed turn by turn.

    example  one batch, as they take it
    runs     timed calls of each, after as many that are not
    raises   as `call`
    """
    with on_threads(threads):
        calls = {name: call(m, example, runtime, threads) for name, m in networks.items()}
        return {row.name: row.milliseconds for row in turn_by_turn(calls, runs)}


def _widths(units: np.ndarray) -> list[int]:
    """Where a side of a layer is timed: up to all of its channels, or only there if all of them stay.

    At odd numbers, as what is left of a layer is seldom a round one: kernels like multiples of 4 or 16, and with these in the table
    it would be read as if half of all widths were such. All but one, as the step to all of them may be the largest.
    """
    most = len(units)
    if (units == STAYS).all():
        return [most]
    return sorted({1, most, max(1, most - 1), *(min(round(most * share) | 1, most) for share in SHARES)})


def measure(
    model: nn.Module, example_input: Tensor, runtime: str = "onnxruntime", threads: int = 1, runs: int = 15, progress: bool = True
) -> Table:
    """Time a network's layers at a grid of widths, and a few whole networks, on this machine.

    model          with ordinary weights, in any mode; it is not changed
    example_input  one batch, as it takes it: the batch that counts
    runtime        "onnxruntime", "torch" or "lilnetx"
    threads        of it
    runs           timed calls at every point, of which the median counts
    raises         InputError where nothing can go, or for another runtime; MissingExtraError where the runtime, or torch-pruning, is not
                   installed

    Anything else that the machine does meanwhile is in the numbers.
    """
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise InputError("the module is parametrised: measure the plain network")
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r}: {', '.join(RUNTIMES)} are the choices")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes would time one another: measure first with `lilnetx latency-table`, then name the file")
    model, example = copy.deepcopy(model).cpu().float().eval(), example_input.detach().cpu()
    channels = Channels(model, example)
    shapes = _inputs(model, example, [x.name for x in channels.layers])
    kinds: dict[str, list[Layer]] = {}
    for layer in channels.layers:
        kinds.setdefault(kind(model.get_submodule(layer.name), shapes[layer.name]), []).append(layer)
    grids, speeds, whole = {}, [], call(model, example, runtime, threads)
    with on_threads(threads):
        for name, alike in tqdm(kinds.items(), desc=f"layers on {runtime}", unit="kind", disable=not progress):
            module, shape = model.get_submodule(alike[0].name), shapes[alike[0].name]
            outs = sorted({n for layer in alike for n in _widths(layer.makes)})  # what stays in one may go in another
            ins = [1] if grouped(module) else sorted({n for layer in alike for n in _widths(layer.reads)})
            calls = {f"{o},{i}": call(*_block(module, shape, o, i), runtime, threads) for o in outs for i in ins}
            *ms, then = [row.milliseconds for row in turn_by_turn(calls | {"whole": whole}, runs)]
            speeds.append(then)
            grids[name] = Grid(outs, ins, (np.array(ms) / then).reshape(len(outs), len(ins)).tolist())
    usual = float(np.median(speeds))  # what the whole network takes; beside every kind, as the speed of a machine drifts
    grids = {name: replace(grid, ms=(usual * np.array(grid.ms)).tolist()) for name, grid in grids.items()}
    table = Table(runtime, len(example), threads, grids, whole=usual, made=circumstances())
    return _fitted(table, model, example, channels, runs)


def _fitted(table: Table, model: nn.Module, example: Tensor, channels: Channels, runs: int) -> Table:
    """With base and factor that fit whole networks of several widths best."""
    from .surrogate import Pruned

    predictor, generator = table.of(model, example, channels), torch.Generator().manual_seed(0)
    networks, sums = {"whole": model}, [float(predictor.layers(torch.tensor(channels.units)).sum())]
    for n in range(WHOLE):
        pruned = Pruned(copy.deepcopy(model), channels, example, "squared", "ones", 0)
        shares = NARROWEST + (1 - NARROWEST) * torch.rand(len(channels.units), generator=generator)
        left = [torch.arange(units) < max(1, round(units * float(share))) for units, share in zip(channels.units, shares, strict=True)]
        pruned.alive = torch.cat(left)
        pruned.project()
        networks[f"{n}"] = pruned.shrink()
        sums.append(float(predictor.layers(channels.counts(pruned.alive)).sum()))
    took = np.array(list(milliseconds(networks, example, table.runtime, table.threads, max(runs, 15)).values()))
    took *= table.whole / took[0]
    columns = np.stack([np.ones(len(sums)), sums], 1) / took[:, None]  # relative errors are what counts
    base, factor = np.linalg.lstsq(columns, np.ones(len(sums)), rcond=None)[0]
    if factor <= 0:  # nothing that widths explain: then the layers alone
        base, factor = 0.0, float(np.exp(np.log(took / sums).mean()))
    return replace(table, base=float(base), factor=float(factor))


def _padded(side: list[int], length: int) -> Tensor:
    """A rising row of this length that begins with these numbers."""
    return torch.tensor([*side, *range(side[-1] + 1, side[-1] + 1 + length - len(side))], dtype=torch.float64)


# -- a network --------------------------------------------------------------------------------------------------------


class Predictor:
    """A table, ready for one network's counts of channels."""

    def __init__(self, table: Table, model: nn.Module, example: Tensor, channels: Channels) -> None:
        self.table, self.channels = table, channels
        shapes = _inputs(model, example, [x.name for x in channels.layers])
        grids = [self._grid(model.get_submodule(x.name), shapes[x.name], x) for x in channels.layers]
        most = max(2, *(len(side) for g in grids for side in (g.outs, g.ins)))
        self._outs, self._ins = (torch.stack([_padded(getattr(g, side), most) for g in grids]) for side in ("outs", "ins"))
        rows = [np.pad(np.array(g.ms), [(0, most - len(g.outs)), (0, most - len(g.ins))], "edge") for g in grids]
        ms = np.stack(rows)
        falling = np.minimum.accumulate(np.minimum.accumulate(ms[:, ::-1, ::-1], 1), 2)[:, ::-1, ::-1]
        # as measured; and such that no layer is slower than a wider one, so that noise does not widen what should become narrow
        self._ms = {steady: torch.tensor(x.copy(), dtype=torch.float64) for steady, x in ((False, ms), (True, falling))}
        self.kinds = [kind(model.get_submodule(x.name), shapes[x.name]) for x in channels.layers]

    def _grid(self, module: nn.Module, shape: tuple[int, ...], layer: Layer) -> Grid:
        name = kind(module, shape)
        if name not in self.table.kinds:
            raise InputError(f"the latency table has no {name} ({layer.name}): it was measured for another network, or other images")
        return self.table.kinds[name]

    def layers(self, counts: Tensor, steady: bool = False) -> Tensor:
        """(G,) units left of every group, fractions too, to (L,) milliseconds of every layer, with a gradient.

        steady  take a layer for no slower than a wider one, as it could be padded to it: what gradients need
        raises  InputError for widths outside the table
        """
        outs, ins = self.channels.widths(counts)
        (a, s), (b, t) = self._between(self._outs, outs), self._between(self._ins, ins)
        ms, n = self._ms[steady].to(counts.device), torch.arange(len(a), device=counts.device)
        low = ms[n, a, b] * (1 - t) + ms[n, a, b + 1] * t
        high = ms[n, a + 1, b] * (1 - t) + ms[n, a + 1, b + 1] * t
        return low * (1 - s) + high * s

    def _between(self, grid: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Of every layer, the number of the point below a width, and how far it is from there to the next, 0 .. 1."""
        grid = grid.to(width.device)
        at = ((grid <= width.detach()[:, None] + 1e-6).sum(1) - 1).clamp(0, grid.shape[1] - 2)[:, None]
        low, high = grid.gather(1, at)[:, 0], grid.gather(1, at + 1)[:, 0]
        share = (width - low) / (high - low)
        wrong = (share < -1e-6) | (share > 1 + 1e-6)
        if wrong.any():
            n = int(wrong.nonzero()[0])
            raise InputError(f"{float(width[n]):g} channels of {self.kinds[n]} are outside the latency table")
        return at[:, 0], share

    def __call__(self, counts: Tensor, steady: bool = False) -> Tensor:
        """Milliseconds of the whole network; 0-d float64."""
        return (self.table.base + self.table.factor * self.layers(counts, steady).sum()).clamp_min(1e-6)
