"""What every scenario must keep."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from clframe.config import RunOptions
from clframe.data.root import DataRoot
from clframe.errors import ContractError
from clframe.launch.services import EngineServices
from clframe.scenario import Scenario, settings_of
from clframe.stream import SampleTable, Stream
from clframe.testing import check as common
from clframe.testing.check import global_rng_unchanged, reports

__all__ = ["CHECKS", "Built"]


class Built:
    """One scenario and, once somebody asks, its stream.

    Args:
        scenario: What is checked.
        root: Where its data lies.
    """

    def __init__(self, scenario: Scenario, root: DataRoot | None = None) -> None:
        """Store; nothing is read before a check asks."""
        self.scenario = scenario
        self.root = root if root is not None else DataRoot.resolve()
        self.name = type(scenario).__name__

    @functools.cached_property
    def stream(self) -> Stream:
        """The stream that the parameters give."""
        return self.build()

    def build(self) -> Stream:
        """Make the stream of a fresh copy."""
        fresh = self.scenario.replace()
        fresh.bind(EngineServices(RunOptions()))
        return fresh.build(self.root)


def construction_reads_nothing(built: Built) -> None:
    """Constructing only stores: the very same values, nothing computed, read or drawn."""
    common.construction(built.scenario)


def configuration_round_trip(built: Built) -> None:
    """The parameters survive JSON, types and ranges included."""
    common.round_trip(built.scenario, "scenario")


def unknown_option_refused(built: Built) -> None:
    """An unknown parameter is refused, and the closest one suggested."""
    common.unknown_field(built.scenario, "scenario")


def documented(built: Built) -> None:
    """The class says what it makes, and every field what it means."""
    common.described(built.scenario, "Version history", type(built.scenario).__module__.startswith("clframe."))


def same_parameters_same_stream(built: Built) -> None:
    """Building twice gives the same stream, whatever the global generators' state, and draws from none of them."""
    first = built.stream.fingerprint
    with global_rng_unchanged(f"Building {built.name}"):
        again = built.build().fingerprint
    if first != again:
        raise ContractError(
            f"{built.name} builds another stream the second time: draw from a generator with a fixed seed."
        )


def stream_fits_together(built: Built) -> None:
    """The stream keeps its own rules, and its tables hold a label for every image."""
    with reports(f"The stream of {built.name}"):
        built.stream.check()
    stream = built.stream
    for name, table in (("train", stream.train), ("test", stream.test)):
        rows = table.images if table.rows is None else table.rows
        if len(rows) != len(table.targets) or (stream.score == "accuracy" and table.targets.dtype != torch.int64):
            raise ContractError(f"The {name} table of {built.name} must have an int64 label for every sample.")
        if (table.task_ids is not None) != (stream.setting == "task"):
            raise ContractError(
                f"The {name} table of {built.name} must have task ids in the task setting and only there."
            )
    sources = len(stream.class_order)  # in the domain setting several source classes share a label
    if sources < stream.num_classes or (sources > stream.num_classes and stream.setting != "domain"):
        raise ContractError(f"{built.name} must name every class and say where its label comes from.")
    declared = settings_of(type(built.scenario))
    if declared and stream.setting not in declared:
        raise ContractError(
            f"{built.name} says that its streams are {' or '.join(declared)}, but one is {stream.setting}."
        )
    if len(stream.shape) == 3 and not len(stream.mean) == len(stream.std) == stream.shape[0]:
        raise ContractError(f"{built.name} must give a mean and a deviation for each of {stream.shape[0]} channels.")


def classes_are_declared_truly(built: Built) -> None:
    """Every experience and task declares exactly the labels that its samples have."""
    stream = built.stream
    if stream.score != "accuracy":
        return
    seen: set[int] = set()
    for e in stream.experiences:
        where = f"Experience {e.index + 1} of {built.name}"
        labelled = _labels(stream.train, torch.cat([e.train, e.pool]))
        if labelled != list(e.classes):
            raise ContractError(f"{where} declares the classes {list(e.classes)}, but its samples have {labelled}.")
        if not set(_labels(stream.train, e.valid)) <= set(e.classes):
            raise ContractError(f"{where} validates classes that it doesn't train.")
        if sorted(e.new_classes) != sorted(set(e.classes) - seen):
            raise ContractError(
                f"{where} says that {list(e.new_classes)} are new, but {sorted(set(e.classes) - seen)} are."
            )
        seen |= set(e.classes)
        if e.num_seen_classes != len(seen):
            raise ContractError(f"{where} counts {e.num_seen_classes} classes seen, but there are {len(seen)}.")
    for t in stream.tasks:
        found = _labels(stream.test, t.test)
        if found != sorted(t.classes):
            raise ContractError(
                f"Task {t.index + 1} of {built.name} declares the classes {list(t.classes)}, but its test samples have {found}."
            )


