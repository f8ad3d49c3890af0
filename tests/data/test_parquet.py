"""Images in parquet files, as the Hugging Face hub stores them, against the same images in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clframe
from clframe.data import ImageFolder
from clframe.errors import DataError

NAMES = ("cat", "ant", "bee")
"""In the order of their labels, which is not the alphabet's."""


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow", reason="needs pyarrow: install the extra `parquet`")


@pytest.fixture
def write(pa, tmp_path):
    """Write rows of (image bytes, label) as a parquet file of small row groups."""
    from pyarrow import parquet

    def write_file(name, rows, names=NAMES, image="image", plain=False, group=4, **more):
        images = [r[0] for r in rows]
        bytes_and_path = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        nested = pa.array([{"bytes": b, "path": None} for b in images], bytes_and_path)
        columns = {image: pa.array(images, pa.binary()) if plain else nested, "label": [r[1] for r in rows], **more}
        table = pa.table(columns)
        features = {image: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        if names is not None:
            features |= {n: {"names": list("abcdefgh"), "_type": "ClassLabel"} for n in more}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=group)
        return path.parents[len(Path(name).parts) - 1]

    return write_file


def rows_of(files, split, names=NAMES):
    """The images of a split in a shuffled order, with their labels."""
    found = [(data, names.index(n.split("/")[2])) for n, data in files.items() if f"/{split}/" in n]
    return [found[k] for k in np.random.RandomState(1).permutation(len(found))]


def gathered(split):
    return split.images.gather(torch.arange(len(split))).numpy()


@pytest.mark.parametrize("plain", [False, True], ids=["struct", "bytes"])
def test_rows_are_the_folders_images_in_the_files_order_and_labels(files, pack, root, write, plain):
    train, test = rows_of(files, "train"), rows_of(files, "test")
    write("data/train-00000-of-00002.parquet", train[:7], plain=plain)
    write("data/train-00001-of-00002.parquet", train[7:], plain=plain)
    path = write("data/test-00000-of-00001.parquet", test, plain=plain)
    data = ImageFolder(path=path).open(root)
    assert data.class_names == NAMES
    folder = ImageFolder(path=pack(files, "zip")).open(root)
    for rows, split, other in ((train, data.train, folder.train), (test, data.test, folder.test)):
        assert split.targets.tolist() == [label for _, label in rows]
        by_bytes = {d: k for k, d in enumerate(sorted_bytes(files, "train" if rows is train else "test"))}
        expected = gathered(other)[[by_bytes[d] for d, _ in rows]]
        np.testing.assert_array_equal(gathered(split), expected)


def sorted_bytes(files, split):
    return [files[n] for n in sorted(files) if f"/{split}/" in n]


def test_a_scenario_takes_the_folder_as_its_source(files, write, tmp_path):
    write("train/0000.parquet", rows_of(files, "train"))
    path = write("test/0000.parquet", rows_of(files, "test"))
    scenario = {"name": "split_folder", "source": str(path), "increment": 1, "size": 4}
    run = clframe.run(scenario=scenario, epochs=1, run_dir=tmp_path / "run", progress=False, device="cpu")
    assert run.path.is_dir()
    stream = clframe.open_scenario(scenario)
    assert stream.class_names == NAMES
    assert stream.shape == (3, 4, 4)
    mine = tmp_path / "mine.txt"
    mine.write_text("bee\ncat\n")
    subset = {"name": "imagenet_subset", "source": str(path), "classes": str(mine), "increment": 1, "order": "natural"}
    stream = clframe.open_scenario({**subset, "size": 4, "crop": 4})
    assert stream.class_names == ("bee", "cat")
    assert len(stream.train) == 10


def test_what_was_decoded_once_is_not_read_again_until_a_file_changes(files, root, write, monkeypatch):
    write("train.parquet", rows_of(files, "train"))
    path = write("test.parquet", rows_of(files, "test"))
    first = ImageFolder(path=path).open(root)
    with monkeypatch.context() as patched:
        patched.setattr("clframe.data.folders.decode_image", lambda *_: pytest.fail("an image was read"))
        assert ImageFolder(path=path).open(root).fingerprint == first.fingerprint
    write("test.parquet", rows_of(files, "test")[::-1])
    assert ImageFolder(path=path).open(root).fingerprint != first.fingerprint


