"""The store: decodes once, survives rivals, kills, full disks and damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clframe.data import ImageFolder, ImageStore
from clframe.data.store import Decoded
from clframe.errors import DataError


def fail(*_: object) -> None:
    raise AssertionError("decoded again")


def everything(data) -> tuple[torch.Tensor, ...]:
    sets = (data.train, data.test)
    return tuple(x for s in sets for x in (s.images.gather(torch.arange(len(s))), s.targets))


def two_splits(count: int = 7) -> Decoded:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    targets = np.arange(count) % 2
    return Decoded(("a", "b"), [(images[:3], targets[:3]), (images[3:], targets[3:])], [(images, targets)])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_the_second_load_is_identical_and_decodes_nothing(files, pack, root, monkeypatch, kind):
    path = pack(files, kind)
    first = ImageFolder(path=path).open(root)
    monkeypatch.setattr("clframe.data.folders.decode_image", fail)
    if kind != "folder":
        monkeypatch.setattr("clframe.data.folders.open_tree", fail)  # not even the archive's directory is read
    second = ImageFolder(path=path).open(root)
    assert all(torch.equal(a, b) for a, b in zip(everything(first), everything(second), strict=True))
    assert (first.fingerprint, first.class_names) == (second.fingerprint, second.class_names)


def test_a_changed_file_is_decoded_again(files, pack, root):
    path = pack(files, "folder")
    before = ImageFolder(path=path).open(root)
    file = path / "set/train/ant/00.png"
    file.write_bytes(files["set/train/ant/01.png"])
    os.utime(file, ns=(1, 1))
    after = ImageFolder(path=path).open(root)
    assert before.fingerprint != after.fingerprint
    assert torch.equal(after.train.images.gather(torch.tensor([0])), after.train.images.gather(torch.tensor([1])))


def test_a_replaced_archive_is_decoded_again(files, pack, root):
    before = ImageFolder(path=pack(files, "zip")).open(root)
    files["set/train/ant/00.png"] = files["set/train/ant/01.png"]
    assert ImageFolder(path=pack(files, "zip")).open(root).fingerprint != before.fingerprint


def test_the_fingerprint_does_not_depend_on_the_cut_into_chunks(tmp_path):
    whole, cut = two_splits(), two_splits()
    whole.train = [tuple(np.concatenate(parts) for parts in zip(*whole.train, strict=True))]
    stores = [ImageStore(tmp_path).open(key, lambda d=d: d) for key, d in (("whole", whole), ("cut", cut))]
    assert stores[0].fingerprint == stores[1].fingerprint


def test_statistics_are_numpys(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (50, 4, 4, 3), np.uint8)
    targets = np.zeros(50, np.int64)
    stored = ImageStore(tmp_path).open("k", lambda: Decoded(("a",), [(images, targets)], [(images[:1], targets[:1])]))
    np.testing.assert_allclose(stored.mean, (images / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stored.std, (images / 255).std((0, 1, 2)), atol=1e-6)


def test_the_files_are_what_numpy_reads(tmp_path):
    stored = ImageStore(tmp_path).open("k", two_splits)
    images = np.load(stored.folder / "train.npy")
    np.testing.assert_array_equal(images, np.arange(84, dtype=np.uint8).reshape(7, 2, 2, 3))
    assert np.load(stored.folder / "train_targets.npy").tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("name", ["train.npy", "test_targets.npy", "meta.json"])
def test_a_damaged_store_is_made_again(tmp_path, name):
    store = ImageStore(tmp_path)
    file = store.open("k", two_splits).folder / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert store.find("k") is None
    again = store.open("k", two_splits)
    assert file.read_bytes() == whole
    assert torch.equal(again.test.targets, torch.arange(7) % 2)
    assert not list(store.folder.glob("*.tmp"))


def test_a_store_of_another_version_is_made_again(tmp_path):
    store = ImageStore(tmp_path)
    meta = store.open("k", two_splits).folder / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "version": 0}))
    assert store.find("k") is None
    store.open("k", two_splits)
    assert store.find("k") is not None


def test_a_failing_source_leaves_nothing(tmp_path):
    def broken() -> Decoded:
        def chunks():
            yield from two_splits().train
            raise DataError("stop")

        return Decoded(("a", "b"), chunks(), [])

    with pytest.raises(DataError, match="stop"):
        ImageStore(tmp_path).open("k", broken)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [".locks"]


def test_an_empty_split_is_refused(tmp_path):
    decoded = two_splits()
    decoded.test = []
    with pytest.raises(DataError, match="at least one image in the test split"):
        ImageStore(tmp_path).open("k", lambda: decoded)


WRITER = """
    import sys, time, resource, pathlib
    import numpy as np
    from clframe.data.store import Decoded, ImageStore

    def produce():
        def chunks():
            for number in range(20):
                pathlib.Path(sys.argv[2]).touch()
                time.sleep(float(sys.argv[3]))
                yield np.full((50, 8, 8, 3), number, np.uint8), np.full(50, number % 2)
        return Decoded(("a", "b"), chunks(), [(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64))])

    if len(sys.argv) > 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
    from clframe.errors import DataError
    try:
        print(ImageStore(pathlib.Path(sys.argv[1])).open("k", produce).fingerprint)
    except DataError as error:
        sys.exit(f"DataError: {error}")