def _labels(table: SampleTable, ids: Tensor) -> list[int]:
    return [int(c) for c in torch.unique(table.targets[ids])]


def every_class_is_tested(built: Built) -> None:
    """Every class that is learnt has test samples, in a task that counts as seen by then."""
    stream = built.stream
    tested: set[int] = set()
    for t in stream.tasks:
        if not len(t.test) or not 1 <= t.available_after <= len(stream.experiences):
            raise ContractError(
                f"Task {t.index + 1} of {built.name} must have test samples and become available within the stream."
            )
        tested |= set(t.classes)
    missing = sorted({c for e in stream.experiences for c in e.classes} - tested)
    if missing:
        raise ContractError(f"{built.name} never tests class {missing[0]}: give it test samples in some task.")


def splits_are_disjoint(built: Built) -> None:
    """No validation sample is trained on anywhere, and no image of the test or gallery is among the training images."""
    stream = built.stream
    none = torch.empty(0, dtype=torch.int64)
    used = torch.cat([none, *(ids for e in stream.experiences for ids in (e.train, e.unlabelled, e.pool))])
    valid = torch.cat([none, *(e.valid for e in stream.experiences), *(t.valid for t in stream.tasks)])
    if bool(torch.isin(valid, used).any()):
        raise ContractError(f"{built.name} trains on validation samples: set them aside from every experience.")
    train, test = stream.train, stream.test
    if train.images is test.images:
        tested = torch.cat([none, *(t.test for t in stream.tasks)])
        if bool(torch.isin(_rows(test, tested), _rows(train, torch.cat([used, valid]))).any()):
            raise ContractError(f"{built.name} trains on test images: cut the two from different rows.")
    shown = stream.retrieval
    if shown is not None and train.images is shown.table.images:
        searched = torch.cat([shown.gallery, shown.queries])
        if bool(torch.isin(_rows(shown.table, searched), _rows(train, torch.cat([used, valid]))).any()):
            raise ContractError(f"{built.name} trains on images of its gallery or queries: cut them from test images.")
    for name, ids, table in (("forget", "forget", train), ("test", "test", test)):
        owners: Any = stream.experiences if name == "forget" else stream.tasks
        found = torch.cat([none, *(getattr(o, ids) for o in owners)])
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(table):
            raise ContractError(f"{built.name} has ids of {name} outside its table.")


def _rows(table: SampleTable, ids: Tensor) -> Tensor:
    return ids if table.rows is None else table.rows[ids]


def samples_once(built: Built) -> None:
    """No experience lists a sample twice, and what is forgotten was learnt before."""
    learnt = torch.empty(0, dtype=torch.int64)
    for e in built.stream.experiences:
        mine = torch.cat([e.train, e.unlabelled, e.pool])
        if len(torch.unique(mine)) != len(mine):
            raise ContractError(f"Experience {e.index + 1} of {built.name} lists a sample twice.")
        if not bool(torch.isin(e.forget, learnt).all()):
            raise ContractError(
                f"Experience {e.index + 1} of {built.name} asks to forget samples that were never learnt."
            )
        learnt = torch.cat([learnt, mine])


def description_adds_up(built: Built) -> None:
    """The table that `--dry-run` shows counts every sample."""
    stream = built.stream
    rows = stream.describe()
    counted = [sum(r[k] for r in rows) for k in ("train", "valid", "test")]
    expected = [sum(len(e.train) for e in stream.experiences), sum(len(e.valid) for e in stream.experiences),
                sum(len(t.test) for t in stream.tasks)]  # fmt: skip
    if len(rows) != len(stream.experiences) or counted != expected:
        raise ContractError(
            f"The description of {built.name} counts {counted} training, validation and test samples, expected {expected}."
        )


def images_are_copies(built: Built) -> None:
    """Images arrive as uint8 (B, H, W, C), or float features (B, D), that can be changed without changing the source."""
    stream = built.stream
    for table, ids in ((stream.train, stream.experiences[0].train[:3]), (stream.test, stream.tasks[0].test[:3])):
        first = table.gather(ids)
        shape = stream.shape
        expected = (len(ids), *shape[1:], shape[0]) if len(shape) == 3 else (len(ids), *shape)
        if tuple(first.shape) != expected or first.dtype not in (torch.uint8, torch.float32):
            raise ContractError(
                f"{built.name} must give images {expected}, received {tuple(first.shape)} {first.dtype}."
            )
        kept = first.clone()
        first.add_(1)
        if not torch.equal(table.gather(ids), kept):
            raise ContractError(
                f"{built.name} hands out its own images instead of copies: a change by augmentation would stay."
            )


CHECKS = (
    construction_reads_nothing,
    configuration_round_trip,
    unknown_option_refused,
    documented,
    same_parameters_same_stream,
    stream_fits_together,
    classes_are_declared_truly,
    every_class_is_tested,
    splits_are_disjoint,
    samples_once,
    description_adds_up,
    images_are_copies,
)
