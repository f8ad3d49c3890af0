"""Every check fails on a strategy or scenario that breaks its law, and only says so where the law is broken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clframe.data import MemoryReader
from clframe.errors import ConfigurationError, ContractError
from clframe.memory import ExemplarMemory
from clframe.spec import field
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.strategy import Batch, DataView, Phase, Strategy, Tags
from clframe.stream import Experience, Retrieval, SampleTable
from clframe.testing import (
    SyntheticScenario,
    check_named,
    check_scenario,
    check_strategy,
    parametrize_with_checks,
    scenario_checks,
    strategy_checks,
)

# Broken strategies ----------------------------------------------------------------------------------------------------


class Fine(Strategy):
    """The base of what is broken here."""


class WorksInConstructor(Fine):
    """Builds state when it is constructed."""

    def __new__(cls, **values: Any) -> Any:
        made = super().__new__(cls)
        made.table_ = torch.zeros(3)  # type: ignore[attr-defined]
        return made


class ConvertsInConstructor(Fine):
    """Stores another object than it was given."""

    names: list[str] = field(default_factory=lambda: ["a"], help="Some names.")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, list(value) if name == "names" else value)


class DrawsInConstructor(Fine):
    """Draws a number when it is constructed."""

    def __new__(cls, **values: Any) -> Any:
        np.random.rand()
        return super().__new__(cls)


class ReadsInConstructor(Fine):
    """Opens a file when it is constructed."""

    def __new__(cls, **values: Any) -> Any:
        Path(__file__).read_text()
        return super().__new__(cls)


class LosesAField(Fine):
    """Has a field that JSON can't hold."""

    transform: Any = field(default=torch.zeros(1), help="A tensor.")


class Undocumented(Fine):
    pass


class Silent(Fine):
    """Has a field without help."""

    strength: float = field(default=1.0)


class NoHistory(Fine):
    """Has a version that its history doesn't know."""

    version: ClassVar[int] = 2


class WrongTags(Fine):
    """Declares its tags as a dictionary."""

    tags = {"settings": ["class"]}  # type: ignore[assignment]  # noqa: RUF012


class ReplaceKeepsState(Fine):
    """A copy of it carries what it learnt."""

    def setup(self) -> None:
        self.learnt_ = 1

    def replace(self, **changes: Any) -> Any:
        made = super().replace(**changes)
        vars(made).update({n: v for n, v in vars(self).items() if n.endswith("_")})
        return made


class HidesState(Fine):
    """Keeps state where no checkpoint looks."""

    def setup(self) -> None:
        self.counter = 0


class ChangesItself(Fine):
    """Changes its own hyperparameter."""

    strength: float = field(default=1.0, help="Weight.")

    def after_experience(self, experience: Experience) -> None:
        self.strength *= 0.5


class LeaksRandomness(Fine):
    """Moves the global generator outside of the trainer's care."""

    def __new__(cls, **values: Any) -> Any:
        torch.rand(1)
        return super().__new__(cls)


_calls = iter(range(10**9))


