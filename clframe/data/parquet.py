"""Images in the rows of parquet files, as the Hugging Face hub stores them; read offline, row group by row group."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clframe.data.decode import CorruptImage
from clframe.data.layout import Layout, Only, chosen_classes, classes_differ
from clframe.data.tree import FileTree, Member
from clframe.errors import DataError

__all__ = ["ParquetChoice", "ParquetTree", "is_parquet_name"]

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""What a word in a file's name says about its split."""

_TEST_SPLITS = ("test", "validation")
_HELD_GROUPS = 9
"""Row groups kept open: one for each decoding thread, and one that the next of them begins."""

_Row = tuple[Member, "int | str | None"]


def is_parquet_name(name: str) -> bool:
    """Whether a file of that name holds a table of rows."""
    return name.lower().endswith(".parquet")


@dataclasses.dataclass(frozen=True)
class ParquetChoice:
    """Which columns and files hold what; None finds out by types and names.

    Attributes:
        image: The column of images.
        label: The column of labels.
        train: Pattern of the training files' names below the folder, such as `data/train-*`.
        test: Likewise of the test files.
    """

    image: str | None = None
    label: str | None = None
    train: str | None = None
    test: str | None = None


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns that were found, and the names of the classes where the files know them."""

    image: str
    label: str
    class_names: tuple[str, ...]


class ParquetTree(FileTree):
    """The rows of the parquet files of a folder, each an image file of its own.

    Rows are read in order: to fetch one, its whole row group is read, of which a few are kept. A member's `method` is the
    number of its file, `packed` that of its row group, `offset` its place in there.
    """

    random_access = False

    def __init__(self, path: Path, files: Sequence[Member], choice: ParquetChoice | None = None) -> None:
        """Read nothing yet.

        Args:
            path: The folder.
            files: Its parquet files.
            choice: Which columns and files hold what.
        """
        super().__init__(path)
        self.files = sorted(files)
        self.choice = choice or ParquetChoice()
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._image = ""

    def members(self) -> list[Member]:
        """List the parquet files themselves."""
        return list(self.files)

    def key(self, members: Sequence[Member]) -> str:
        """Return a fingerprint that changes when a file or the choice does."""
        return hashlib.sha256(f"{super().key(members)} {self.choice}".encode()).hexdigest()

    def arrange(self, only: Only = None) -> Layout:
        """Sort the rows into splits and classes: in the files' order, labels as the files number them.

        Args:
            only: The classes that count; the rows of others are never decoded.

        Raises:
            DataError: A split or column is missing or in doubt, labels are missing, or the splits' classes differ.
        """
        splits = self._by_split()
        columns = self._columns(splits["train"][0])
        self._image = columns.image
        train = list(self._rows(splits.pop("train"), columns))
        if any(_unlabelled(label) for _, label in train):
            raise DataError(f"Expected a label in every training row of {self.path}, received rows without one.")
        read = {split: list(self._rows(files, columns)) for split, files in splits.items()}
        labelled = {s: rows for s, rows in read.items() if rows and not any(_unlabelled(label) for _, label in rows)}
        if not labelled:
            raise DataError(
                f"Expected a label in every row of the test files of {self.path}, received rows without one."
            )
        split, test = next(iter(labelled.items()))
        names = _class_names(train, columns)
        chosen = chosen_classes(self, list(names.values()), only)
        found = {names[label] if label in names else str(label) for _, label in test}
        if set(chosen) - found or (only is None and found - set(chosen)):
            raise classes_differ(self, split, set(chosen), found)
        place = {label: chosen.index(name) for label, name in names.items() if name in set(chosen)}
        parts = [[(m, place[label]) for m, label in rows if label in place] for rows in (train, test)]
        members = [tuple(m for m, _ in rows) for rows in parts]
        targets = [np.array([k for _, k in rows], dtype=np.int64) for rows in parts]
        below = tuple(f"{chosen[k]}/{m.name}" for rows in parts for m, k in rows)
        return Layout(tuple(chosen), members[0], targets[0], members[1], targets[1], below)

    def read(self, member: Member) -> bytes:
        """Return the bytes of one row's image."""
        data = self._group(member.method, member.packed)[member.offset].as_py()
        if not isinstance(data, bytes):
            raise CorruptImage("the row holds no bytes, perhaps only a path")
        return data

    def _by_split(self) -> dict[str, list[int]]:
        """Return the numbers of the files of `train` and of every split that can serve as test, the best first."""
        found: dict[str, list[int]] = {"train": []}
        patterns = {s: p for s, p in (("train", self.choice.train), ("test", self.choice.test)) if p is not None}
        wanted = ["test"] if "test" in patterns else list(_TEST_SPLITS)
        for number, file in enumerate(self.files):
            matching = [s for s, pattern in patterns.items() if fnmatch.fnmatch(file.name, pattern)]
            named = _split_of(file.name)
            for split in matching or ([named] if named and named not in patterns else []):
                found.setdefault(split, []).append(number)
        splits = {s: found[s] for s in ("train", *wanted) if found.get(s)}
        if "train" not in splits or len(splits) < 2:
            names = ", ".join(f.name for f in self.files[:5]) + (", …" if len(self.files) > 5 else "")
            raise DataError(
                f"Expected parquet files of training and of test rows in {self.path}, by their names or by the patterns "
                f"train_files and test_files, received {names}."
            )
        return splits

    def _open(self, number: int) -> Any:
        parquet = _pyarrow(self.path)
        file = self.path / self.files[number].name
        try:
            return parquet.ParquetFile(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise DataError(f"{file} could not be read as parquet ({error}); copy or download it again.") from None

    def _columns(self, number: int) -> _Columns:
        """Find the columns of images and labels in a file's schema."""
        schema = self._open(number).schema_arrow
        features = _features(schema)
        image = self._column("image", self.choice.image, [f.name for f in schema if _holds_images(f, features)], schema)
        kinds = {n: f.get("_type") for n, f in features.items()}
        labels = [f.name for f in schema if kinds.get(f.name) == "ClassLabel"]
        labels = labels or [f.name for f in schema if f.name != image and _may_label(f.type)]
        usual = [n for n in labels if n in ("label", "labels")]
        label = self._column("label", self.choice.label, usual if len(usual) == 1 else labels, schema)
        return _Columns(image, label, tuple(features.get(label, {}).get("names") or ()))

    def _column(self, what: str, given: str | None, candidates: Sequence[str], schema: Any) -> str:
        if given is not None and given not in schema.names:
            raise DataError(f"{self.path} has no column {given!r} ({what}_column); it has {', '.join(schema.names)}.")
        if given is None and len(candidates) != 1:
            received = ", ".join(candidates or schema.names)
            raise DataError(
                f"Expected one column of {what}s in {self.path}, received {received}: name it by {what}_column."
            )
        return given if given is not None else candidates[0]

    def _rows(self, numbers: Sequence[int], columns: _Columns) -> Iterator[_Row]:
        """Yield every row of some files with its label; images are not read."""
        for number in numbers:
            file = self._open(number)
            name = self.files[number].name
            if not {columns.image, columns.label} <= set(file.schema_arrow.names):
                raise DataError(
                    f"Expected the columns {columns.image} and {columns.label} in every parquet file of {self.path}, received "
                    f"{', '.join(file.schema_arrow.names)} in {name}."
                )
            labels = file.read(columns=[columns.label]).column(0).to_pylist()
            row = 0
            for group in range(file.metadata.num_row_groups):
                for offset in range(file.metadata.row_group(group).num_rows):
                    yield Member(f"{name}[{row}]", 0, offset, group, number), labels[row]
                    row += 1

    def _group(self, number: int, group: int) -> Any:
        """Return the images of a row group as an array of bytes."""
        with self._lock:
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
                return self._groups[number, group]
            column = self._read_group(number, group)
            self._groups[number, group] = column
            if len(self._groups) > _HELD_GROUPS:
                self._groups.popitem(last=False)
            return column

    def _read_group(self, number: int, group: int) -> Any:
        import pyarrow
        import pyarrow.compute

        file = self._open(number)
        nested = pyarrow.types.is_struct(file.schema_arrow.field(self._image).type)
        try:
            column = file.read_row_group(group, columns=[f"{self._image}.bytes" if nested else self._image]).column(0)
        except (OSError, ValueError) as error:
            name = self.files[number].name
            raise DataError(f"{name} of {self.path} is damaged ({error}); copy or download it again.") from None
        return pyarrow.compute.struct_field(column, "bytes") if nested else column


def _pyarrow(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"Reading the parquet files in {path} needs the package pyarrow: pip install 'clframe[parquet]'."
        ) from None
    return parquet


def _split_of(name: str) -> str | None:
    """Return the split that a file's name, or else a folder above it, says."""
    for part in reversed(name.lower().split("/")):
        for word in re.split("[^a-z]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _features(schema: Any) -> Mapping[str, Any]:
    """Return what Hugging Face's writer noted about the columns."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {n: f for n, f in features.items() if isinstance(f, Mapping)} if isinstance(features, Mapping) else {}


def _holds_images(field: Any, features: Mapping[str, Any]) -> bool:
    from pyarrow import types

    noted = features.get(field.name, {}).get("_type")
    if noted is not None:
        return bool(noted == "Image")
    if types.is_struct(field.type):
        return any(inner.name == "bytes" for inner in field.type)
    return bool(types.is_binary(field.type) or types.is_large_binary(field.type))


def _may_label(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _unlabelled(label: int | str | None) -> bool:
    """Whether a row's label is withheld: missing, or -1 as on the hub."""
    return label is None or (isinstance(label, int) and label < 0)


def _class_names(rows: Sequence[_Row], columns: _Columns) -> dict[int | str, str]:
    """Return the name of every label that occurs, in ascending order of the labels.

    Raises:
        DataError: A label has no name among those that the files know.
    """
    present = {label for _, label in rows if label is not None}
    names = columns.class_names
    found: dict[int | str, str] = {}
    for label in sorted(present, key=lambda v: (isinstance(v, str), v)):
        if names and (not isinstance(label, int) or label >= len(names)):
            raise DataError(f"Expected a label below {len(names)}, as many as there are names, received {label!r}.")
        found[label] = names[label] if names and isinstance(label, int) else str(label)
    if len(set(found.values())) < len(found):
        raise DataError(f"Expected classes of different names, received {', '.join(found.values())}.")
    return found
