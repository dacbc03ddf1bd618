"""Images and labels as arrays, split once and for all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, InputError, MissingExtraError

DIGITS_TEST, DIGITS_VALIDATION = 360, 180  # of 1,797 images


@dataclass(frozen=True)
class Split:
    """x (N, channels, H, W) float32 in 0 .. 1, y (N,) int64 classes."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set. The test part is for final numbers only."""

    train: Split
    validation: Split
    test: Split


def digits() -> Splits:
    """scikit-learn's 8x8 handwritten digits (UCI), the same split on every machine: 1,257 / 180 / 360 images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "train") from None
    bunch = load_digits()
    x = (bunch.images[:, None] / 16).astype(np.float32)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    test, validation, train = np.split(order, [DIGITS_TEST, DIGITS_TEST + DIGITS_VALIDATION])
    return Splits(*(Split(x[part], y[part]) for part in (train, validation, test)))


def load_npz(path: str | os.PathLike) -> Split:
    """Images ``x`` and labels ``y`` from an .npz file; DataError or InputError say what is wrong with it."""
    if not Path(path).is_file():
        raise DataError(
            f"there is no file {path}; give an .npz with arrays x (N, ...) and y (N,), or the name of a data set: digits"
        )
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}
    except (ValueError, OSError, EOFError, AttributeError) as e:
        raise InputError(f"{path} is not an .npz file of plain arrays: {e}") from None
    if "x" not in arrays or "y" not in arrays or len(arrays["x"]) != arrays["y"].size:
        raise InputError(
            f"{path} holds {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}: x (N, ...) and y (N,) are needed"
        )
    return Split(arrays["x"], arrays["y"].astype(np.int64).ravel())


def test_split(source: str) -> Split:
    """The test images of a data set by name, or an .npz file."""
    return digits().test if source == "digits" else load_npz(source)


def load_images(path: str | os.PathLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One image file, or the array of an .npy or .npz file (``x`` or its only one), as a batch (N, *shape).

    shape    what the network takes; an image file needs (1 or 3, H, W) and is converted to grey or RGB, resized, and
             scaled to 0 .. 1
    raises   DataError if there is no such file, InputError if it does not fit, MissingExtraError without Pillow
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix in (".npy", ".npz"):
        try:
            loaded = np.load(path, allow_pickle=False)
            names = [] if isinstance(loaded, np.ndarray) else loaded.files
            array = loaded if isinstance(loaded, np.ndarray) else loaded["x" if "x" in names else names[0]]
        except (ValueError, OSError, EOFError, IndexError) as e:
            raise InputError(f"{path} is not a file of plain arrays: {e}") from None
        array = array[None] if array.shape == tuple(shape) else array
        if array.shape[1:] != tuple(shape):
            raise InputError(
                f"{path} holds an array of shape {array.shape}; this network takes {tuple(shape)} or a batch of them"
            )
        return array
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"this network takes {tuple(shape)}, not an image: give an .npy array")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow", "images") from None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1])), np.float32)
    except (UnidentifiedImageError, OSError) as e:
        raise InputError(f"{path} is not an image that Pillow can read: {e}") from None
    return (pixels[None, None] if shape[0] == 1 else pixels.transpose(2, 0, 1)[None]) / 255
