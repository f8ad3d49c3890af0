"""What every strategy must keep while it runs: phases, loss terms, prediction, devices, and streams of every shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clframe.composite import leaves
from clframe.errors import ConfigurationError, ContractError
from clframe.launch.build import check_fit
from clframe.strategy import Batch, DataView, Phase
from clframe.stream import Stream
from clframe.testing.bench import Bench, Outcome, Walker, first_difference
from clframe.testing.check import global_rng_unchanged, reports
from clframe.testing.devices import StrictMeta
from clframe.training.checkpoint import pack, strategy_state
from clframe.training.trainer import Trainer

__all__ = ["CHECKS"]


def phases_are_pure(bench: Bench) -> None:
    """Asking twice for the phases of an experience gives the same ones and changes no state."""
    with reports(f"Phases of {bench.name}"):
        _Phases(bench).run()


class _Phases(Trainer):
    """Walks through a stream without training, and asks for every experience's phases twice."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.setup(), _Nothing())

    def _experience(self, experience: Any) -> None:
        current = self.begin_experience(experience)
        asked = []
        for _ in range(2):
            self.context.streams.enter("phases", experience.index)
            before = _snapshot(self)
            phases = self.check_phases(self.strategy.phases(current))
            asked.append([_summary(p) for p in phases])
            changed = first_difference(before, _snapshot(self))
            if changed is not None:
                raise ContractError(
                    f"asking for the phases of experience {experience.index + 1} changes {changed}; "
                    "change state in hooks."
                )
        if first_difference(asked[0], asked[1]) is not None:
            raise ContractError(
                f"asking twice for the phases of experience {experience.index + 1} gives different ones, "
                "so a resumed run would differ; draw from self.run.rng(purpose) alone."
            )
        self.context.streams.enter("after", experience.index)
        self.strategy.network.eval()
        self.strategy.after_experience(current)


class _Nothing:
    def event(self, kind: str, values: Any) -> None:
        """Ignore."""

    def predictions(self, split: str, after: int, heads: Any) -> dict[str, Any]:
        """Ignore."""
        return {}

    def checkpoint(self, state: Any, keep_as: str | None) -> None:
        """Ignore."""


def _snapshot(trainer: Trainer) -> dict[str, Any]:
    states = [strategy_state(s) for s in leaves(trainer.strategy)]
    return {"network": _copied(pack(trainer.strategy.network)), "strategy": _copied(states)}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _summary(phase: Phase) -> dict[str, Any]:
    data = phase.data
    view: dict[str, Any] = {"kind": type(data).__name__, "batch_size": getattr(data, "batch_size", None)}
    if callable(data):
        view["later"] = True  # made when the phase begins; resuming inside the phase checks it
    elif isinstance(data, DataView):
        view.update(ids=data.ids, unlabelled=data.unlabelled, memory_batch=data.memory_batch, views=data.views,
                    balanced=data.balanced, augment=data.augment)  # fmt: skip
    else:
        view.update(x=data.x, y=data.y)
    groups = None if callable(phase.parameters) else phase.parameters
    trained = None if groups is None else [[list(p.shape) for p in g.parameters] for g in groups]
    return {
        "name": phase.name,
        "epochs": phase.epochs,
        "view": view,
        "parameters": trained,
        "optimizer": dict(phase.optimizer or {}),
    }


def loss_terms_are_scalars(bench: Bench) -> None:
    """Every phase's loss is named terms, each one finite number, of which some trains something."""

    def visit(phase: Phase, batch: Batch) -> None:
        terms = (phase.loss or walker.strategy.loss_terms)(batch)
        where = f"The loss of {bench.name}, phase {phase.name!r},"
        if not isinstance(terms, dict) or not terms:
            raise ContractError(f"{where} must be a dictionary of named terms, received {type(terms).__name__}.")
        for name, value in terms.items():
            good = isinstance(name, str) and isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite())
            if not good:
                got = (
                    f"shape {tuple(value.shape)}, {value.detach()}"
                    if isinstance(value, Tensor)
                    else type(value).__name__
                )
                raise ContractError(f"{where} must give scalars that are finite, but its term {name!r} is {got}.")
        if not any(v.requires_grad for v in terms.values()):
            raise ContractError(f"{where} depends on no parameter that trains.")

    with reports(f"Steps of {bench.name}"):
        walker = Walker(bench.setup(), visit)
        walker.run()


