"""The same training in Avalanche's own loop: same weights at the start, same batches, same draws of the plugins."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clframe.interop.avalanche import AvalanchePlugins, host, to_avalanche
from clframe.interop.avalanche.host import EVENTS
from clframe.interop.avalanche.library import require
from clframe.models import Network
from clframe.strategy import Batch
from clframe.stream import Stream
from clframe.testing import MemoryRecorder
from clframe.training.seeds import derive_seed, isolated
from clframe.training.trainer import Trainer
from tests.fakes import make_setup

LR = 0.05
RECIPE = {"lr": LR, "momentum": 0.9, "weight_decay": 0.0}


@dataclasses.dataclass(eq=False)
class Hosted:
    """A finished run of clframe's, and what it takes to repeat it.

    Attributes:
        start: The network before the first experience.
        trainer: At its end.
        recorder: What it kept.
        batches: Ids and task ids of every batch, by experience and epoch.
        seeds: Under which every epoch of a plugin's own loader was drawn, by experience and epoch.
    """

    start: Network
    trainer: Trainer
    recorder: MemoryRecorder
    batches: dict[tuple[int, int], list[Batch]]
    seeds: dict[tuple[int, int], int]

    @property
    def network(self) -> Network:
        return self.trainer.strategy.network


def run_hosted(stream: Stream, plugins: Sequence[Any], monkeypatch: Any, epochs: int = 2, **options: Any) -> Hosted:
    strategy = options.pop("strategy", None) or AvalanchePlugins(plugins=list(plugins), epochs=epochs)
    setup = make_setup(strategy, stream, optimizer=RECIPE, **options)
    recorder = MemoryRecorder()
    trainer = Trainer(setup, recorder)
    found = Hosted(copy.deepcopy(trainer.strategy.network), trainer, recorder, {}, {})
    losses, draw = host.Host.losses, host.Host.draw

    def watched_losses(self: Any, batch: Batch) -> dict[str, Tensor]:
        found.batches.setdefault((batch.experience.index, batch.epoch), []).append(batch)
        return losses(self, batch)

    def watched_draw(self: Any) -> list[Tensor]:
        place = (self.experience.current_experience, trainer.position.epoch)
        state = self.run.rng("loader").get_state()
        found.seeds[place] = int(torch.randint(2**62, (), generator=self.run.rng("loader")))
        self.run.rng("loader").set_state(state)
        return draw(self)

    monkeypatch.setattr(host.Host, "losses", watched_losses)
    monkeypatch.setattr(host.Host, "draw", watched_draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.run()
    return found


class Seeded:
    """A plugin whose every call draws under the seed that the host gives it."""

    def __init__(self, plugin: Any, number: int, base: int) -> None:
        self.plugin, self.number, self.base = plugin, number, base

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.plugin, name)
        if name not in EVENTS:
            return found

        def call(strategy: Any, **options: Any) -> Any:
            clock = strategy.clock
            place = (clock.train_exp_counter, clock.train_exp_epochs, clock.train_epoch_iterations)
            with isolated(derive_seed(self.base, name, self.number, *place)):
                return found(strategy, **options)

        return call


def growing(network: Network, seed_of: Callable[[int], int], with_tasks: bool, mask_of: Any) -> Any:
    """A model that grows as clframe's classifier does, with the same draws, in Avalanche's own way of adapting models."""
    from clframe.interop.avalanche.model import ClassModel, task_model

    base = type(task_model(network, mask_of)) if with_tasks else ClassModel
    dynamic = require("avalanche.models").DynamicModule

    class Growing(base, *([] if with_tasks else [dynamic])):  # type: ignore[misc]
        def adaptation(self, experience: Any) -> None:
            seen = experience.logging().classes_seen_so_far
            number = experience.logging().current_experience
            if with_tasks:
                self.known_train_tasks_labels.update(experience.task_labels)
            with isolated(seed_of(number)):
                self.network.grow(max(self.network.num_classes, 1 + max(seen)))

    made = Growing.__new__(Growing)
    if with_tasks:
        base.__init__(made, network, mask_of)
    else:
        nn.Module.__init__(made)
        made._auto_adapt = True
        made.network = network
    return made


def run_native(hosted: Hosted, make_plugins: Callable[[Any], list[Any]], epochs: int = 2) -> Any:
    """Train in Avalanche's `SupervisedTemplate`; returns the strategy and the correct answers after every experience."""
    context, stream = hosted.trainer.context, hosted.trainer.setup.stream
    template = require("avalanche.training.templates").SupervisedTemplate
    evaluation = require("avalanche.training.plugins").EvaluationPlugin
    streams = context.streams
    with_tasks = stream.setting == "task"

    def mask_of(ids: Tensor) -> Tensor:
        width = stream.num_classes
        table = torch.zeros(len(stream.tasks), width, dtype=torch.bool)
        for t in stream.tasks:
            table[t.index, list(t.classes)] = True
        return table[ids]

    model = growing(copy.deepcopy(hosted.start), lambda i: streams.seed_for("init", "growth", i), with_tasks, mask_of)
    base = streams.seed_for("avalanche")
    benchmark = to_avalanche(stream)
    first = benchmark.train_stream[0]
    model.adaptation(first)
    plugins = [Seeded(p, n, base) for n, p in enumerate(make_plugins(model))]
    own_loader = bool(hosted.seeds)

    class Batches(require("avalanche.core").SupervisedPlugin):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **_: Any) -> None:
            place = (strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs)
            if place in hosted.seeds:
                with isolated(hosted.seeds[place]):
                    strategy.dataloader = list(self.loader or strategy.dataloader)
            else:
                strategy.dataloader = [_as_mbatch(b) for b in hosted.batches[place]]

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            self.loader = strategy.dataloader if own_loader else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = template(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=hosted.trainer.setup.batch_size,
            train_epochs=epochs,
            plugins=[*plugins, Batches()],
            evaluator=evaluation(loggers=[]),
        )
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[], reset_optimizer_state=True)
    return strategy


def _as_mbatch(batch: Batch) -> list[Tensor]:
    tasks = torch.zeros_like(batch.y) if batch.task_ids is None else batch.task_ids
    return [batch.x, batch.y, tasks]
