"""Real data sets from their official layouts, where the user has them; the layouts themselves on small files."""

import functools
import gzip
import hashlib
import http.server
import pickle
import tarfile
import threading

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


def test_cifar100_has_its_fine_classes(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n in (("train", 5100), ("test", 20)):
        batch = {b"filenames": [b"x.png"], b"batch_label": b"a", b"fine_labels": (np.arange(n) % 100).tolist(),
                 b"coarse_labels": [3] * n, b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8)}  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    splits = data.cifar100(tmp_path)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [100, 5000, 20]
    assert splits.test.y.tolist() == list(range(20)) and splits.train.y[-1] == 99


def image_folder(tmp_path, classes=("n01", "n02", "n03"), train=4, val=2):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for k, name in enumerate(classes):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (90 + 7 * i, 120, 3)) + 60 * k
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{i}.JPEG")
    return tmp_path


def test_image_folders_have_classes_and_a_part_held_out(tmp_path):
    splits = data.imagenet(image_folder(tmp_path), size=64)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [9, 3, 6]
    assert splits.train.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and splits.validation.y.tolist() == [0, 1, 2]
    assert not set(splits.train.paths) & set(splits.validation.paths)
    assert splits.train.first(4).y.tolist() == [0, 0, 1, 2] and len(splits.train.first(0)) == 9
    x = splits.test.images()
    assert x.shape == (6, 3, 64, 64) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
    means = x.mean((1, 2, 3))
    assert means[:2].max() < means[2:4].min() and means[2:4].max() < means[4:].min()


def test_the_middle_of_an_image_is_that_of_its_short_side(tmp_path):
    from PIL import Image

    pixels = np.zeros((256, 400, 3), np.uint8)
    pixels[16:240, 88:312] = 200  # the middle 224 x 224
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    files = data.ImageFiles([path], np.array([0]), 224)
    assert (files.view(0) == 200).all()
    rng = np.random.default_rng(0)
    views = [files.view(0, rng) for _ in range(40)]
    assert all(v.shape == (3, 224, 224) for v in views) and len({v.tobytes() for v in views}) > 30
    shares = [(v > 100).mean() for v in views]
    assert min(shares) < 0.5 < max(shares)


def test_images_that_cannot_be_read_are_named(tmp_path):
    splits = data.imagenet(image_folder(tmp_path), size=32)
    splits.train.paths[0].write_bytes(splits.train.paths[0].read_bytes()[:700])
    with pytest.raises(InputError, match="n01_0.JPEG is not an image"):
        splits.train.view(0)


def test_image_folders_that_are_none_are_described(tmp_path, monkeypatch):
    monkeypatch.delenv("LILNETX_DATA", raising=False)
    with pytest.raises(DataError, match="LILNETX_DATA"):
        data.imagenet()
    with pytest.raises(DataError, match="no classes .* imagenet/train/CLASS"):
        data.imagenet(tmp_path)
    (tmp_path / "train" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match="0 images"):
        data.imagenet(tmp_path)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A web server with what the archives should be, a cache of its own, and no data folder."""
    monkeypatch.delenv("LILNETX_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    site = tmp_path / "site"
    site.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    monkeypatch.setattr(handler.func, "log_message", lambda *a: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def publish(monkeypatch, name, url, files, unpack):
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in files}
    monkeypatch.setitem(data.ARCHIVES, name, data.Archive(data.ARCHIVES[name].folder, url, sums, unpack))


def test_data_sets_are_downloaded_once_and_checked(published, tmp_path, monkeypatch):
    site, url = published
    cifar_folder(tmp_path, 2, False)
    with tarfile.open(site / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    publish(monkeypatch, "cifar10", url, [site / "cifar-10-python.tar.gz"], True)
    first = data.cifar10()
    assert len(first.test) == 1500
    (site / "cifar-10-python.tar.gz").unlink()  # not asked for again
    assert (data.cifar10().test.x == first.test.x).all()


def test_downloads_that_fail_say_what_to_do(published, monkeypatch):
    site, url = published
    with pytest.raises(DataError, match=r"mnist could not be downloaded .*folder that holds mnist/ with --data-dir or LILNETX_DATA"):
        monkeypatch.setitem(data.ARCHIVES, "mnist", data.Archive("mnist", url, {"absent.gz": "0" * 32}, False))
        data.mnist()
    (site / "wrong.gz").write_bytes(b"something else")
    monkeypatch.setitem(data.ARCHIVES, "mnist", data.Archive("mnist", url, {"wrong.gz": "0" * 32}, False))
    with pytest.raises(DataError, match="could not be downloaded"):
        data.mnist()