class Unrepeatable(Fine):
    """Depends on how often it was called in this process."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        return {"drift": output.logits.square().mean() * (next(_calls) % 1000) * 1e-3}


class OwnSeed(Fine):
    """Starts from the same weights and order whatever the seed."""

    def before_experience(self, experience: Experience) -> None:
        super().before_experience(experience)
        torch.manual_seed(0)
        for p in self.network.parameters():
            nn.init.normal_(p, std=0.1)

    def phases(self, experience: Experience) -> list[Phase]:
        return [] if experience.index >= 0 else super().phases(experience)


class ForgetsToSave(Fine):
    """Its momentum of the loss lives where no checkpoint looks."""

    def setup(self) -> None:
        self._smoothed = 0.0

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        self._smoothed += 0.1
        return {"growing": self._smoothed * output.logits.square().mean()}


class MovingPhases(Fine):
    """Its phases read ids that change while they train, so a resumed run makes others."""

    def setup(self) -> None:
        self.ids_ = torch.empty(0, dtype=torch.int64)

    def training_data(self, experience: Experience) -> DataView:
        return DataView(torch.cat([experience.train, self.ids_]))

    def after_step(self, batch: Batch) -> None:
        self.ids_ = torch.cat([self.ids_, batch.ids[:1]])


class LearnsFromTests(Fine):
    """Predicting nudges its weights."""

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        with torch.no_grad():
            self.network.classifier.bias.add_(0.01)  # type: ignore[union-attr]
        return super().predict(x, task_ids)


class PeeksAtTests(Fine):
    """Looks at test images between experiences."""

    def after_experience(self, experience: Experience) -> None:
        self.run.stream.test.gather(torch.tensor([0]))  # type: ignore[attr-defined]


class TrainsOnValidation(Fine):
    """Trains on what was set aside."""

    def training_data(self, experience: Experience) -> DataView:
        return DataView(torch.cat([experience.train, experience.valid]))


class LooksAhead(Fine):
    """Reads the samples of the next experience."""

    def before_experience(self, experience: Experience) -> None:
        super().before_experience(experience)
        experiences = self.run.stream.experiences  # type: ignore[attr-defined]
        following = experiences[(experience.index + 1) % len(experiences)]
        self.run.features(following.train)


class SecretHistory(Fine):
    """Trains on everything so far without saying so."""

    def setup(self) -> None:
        self.ids_ = torch.empty(0, dtype=torch.int64)

    def training_data(self, experience: Experience) -> DataView:
        return DataView(torch.cat([self.ids_, experience.train]))

    def after_experience(self, experience: Experience) -> None:
        self.ids_ = torch.cat([self.ids_, experience.train])


class Hoards(Replay):
    """Keeps twice what it declares."""

    def _new_memory(self, sample_bytes: int) -> ExemplarMemory:
        return ExemplarMemory(2 * self.memory_size, policy=self.resolved_policy(), sample_bytes=sample_bytes)


class Overfills(Replay):
    """Writes into its memory past the budget."""

    def after_experience(self, experience: Experience) -> None:
        super().after_experience(experience)
        self.memory_.ids = torch.cat([self.memory_.ids, experience.train])
        self.memory_.targets = torch.cat([self.memory_.targets, self.run.targets(experience.train)])


class UntaggedMemory(Replay):
    """Keeps exemplars but isn't tagged so."""

    tags: ClassVar[Tags] = Tags()
    nme: bool = field(default=False, help="Off.")

    def training_data(self, experience: Experience) -> DataView:
        return DataView(experience.train)


class NeverForgets(Replay):
    """Keeps what it was asked to forget."""

    def forget(self, experience: Experience) -> None:
        """Nothing."""


class ChangesLabels(Fine):
    """Writes into the stream's labels."""

    def after_experience(self, experience: Experience) -> None:
        self.run.stream.train.targets[0] = 1 - self.run.stream.train.targets[0]  # type: ignore[attr-defined]


class SharesPixels(Fine):
    """Keeps a view of the stream's own images."""

    def after_experience(self, experience: Experience) -> None:
        self.kept_ = self.run.stream.train.images.tensor[:2]  # type: ignore[attr-defined]


class ImpurePhases(Fine):
    """Counts how often its phases are asked for."""

    def setup(self) -> None:
        self.asked_ = 0

    def phases(self, experience: Experience) -> list[Phase]:
        self.asked_ += 1
        return super().phases(experience)


_lengths = iter(range(1, 10**9))


class OtherPhases(Fine):
    """Gives other phases each time."""

    def phases(self, experience: Experience) -> list[Phase]:
        return [dataclasses.replace(self.main_phase(experience), epochs=next(_lengths))]


class VectorLoss(Fine):
    """Returns a loss per sample."""

    def main_loss(self, batch: Batch, output: Any) -> Tensor:
        return nn.functional.cross_entropy(output.logits, batch.y, reduction="none")


class NaNLoss(Fine):
    """Has a term that is no number."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        return {"broken": (output.logits.sum() * 0 - 1).log()}


class NamelessLoss(Fine):
    """Returns a tensor where named terms are due."""

    def loss_terms(self, batch: Batch) -> Any:
        return super().loss_terms(batch)["classification"]


class Remembers(Fine):
    """Counts its predictions."""

    def setup(self) -> None:
        self.predictions_ = 0

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        self.predictions_ += 1
        return super().report_heads(output)


class Guesses(Fine):
    """Draws while predicting."""

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        return {"classifier": output.logits + torch.rand_like(output.logits)}


class WritesIntoImages(Fine):
    """Normalises the images that it is given in place."""

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        return super().predict(x.sub_(1.0), task_ids)


class BatchStatistics(Fine):
    """Centres its scores over the batch."""

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        return {"classifier": output.logits - output.logits.mean(dim=0)}


class OrderMatters(Fine):
    """Its scores depend on the place in the batch; a single image has always the first."""

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        return {
            "classifier": output.logits
            + torch.arange(len(output.logits))[:, None] * torch.tensor([[1.0] + [0.0] * (output.logits.shape[1] - 1)])
        }


class NeedsTwoExperiences(Fine):
    """Can't do without a second experience."""

    def setup(self) -> None:
        self.run.stream.experiences[1]  # type: ignore[attr-defined]