def predict_is_pure(bench: Bench) -> None:
    """Predicting changes neither network nor state nor generators, and gives the same twice."""
    outcome = bench.usual
    x, task_ids = _test_batch(outcome)
    before = _copied(_snapshot(outcome.trainer))
    with global_rng_unchanged(f"predict of {bench.name}"), reports(f"predict of {bench.name}"), torch.no_grad():
        given = x.clone()
        first = _predict(outcome, x, task_ids)
        second = _predict(outcome, x, task_ids)
    changed = first_difference(before, _snapshot(outcome.trainer))
    if changed is not None:
        raise ContractError(f"predict of {bench.name} changes {changed}: predicting must be pure.")
    if not torch.equal(given, x):
        raise ContractError(f"predict of {bench.name} changes the images that it is given: work on a copy.")
    different = first_difference(first, second)
    if different is not None:
        raise ContractError(
            f"predict of {bench.name} gives another {different!r} the second time: nothing may be drawn or kept in it."
        )


def predict_ignores_the_batch(bench: Bench) -> None:
    """What is predicted for an image doesn't depend on the other images of its batch, on their number or order."""
    outcome = bench.usual
    x, task_ids = _test_batch(outcome)
    everything = torch.arange(len(x))
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    with reports(f"predict of {bench.name}"), torch.no_grad():
        whole = _predict(outcome, x, task_ids)
        for how, parts in (
            ("size", torch.split(everything, 1)),
            ("size", torch.split(everything, 3)),
            ("order", torch.split(mixed, 5)),
        ):
            found = [_predict(outcome, x[p], None if task_ids is None else task_ids[p]) for p in parts]
            rows = torch.cat(parts)
            for head, scores in whole.items():
                got = torch.empty_like(scores)
                got[rows] = torch.cat([f[head] for f in found])
                _alike(bench, head, how, scores, got)


def _alike(bench: Bench, head: str, how: str, a: Tensor, b: Tensor) -> None:
    top = a.topk(min(2, a.shape[1]), dim=1).values
    clear = (top[:, 0] - top[:, -1] > 1e-3) if a.shape[1] > 1 else torch.ones(len(a), dtype=torch.bool)
    same = bool((a.argmax(1) == b.argmax(1))[clear].all())
    if not same or not torch.allclose(a, b, rtol=1e-3, atol=1e-4):
        raise ContractError(
            f"The report head {head!r} of {bench.name} depends on the batch's {how}: use no statistics of the batch when predicting."
        )


def _predict(outcome: Outcome, x: Tensor, task_ids: Tensor | None) -> dict[str, Tensor]:
    strategy = outcome.trainer.strategy
    strategy.network.eval()
    scores = strategy.predict(x, task_ids)
    if not scores or any(not isinstance(v, Tensor) or v.ndim != 2 or len(v) != len(x) for v in scores.values()):
        raise ContractError("must give scores (B, K) for at least one report head.")
    return {head: v.float().clone() for head, v in scores.items()}


def _test_batch(outcome: Outcome) -> tuple[Tensor, Tensor | None]:
    stream, maker = outcome.trainer.setup.stream, outcome.trainer.context.test_maker
    ids = torch.cat([t.test for t in stream.tasks])
    task_ids = None if maker.table.task_ids is None else maker.table.task_ids[ids]
    return maker.test_input(maker.table.gather(ids)), task_ids


# -- streams of every shape --------------------------------------------------------------------------------------------


def one_experience(bench: Bench) -> None:
    """It runs on a stream of one experience."""
    _runs(bench, "a stream of one experience", experiences=[[0, 1, 2]])


def one_class_per_experience(bench: Bench) -> None:
    """It runs when every experience brings a single class."""
    _runs(bench, "one class per experience", experiences=[[0], [1], [2]])


def unequal_sizes(bench: Bench) -> None:
    """It runs when experiences differ in classes and samples, down to a single sample."""
    _runs(bench, "experiences of unequal size", experiences=[[0, 1, 2], [3], [4, 5]], train_per_class=[7, 1, 4])


def last_batch_of_one(bench: Bench) -> None:
    """It runs when an epoch doesn't divide into batches and leaves one sample."""
    _runs(bench, "a last batch of one sample", odd=1, train_per_class=4)