def test_columns_and_files_can_be_named(files, root, write):
    train, test = rows_of(files, "train"), rows_of(files, "test")
    write("part-a.parquet", train, fine=[label % 2 for _, label in train])
    path = write("part-b.parquet", test, fine=[label % 2 for _, label in test])
    files_named = {"train_files": "part-a*", "test_files": "part-b*"}
    data = ImageFolder(path=path, label_column="fine", **files_named).open(root)
    assert data.class_names == ("a", "b")
    assert data.train.targets.tolist() == [label % 2 for _, label in train]
    assert ImageFolder(path=path, **files_named).open(root).class_names == NAMES
    with pytest.raises(DataError, match=r"of training and of test rows .* received part-a\.parquet, part-b\.parquet"):
        ImageFolder(path=path).open(root)
    with pytest.raises(DataError, match=r"no column 'coarse' \(label_column\); it has image, label, fine"):
        ImageFolder(path=path, label_column="coarse", **files_named).open(root)


def test_labels_without_names_are_ordered_as_numbers_or_words(files, root, write):
    numbers = {0: 10, 1: 9, 2: 100}
    for split in ("train", "test"):
        path = write(f"{split}.parquet", [(d, numbers[k]) for d, k in rows_of(files, split)], names=None)
    assert ImageFolder(path=path).open(root).class_names == ("9", "10", "100")
    for split in ("train", "test"):
        write(f"{split}.parquet", [(d, NAMES[k]) for d, k in rows_of(files, split)], names=None)
    assert ImageFolder(path=path).open(root).class_names == tuple(sorted(NAMES))


def test_a_test_split_without_labels_makes_way_for_validation(files, root, write):
    write("train.parquet", rows_of(files, "train"))
    write("test.parquet", [(d, -1) for d, _ in rows_of(files, "test")])
    path = write("validation.parquet", rows_of(files, "test")[:5])
    assert len(ImageFolder(path=path).open(root).test) == 5
    (path / "validation.parquet").unlink()
    with pytest.raises(DataError, match="Expected a label in every row of the test files"):
        ImageFolder(path=path).open(root)


def test_a_corrupt_row_is_named_and_skipped_only_when_asked(files, root, write):
    train = rows_of(files, "train")
    train[6] = (train[6][0][:40], train[6][1])
    write("train.parquet", train)
    path = write("test.parquet", rows_of(files, "test"))
    with pytest.raises(DataError, match=r"train\.parquet\[6\] of .* is corrupt"):
        ImageFolder(path=path).open(root)
    with pytest.warns(UserWarning, match=r"1 of 21 images .* left out: train\.parquet\[6\]"):
        data = ImageFolder(path=path, skip_corrupt=True).open(root)
    assert data.train.targets.tolist() == [label for k, (_, label) in enumerate(train) if k != 6]


def test_rows_that_hold_a_path_alone_are_corrupt(files, root, write):
    write("train.parquet", [(None, 0), *rows_of(files, "train")])
    path = write("test.parquet", rows_of(files, "test"))
    with pytest.raises(DataError, match=r"train\.parquet\[0\] .* holds no bytes, perhaps only a path"):
        ImageFolder(path=path).open(root)


def test_row_groups_are_read_once(files, root, write, monkeypatch):
    from clframe.data.parquet import ParquetTree

    write("train.parquet", rows_of(files, "train"))
    path = write("test.parquet", rows_of(files, "test"))
    read: list[tuple[int, int]] = []
    original = ParquetTree._read_group
    monkeypatch.setattr(ParquetTree, "_read_group", lambda self, *which: read.append(which) or original(self, *which))
    ImageFolder(path=path).open(root)
    assert sorted(read) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_what_cannot_be_read_is_one_sentence(files, root, write, monkeypatch):
    write("train.parquet", rows_of(files, "train"))
    path = write("test.parquet", rows_of(files, "test")[:2], names=NAMES)
    with pytest.raises(DataError, match="the same classes in train and test"):
        ImageFolder(path=path).open(root)
    write("test.parquet", rows_of(files, "test"))
    with pytest.raises(DataError, match=r"parquet files .* can't be streamed"):
        ImageFolder(path=path, mode="stream").open(root)
    (path / "test.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"test\.parquet could not be read as parquet"):
        ImageFolder(path=path).open(root)


def test_a_missing_package_is_one_sentence(files, root, write, monkeypatch):
    write("train.parquet", rows_of(files, "train"))
    path = write("test.parquet", rows_of(files, "test"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install 'clframe\[parquet\]'\.$"):
        ImageFolder(path=path).open(root)


def test_a_folder_of_images_with_a_parquet_file_beside_them_stays_one_of_images(files, pack, root):
    plain = ImageFolder(path=pack(files, "zip")).open(root)
    mixed = ImageFolder(path=pack({**files, "set/index.parquet": b"x"}, "folder")).open(root)
    assert mixed.fingerprint == plain.fingerprint
