"""Images and labels as arrays, split once and for all."""

from __future__ import annotations

import gzip
import os
import pickletools
import zipfile
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


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """Where data sets lie: `folder`, or what LILNETX_DATA names; DataError if neither is a folder."""
    named = folder or os.environ.get("LILNETX_DATA")
    if not named:
        raise DataError("no data folder: set LILNETX_DATA to the one that holds mnist/ and cifar-10-batches-py/")
    if not Path(named).is_dir():
        raise DataError(f"the data folder {named} does not exist: check LILNETX_DATA")
    return Path(named)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One of MNIST's own files: two zero bytes, a type, the number of dimensions, their sizes (big-endian), the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: MNIST's four *-ubyte.gz files are needed in {path.parent}") from None
    except (OSError, EOFError) as e:
        raise InputError(f"{path} is damaged: {e}") from None
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", dimensions, 4)) if len(raw) >= 4 + 4 * dimensions else ()
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise InputError(f"{path} is not an IDX file of {dimensions} dimensions")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def mnist(folder: str | os.PathLike | None = None) -> Splits:
    """MNIST from its four files in ``FOLDER/mnist``; the last 5,000 training images are for validation. x (N, 1, 28, 28)."""
    where = data_folder(folder) / "mnist"
    parts = {}
    for part in ("train", "t10k"):
        x, y = _idx(where / f"{part}-images-idx3-ubyte.gz", 3), _idx(where / f"{part}-labels-idx1-ubyte.gz", 1)
        parts[part] = Split((x[:, None] / np.float32(255)), y.astype(np.int64))
    return _held_out(parts["train"], parts["t10k"])


def _cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one of CIFAR-10's files. They are pickles, which may hold code: this reads them without running any."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"there is no file {path}: the official cifar-10-batches-py folder is needed in {path.parent.parent}"
        ) from None
    pixels, labels, key = b"", [], None
    try:
        for op, value, _ in pickletools.genops(raw):
            if isinstance(value, (bytes, bytearray, str)):
                text = value.encode("latin-1") if isinstance(value, str) else bytes(value)
                key = text if text in (b"labels", b"data", b"filenames", b"batch_label") else key
                pixels = text if len(text) > len(pixels) else pixels
            elif key == b"labels" and op.name == "BININT1":
                labels.append(value)
    except Exception as e:  # whatever the parser meets in a file that is none
        raise InputError(f"{path} is not a CIFAR-10 file: {type(e).__name__}: {e}") from None
    if not labels or len(pixels) != 3072 * len(labels):
        raise InputError(f"{path} holds {len(pixels)} bytes of pixels and {len(labels)} labels: not a CIFAR-10 file")
    return np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def cifar10(folder: str | os.PathLike | None = None) -> Splits:
    """CIFAR-10 from ``FOLDER/cifar-10-batches-py``; the last 5,000 training images are for validation. x (N, 3, 32, 32)."""
    where = data_folder(folder) / "cifar-10-batches-py"
    batches = [_cifar_batch(where / name) for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")]
    train = Split(
        np.concatenate([x for x, _ in batches[:5]]) / np.float32(255), np.concatenate([y for _, y in batches[:5]])
    )
    return _held_out(train, Split(batches[5][0] / np.float32(255), batches[5][1]))


def _held_out(train: Split, test: Split, validation: int = 5000) -> Splits:
    return Splits(
        Split(train.x[:-validation], train.y[:-validation]), Split(train.x[-validation:], train.y[-validation:]), test
    )


def load_npz(path: str | os.PathLike) -> Split:
    """Images ``x`` and labels ``y`` from an .npz file; pixels as bytes become 0 .. 1. DataError or InputError say what is wrong."""
    if not Path(path).is_file():
        raise DataError(
            f"there is no file {path}; give an .npz with arrays x (N, ...) and y (N,), or the name of a data set: digits"
        )
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file of plain arrays")
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is not an .npz file of plain arrays: {str(e).split('.')[0]}") from None
    x, y = arrays.get("x"), arrays.get("y")
    if x is None or y is None or x.ndim < 2 or len(x) == 0 or len(x) != y.size:
        raise InputError(
            f"{path} holds {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}: x (N, ...) and y (N,) are needed"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{path}: y is of type {y.dtype}; whole numbers, the classes, are needed")
    return Split(_scaled(x), y.astype(np.int64).ravel())


def _scaled(x: NDArray) -> NDArray:
    """Bytes are pixels: 0 .. 255 become 0 .. 1, as for image files. Other types stay as they are."""
    return x / np.float32(255) if x.dtype == np.uint8 else x


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
        return _scaled(array)
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