class NeedsTwoClasses(Fine):
    """Contrasts two classes of an experience."""

    def after_experience(self, experience: Experience) -> None:
        _first, _second = experience.classes[:2]


class NeedsTwoSamples(Fine):
    """Divides by the deviation of the labels."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        if len(experience_ids := batch.experience.train) < 2:
            raise ValueError(f"one sample: {experience_ids}")
        return {}


class FullBatches(Fine):
    """Insists on full batches."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        if len(batch.y) not in (4, 8):
            raise ValueError("expected a full batch")
        return {}


class NewClassesOnly(Fine):
    """Believes that every experience brings new classes."""

    def before_experience(self, experience: Experience) -> None:
        super().before_experience(experience)
        min(experience.new_classes)


class NoTaskIds(Fine):
    """Claims to serve task ids, and doesn't."""

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        if batch.task_ids is not None:
            raise ValueError("what is a task id?")
        return super().loss_terms(batch)


class NoRegression(Fine):
    """Claims to learn regressions, and doesn't."""

    tags: ClassVar[Tags] = Tags(scores=frozenset({"accuracy", "squared_error"}))

    def main_loss(self, batch: Batch, output: Any) -> Tensor:
        return nn.functional.cross_entropy(output.logits, batch.y)  # of float labels: as if they were probabilities

    def after_step(self, batch: Batch) -> None:
        if batch.y.is_floating_point():
            raise TypeError("labels must be integers")


class Overspends(Fine):
    """Buys the whole pool."""

    def query(self, experience: Experience) -> Tensor:
        return experience.pool


class OnTheCPU(Fine):
    """Builds its mask on the CPU."""

    def main_loss(self, batch: Batch, output: Any) -> Tensor:
        weights = torch.ones(output.logits.shape[1])
        return nn.functional.cross_entropy(output.logits, batch.y, weight=weights)


BROKEN: list[tuple[str, type[Strategy], str]] = [
    ("construction_stores_only", WorksInConstructor, "table_"),
    ("construction_stores_only", ConvertsInConstructor, "names"),
    ("construction_stores_only", DrawsInConstructor, "numpy"),
    ("construction_stores_only", ReadsInConstructor, "opens"),
    ("configuration_round_trip", LosesAField, "JSON"),
    ("documented", Undocumented, "docstring"),
    ("documented", Silent, "strength"),
    ("documented", NoHistory, "version"),
    ("tags_declared", WrongTags, "Tags"),
    ("replace_is_fresh", ReplaceKeepsState, "learnt_"),
    ("state_is_named", HidesState, "counter"),
    ("hyperparameters_unchanged", ChangesItself, "strength"),
    ("global_generators_untouched", LeaksRandomness, "torch"),
    ("same_seed_same_bits", Unrepeatable, "differ in"),
    ("seeds_matter", OwnSeed, "two seeds"),
    ("resume_is_exact", ForgetsToSave, "resumed|_smoothed"),
    ("resume_is_exact", MovingPhases, "resumed"),
    ("evaluation_changes_nothing", LearnsFromTests, "more often"),
    ("sees_only_what_it_may", PeeksAtTests, "test images"),
    ("sees_only_what_it_may", TrainsOnValidation, "validation"),
    ("sees_only_what_it_may", LooksAhead, "neither is given"),
    ("sees_only_what_it_may", SecretHistory, "needs_all_data"),
    ("sees_only_what_it_may", Hoards, "budget"),
    ("sees_only_what_it_may", Overfills, "budget"),
    ("sees_only_what_it_may", UntaggedMemory, "stores_samples"),
    ("forgets", NeverForgets, "forget"),
    ("samples_untouched", ChangesLabels, "changes samples"),
    ("samples_untouched", SharesPixels, "kept_"),
    ("phases_are_pure", ImpurePhases, "asked_"),
    ("phases_are_pure", OtherPhases, "different ones"),
    ("loss_terms_are_scalars", VectorLoss, "classification"),
    ("loss_terms_are_scalars", NaNLoss, "broken"),
    ("loss_terms_are_scalars", NamelessLoss, "dictionary"),
    ("predict_is_pure", LearnsFromTests, "network"),
    ("predict_is_pure", Remembers, "predictions_"),
    ("predict_is_pure", Guesses, "global generator|second time"),
    ("predict_is_pure", WritesIntoImages, "images"),
    ("predict_ignores_the_batch", BatchStatistics, "size"),
    ("predict_ignores_the_batch", OrderMatters, "size|order"),
    ("one_experience", NeedsTwoExperiences, "one experience"),
    ("one_class_per_experience", NeedsTwoClasses, "one class"),
    ("unequal_sizes", NeedsTwoSamples, "unequal"),
    ("last_batch_of_one", FullBatches, "last batch"),
    ("returning_class", NewClassesOnly, "comes back"),
    ("other_settings", NoTaskIds, "task-incremental"),
    ("other_scores", NoRegression, "squared_error"),
    ("withheld_labels", Overspends, "pool"),
    ("steps_on_another_device", OnTheCPU, "mixes|device"),
]


