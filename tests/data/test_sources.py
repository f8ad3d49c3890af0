"""Named sources against independent readings of the same files, and what is said when they are missing."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clframe.data import (
    KNOWN,
    DataRoot,
    Digits,
    ImageFolder,
    NamedSet,
    TorchvisionSet,
    UserData,
    describe_data,
    find_source,
)
from clframe.errors import ConfigurationError, DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def gathered(split) -> np.ndarray:
    return split.images.gather(torch.arange(len(split))).numpy()


def test_digits_are_scikit_learns(root):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = Digits().open(root)
    assert data.shape == (1, 8, 8)
    images = np.concatenate([gathered(data.train), gathered(data.test)])[..., 0]
    targets = np.concatenate([data.train.targets, data.test.targets])
    found = sorted((t, tuple(np.rint(i / 255 * 16).astype(int).ravel())) for i, t in zip(images, targets, strict=True))
    assert found == sorted((t, tuple(i.astype(int).ravel())) for i, t in zip(bunch.images, bunch.target, strict=True))
    assert images.max() == 255
    share = np.bincount(data.test.targets.numpy()) / np.bincount(bunch.target)
    np.testing.assert_allclose(share, 0.2, atol=0.004)


def test_digits_statistics_are_those_of_the_training_split(root):
    images = gathered(Digits().open(root).train) / 255
    assert KNOWN["digits"].mean == (round(images.mean(), 4),)
    assert KNOWN["digits"].std == (round(images.std(), 4),)


def test_digits_need_no_cache(root, monkeypatch, tmp_path):
    stored = Digits().open(root)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "file"))
    memory = Digits().open(root)
    np.testing.assert_array_equal(gathered(stored.train), gathered(memory.train))
    assert stored.fingerprint == memory.fingerprint


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_equals_an_independent_reading():
    root = DataRoot(folders=(FASHION.parent,), download_folder=FASHION.parent)
    data = NamedSet(name="fashion_mnist").open(root)
    for split, stem, count in ((data.train, "train", 60_000), (data.test, "t10k", 10_000)):
        raw = gzip.decompress((FASHION / f"{stem}-images-idx3-ubyte.gz").read_bytes())
        assert struct.unpack(">4I", raw[:16]) == (0x803, count, 28, 28)
        assert split.images.tensor.numpy().tobytes() == raw[16:]
        labels = gzip.decompress((FASHION / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
        assert bytes(split.targets.to(torch.uint8).tolist()) == labels[8:]
    pixels = data.train.images.tensor.numpy() / np.float32(255)
    assert data.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert data.std == pytest.approx((pixels.std(),), abs=1e-4)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, suffix: str = "") -> dict[str, np.ndarray]:
    draws = np.random.RandomState(0)
    folder.mkdir(parents=True)
    arrays = {}
    for stem, count in (("train", 30), ("t10k", 10)):
        arrays[stem] = draws.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3", arrays[stem]), (f"{stem}-labels-idx1", np.arange(count) % 10)):
            data = idx(array)
            (folder / f"{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return arrays


@pytest.mark.parametrize("below", ["", "mnist"])
def test_torchvisions_mnist_layout(root, below, monkeypatch):
    arrays = write_idx(root.folders[0] / below / "MNIST" / "raw")
    data = TorchvisionSet(dataset="mnist").open(root)
    np.testing.assert_array_equal(gathered(data.train)[..., 0], arrays["train"])
    np.testing.assert_array_equal(gathered(data.test)[..., 0], arrays["t10k"])
    assert data.test.targets.tolist() == list(range(10))
    assert (data.name, data.shape, data.num_classes) == ("mnist", (1, 28, 28), 10)
    monkeypatch.setattr("clframe.data.sources._torchvision_split", lambda *_, **__: pytest.fail("read again"))
    assert TorchvisionSet(dataset="mnist").open(root).fingerprint == data.fingerprint


def test_idx_files_by_hand_equal_torchvisions_reading(root, tmp_path):
    write_idx(root.folders[0] / "MNIST" / "raw")
    other = DataRoot(folders=(tmp_path / "other",), download_folder=tmp_path)
    write_idx(tmp_path / "other" / "mnist", ".gz")
    assert NamedSet(name="mnist").open(root).fingerprint == NamedSet(name="mnist").open(other).fingerprint


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x1f\x8b broken", gzip.compress(idx(np.zeros((3, 28, 28)))[:-9])],
    ids=["empty", "broken", "short"],
)
def test_a_damaged_idx_file_is_named(root, damage):
    folder = root.folders[0] / "fashion-mnist"
    write_idx(folder, ".gz")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        NamedSet(name="fashion_mnist").open(root)


def test_torchvisions_cifar10_layout(root, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = root.folders[0] / "cifar-10-batches-py"
    folder.mkdir()
    draws = np.random.RandomState(0)
    batches = {name: draws.randint(0, 256, (4, 3072)).astype(np.uint8) for name in
               [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]}  # fmt: skip
    for name, data in batches.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 9, 5, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    data = find_source("cifar10").open(root)
    expected = batches["data_batch_2"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(gathered(data.train)[5], expected)
    assert data.train.targets.tolist() == [0, 9, 5, 1] * 5
    assert data.class_names == tuple("abcdefghij")


def test_torchvisions_svhn_layout(root, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3, 5)).astype(np.uint8)
    for split in ("train", "test"):
        content = {"X": pixels, "y": np.array([[10], [1], [2], [9], [10]])}
        scipy_io.savemat(root.folders[0] / f"{split}_32x32.mat", content)
    data = find_source("svhn").open(root)
    np.testing.assert_array_equal(gathered(data.test)[3], pixels[:, :, :, 3])
    assert data.test.targets.tolist() == [0, 1, 2, 9, 0]


def test_damaged_torchvision_files_are_one_sentence(root):
    (root.folders[0] / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match=r"^The data set 'cifar100' could not be read .*remove what is damaged"):
        NamedSet(name="cifar100").open(root)


def test_an_archive_comes_before_torchvisions_layout(files, pack, root):
    (root.folders[0] / "cifar-100-python").mkdir()
    pack(files, "zip").rename(root.folders[0] / "cifar100.zip")
    data = find_source("cifar100").open(root)
    assert (data.name, len(data.train), data.mean) == ("cifar100", 15, (0.5071, 0.4867, 0.4408))


@pytest.mark.parametrize("name", ["mnist", "cifar100", "svhn", "tiny_imagenet"])
def test_a_missing_set_says_where_and_what_to_do(root, name):
    with pytest.raises(DataError) as caught:
        find_source(name).open(root)
    message = str(caught.value)
    assert str(root.folders[0]) in message
    assert "clframe data" in message
    assert ("--download" in message) == (name != "tiny_imagenet")
    assert next(iter([*KNOWN[name].folders, *KNOWN[name].markers])) in message


def test_a_download_happens_only_when_asked(root, monkeypatch):
    asked = []

    def fetch(known, folder, split, download):
        asked.append((known.name, folder, split, download))
        raise DataError("no network")

    monkeypatch.setattr("clframe.data.sources._torchvision_split", fetch)
    for source in (NamedSet(name="kmnist"), TorchvisionSet(dataset="kmnist")):
        with pytest.raises(DataError, match="not found"):
            source.open(root)
        assert not asked
        with pytest.raises(DataError, match="no network"):
            source.open(root, download=True)
        assert asked.pop() == ("kmnist", root.download_folder, "train", True)


def test_find_source_by_name_path_and_class(tmp_path, files, pack):
    assert isinstance(find_source("digits"), Digits)
    assert find_source("cifar100") == NamedSet(name="cifar100")
    assert find_source("some/folder", size=8) == ImageFolder(path="some/folder", size=8)
    assert find_source("mine.tar.gz") == ImageFolder(path="mine.tar.gz")
    assert find_source("my_file.py:Mine") == UserData(path="my_file.py:Mine")
    assert find_source(NamedSet(name="mnist")) == NamedSet(name="mnist")
    with pytest.raises(ConfigurationError, match=r"no data set named 'cifar10O'.*Did you mean 'cifar100?'"):
        find_source("cifar10O")
    with pytest.raises(ConfigurationError, match=r"source\.sizes is not an option of ImageFolder"):
        find_source("some/folder", sizes=8)


def test_describe_data_tells_what_is_where(files, pack, root):
    pack(files, "zip").rename(root.folders[0] / "tinyimagenet100.zip")
    rows = {row.name: row for row in describe_data(root)}
    assert set(rows) == set(KNOWN)
    assert rows["digits"].found == "embedded"
    assert rows["tiny_imagenet"].found == str(root.folders[0] / "tinyimagenet100.zip")
    assert rows["cifar10"].found is None
    assert "cifar10.zip" in rows["cifar10"].how


def test_the_data_root_searches_in_order(tmp_path, monkeypatch, own_cache):
    for name in ("given", "env1", "env2"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("CLFRAME_DATA", os.pathsep.join(str(tmp_path / n) for n in ("env1", "env2")))
    root = DataRoot.resolve(tmp_path / "given")
    expected = [
        tmp_path / "given",
        tmp_path / "env1",
        tmp_path / "env2",
        own_cache / "data",
        Path("/usr/share/datasets"),
    ]
    assert list(root.folders) == expected
    assert root.download_folder == tmp_path / "given"
    (tmp_path / "env2" / "x").touch()
    assert root.find(["y", "x"]) == tmp_path / "env2" / "x"
    (tmp_path / "env1" / "x").touch()
    assert root.find(["y", "x"]) == tmp_path / "env1" / "x"
    assert root.find(["z"]) is None
    monkeypatch.delenv("CLFRAME_DATA")
    assert DataRoot.resolve().download_folder == own_cache / "data"
    with pytest.raises(DataError, match=r"existing folder, received .*absent"):
        DataRoot.resolve(tmp_path / "absent")


def test_import_and_construction_load_and_write_nothing(tmp_path):
    code = (
        "import sys; from clframe.data import *; Digits(); NamedSet(name='cifar100'); ImageFolder(path='x');"
        "ImageStore(); DataRoot.resolve(); describe_data(DataRoot.resolve());"
        "print([m for m in ('torchvision', 'PIL', 'sklearn', 'scipy') if m in sys.modules])"
    )
    env = {**os.environ, "CLFRAME_CACHE": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
