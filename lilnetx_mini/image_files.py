"""Images that stay on disk, and how one becomes an array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MissingExtraError


def scaled(x: NDArray) -> NDArray:
    """Bytes are pixels: 0 .. 255 become 0 .. 1, as for image files. Other types stay as they are."""
    return x / np.float32(255) if x.dtype == np.uint8 else x


@dataclass(frozen=True)
class ImageFiles:
    """A data set that stays on disk: image files, with the classes y (N,) int64 of their folders.

    size  of the square images that the network takes
    """

    paths: list[Path]
    y: NDArray[np.int64]
    size: int
    batch: ClassVar[int] = 50  # images at a time in evaluation

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int) -> ImageFiles:
        """So many images only, of all classes; 0 for all."""
        some = np.linspace(0, len(self) - 1, min(count, len(self)) or len(self)).astype(int)
        return ImageFiles([self.paths[i] for i in some], self.y[some], self.size)

    def view(self, index: int, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """One image, (3, size, size).

        rng     cuts out a part at random, 8 to 100 % of the area at aspect ratios of 3/4 to 4/3 (Szegedy et al. 2015), and mirrors
                every second. Without one: the middle, after the short side has become 256/224 of `size`
        raises  InputError that names a file that cannot be read
        """
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtraError("Pillow", "images") from None
        path, size = self.paths[index], self.size
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as e:  # damaged files make decoders fail in many ways
            raise InputError(f"{path} is not an image that Pillow can read: {e}") from None
        box = _middle(image.size, size) if rng is None else _any_part(image.size, rng)
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
        return pixels[:, :, ::-1].copy() if rng is not None and rng.random() < 0.5 else pixels.copy()

    def images(self, part: slice | NDArray = slice(None)) -> NDArray[np.float32]:
        """Some images, as a network takes them: (N, 3, size, size) float32 in 0 .. 1."""
        return scaled(np.stack([self.view(i) for i in np.arange(len(self))[part]]))


def _middle(shape: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    side = min(shape) * 224 / 256
    left, top = (shape[0] - side) / 2, (shape[1] - side) / 2
    return left, top, left + side, top + side


def _any_part(shape: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    width, height = shape
    for _ in range(10):
        area, aspect = width * height * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(shape)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