"""


def writer(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()


def test_rivals_both_succeed_and_killed_writers_leave_nothing_readable(tmp_path):
    started = tmp_path / "started"
    victim = writer(tmp_path / "cache", started, 0.5)
    while not started.exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    finish(victim)
    assert ImageStore(tmp_path / "cache").find("k") is None
    assert list((tmp_path / "cache" / "stores").glob(".k.*.tmp"))
    rivals = [finish(p) for p in [writer(tmp_path / "cache", started, 0.02) for _ in range(2)]]
    assert [code for code, _, _ in rivals] == [0, 0], rivals
    assert rivals[0][1] == rivals[1][1]
    assert not list((tmp_path / "cache" / "stores").glob("*.tmp"))


def test_rivals_without_locks_both_succeed(tmp_path, monkeypatch):
    """Where the file system has no locks the rename decides: the loser takes the winner's store."""
    monkeypatch.setattr("clframe.data.store._flock", lambda _: False)
    store = ImageStore(tmp_path)
    inner: list[str] = []

    def produce() -> Decoded:
        inner.append(store.open("k", two_splits).fingerprint)
        return two_splits()

    assert store.open("k", produce).fingerprint == inner[0]
    assert sorted(p.name for p in store.folder.iterdir()) == [".locks", "k"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    code, _, err = finish(writer(tmp_path / "cache", tmp_path / "started", 0, 60_000))
    assert code == 1
    assert err.startswith("DataError: Decoded images could not be written to")
    assert "free space there or set CLFRAME_CACHE" in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in (tmp_path / "cache" / "stores").iterdir()] == [".locks"]


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"could not be written .*CLFRAME_CACHE"):
        ImageStore(tmp_path / "file").open("k", two_splits)


def test_the_second_load_of_cifar100_is_fast(shared_data, monkeypatch, cache_dir, root):
    monkeypatch.setenv("CLFRAME_CACHE", str(cache_dir))
    source = ImageFolder(path=shared_data / "cifar100.zip")
    source.open(root)
    start = time.perf_counter()
    data = source.open(root)
    data.train.images.gather(torch.arange(0, 50_000, 500))
    assert time.perf_counter() - start < 0.5


def test_a_lost_memo_costs_only_a_look_at_the_archive(files, pack, root, monkeypatch, own_cache: Path):
    path = pack(files, "zip")
    first = ImageFolder(path=path).open(root)
    for note in (own_cache / "memo").iterdir():
        note.unlink()
    monkeypatch.setattr("clframe.data.folders.decode_image", lambda data, size=None: fail())
    second = ImageFolder(path=path, mode="store").open(root)
    assert first.fingerprint == second.fingerprint
