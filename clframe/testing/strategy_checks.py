"""What every strategy must keep: construction, seeds, resuming, and what it may see."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from clframe.composite import leaves
from clframe.errors import ContractError
from clframe.spec import fields_of
from clframe.strategy import Tags
from clframe.stream import Stream
from clframe.testing import check as common
from clframe.testing.bench import (
    SHORT,
    Bench,
    Often,
    WatchedReader,
    Watching,
    first_difference,
    memories,
)
from clframe.testing.check import global_rng_unchanged, reports

__all__ = ["CHECKS"]


def construction_stores_only(bench: Bench) -> None:
    """Constructing only stores: the very same values, nothing computed, read or drawn."""
    for part in leaves(bench.given):
        common.construction(part)


def configuration_round_trip(bench: Bench) -> None:
    """The hyperparameters survive JSON, types and ranges included."""
    for part in leaves(bench.given):
        common.round_trip(part, "strategy")


def unknown_option_refused(bench: Bench) -> None:
    """An unknown hyperparameter is refused, and the closest one suggested."""
    for part in leaves(bench.given):
        common.unknown_field(part, "strategy")


def documented(bench: Bench) -> None:
    """The class says what it does, and every field what it means; built-in ones how they differ from the paper."""
    for part in leaves(bench.given):
        common.described(part, "Differs from the paper", type(part).__module__.startswith("clframe."))


def tags_declared(bench: Bench) -> None:
    """The tags are `Tags`, and allow some setting and some score."""
    for part in leaves(bench.given):
        tags = type(part).tags
        if not isinstance(tags, Tags) or not tags.settings or not tags.scores:
            raise ContractError(
                f"{type(part).__name__}.tags must be Tags with a setting and a score, received {tags!r}."
            )


def replace_is_fresh(bench: Bench) -> None:
    """A copy of a strategy that has run has its hyperparameters and none of its state."""
    used = bench.usual.trainer.strategy
    for part in leaves(used):
        copy = part.replace()
        names = {f.name for f in fields_of(type(part))}
        extra = sorted(set(vars(copy)) - names)
        if copy != part or extra:
            raise ContractError(
                f"{type(part).__name__}.replace() must give equal hyperparameters and no state, received {extra or copy}."
            )


def state_is_named(bench: Bench) -> None:
    """What a run changes lies in attributes whose names end in an underscore, which checkpoints hold."""
    for part in leaves(bench.usual.trainer.strategy):
        allowed = {f.name for f in fields_of(type(part))} | {"_run"}
        wrong = sorted(n for n in vars(part) if n not in allowed and (n.startswith("_") or not n.endswith("_")))
        if wrong:
            raise ContractError(
                f"{type(part).__name__}.{wrong[0]} is made during a run, but a checkpoint wouldn't hold it: "
                "end its name in an underscore."
            )


def hyperparameters_unchanged(bench: Bench) -> None:
    """A run changes no hyperparameter."""
    before, after = bench.strategy, bench.usual.trainer.strategy
    for old, new in zip(leaves(before), leaves(after), strict=True):
        shared = (
            {f.name for f in fields_of(type(old))}
            if old is not leaves(before)[0] and len(leaves(before)) > 1
            else set()
        )
        for f in fields_of(type(old)):
            if f.name not in shared and getattr(old, f.name) != getattr(new, f.name):
                raise ContractError(
                    f"A run of {bench.name} changes its hyperparameter {f.name!r}: keep what changes in an attribute {f.name}_."
                )


def global_generators_untouched(bench: Bench) -> None:
    """A whole run leaves the global generators of torch, NumPy and Python as they were."""
    with global_rng_unchanged(f"A run of {bench.name}"):
        bench.train()


def same_seed_same_bits(bench: Bench) -> None:
    """Two runs of one seed agree in every bit, whatever the global generators' state."""
    torch.manual_seed(987)
    different = first_difference(bench.usual.bits, bench.train().bits)
    if different is not None:
        raise ContractError(
            f"Two runs of {bench.name} with the same seed differ in {different}: "
            "draw from self.run.rng(purpose) alone, and in a fixed order."
        )