@pytest.mark.parametrize(("name", "cls", "says"), BROKEN, ids=[f"{n}-{c.__name__}" for n, c, _ in BROKEN])
def test_a_broken_strategy_fails(name: str, cls: type[Strategy], says: str) -> None:
    check = {c.name: c for c in strategy_checks()}[name]
    with pytest.raises(ContractError, match=says) as caught:
        check(cls())
    assert "\n" not in str(caught.value)


def test_an_unknown_option_that_is_swallowed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from clframe.testing import check as common

    monkeypatch.setattr(common, "build", lambda cls, values, where: cls())
    with pytest.raises(ContractError, match="suggest"):
        {c.name: c for c in strategy_checks()}["unknown_option_refused"](Fine())


def test_a_refusal_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from clframe.testing import strategy_runs

    monkeypatch.setattr(strategy_runs, "check_fit", lambda *_: None)
    with pytest.raises(ContractError, match="isn't refused"):
        {c.name: c for c in strategy_checks()}["refuses_what_tags_exclude"](Fine())


def test_every_strategy_check_has_its_broken_strategy() -> None:
    apart = {"unknown_option_refused", "refuses_what_tags_exclude"}
    assert {n for n, _, _ in BROKEN} | apart == {c.name for c in strategy_checks()}


def test_all_problems_are_named_at_once() -> None:
    class Both(Silent, Guesses):  # type: ignore[misc]
        """Two faults."""

    with pytest.raises(ContractError) as caught:
        check_strategy(Both)
    named = {line.split(":")[0] for line in str(caught.value).splitlines()}
    assert {"documented", "predict_is_pure"} <= named
    assert "configuration_round_trip" not in named


@pytest.mark.parametrize("cls", [Fine, Finetune])
def test_a_good_strategy_passes(cls: type[Strategy]) -> None:
    check_strategy(cls)


# Broken scenarios -----------------------------------------------------------------------------------------------------


class Counted(SyntheticScenario):
    """Changes with every build."""

    def build(self, root: Any = None, *, download: bool = False) -> Any:
        return self.replace(seed=next(_calls)) and _changed(super().build(root), data_fingerprint=str(next(_calls)))


class DrawsGlobalOrder(SyntheticScenario):
    """Draws its class order from NumPy's global generator."""

    def build(self, root: Any = None, *, download: bool = False) -> Any:
        np.random.permutation(3)
        return super().build(root)


class ReadsEarly(SyntheticScenario):
    """Reads when it is constructed."""

    def __new__(cls, **values: Any) -> Any:
        Path(__file__).read_bytes()
        return super().__new__(cls)


class Unsaveable(SyntheticScenario):
    """Has a field that JSON can't hold."""

    order: Any = field(default=torch.zeros(1), help="A tensor.")


class Helpless(SyntheticScenario):
    """Has a field without help."""

    noise: float = field(default=1.0)


def _changed(stream: Any, **changes: Any) -> Any:
    return dataclasses.replace(stream, **changes)


def _experience(stream: Any, index: int, **changes: Any) -> Any:
    experiences = list(stream.experiences)
    experiences[index] = dataclasses.replace(experiences[index], **changes)
    return _changed(stream, experiences=tuple(experiences))


