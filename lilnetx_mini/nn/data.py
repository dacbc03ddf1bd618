"""Images on their way to the network: held on the device, or read from disk by worker processes, and varied on the way.

Both kinds of source take the order of an epoch's images and yield steps; a step is a list of pieces (x, y). One process without
gradient accumulation has one piece a step; else a step is cut into pieces, and each process gets its own. They are equal if the order's
length and the batch can be divided by their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..data import ImageFiles, Split
from ..errors import DataError, InputError
from .distributed import ALONE, World
from .recipes import Recipe

Step = list[tuple[Tensor, Tensor]]


def pixels(x: Tensor) -> Tensor:
    """Stored pixels as a network takes them: bytes become float32 in 0 .. 1."""
    return x / 255 if x.dtype == torch.uint8 else x


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) moved by -most .. most pixels in each direction; what comes in is zero."""
    return _moved(x, torch.randint(0, 2 * most + 1, (2, len(x), 1), generator=generator).to(x.device), most) if most else x


def _moved(x: Tensor, by: Tensor, most: int) -> Tensor:
    n, channels, h, w = x.shape
    count = torch.arange(max(x.shape), device=x.device)
    rows, columns = (by[0] + count[:h]).view(n, 1, h, 1), (by[1] + count[:w]).view(n, 1, 1, w)
    return F.pad(x, (most,) * 4)[count[:n].view(n, 1, 1, 1), count[:channels].view(1, -1, 1, 1), rows, columns]