def returning_class(bench: Bench) -> None:
    """It runs when a class comes back, alone or beside new ones."""
    _runs(bench, "a class that comes back", experiences=[[0, 1], [1, 2], [0], [3, 0]])


def other_settings(bench: Bench) -> None:
    """It runs in every setting that its tags name."""
    for setting in sorted(bench.tags.settings):
        _runs(bench, f"a {setting}-incremental stream", setting=setting)


def other_scores(bench: Bench) -> None:
    """It runs on every score that its tags name."""
    for score in sorted(bench.tags.scores):
        _runs(bench, f"a stream scored by {score}", score=score)


def withheld_labels(bench: Bench) -> None:
    """It buys labels within its budget, and learns beside samples without labels where its tags say so."""
    _runs(bench, "a pool whose labels are bought", pool_per_class=4, query_budget=3)
    if bench.tags.uses_unlabelled:
        _runs(bench, "samples without labels", unlabelled_per_class=5, train_per_class=2)


def _runs(bench: Bench, what: str, **options: Any) -> None:
    domain = options.get("setting", bench.stream().setting) == "domain"
    if domain and "experiences" in options and len({len(g) for g in options["experiences"]}) > 1:
        widest = max(len(g) for g in options["experiences"])
        options["experiences"] = [list(range(widest))] * len(options["experiences"])
    with reports(f"{bench.name} on {what}"):
        stream = bench.stream(**options)
        outcome = bench.train(stream, epochs=1)
        _scored(bench, stream, outcome)


def _scored(bench: Bench, stream: Stream, outcome: Outcome) -> None:
    """After the last experience every test sample is scored once by every report head."""
    heads = {head: c for (_, after, head), c in outcome.recorder.kept.items() if after == len(stream.experiences)}
    last = outcome.trainer.strategy.evaluates_after(stream.experiences[-1])
    if last and not heads:
        raise ContractError("nothing was scored after the last experience.")
    for head, columns in heads.items():
        if len(columns["sample"]) != sum(len(t.test) for t in stream.tasks):
            raise ContractError(f"the report head {head!r} scored {len(columns['sample'])} test samples, expected all.")


def refuses_what_tags_exclude(bench: Bench) -> None:
    """A stream that the tags exclude is refused before anything is computed, in a sentence."""
    tags = bench.tags
    cases: list[tuple[bool, dict[str, Any]]] = [
        *((setting in tags.settings, {"setting": setting}) for setting in ("class", "task", "domain")),
        ("squared_error" in tags.scores, {"score": "squared_error"}),
        (not tags.needs_boundaries, {"boundaries": False}),
        (tags.online, {"online": True}),
        (tags.uses_unlabelled, {"unlabelled_per_class": 1}),
        (tags.can_unlearn, {"forget_per_experience": 1}),
    ]
    for fits, options in cases:
        stream = bench.stream(**options)
        try:
            check_fit(bench.strategy, stream, bench.backbone)
            refused = False
        except ConfigurationError:
            refused = True
        if refused == fits:
            shown = ", ".join(f"{k}={v}" for k, v in options.items())
            wrong = "is refused though its tags allow it" if fits else "isn't refused though its tags exclude it"
            raise ContractError(f"{bench.name} on a stream with {shown} {wrong}: correct the tags.")


def steps_on_another_device(bench: Bench) -> None:
    """All tensors of a step lie on the run's device: shown on PyTorch's meta device, without a GPU."""
    domain = bench.stream().setting == "domain"
    stream = bench.stream() if domain else bench.stream(experiences=[[0, 1], [2, 3]])
    setup = bench.setup(stream, device="meta")
    with reports(f"Steps of {bench.name} on another device"):
        walker = Walker(setup, lambda phase, batch: None)
        with StrictMeta():  # type: ignore[no-untyped-call]
            walker.run()


CHECKS = (
    phases_are_pure,
    loss_terms_are_scalars,
    predict_is_pure,
    predict_ignores_the_batch,
    one_experience,
    one_class_per_experience,
    unequal_sizes,
    last_batch_of_one,
    returning_class,
    other_settings,
    other_scores,
    withheld_labels,
    refuses_what_tags_exclude,
    steps_on_another_device,
)
