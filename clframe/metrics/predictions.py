"""Kept predictions, and the evaluation tasks that they belong to: the raw input of every metric.

One file `predictions/<stream>/<i:04d>-<head>.npz` holds what one report head said after `i` training experiences
(0 = before training). Nothing here needs the model, so every metric can be recomputed after the run.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clframe.errors import ConfigurationError, DataError, RunDirectoryError

__all__ = ["Predictions", "Tasks", "load_predictions", "prediction_path"]

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

_DTYPES: dict[str, type[np.generic]] = {
    "sample": np.int64,
    "task": np.int32,
    "target": np.int32,
    "predicted": np.int32,
    "predicted_local": np.int32,
    "predicted_upto": np.int32,
    "score": np.float32,
    "confidence": np.float32,
    "energy": np.float32,
    "entropy": np.float32,
}
_REQUIRED = ("sample", "task", "target")
_LOWEST = {"sample": 0, "task": 0, "target": 0, "predicted": -1, "predicted_local": -1, "predicted_upto": -1}
_DAMAGE = (  # what NumPy and the zip reader raise on files that are cut short, changed or something else
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    DataError,
)
_FILE_NAME = re.compile(r"(\d{4,})-([^/]+)\.npz")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one report head said about N evaluated samples; every array has the shape `(N,)`.

    Either `predicted` or `score` is given. The value -1 in a predicted column means "not available", for instance
    because the head has no unit for the classes asked for; such cells become NaN, never wrong answers.

    Attributes:
        sample: Position of the sample in the data set, int64.
        task: Evaluation task of the sample, counted from 0, int32.
        target: True class, int32.
        predicted: Best class among all classes seen, int32.
        predicted_local: Best class among the classes of the sample's own task, int32.
        predicted_upto: Best class among the classes of the tasks up to the sample's own, int32.
        score: The sample's score where the stream isn't judged by accuracy, float32.
        confidence: Largest softmax probability over all classes seen, float32.
        energy: Minus the log-sum-exp of the logits over all classes seen, float32.
        entropy: Entropy of the softmax over all classes seen, in nats, float32.

    Raises:
        DataError: The arrays differ in length, aren't of the expected type, or hold impossible values.
    """

    sample: Int64
    task: Int32
    target: Int32
    predicted: Int32 | None = None
    predicted_local: Int32 | None = None
    predicted_upto: Int32 | None = None
    score: Float32 | None = None
    confidence: Float32 | None = None
    energy: Float32 | None = None
    entropy: Float32 | None = None

    def __post_init__(self) -> None:
        length: int | None = None
        for name, dtype in _DTYPES.items():
            given = getattr(self, name)
            if given is None:
                continue
            array = _as_column(name, given, dtype)
            length = len(array) if length is None else length
            if len(array) != length:
                raise DataError(
                    f"Every column of the predictions needs {length} values, but {name!r} has {len(array)}; "
                    "keep the columns of one evaluation together."
                )
            object.__setattr__(self, name, array)
        if (self.predicted is None) == (self.score is None):
            raise DataError("Predictions need either a 'predicted' or a 'score' column; give exactly one of the two.")
        keys = np.stack([self.task.astype(np.int64), self.sample])
        if np.unique(keys, axis=1).shape[1] != len(self):
            raise DataError("Each sample may occur once per evaluation task, but some occur twice; keep one of them.")

    def __len__(self) -> int:
        return len(self.sample)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays that are present, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def save(self, path: str | Path) -> None:
        """Write the arrays to an `.npz` file under a temporary name, then rename it.

        The same predictions always give the same bytes.

        Raises:
            RunDirectoryError: The file can't be written; no part of it is left behind.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **self.columns())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise RunDirectoryError(
                f"The predictions should be written to {path}, but that failed ({error.strerror or error}); "
                "check the free space and the permissions."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote; no pickled object is ever executed.

        Raises:
            RunDirectoryError: The file is missing or damaged; the message names it.
        """
        try:
            # Opened here, since NumPy leaves a damaged file open.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            unknown = sorted(set(arrays) - set(_DTYPES))
            missing = [name for name in _REQUIRED if name not in arrays]
            if unknown or missing:
                raise DataError(f"it lacks the columns {missing} and has the unknown columns {unknown}")
            return cls(**arrays)
        except FileNotFoundError:
            raise RunDirectoryError(
                f"Predictions were expected in {path}, but there is no such file; resume or repeat the run."
            ) from None
        except _DAMAGE as error:
            raise RunDirectoryError(_damaged(path, error)) from error


