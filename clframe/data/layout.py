"""Which files of a folder or archive are images, of which split and class."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from clframe.data.decode import DECODE_VERSION, CorruptImage
from clframe.data.tree import FileTree, Member
from clframe.errors import DataError

__all__ = ["Layout", "Only", "Targets", "arrange", "chosen_classes", "classes_differ", "is_image_name"]

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pbm", ".gif", ".tif", ".tiff", ".webp")
_TEST_SPLITS = ("test", "val")
_ANNOTATIONS = "val_annotations.txt"
_Files = dict[str, list[tuple[str, Member]]]
"""By split or class: the name below the split, and the file."""

Only = int | Sequence[str] | None
"""Classes by name, or a number for the first so many; None for all."""

Targets = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The image files of both splits, sorted by class and name, with the targets `(N,)` int64.

    Attributes:
        class_names: The sorted names of the class folders.
        train: Files of the training split.
        train_targets: Their class indices.
        test: Files of the test split.
        test_targets: Their class indices.
        names: Each file's name below its split, train then test.
    """

    class_names: tuple[str, ...]
    train: tuple[Member, ...]
    train_targets: Targets
    test: tuple[Member, ...]
    test_targets: Targets
    names: tuple[str, ...]

    def fingerprint(self, size: int | None) -> str:
        """Return a fingerprint of names and lengths, for sets too large to decode only to recognise them."""
        lines = (f"{n}\0{m.size}" for n, m in zip(self.names, (*self.train, *self.test), strict=True))
        text = "\n".join([f"{len(self.train)} size={size} decode={DECODE_VERSION}", *lines])
        return "files-" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def arrange(tree: FileTree, members: Sequence[Member], only: Only = None) -> Layout:
    """Sort the files of a tree into splits and classes.

    Args:
        tree: Holds the files.
        members: All of them.
        only: The classes that count; the others may be there or not.

    Raises:
        DataError: The layout isn't `train/CLASS/*` with `test/` or `val/`, their classes differ, or one asked for is
            missing.
    """
    splits = _by_split(tree, members)
    train = _by_class(splits["train"])
    chosen = chosen_classes(tree, sorted(train), only)
    train = {name: train[name] for name in chosen}
    candidates = {split: _by_class(splits[split]) for split in _TEST_SPLITS if split in splits}
    labels = _annotations(tree, members)
    if labels and "val" in splits:
        candidates["val"] = _relabelled(tree, splits["val"], labels)
    if only is not None:
        candidates = {s: {n: files for n, files in found.items() if n in train} for s, found in candidates.items()}
    matching = [split for split, classes in candidates.items() if set(classes) == set(train)]
    if not matching:
        split = next(iter(candidates))
        raise classes_differ(tree, split, set(train), set(candidates[split]))
    test = candidates[matching[0]]
    names = tuple(chosen)
    return Layout(names, *_flat(train, names), *_flat(test, names), (*_names(train, names), *_names(test, names)))


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(_IMAGES)


def chosen_classes(tree: FileTree, names: Sequence[str], only: Only) -> list[str]:
    """Return the names that are asked for, in the order in which the tree has them.

    Raises:
        DataError: It hasn't got one of them, or not so many.
    """
    if only is None:
        return list(names)
    if isinstance(only, int):
        if only > len(names):
            raise DataError(
                f"Expected at least the {only} classes that are asked for in {tree.path}, received {len(names)}."
            )
        return list(names[:only])
    missing = sorted(set(only) - set(names))
    if missing:
        raise DataError(
            f"Expected the {len(set(only))} classes that are asked for in {tree.path}, received {len(names)} classes without "
            f"{_some(missing)}."
        )
    wanted = set(only)
    return [name for name in names if name in wanted]


def _by_split(tree: FileTree, members: Iterable[Member]) -> _Files:
    found: dict[str, _Files] = {}
    for member in members:
        parts = member.name.split("/")
        if not is_image_name(parts[-1]) or any(p.startswith((".", "__MACOSX")) for p in parts):
            continue
        depth = next((d for d in (0, 1) if len(parts) > d + 2 and parts[d] in ("train", *_TEST_SPLITS)), None)
        if depth is not None:
            top, split = "/".join(parts[:depth]), parts[depth]
            found.setdefault(top, {}).setdefault(split, []).append(("/".join(parts[depth + 1 :]), member))
    complete = [top for top, splits in found.items() if "train" in splits and len(splits) > 1]
    if len(complete) != 1:
        raise _no_layout(tree, members, complete)
    return found[complete[0]]


def _by_class(files: Iterable[tuple[str, Member]]) -> _Files:
    classes: _Files = {}
    for name, member in files:
        classes.setdefault(name.split("/", 1)[0], []).append((name, member))
    return classes


def _annotations(tree: FileTree, members: Iterable[Member]) -> dict[str, str]:
    """Read Tiny-ImageNet's table of file name and class of the validation images, where there is one."""
    table = next((m for m in members if m.name.endswith(f"val/{_ANNOTATIONS}")), None)
    if table is None:
        return {}
    tree.hold([table])
    try:
        text = tree.read(table).decode(errors="replace")
    except CorruptImage as error:
        raise DataError(f"{table.name} of {tree.path} is damaged ({error}); copy it again.") from None
    rows = (line.split("\t") for line in text.splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _relabelled(tree: FileTree, files: Iterable[tuple[str, Member]], labels: dict[str, str]) -> _Files:
    classes: _Files = {}
    for name, member in files:
        base = name.rsplit("/", 1)[-1]
        if base not in labels:
            raise DataError(f"{_ANNOTATIONS} of {tree.path} doesn't name the class of {member.name}; add its line.")
        classes.setdefault(labels[base], []).append((f"{labels[base]}/{base}", member))
    return classes


def _flat(classes: _Files, names: Sequence[str]) -> tuple[tuple[Member, ...], Targets]:
    members = tuple(member for name in names for _, member in sorted(classes[name]))
    targets = np.repeat(np.arange(len(names), dtype=np.int64), [len(classes[name]) for name in names])
    return members, targets


def _names(classes: _Files, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(below for name in names for below, _ in sorted(classes[name]))


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def classes_differ(tree: FileTree, split: str, train: set[str], test: set[str]) -> DataError:
    """Return the error that the classes of two splits are not the same."""
    differences = [
        f"only in {where}: {_some(names)}" for where, names in (("train", train - test), (split, test - train)) if names
    ]
    return DataError(
        f"Expected the same classes in train and {split} of {tree.path}, received {'; '.join(differences)}; "
        "add or remove them."
    )


def _no_layout(tree: FileTree, members: Iterable[Member], complete: Sequence[str]) -> DataError:
    tops = _some({m.name.split("/", 1)[0] for m in members}) or "no file"
    what = f"several of them ({_some(complete)})" if complete else tops
    return DataError(
        f"Expected train/CLASS/* and test/CLASS/* (or val/) of images in {tree.path}, possibly below one folder, "
        f"received {what}; arrange the images so, or name the folder that holds train."
    )
