"""Real data sets from their official layouts, where the user has them; the layouts themselves on small files."""

import gzip
import pickle

import numpy as np
import pytest

from lilnetx_mini import data
from lilnetx_mini.errors import DataError, InputError


def test_mnist_has_its_sizes_and_first_labels(data_dir):
    splits = data.mnist(data_dir)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [55_000, 5_000, 10_000]
    assert splits.train.x.shape[1:] == (1, 28, 28) and splits.train.x.max() == 255
    assert splits.train.images(slice(9)).dtype == np.float32 and splits.train.images(slice(9)).max() == 1.0
    assert splits.train.y[:5].tolist() == [5, 0, 4, 1, 9] and splits.test.y[:5].tolist() == [7, 2, 1, 0, 4]


def cifar_folder(tmp_path, protocol: int, text_keys: bool):
    rng, truth = np.random.default_rng(0), {}
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        pixels, labels = rng.integers(0, 256, (1500, 3072), dtype=np.uint8), rng.integers(0, 10, 1500).tolist()
        key = (lambda k: k) if text_keys else str.encode
        batch = {key("batch_label"): key("a batch"), key("labels"): labels, key("data"): pixels, key("filenames"): [key("x.png")] * 3}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
        truth[name] = (pixels, labels)
    return truth


@pytest.mark.parametrize("protocol,text_keys", [(2, True), (2, False), (3, False), (4, False), (5, True)])
def test_cifar_files_are_read_without_running_what_they_hold(tmp_path, protocol, text_keys, monkeypatch):
    truth = cifar_folder(tmp_path, protocol, text_keys)
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    splits = data.cifar10(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2500, 5000, 1500)
    pixels, labels = truth["test_batch"]
    assert (splits.test.x.reshape(1500, -1) == pixels).all() and splits.test.y.tolist() == labels
    assert splits.train.y[:1500].tolist() == truth["data_batch_1"][1]


def test_foreign_damaged_and_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LILNETX_DATA", raising=False)
    with pytest.raises(DataError, match="does not exist"):
        data.mnist(tmp_path / "absent")
    with pytest.raises(DataError, match="data_batch_1"):
        data.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for content in (b"", b"not a pickle", pickle.dumps({"labels": [1, 2], "data": b"123"})):
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
        with pytest.raises(InputError, match="CIFAR file"):
            data.cifar10(tmp_path)
    (tmp_path / "mnist").mkdir()
    for content in (b"junk", gzip.compress(b"\0\0\x08\x03" + bytes(12) + b"extra"), gzip.compress(b"abc")):
        (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(InputError, match="IDX|damaged"):
            data.mnist(tmp_path)