def _task(stream: Any, index: int, **changes: Any) -> Any:
    tasks = list(stream.tasks)
    tasks[index] = dataclasses.replace(tasks[index], **changes)
    return _changed(stream, tasks=tuple(tasks))


class _Altered(SyntheticScenario):
    """Alters a good stream; the base of those below."""

    valid_per_class: int = field(default=2, help="Set aside.")

    def build(self, root: Any = None, *, download: bool = False) -> Any:
        return self.alter(super().build(root))

    def alter(self, stream: Any) -> Any:
        raise NotImplementedError


class OutOfRange(_Altered):
    """Has an id outside its table."""

    def alter(self, stream: Any) -> Any:
        return _experience(stream, 1, train=torch.tensor([10**6]))


class FloatLabels(_Altered):
    """Has labels that are no integers."""

    def alter(self, stream: Any) -> Any:
        return _changed(stream, train=dataclasses.replace(stream.train, targets=stream.train.targets.float()))


class StrayTaskIds(_Altered):
    """Gives task ids in the class-incremental setting."""

    def alter(self, stream: Any) -> Any:
        return _changed(stream, test=dataclasses.replace(stream.test, task_ids=stream.test.targets))


class OfAnotherSetting(_Altered):
    """Says that its streams are domain-incremental."""

    settings: ClassVar[tuple[Any, ...]] = ("domain",)

    def alter(self, stream: Any) -> Any:
        return stream


class ForeignClass(_Altered):
    """Hands out a sample of a class that it doesn't declare."""

    def alter(self, stream: Any) -> Any:
        return _experience(stream, 2, train=torch.cat([stream.experiences[2].train, stream.experiences[0].train[:1]]))


class WrongTask(_Altered):
    """Tests a class under another task's name."""

    def alter(self, stream: Any) -> Any:
        return _task(stream, 1, test=stream.tasks[0].test)


class Untested(_Altered):
    """Never tests its last classes."""

    def alter(self, stream: Any) -> Any:
        return _changed(stream, tasks=stream.tasks[:-1])


class NeverAvailable(_Altered):
    """Has a task that never counts as seen."""

    def alter(self, stream: Any) -> Any:
        return _task(stream, 2, available_after=99)


class TrainsOnValid(_Altered):
    """Trains later on what was set aside before."""

    def alter(self, stream: Any) -> Any:
        first, last = stream.experiences[0], stream.experiences[2]
        return _experience(stream, 2, train=torch.cat([last.train, first.valid]), classes=(0, 1, 4, 5))


class ScoresTraining(_Altered):
    """Tests on training images."""

    def alter(self, stream: Any) -> Any:
        images = MemoryReader(torch.cat([stream.train.images.tensor, stream.test.images.tensor]))
        test = dataclasses.replace(stream.test, images=images, rows=torch.arange(len(stream.test)))
        return _changed(
            stream,
            train=dataclasses.replace(stream.train, images=images, rows=torch.arange(len(stream.train))),
            test=test,
        )


def _searching(stream: Any, table: SampleTable, gallery: list[int], queries: list[int]) -> Any:
    parts = [torch.tensor(v) for v in (gallery, queries, [[0, 0]])]
    return _changed(stream, retrieval=Retrieval(table, *parts))


class TrainsOnTheGallery(_Altered):
    """Searches among training images."""

    def alter(self, stream: Any) -> Any:
        return _searching(stream, stream.train, stream.experiences[0].train[:2].tolist(), [len(stream.train) - 1])


class FindsItself(_Altered):
    """Searches for images that are in the gallery."""

    def alter(self, stream: Any) -> Any:
        return _searching(stream, stream.test, [0, 1], [1])


class Doubled(_Altered):
    """Lists its samples twice."""

    def alter(self, stream: Any) -> Any:
        return _experience(stream, 0, train=stream.experiences[0].train.repeat(2))


class ForgetsTheUnlearnt(_Altered):
    """Asks to forget what comes later."""

    def alter(self, stream: Any) -> Any:
        return _experience(stream, 0, forget=stream.experiences[2].train[:2])


class Uncounted(_Altered):
    """Tests a task that its description leaves out."""

    def alter(self, stream: Any) -> Any:
        return _task(stream, 0, available_after=0)