def seeds_matter(bench: Bench) -> None:
    """Two seeds give different weights."""
    if first_difference(bench.usual.state["network"], bench.train(seed=1).state["network"]) is None:
        raise ContractError(f"{bench.name} ends with the same weights for two seeds: it must not seed anything itself.")


def resume_is_exact(bench: Bench) -> None:
    """Stopping after any number of steps and resuming ends in the same bits as never stopping."""
    whole = bench.usual
    per_experience = max(1, whole.steps // 3)
    # Inside an epoch, at ends of epochs, inside the second experience, at the last step but one.
    stops = {1, 3, per_experience // SHORT, per_experience, per_experience + 1, per_experience + 3, whole.steps - 1}
    for k in sorted(stops):
        if 0 < k < whole.steps:
            _resume_after(bench, k)


def _resume_after(bench: Bench, k: int) -> None:
    whole = bench.usual
    with reports(f"Resuming {bench.name} after step {k} of {whole.steps}"):
        stopped = bench.train(stop_after=k)
        state = stopped.recorder.latest()
        resumed = bench.train(state=state)
    resumed.recorder.kept = {**stopped.recorder.kept, **resumed.recorder.kept}
    different = first_difference(_sorted(whole.bits), _sorted(resumed.bits))
    if different is not None:
        raise ContractError(
            f"{bench.name} stopped after step {k} of {whole.steps} and resumed ends with another {different}: "
            "keep state in attributes that end in an underscore, and let phases read nothing that changes while they train."
        )


def _sorted(bits: dict[str, Any]) -> dict[str, Any]:
    return {**bits, "predictions": dict(sorted(bits["predictions"].items()))}


def evaluation_changes_nothing(bench: Bench) -> None:
    """Scoring more often, unseen tasks too, changes no weight and no state."""
    often = bench.train(trainer=Often, evaluate_future=True, eval_batch_size=5)
    different = first_difference(bench.usual.state, often.state)
    if different is not None:
        raise ContractError(
            f"Scoring {bench.name} more often changes {different}: report_heads and predict must be pure."
        )


# -- what a strategy may see and keep ----------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Watch:
    """Follows a run: what is read when, and what memory holds."""

    bench: Bench
    stream: Stream
    trainer: Watching | None = None
    problem: str | None = None
    forgotten: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def watched(self) -> Stream:
        train = dataclasses.replace(self.stream.train, images=WatchedReader(self.stream.train.images, self.training))
        test = dataclasses.replace(self.stream.test, images=WatchedReader(self.stream.test.images, self.testing))
        return dataclasses.replace(self.stream, train=train, test=test)

    def start(self, trainer: Any) -> None:
        self.trainer = trainer

    def found(self, problem: str) -> None:
        self.problem = self.problem or problem

    def testing(self, rows: Tensor) -> None:
        if self.trainer is None or not self.trainer.evaluating:
            self.found(f"{self.bench.name} reads test images while it trains: keep to what the experience gives")

    def training(self, rows: Tensor) -> None:
        if self.trainer is None or self.trainer.evaluating:
            return None
        now = self.trainer.current
        if now is None:
            return self.found(
                f"{self.bench.name} reads training images before the first experience: wait for before_experience"
            )
        for name, memory in memories(self.trainer.strategy):
            self._within(name, memory, now.num_seen_classes)
        if bool(torch.isin(rows, torch.cat([e.valid for e in self.stream.experiences])).any()):
            return self.found(
                f"{self.bench.name} trains on validation samples in experience {now.index + 1}: leave experience.valid alone"
            )
        if not bool(torch.isin(rows, self._allowed(now.index)).all()):
            return self.found(
                f"{self.bench.name} reads samples in experience {now.index + 1} that it neither is given there "
                "nor holds in a memory: tag it needs_all_data, or keep ids in a memory"
            )
        forgotten = torch.cat([e.forget for e in self.stream.experiences[: now.index + 1]])
        if bool(torch.isin(rows, forgotten).any()):
            return self.found(
                f"{self.bench.name} trains on samples that it was asked to forget: remove them in forget()"
            )
        return None

    def _allowed(self, index: int) -> Tensor:
        first = 0 if self.bench.tags.needs_all_data else index
        experiences = self.stream.experiences[first : index + 1]
        given = [ids for e in experiences for ids in (e.train, e.unlabelled, e.pool)]
        stored = [self.trainer.held] if self.bench.tags.stores_samples and self.trainer is not None else []
        return torch.cat([*given, *stored])

    def _within(self, name: str, memory: Any, num_classes: int) -> None:
        each = memory.budget == "per_class"
        limit = memory.size * (num_classes if each else 1)
        declared = max(
            [getattr(p, "memory_size", memory.size) for p in leaves(self.bench.strategy)], default=memory.size
        )
        if len(memory) > limit or memory.size > declared:
            self.found(
                f"{name} holds {len(memory)} samples within a budget of {memory.size}, where {declared} were declared: "
                "keep to memory_size"
            )
        if len(memory.ids) != len(memory.targets) or len(torch.unique(memory.ids)) != len(memory.ids):
            self.found(f"{name} holds a sample twice, or without its label")


def _watch(bench: Bench, **options: Any) -> _Watch:
    stream = bench.stream(valid_per_class=2, **options)
    watch = _Watch(bench, stream)
    outcome = bench.train(watch.watched(), trainer=Watching, ready=watch.start)
    for name, memory in memories(outcome.trainer.strategy):
        watch._within(name, memory, stream.experiences[-1].num_seen_classes)
    return watch


def sees_only_what_it_may(bench: Bench) -> None:
    """No test or validation sample, nothing of the future, and of the past only what memory holds; within its budget."""
    with reports(f"A run of {bench.name}"):
        watch = _watch(bench)
    if watch.problem:
        raise ContractError(f"{watch.problem}.")
    holders = list(memories(watch.trainer.strategy)) if watch.trainer is not None else []
    if any(len(m) for _, m in holders) and not bench.tags.stores_samples:
        raise ContractError(f"{bench.name} keeps exemplars in {holders[0][0]}, but isn't tagged stores_samples.")


def forgets(bench: Bench) -> None:
    """A strategy tagged `can_unlearn` never trains again on samples that it was asked to forget."""
    if not bench.tags.can_unlearn:
        return
    with reports(f"{bench.name} on a stream that asks to forget"):
        watch = _watch(bench, forget_per_experience=4)
    if watch.problem:
        raise ContractError(f"{watch.problem}.")
    gone = torch.cat([e.forget for e in watch.stream.experiences])
    strategy = watch.trainer.strategy if watch.trainer is not None else bench.strategy
    kept = [name for name, memory in memories(strategy) if bool(torch.isin(memory.ids, gone).any())]
    if kept:
        raise ContractError(
            f"{kept[0]} still holds samples that {bench.name} was asked to forget: remove them in forget()."
        )


def samples_untouched(bench: Bench) -> None:
    """A run changes nothing of the stream: no pixel, label or index set; and its state shares no memory with pixels."""
    stream = bench.stream(valid_per_class=2)
    before = [t.clone() for t in _tensors(stream)]
    with reports(f"A run of {bench.name}"):
        outcome = bench.train(stream)
    if any(not torch.equal(a, b) for a, b in zip(before, _tensors(stream), strict=True)):
        raise ContractError(
            f"A run of {bench.name} changes samples, labels or index sets of the stream: work on copies."
        )
    owned = {t.untyped_storage().data_ptr() for t in (stream.train.images.tensor, stream.test.images.tensor)}  # type: ignore[attr-defined]
    for part in leaves(outcome.trainer.strategy):
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in owned:
                raise ContractError(
                    f"{type(part).__name__}.{name} shares memory with the stream's samples: keep a copy, or ids."
                )


def _tensors(stream: Stream) -> list[Tensor]:
    found = [t for table in (stream.train, stream.test) for t in (table.images.tensor, table.targets)]  # type: ignore[attr-defined]
    for e in stream.experiences:
        found += [e.train, e.valid, e.unlabelled, e.pool, e.forget]
    return found + [ids for t in stream.tasks for ids in (t.test, t.valid)]


CHECKS = (
    construction_stores_only,
    configuration_round_trip,
    unknown_option_refused,
    documented,
    tags_declared,
    replace_is_fresh,
    state_is_named,
    hyperparameters_unchanged,
    global_generators_untouched,
    same_seed_same_bits,
    seeds_matter,
    resume_is_exact,
    evaluation_changes_nothing,
    sees_only_what_it_may,
    forgets,
    samples_untouched,
)
