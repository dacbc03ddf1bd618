"""Images and labels, split once and for all: small sets as arrays, ImageNet as files.

CIFAR and MNIST come from a folder of the user's (LILNETX_DATA), or are downloaded once from where they are published.
"""

from __future__ import annotations

import gzip
import os
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, InputError, MissingExtraError
from .image_files import ImageFiles, scaled

DIGITS_TEST, DIGITS_VALIDATION = 360, 180  # of 1,797 images


@dataclass(frozen=True)
class Split:
    """Pixels x (N, channels, H, W), uint8 as they are stored or float32 in 0 .. 1, and classes y (N,) int64.

    What is trained need not be a classifier: y may hold targets of any shape.
    """

    x: NDArray[np.uint8] | NDArray[np.float32]
    y: NDArray
    batch: ClassVar[int] = 1000  # images at a time in evaluation

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int) -> Split:
        """The first images only; 0 for all."""
        return Split(self.x[: count or None], self.y[: count or None])

    def images(self, part: slice | NDArray = slice(None)) -> NDArray[np.float32]:
        """Some images, all unless said otherwise, as a network takes them: float32 in 0 .. 1."""
        return scaled(self.x[part])


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set. The test part is for final numbers only."""

    train: Split | ImageFiles
    validation: Split | ImageFiles
    test: Split | ImageFiles


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


def data_folder(folder: str | os.PathLike | None = None) -> Path | None:
    """Where data sets lie: `folder`, or what LILNETX_DATA names; None if neither is given, DataError if it is no folder."""
    named = folder or os.environ.get("LILNETX_DATA")
    if named and not Path(named).is_dir():
        raise DataError(f"the data folder {named} does not exist: check --data-dir or LILNETX_DATA")
    return Path(named) if named else None


@dataclass(frozen=True)
class Archive:
    """Where a data set is published: the folder it makes, the files to get with their MD5, and whether they are unpacked."""

    folder: str
    url: str
    files: dict[str, str]
    unpack: bool


CIFAR = "https://www.cs.toronto.edu/~kriz/"
ARCHIVES = {
    "cifar10": Archive("cifar-10-batches-py", CIFAR, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}, True),
    "cifar100": Archive("cifar-100-python", CIFAR, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}, True),
    "mnist": Archive(
        "mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        False,
    ),
}


def _published(name: str, folder: str | os.PathLike | None) -> Path:
    """The folder of one data set: in the user's data folder, or downloaded once where none is named."""
    archive, base = ARCHIVES[name], data_folder(folder)
    if base:
        return base / archive.folder
    try:
        import pooch
        from requests.exceptions import ConnectionError as NoConnection  # pooch downloads with it
    except ImportError:
        raise MissingExtraError("pooch", "train") from None
    cache = Path(pooch.os_cache("lilnetx-mini"))
    for file, md5 in archive.files.items():
        where = cache if archive.unpack else cache / archive.folder
        processor = pooch.Untar(extract_dir=".") if archive.unpack else None
        try:
            pooch.retrieve(archive.url + file, f"md5:{md5}", file, where, processor, progressbar=True)
        except Exception as e:  # no network, a wrong checksum, a full disk
            why = "no connection" if isinstance(e, NoConnection) else f"{type(e).__name__}: {str(e).splitlines()[0]}"
            raise DataError(
                f"{name} could not be downloaded from {archive.url + file} ({why}): if you "
                f"have it, name the folder that holds {archive.folder}/ with --data-dir or LILNETX_DATA"
            ) from None
    return cache / archive.folder


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
    where = _published("mnist", folder)
    parts = {}
    for part in ("train", "t10k"):
        x, y = _idx(where / f"{part}-images-idx3-ubyte.gz", 3), _idx(where / f"{part}-labels-idx1-ubyte.gz", 1)
        parts[part] = Split(x[:, None], y.astype(np.int64))
    return _held_out(parts["train"], parts["t10k"])