def _with_hole(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """A square of zeros in every image, around its own centre (2, N, 1), cut off at the border (DeVries and Taylor 2017)."""
    h, w = x.shape[2:]
    rows, columns = (torch.arange(n, device=x.device) - c for n, c in zip((h, w), centre, strict=True))
    inside = [(d >= -(side // 2)) & (d < side - side // 2) for d in (rows, columns)]
    return x.masked_fill((inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1), 0)


class Variation:
    """Random numbers for one batch, drawn for all its images at once, whoever then works on which of them.

    shift   images move by up to this many pixels; what comes in is zero
    flip    half of them are mirrored left to right
    cutout  side of a square that is set to zero
    """

    def __init__(self, count: int, shape: torch.Size, shift: int, flip: bool, cutout: int, generator: torch.Generator) -> None:
        self.shift, self.cutout = shift, cutout
        self.by = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator) if shift else None
        self.mirror = torch.rand(count, generator=generator) < 0.5 if flip else None
        sides = torch.tensor(shape[-2:]).view(2, 1, 1)
        self.centre = (torch.rand((2, count, 1), generator=generator) * sides).long() if cutout else None

    def __call__(self, x: Tensor, first: int) -> Tensor:
        """Images (N, C, H, W), of which the first is number `first` of the batch."""
        part = slice(first, first + len(x))
        if self.by is not None:
            x = _moved(x, to(self.by[:, part], x.device), self.shift)
        if self.mirror is not None:
            x = torch.where(to(self.mirror[part], x.device).view(-1, 1, 1, 1), x.flip(3), x)
        return x if self.centre is None else _with_hole(x, to(self.centre[:, part], x.device), self.cutout)


def to(t: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def pieces(part: Tensor, world: World, accumulate: int) -> list[tuple[int, Tensor]]:
    """What of a step's images this process works on: (number of the first in the step, images) for each of its pieces."""
    cut = part.tensor_split(world.size * accumulate)
    firsts = np.cumsum([0, *map(len, cut)])
    mine = range(world.rank * accumulate, (world.rank + 1) * accumulate)
    return [(int(firsts[k]), cut[k]) for k in mine]


class InMemory:
    """A split whose images lie on the device as they are stored, and are varied there, a batch at a time."""

    damaged: int = 0

    def __init__(self, split: Split, recipe: Recipe, device: torch.device, world: World) -> None:
        self.x, self.y = (torch.tensor(a, device=device) for a in (split.x, split.y))
        self.recipe, self.world = recipe, world

    def __len__(self) -> int:
        return len(self.y)

    def steps(self, order: Tensor, epoch: int, first: int, generator: torch.Generator) -> Iterator[Step]:
        """The steps of an epoch from number `first` on; random numbers of a step are drawn when it is asked for."""
        r = self.recipe
        for part in to(order, self.x.device).split(r.batch)[first:]:
            vary = Variation(len(part), self.x.shape, r.shift, bool(r.flip), r.cutout, generator)
            mine = pieces(part, self.world, r.accumulate)
            yield [(vary(pixels(self.x[rows]), start), self.y[rows]) for start, rows in mine]


class _Views(Dataset):
    """Images of files by (epoch, index), each with random numbers of its own; for the worker processes of a DataLoader."""

    def __init__(self, files: ImageFiles, seed: int, train: bool) -> None:
        self.files, self.seed, self.train = files, seed, train

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, list[str]]:
        """The image, its class, and messages about files that could not be read.

        In training the next that can be read takes the place of such a file, so that batches keep their size; else its class is -1.
        """
        epoch, first = key
        rng = np.random.default_rng((self.seed, epoch, first)) if self.train else None
        messages: list[str] = []
        while len(messages) < 100:
            index = (first + len(messages)) % len(self.files)
            try:
                return torch.from_numpy(self.files.view(index, rng)), int(self.files.y[index]), messages
            except InputError as e:
                messages.append(str(e))
                if not self.train:
                    return torch.zeros(3, self.files.size, self.files.size, dtype=torch.uint8), -1, messages
        raise DataError(f"100 image files one after the other cannot be read; the last: {messages[-1]}")


def _gather(items: list[tuple[Tensor, int, list[str]]]) -> tuple[Tensor, Tensor, list[str]]:
    x, y, messages = zip(*items, strict=True)
    return torch.stack(x), torch.tensor(y), [m for some in messages for m in some]


class FromDisk:
    """A split of image files, read and varied by worker processes. Which variation an image gets depends on seed and epoch alone.

    damaged  files that could not be read so far; each is named once, and the next one takes its place
    """

    def __init__(self, files: ImageFiles, recipe: Recipe, device: torch.device, world: World, seed: int, train: bool = True) -> None:
        self.views, self.recipe, self.device, self.world = _Views(files, seed, train), recipe, device, world
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.views)

    @property
    def damaged(self) -> int:
        """Number of files that could not be read."""
        return len(self._named)

    def steps(self, order: Tensor, epoch: int, first: int, generator: torch.Generator) -> Iterator[Step]:
        """The steps of an epoch from number `first` on."""
        accumulate, batches = self.recipe.accumulate, []
        for part in order.split(self.recipe.batch)[first:]:
            batches += [[(epoch, i) for i in rows.tolist()] for _, rows in pieces(part, self.world, accumulate)]
        step = []
        for piece in _loaded(self.views, batches, self.recipe.workers, self.device, self._named):
            step.append(piece)
            if len(step) == accumulate:
                yield step
                step = []


def _loaded(
    views: _Views, batches: list[list[tuple[int, int]]], workers: int, device: torch.device, named: set[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images by their keys; a damaged file is named in a warning, and in `named`, once."""
    cuda = device.type == "cuda"
    for x, y, messages in DataLoader(views, batch_sampler=batches, num_workers=workers, collate_fn=_gather, pin_memory=cuda):
        for message in sorted(set(messages) - named):
            named.add(message)
            warnings.warn(f"{message}; it is skipped", stacklevel=2)
        yield pixels(x.to(device, non_blocking=cuda)), y.to(device, non_blocking=cuda)


def source(split: Split | ImageFiles, recipe: Recipe, device: torch.device, world: World, seed: int) -> InMemory | FromDisk:
    """Where training images come from, by the kind of split."""
    if isinstance(split, Split):
        return InMemory(split, recipe, device, world)
    return FromDisk(split, recipe, device, world, seed)


def in_order(
    split: Split | ImageFiles, device: torch.device, batch: int, world: World = ALONE, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a split as they are, in batches; of several processes each gets its own share, and no damaged ones."""
    mine = torch.arange(len(split)).tensor_split(world.size)[world.rank].split(batch)
    if isinstance(split, Split):
        for rows in (part.numpy() for part in mine):
            yield torch.from_numpy(split.images(rows)).to(device), torch.from_numpy(split.y[rows]).to(device)
        return
    parts = [[(0, i) for i in part.tolist()] for part in mine if len(part)]
    for x, y in _loaded(_Views(split, 0, train=False), parts, workers, device, set()):
        yield x[y >= 0], y[y >= 0]