class _Aliasing(MemoryReader):
    def gather(self, indices: Tensor) -> Tensor:
        return self.tensor[int(indices[0]) : int(indices[0]) + len(indices)]


class HandsOutItself(_Altered):
    """Hands out views of its own images."""

    def alter(self, stream: Any) -> Any:
        table = SampleTable(_Aliasing(stream.train.images.tensor), stream.train.targets)
        return _changed(stream, train=table)


BROKEN_SCENARIOS: list[tuple[str, type[SyntheticScenario], str]] = [
    ("construction_reads_nothing", ReadsEarly, "opens"),
    ("configuration_round_trip", Unsaveable, "JSON"),
    ("documented", Helpless, "noise"),
    ("same_parameters_same_stream", Counted, "second time"),
    ("same_parameters_same_stream", DrawsGlobalOrder, "numpy"),
    ("stream_fits_together", OutOfRange, "stream of OutOfRange"),
    ("stream_fits_together", FindsItself, "images that are in its gallery"),
    ("stream_fits_together", FloatLabels, "int64"),
    ("stream_fits_together", StrayTaskIds, "task ids"),
    ("stream_fits_together", OfAnotherSetting, "streams are domain, but one is class"),
    ("classes_are_declared_truly", ForeignClass, "declares"),
    ("classes_are_declared_truly", WrongTask, "Task 2"),
    ("every_class_is_tested", Untested, "never tests"),
    ("every_class_is_tested", NeverAvailable, "Task 3"),
    ("splits_are_disjoint", TrainsOnValid, "validation"),
    ("splits_are_disjoint", ScoresTraining, "test images"),
    ("splits_are_disjoint", TrainsOnTheGallery, "images of its gallery or queries"),
    ("samples_once", Doubled, "twice"),
    ("samples_once", ForgetsTheUnlearnt, "never learnt"),
    ("description_adds_up", Uncounted, "counts"),
    ("images_are_copies", HandsOutItself, "copies"),
]


@pytest.mark.parametrize(
    ("name", "cls", "says"), BROKEN_SCENARIOS, ids=[f"{n}-{c.__name__}" for n, c, _ in BROKEN_SCENARIOS]
)
def test_a_broken_scenario_fails(name: str, cls: type[SyntheticScenario], says: str) -> None:
    check = {c.name: c for c in scenario_checks()}[name]
    with pytest.raises(ContractError, match=says):
        check(cls())


def test_every_scenario_check_has_its_broken_scenario() -> None:
    assert {n for n, _, _ in BROKEN_SCENARIOS} | {"unknown_option_refused"} == {c.name for c in scenario_checks()}


def test_check_scenario_names_every_problem() -> None:
    with pytest.raises(ContractError, match="splits_are_disjoint"):
        check_scenario(TrainsOnValid)
    check_scenario(SyntheticScenario)


# The suite itself -----------------------------------------------------------------------------------------------------


def test_check_named_takes_a_users_file(tmp_path: Path) -> None:
    head = "from clframe.strategy import Strategy\n\nclass Mine(Strategy):\n    '''Mine.'''\n"
    text = head + "    def setup(self):\n        self.lost = 1\n"
    (tmp_path / "mine.py").write_text(text)
    results = dict(check_named(f"{tmp_path / 'mine.py'}:Mine"))
    assert set(results) == {c.name for c in strategy_checks()}
    failed = {n: p for n, p in results.items() if p is not None}
    assert set(failed) == {"state_is_named"}
    assert "lost" in failed["state_is_named"]


def test_check_named_refuses_unknown_names() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'replay'"):
        list(check_named("replai"))
    with pytest.raises(ConfigurationError, match="use check_scenario"):
        check_strategy("split_digits")


def test_known_failures_become_strict_xfails() -> None:
    mark = parametrize_with_checks([Fine()], {"resume_is_exact": "the reason"})
    cases = {p.id: p for p in mark.args[1]}
    assert len(cases) == len(strategy_checks())
    (xfail,) = cases["Fine-resume_is_exact"].marks
    assert xfail.kwargs == {"reason": "the reason", "strict": True}
    assert all(not p.marks for i, p in cases.items() if i != "Fine-resume_is_exact")
    with pytest.raises(ConfigurationError, match="no check named"):
        parametrize_with_checks([Fine()], {"resum": "a typing error"})


def test_a_check_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    check_strategy(Fine)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index, arg-type]