def _cifar_batch(path: Path, label: bytes) -> Split:
    """Images and labels of one of CIFAR's files. They are pickles, which may hold code: this reads them without running any."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"there is no file {path}: the official {path.parent.name} folder is needed in {path.parent.parent}"
        ) from None
    pixels, labels, key = b"", [], None
    try:
        for op, value, _ in pickletools.genops(raw):
            if isinstance(value, (bytes, bytearray, str)):
                text = value.encode("latin-1") if isinstance(value, str) else bytes(value)
                key = text if text in CIFAR_KEYS else key
                pixels = text if len(text) > len(pixels) else pixels
            elif key == label and op.name == "BININT1":
                labels.append(value)
    except Exception as e:  # whatever the parser meets in a file that is none
        raise InputError(f"{path} is not a CIFAR file: {type(e).__name__}: {e}") from None
    if not labels or len(pixels) != 3072 * len(labels):
        raise InputError(f"{path} holds {len(pixels)} bytes of pixels and {len(labels)} labels: not a CIFAR file")
    return Split(np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32), np.array(labels, np.int64))


CIFAR_KEYS = (b"labels", b"fine_labels", b"coarse_labels", b"data", b"filenames", b"batch_label")


def cifar10(folder: str | os.PathLike | None = None) -> Splits:
    """CIFAR-10 from ``FOLDER/cifar-10-batches-py``; the last 5,000 training images are for validation. x (N, 3, 32, 32)."""
    where = _published("cifar10", folder)
    parts = [_cifar_batch(where / f"data_batch_{k}", b"labels") for k in range(1, 6)]
    train = Split(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    return _held_out(train, _cifar_batch(where / "test_batch", b"labels"))


def cifar100(folder: str | os.PathLike | None = None) -> Splits:
    """CIFAR-100 from ``FOLDER/cifar-100-python``, its 100 fine classes; validation as for CIFAR-10. x (N, 3, 32, 32)."""
    where = _published("cifar100", folder)
    return _held_out(*(_cifar_batch(where / name, b"fine_labels") for name in ("train", "test")))


def imagenet(folder: str | os.PathLike | None = None, size: int = 224) -> Splits:
    """Image files in ImageNet's layout: ``train/CLASS/*`` and ``val/CLASS/*`` in ``FOLDER/imagenet``, or in FOLDER itself.

    Of every class's training images the last fiftieth, at least one, is for validation; val/ is the test part.
    """
    base = data_folder(folder)
    layout = "imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/*.JPEG are needed in the folder that --data-dir or LILNETX_DATA names"
    if base is None:
        raise DataError(f"ImageNet cannot be downloaded without an account: {layout}")
    base = base if (base / "train").is_dir() else base / "imagenet"
    names = sorted(p.name for p in (base / "train").iterdir() if p.is_dir()) if (base / "train").is_dir() else []
    if not names:
        raise DataError(f"there are no classes in {base / 'train'}: {layout}")
    train, held, test = [], [], []
    for k, name in enumerate(names):
        known = [(p, k) for p in _image_files(base / "train" / name)]
        count = max(1, len(known) // 50)
        train, held = train + known[:-count], held + known[-count:]
        test += [(p, k) for p in _image_files(base / "val" / name)]
    if not train or not test:
        raise DataError(f"there are {len(train)} images to train with in {base} and {len(test)} to test with: {layout}")
    return Splits(*(ImageFiles([p for p, _ in x], np.array([k for _, k in x], np.int64), size) for x in (train, held, test)))


def _image_files(folder: Path) -> list[Path]:
    suffixes = (".jpeg", ".jpg", ".png", ".webp")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes) if folder.is_dir() else []


def _held_out(train: Split, test: Split, validation: int = 5000) -> Splits:
    return Splits(
        Split(train.x[:-validation], train.y[:-validation]), Split(train.x[-validation:], train.y[-validation:]), test
    )


def load_npz(path: str | os.PathLike) -> Split:
    """Images ``x`` and labels ``y`` from an .npz file; pixels as bytes become 0 .. 1. DataError or InputError say what is wrong."""
    if not Path(path).is_file():
        raise DataError(
            f"there is no file {path}; give an .npz with arrays x (N, ...) and y (N,), or the name of a data set: {', '.join(SETS)}"
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
    return Split(scaled(x), y.astype(np.int64).ravel())


SETS = {"digits": digits, "mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "imagenet": imagenet}


def test_split(source: str) -> Split | ImageFiles:
    """The test images of a data set by name, or an .npz file."""
    return SETS[source]().test if source in SETS else load_npz(source)


def batches(
    split: Split | ImageFiles, damaged: list[str], size: int | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """All images of a split and their classes, a batch at a time.

    damaged  gets a message for every image file that cannot be read; that image is left out, and a batch of none too
    size     images in a batch at most; as many as the split suggests if it is None
    """
    for part in np.array_split(np.arange(len(split)), -(-len(split) // (size or split.batch))):
        if isinstance(split, Split):
            yield split.images(part), split.y[part]
            continue
        views, classes = [], []
        for i in part:
            try:
                views.append(split.view(i))
                classes.append(split.y[i])
            except InputError as e:
                damaged.append(str(e))
        if views:
            yield scaled(np.stack(views)), np.array(classes)


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
        return scaled(array)
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
