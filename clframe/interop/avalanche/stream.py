"""An Avalanche benchmark as a clframe stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.interop.avalanche.reading import Material, Piece, read
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream, no_samples

__all__ = ["from_avalanche"]


def from_avalanche(
    benchmark: Any,
    *,
    name: str = "avalanche",
    setting: Setting | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    features: bool = False,
) -> Stream:
    """Return an Avalanche benchmark as a stream, for `clframe.run(scenario=...)`.

    The benchmark's streams `train` and `test` are taken, and `valid` where there is one. Labels are numbered anew in the
    order of first appearance; `class_order` keeps the benchmark's. No sample is lost: one that two experiences have is
    there twice.

    Items are read once, in the process's memory: a byte for every value of an image, four for every value of a vector.
    Images are taken before the benchmark's augmentation and normalisation, which clframe does by itself; what Avalanche
    calls a frozen transform, such as a permutation of pixels, stays. Of a benchmark that `to_avalanche` made nothing is read or
    copied: the stream is a view of the same tables, and the same stream again if the benchmark wasn't changed meanwhile.

    Args:
        benchmark: With datasets of classes; classic or new style.
        name: What tables call the stream.
        setting: By default `task` where experiences have different task labels, `domain` where all of several
            experiences have the same classes, else `class`.
        class_names: By the benchmark's label; by default the label itself.
        mean: Per channel, of the normalisation that items can't be had without; it is undone.
        std: Likewise.
        features: Take the items as flat float vectors, whatever they are.

    Raises:
        ConfigurationError: The options don't fit.
        DataError: The benchmark has no streams `train` and `test`, or an item is no image or vector with its class.
        ContractError: The experiences don't make a stream of that setting.
    """
    if (mean is None) != (std is None):
        raise ConfigurationError("Expected mean and std together, received one of them: give both, or neither.")
    statistics = None if mean is None or std is None else (tuple(mean), tuple(std))
    found = read(benchmark, statistics, features)
    chosen = setting or _setting_of(found)
    labels = _order([p for split in ("train", "test", "valid") for p in found.pieces[split]])
    relabel = torch.full((1 + max(_highest(found.train), _highest(found.test), *labels),), -1)
    relabel[torch.tensor(labels)] = torch.arange(len(labels))
    number = dict(zip(labels, range(len(labels)), strict=True))
    experiences = _experiences(found, number, chosen)
    facts: dict[str, Any] = {
        "experiences": experiences,
        "tasks": _tasks(found, number, experiences, chosen),
        "train": _relabelled(found.train, relabel, chosen),
        "test": _relabelled(found.test, relabel, chosen),
        "setting": chosen,
    }
    stream = _like(found.stream, labels, facts) if found.stream else _fresh(found, name, labels, class_names, facts)
    stream.check()
    return stream


def _like(given: Stream, labels: Sequence[int], facts: dict[str, Any]) -> Stream:
    """Return the stream that a benchmark was made of, with what the benchmark has now."""
    if list(labels) == list(range(given.num_classes)):
        return dataclasses.replace(given, **facts)
    order = given.class_order
    if len(order) == given.num_classes:  # where domains share labels, it may say more than one class for each
        order = tuple(order[k] for k in labels)
    return dataclasses.replace(
        given, class_names=tuple(given.class_names[k] for k in labels), class_order=order, **facts
    )


def _fresh(
    found: Material,
    name: str,
    labels: Sequence[int],
    class_names: Sequence[str] | Mapping[int, str] | None,
    facts: dict[str, Any],
) -> Stream:
    names = {k: str(k) for k in labels} if class_names is None else class_names
    try:
        chosen = tuple(str(names[k]) for k in labels)
    except (IndexError, KeyError) as error:
        raise ConfigurationError(
            f"Expected class_names for the labels {sorted(labels)}, received none for some ({error}): name all of them."
        ) from None
    return Stream(
        name=name,
        class_names=chosen,
        class_order=tuple(labels),
        mean=found.mean,
        std=found.std,
        augmentation="none",
        data_fingerprint=found.fingerprint,
        **facts,
    )


def _setting_of(found: Material) -> Setting:
    """Tell the setting from what experiences have."""
    if found.stream is not None:
        return found.stream.setting
    train = found.pieces["train"]
    if len({p.task_label for p in train} - {None}) > 1:
        return "task"
    return "domain" if len(train) > 1 and len({p.classes for p in train}) == 1 else "class"


def _order(pieces: Sequence[Piece]) -> list[int]:
    """Return every label in the order of first appearance; those of one experience ascending."""
    return list(dict.fromkeys(label for p in pieces for label in p.classes))


def _highest(table: SampleTable) -> int:
    return int(table.targets.max()) if len(table) else -1


def _relabelled(table: SampleTable, relabel: Tensor, setting: Setting) -> SampleTable:
    known = table.targets >= 0
    targets = torch.where(known, relabel[table.targets.clamp(min=0)], table.targets)
    return dataclasses.replace(table, targets=targets, task_ids=table.task_ids if setting == "task" else None)


def _experiences(found: Material, number: Mapping[int, int], setting: Setting) -> tuple[Experience, ...]:
    made: list[Experience] = []
    seen = 0
    for i, piece in enumerate(found.pieces["train"]):
        classes = tuple(sorted(number[c] for c in piece.classes))
        before, seen = seen, max(seen, 1 + classes[-1])
        made.append(
            Experience(
                index=i,
                classes=classes,
                new_classes=tuple(c for c in classes if c >= before),
                num_seen_classes=seen,
                train=piece.ids,
                valid=_valid_of(found, i),
                task_id=piece.task_label if setting == "task" else None,
                is_last=i == len(found.pieces["train"]) - 1,
            )
        )
    return tuple(made)


def _valid_of(found: Material, index: int) -> Tensor:
    """Return what was set aside for an experience.

    By the experience of that number in the stream `valid`; of a benchmark that `to_avalanche` made, by what the clframe
    stream had set aside and the benchmark still has, and by what Avalanche has set aside of the experience.
    """
    pieces = found.pieces["valid"]
    part = found.pieces["train"][index].part
    if not isinstance(part, Experience):
        return pieces[index].ids if index < len(pieces) else no_samples()
    return torch.cat([_still_there(part.valid, found), *(p.ids for p in pieces if p.part is part)])


def _still_there(valid: Tensor, found: Material) -> Tensor:
    return valid[torch.isin(valid, torch.cat([no_samples(), *(p.ids for p in found.pieces["valid"])]))]


def _tasks(
    found: Material, number: Mapping[int, int], experiences: Sequence[Experience], setting: Setting
) -> tuple[EvaluationTask, ...]:
    """Return a task for every experience of the test stream.

    It counts as seen after the experience of its own number where both streams are equally long; else after the first
    one by which all of its classes were seen, or after the last. While the experiences are those of a clframe stream, as
    that one says.
    """
    made: list[EvaluationTask] = []
    given = () if found.stream is None else found.stream.experiences
    unchanged = all(p.part is e for p, e in zip(found.pieces["train"], given, strict=False))
    for j, piece in enumerate(found.pieces["test"]):
        classes = tuple(sorted(number[c] for c in piece.classes))
        after = 1 + next((e.index for e in experiences if e.num_seen_classes > classes[-1]), len(experiences) - 1)
        if len(found.pieces["test"]) == len(experiences):
            after = j + 1
        valid = experiences[after - 1].valid
        if isinstance(piece.part, EvaluationTask):
            after = min(piece.part.available_after, len(experiences)) if unchanged else after
            valid = _still_there(piece.part.valid, found) if len(piece.part.valid) else experiences[after - 1].valid
        made.append(
            EvaluationTask(
                index=j,
                classes=classes,
                test=piece.ids,
                valid=valid,
                available_after=after,
                task_id=piece.task_label if setting == "task" else None,
            )
        )
    return tuple(made)