def _damaged(path: str | Path, error: Exception) -> str:
    return (
        f"{path} should hold kept predictions, but it can't be read ({error}); "
        "delete it and repeat the evaluation, or copy the run directory again."
    )


def _as_column(name: str, given: Any, dtype: type[np.generic]) -> NDArray[Any]:
    array = np.asarray(given)
    if array.ndim != 1:
        raise DataError(f"The column {name!r} should have one dimension, but has the shape {array.shape}; flatten it.")
    allowed = "iuf" if np.issubdtype(dtype, np.floating) else "iu"
    if array.dtype.kind not in allowed:
        raise DataError(f"The column {name!r} should hold {dtype.__name__}, but holds {array.dtype}; convert it.")
    if name in _LOWEST and array.size and int(array.min()) < _LOWEST[name]:
        raise DataError(f"The column {name!r} should be at least {_LOWEST[name]}, but holds {array.min()}; correct it.")
    if dtype is np.int32 and array.size and int(array.max()) > np.iinfo(np.int32).max:
        raise DataError(f"The column {name!r} should fit 32 bits, but holds {array.max()}; correct it.")
    column = np.array(array, dtype=dtype)  # a copy: later changes of the caller's array must not reach the record
    column.flags.writeable = False
    return column


def prediction_path(folder: str | Path, stream: str, experiences: int, head: str) -> Path:
    """Where the predictions of one head lie inside the folder `predictions` of a run directory.

    >>> prediction_path("predictions", "test", 3, "nme").as_posix()
    'predictions/test/0003-nme.npz'
    """
    return Path(folder) / stream / f"{experiences:04d}-{head}.npz"


def load_predictions(folder: str | Path, stream: str = "test") -> dict[str, dict[int, Predictions]]:
    """Read all kept predictions of one stream.

    Args:
        folder: The folder `predictions` of a run directory.
        stream: Name of the evaluation stream, for instance `test` or `valid`.

    Returns:
        `{head: {experiences trained: predictions}}`, heads by name, experiences ascending.

    Raises:
        RunDirectoryError: A file is damaged; the message names it.
    """
    found: dict[str, dict[int, Predictions]] = {}
    for path in sorted((Path(folder) / stream).glob("*.npz")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(match[2], {})[int(match[1])] = Predictions.load(path)
    return {head: dict(sorted(found[head].items())) for head in sorted(found)}


@dataclass(frozen=True)
class Tasks:
    """The evaluation tasks of a stream, and which classes were seen when.

    Labels are positions in the order of first appearance, so the classes seen after experience i are `[0, seen[i-1])`.
    Evaluation tasks and training experiences are often the same, but needn't be: a blurry or online stream has more
    experiences than tasks, classes may come back, and a task may stay empty.

    Attributes:
        classes: Classes of every evaluation task j; empty for a task without classes.
        seen: Number of classes seen after training experience i = 1..T.
        introduced: Experience (from 1) after which each task counts as learned. By default the first experience after
            which all its classes were seen. Needed where classes don't tell, as in domain-incremental streams.
        task_ends: Experiences after which a task of the stream ends, ascending, the last one included; by default
            all. Every matrix metric reads these rows only; curves have a value after every experience.
        evaluation_interval: Samples between two evaluations of an online stream; None elsewhere.

    Raises:
        ConfigurationError: The parts contradict one another.
    """

    classes: tuple[tuple[int, ...], ...]
    seen: tuple[int, ...]
    introduced: tuple[int, ...] | None = None
    task_ends: tuple[int, ...] | None = None
    evaluation_interval: int | None = None

    def __post_init__(self) -> None:
        for name, value in self._normal().items():
            object.__setattr__(self, name, value)
        if not self.classes or not self.seen:
            raise ConfigurationError("A stream needs at least one evaluation task and one experience; give both.")
        for number, classes in enumerate(self.classes, start=1):
            if len(set(classes)) != len(classes) or any(c < 0 for c in classes):
                raise ConfigurationError(
                    f"The classes of a task are different numbers from 0 on, but task {number} has {classes}; "
                    "correct it."
                )
        if self.seen[0] < 0 or any(a > b for a, b in pairwise(self.seen)):
            raise ConfigurationError(f"The number of classes seen never falls, but it is {self.seen}; correct it.")
        self._check_experiences()

    def _normal(self) -> dict[str, Any]:
        return {
            "classes": tuple(tuple(int(c) for c in classes) for classes in self.classes),
            "seen": tuple(int(k) for k in self.seen),
            "introduced": None if self.introduced is None else tuple(int(i) for i in self.introduced),
            "task_ends": None if self.task_ends is None else tuple(int(i) for i in self.task_ends),
        }

    def _check_experiences(self) -> None:
        if self.introduced is not None and (len(self.introduced) != len(self.classes) or min(self.introduced) < 1):
            raise ConfigurationError(
                f"'introduced' needs an experience from 1 on for each of {len(self.classes)} tasks, "
                f"but is {self.introduced}; correct it."
            )
        ends = self.task_ends
        if ends is None:
            return
        rising = all(a < b for a, b in pairwise(ends))
        if not ends or not rising or ends[0] < 1 or ends[-1] != len(self.seen):
            raise ConfigurationError(
                f"'task_ends' should rise from 1 or more to the last experience {len(self.seen)}, "
                f"but is {ends}; correct it."
            )

    @classmethod
    def split(cls, sizes: tuple[int, ...] | list[int]) -> Self:
        """Tasks that are the experiences of a class-incremental stream, with new classes each.

        >>> Tasks.split([2, 1]).classes
        ((0, 1), (2,))
        """
        edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        return cls(classes=tuple(tuple(range(a, b)) for a, b in pairwise(edges)), seen=tuple(edges[1:]))

    @property
    def num_tasks(self) -> int:
        """Number of evaluation tasks J."""
        return len(self.classes)

    @property
    def num_experiences(self) -> int:
        """Number of training experiences T."""
        return len(self.seen)

    @property
    def num_classes(self) -> int:
        """Number of classes that are evaluated or seen at any time."""
        return max(self.seen[-1], 1 + max((c for classes in self.classes for c in classes), default=-1))

    @property
    def ends(self) -> tuple[int, ...]:
        """Experiences after which a task of the stream ends."""
        return self.task_ends or tuple(range(1, self.num_experiences + 1))

    @property
    def learned(self) -> tuple[int, ...]:
        """Experience (from 1) after which each task counts as learned; T + 1 for a task that never does."""
        return tuple(self.introduced) if self.introduced is not None else tuple(map(self._all_seen, self.classes))

    def _all_seen(self, classes: tuple[int, ...]) -> int:
        return self.first_seen(max(classes)) if classes else self.num_experiences + 1

    def first_seen(self, label: int) -> int:
        """Experience (from 1) that brought a class; T + 1 if none did."""
        return int(np.searchsorted(np.asarray(self.seen), label, side="right")) + 1

    def tasks_seen(self, i: int, *, partly: bool = False) -> tuple[int, ...]:
        """Evaluation tasks (from 0) that count as learned after experience `i`.

        Args:
            i: Number of experiences trained.
            partly: Also those of which only some classes were seen.
        """
        if not partly or self.introduced is not None:
            return tuple(j for j, at in enumerate(self.learned) if at <= i and self.classes[j])
        known = self.seen[i - 1] if i > 0 else 0
        return tuple(j for j, classes in enumerate(self.classes) if any(c < known for c in classes))

    def new_classes(self, i: int) -> range:
        """Classes that experience `i` (from 1) brought."""
        return range(self.seen[i - 2] if i > 1 else 0, self.seen[i - 1])

    def to_dict(self) -> dict[str, Any]:
        """The tasks as JSON types."""
        return {
            "classes": [list(classes) for classes in self.classes],
            "seen": list(self.seen),
            "introduced": None if self.introduced is None else list(self.introduced),
            "task_ends": None if self.task_ends is None else list(self.task_ends),
            "evaluation_interval": self.evaluation_interval,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: A part is missing, unknown or of the wrong type.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise DataError(f"The tasks of a stream can't be read from {data!r} ({error}); check the file.") from None
