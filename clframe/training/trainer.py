"""The one training loop: experiences, phases, epochs, steps; checkpoints on the way, and a resume that changes no bit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clframe.composite import leaves
from clframe.errors import ConfigurationError, ContractError, TrainingError
from clframe.evaluation import Columns, evaluate
from clframe.memory import ExemplarMemory
from clframe.strategy import BegunPhase, DataView, ParameterGroup, Phase, Strategy, TensorView
from clframe.stream import Experience
from clframe.training.checkpoint import pack, restore_strategy, strategy_state, unpack
from clframe.training.context import Context, Setup
from clframe.training.instruments import Instruments
from clframe.training.seeds import isolated
from clframe.training.stepper import Stepper, autocast

__all__ = ["Position", "Recorder", "Stopped", "Trainer"]


_WORTH_SAVING = 1.0
"""Seconds of work that a checkpoint saves doing again."""

_CURVE_POINTS = 10
"""At most so many values of a loss are logged per epoch: means over parts of equal length."""


class Recorder(Protocol):
    """Where a trainer leaves what happens; nothing that it does can change the run."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of something that happened."""
        ...

    def predictions(self, split: str, after: int, heads: Mapping[str, Columns]) -> Mapping[str, Any]:
        """Keep what was predicted after `after` experiences; returns a summary for the log."""
        ...

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Replace the latest checkpoint, and keep a copy under a name when given one."""
        ...


class Stopped(Exception):
    """The run was asked to stop and has saved where it is."""


@dataclass(slots=True)
class Position:
    """Where a run is: nothing of `experience` done (stage `start`), or inside its phases (stage `train`)."""

    experience: int = 0
    stage: str = "start"
    phase: int = 0
    epoch: int = 0
    step: int = 0


class Trainer:
    """Runs a strategy over a stream.

    Args:
        setup: What the run is made of.
        recorder: Takes events, predictions and checkpoints.
        checkpoint_seconds: Longest time between two checkpoints inside an epoch.
        keep_models: Keep the checkpoint after every experience.
        valid: Score validation samples: also, or instead.
        stop_after: Save and raise `Stopped` after so many optimiser steps of this process.
    """

    def __init__(
        self,
        setup: Setup,
        recorder: Recorder,
        *,
        checkpoint_seconds: float = 300.0,
        keep_models: bool = False,
        valid: bool = False,
        stop_after: int | None = None,
    ) -> None:
        self.setup = setup
        self.recorder = recorder
        self.checkpoint_seconds = checkpoint_seconds
        self.keep_models = keep_models
        self.valid = valid
        self.stop_after = stop_after
        self.strategy = setup.strategy
        self.ranks = setup.ranks
        self.position = Position()
        self.counters = {"steps": 0, "presentations": 0, "train_seconds": 0.0}
        self._bought: dict[int, Tensor] = {}
        self._steps_here = 0
        self._losses: list[dict[str, Tensor]] = []
        self._flags: list[bool] | None = None  # what trains outside of the phase that restricts it now
        self._continues = False
        self.instruments = Instruments(setup.instruments)
        self._resumed: dict[str, Any] | None = None  # the checkpoint, while the phase that it was taken in is rebuilt
        with isolated():
            self.context = Context(setup)
            self.context.pass_over = self.instruments.pass_over
            self.strategy.bind(self.context)
            self.strategy.check(self.context)
        self.instruments.begin(self.context)

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train and score from the current position to the end of the stream.

        Raises:
            TrainingError: A loss is not finite.
            Stopped: `stop_after` steps were taken.
        """
        with isolated(), _torch_settings(self.setup.device):
            experiences = self.setup.stream.experiences
            self.recorder.event("run", {"experiences": len(experiences), "resumed": self._continues})
            if not self._continues:
                self.context.streams.enter("setup")
                with self.instruments.work("setup"):
                    self.strategy.setup()
                if self.setup.evaluate_future:
                    with self.instruments.work("evaluation"):
                        self._evaluate(0)
            for experience in experiences[self.position.experience :]:
                self._experience(experience)

    def _experience(self, experience: Experience) -> None:
        if self.position.stage == "start":
            with self.instruments.work("before", experience):
                experience = self.begin_experience(experience)
            self.position = Position(experience.index, "train")
        else:
            experience = self._with_bought(self._without_bought(experience))
        self.context.experience = experience
        self.context.streams.enter("phases", experience.index)
        with self.instruments.work("phases", experience):
            phases = self.check_phases(self.strategy.phases(experience))
        budgets = self.epoch_steps(experience, phases)
        steps = sum(sum(b) for b in budgets if b is not None)
        if self.setup.steps is None:
            steps = sum(p.epochs * self.steps_per_epoch(p.data) for p in phases if not callable(p.data))
        self.recorder.event("experience", {"experience": experience.index + 1, "steps": steps})
        for number in range(self.position.phase, len(phases)):
            self._phase(experience, number, phases[number], budgets[number])
        started = time.monotonic()
        self.context.streams.enter("after", experience.index)
        self.strategy.network.eval()
        with self.instruments.work("after", experience):
            self.strategy.after_experience(experience)
        if self.strategy.evaluates_after(experience):
            with self.instruments.work("evaluation", experience):
                self._evaluate(experience.index + 1)
        self._measure(experience)
        self.position = Position(experience.index + 1)
        # What took a moment since the last epoch's checkpoint is sooner done again than saved.
        last = experience.index == len(self.setup.stream.experiences) - 1
        if self.keep_models or last or not phases or time.monotonic() - started > _WORTH_SAVING:
            self._checkpoint(f"experience-{experience.index + 1:03d}" if self.keep_models else None)

    def begin_experience(self, experience: Experience) -> Experience:
        """Grow the model, buy labels, and forget what is to be forgotten."""
        self.context.experience = experience
        self.context.streams.enter("before", experience.index)
        if len(experience.forget):
            self.strategy.forget(experience)
        with isolated(self.context.streams.seed_for("init", "growth", experience.index)):
            self.strategy.before_experience(experience)
            self.context.place(self.strategy.network)
        experience = self._without_bought(experience)
        if len(experience.pool):
            chosen = self.strategy.query(experience)
            wrong = len(chosen) > experience.query_budget or not bool(torch.isin(chosen, experience.pool).all())
            if wrong or len(chosen.unique()) != len(chosen):  # type: ignore[no-untyped-call]
                raise ContractError(
                    f"query must choose up to {experience.query_budget} different samples of the pool, received {len(chosen)}."
                )
            self._bought[experience.index] = chosen
        return self._with_bought(experience)

    def _without_bought(self, experience: Experience) -> Experience:
        """Take out of the pool what earlier rounds have bought: a label is paid for once."""
        if not self._bought or not len(experience.pool):
            return experience
        earlier = [ids for i, ids in self._bought.items() if i < experience.index]
        left = ~torch.isin(experience.pool, torch.cat([*earlier, experience.pool[:0]]))
        return dataclasses.replace(experience, pool=experience.pool[left])

    def _with_bought(self, experience: Experience) -> Experience:
        chosen = self._bought.get(experience.index)
        return (
            experience
            if chosen is None
            else dataclasses.replace(experience, train=torch.cat([experience.train, chosen]))
        )

    def check_phases(self, phases: Sequence[Phase]) -> Sequence[Phase]:
        """Refuse phases of one name."""
        names = [p.name for p in phases]
        if len(set(names)) != len(names):
            raise ContractError(f"The phases of an experience need different names, received {names}.")
        return phases

    def steps_per_epoch(self, data: DataView | TensorView) -> int:
        """Return the optimiser steps of an epoch of some data."""
        return self.context.train_maker.steps_per_epoch(data, self.setup.batch_size)

    def epoch_steps(self, experience: Experience, phases: Sequence[Phase]) -> list[list[int] | None]:
        """Return the steps of every epoch of every phase where the run states a budget, None for whole passes.

        The budget is spread evenly over the epochs of all phases in turn, so that methods that train on more or less data
        take the same number of steps, and pass through their learning rates at the same pace.

        Raises:
            ConfigurationError: There are fewer steps than epochs.
        """
        if self.setup.steps is None or not phases:
            return [None] * len(phases)
        total, count = self.setup.steps[experience.index], sum(p.epochs for p in phases)
        if total < count:
            raise ConfigurationError(
                f"steps_per_experience: expected at least a step for each of the {count} epochs of experience "
                f"{experience.index + 1}, received {total}: raise it, or lower the epochs."
            )
        each = iter([total * (i + 1) // count - total * i // count for i in range(count)])
        return [list(itertools.islice(each, phase.epochs)) for phase in phases]

    def begin_phase(self, experience: Experience, number: int, phase: Phase, start: bool) -> BegunPhase:
        """Call the hook that begins a phase (not when it is resumed inside) and make what was left for later."""
        if start and phase.on_start is not None:
            self.context.streams.enter("start", experience.index, number)
            phase.on_start()
        self.context.streams.enter("phase", experience.index, number)
        return phase.begun()

    # -- a phase ----------------------------------------------------------------------------------------------------

    def _phase(self, experience: Experience, number: int, phase: Phase, steps: list[int] | None) -> None:
        """Train one phase, from the current epoch and step on."""
        resumed, self._resumed = self._resumed, None
        self.position.phase = number
        with self.instruments.work("start", experience):
            begun = self.begin_phase(experience, number, phase, start=resumed is None)
        begun = dataclasses.replace(begun, steps=steps)
        groups = begun.parameters or [ParameterGroup(list(self.strategy.network.parameters()))]
        recipe = self.context.recipe(experience, phase.optimizer)
        with _only_training(self.strategy.network, groups) as self._flags, contextlib.ExitStack() as modes:
            for module in (self.strategy.network, *begun.train_modules):
                modes.callback(module.eval)
            optimizer = recipe.build([_trainable(g) for g in groups])
            if resumed is not None and resumed["optimizer"] is not None:
                optimizer.load_state_dict(resumed["optimizer"])
            self.context.optimizer = optimizer
            modes.callback(setattr, self.context, "optimizer", None)
            stepper = Stepper(self.setup, self.strategy, begun, recipe, optimizer)
            if resumed is not None and resumed["scaler"] is not None:
                stepper.scaler.load_state_dict(resumed["scaler"])
            modes.enter_context(self.instruments.phase(experience, begun, stepper))
            for epoch in range(self.position.epoch, phase.epochs):
                self._epoch(experience, begun, stepper, epoch, resumed)
                resumed = None
        self._flags = None
        if phase.on_end is not None:
            self.context.streams.enter("end", experience.index, number)
            with self.instruments.work("end", experience):
                phase.on_end()
        self.position = Position(experience.index, "train", number + 1)

    def _epoch(
        self, experience: Experience, begun: BegunPhase, stepper: Stepper, epoch: int, resumed: dict[str, Any] | None
    ) -> None:
        phase = begun.phase
        self.position.epoch = epoch
        self.context.streams.enter("epoch", experience.index, self.position.phase, epoch)
        self._losses = []
        first_step = 0
        if resumed is not None and self.position.step > 0:
            first_step = self.position.step
            self._losses = list(resumed["losses"])
            if not self.ranks.first:  # they are the sums over ranks already
                self._losses = [{n: v if n == "total" else 0 * v for n, v in terms.items()} for terms in self._losses]
        else:
            with self.instruments.work("epoch", experience):
                self.strategy.before_epoch(phase, epoch)
        stepper.begin_epoch(epoch)
        maker, size = self.context.train_maker, self.setup.batch_size
        steps = None if begun.steps is None else begun.steps[epoch]
        batches = maker.epoch(begun.data, size, experience, phase.name, epoch, self.context.streams, first_step, steps)
        if first_step and resumed is not None:  # the epoch's order is drawn again; from here the generators continue
            self.context.streams.load_state_dict(resumed["random"])
        shown = first_step
        started = last_saved = last_shown = time.monotonic()
        for batch in batches:
            with self.instruments.step(batch):
                self._losses.append(stepper.step(batch))
            self.instruments.stepped(batch, self._losses[-1])
            self.counters["presentations"] += len(batch.x) + self.context.presented
            self.context.presented = 0
            self.position.step = batch.step + 1
            self._steps_here += 1
            stop = self._steps_here == self.stop_after
            now = time.monotonic()
            if now - last_shown > 0.5:
                self.recorder.event("steps", {"steps": batch.step + 1 - shown})
                last_shown, shown = now, batch.step + 1
            due = stop or now - last_saved > self.checkpoint_seconds
            # Of several ranks each has its part of the losses so far, which only an epoch's end puts together.
            if due and not self.ranks.several and batch.step + 1 < batch.num_steps:
                self._finite(experience, phase, epoch)
                self._checkpoint(None, stepper, inside=True)
                last_saved = now
            if stop and batch.step + 1 < batch.num_steps:
                raise Stopped
        self.counters["steps"] += len(self._losses)
        self.counters["train_seconds"] += time.monotonic() - started
        self.recorder.event("steps", {"steps": len(self._losses) - shown})
        self._end_epoch(experience, phase, stepper, epoch)

    def _end_epoch(self, experience: Experience, phase: Phase, stepper: Stepper, epoch: int) -> None:
        self._losses = self.ranks.summed_losses(self._losses)
        losses = self._finite(experience, phase, epoch)
        means = {name: float(values.mean()) for name, values in losses.items()}
        self.recorder.event(
            "epoch",
            {
                "experience": experience.index + 1,
                "phase": phase.name,
                "epoch": epoch + 1,
                "epochs": phase.epochs,
                "steps": len(self._losses),
                "parameters": sum(p.numel() for p in stepper.parameters),
                "loss": means.pop("total", 0.0),
                "terms": means,
                "curve": {name: _curve(values) for name, values in losses.items()},
                "lr": stepper.optimizer.param_groups[0]["lr"],
            },
        )
        self._refuse_ruined(experience, phase, epoch, stepper)
        self._bring_ranks_together(
            stepper, f"experience {experience.index + 1}, phase {phase.name!r}, epoch {epoch + 1}"
        )
        self._losses = []
        self.position = Position(experience.index, "train", self.position.phase, epoch + 1)
        self._checkpoint(None, stepper)
        if self.stop_after is not None and self._steps_here >= self.stop_after:
            raise Stopped

    def _bring_ranks_together(self, stepper: Stepper, where: str) -> None:
        """Average running statistics over the ranks, and see that these are still the same run."""
        self.ranks.average_buffers((self.strategy.network, *stepper.begun.train_modules))
        kept = [v for part in leaves(self.strategy) for n, v in vars(part).items() if n.endswith("_")]
        memories = [memory.ids for memory in kept if isinstance(memory, ExemplarMemory)]
        self.ranks.refuse_difference(stepper.parameters, memories, where)

    def _refuse_ruined(self, experience: Experience, phase: Phase, epoch: int, stepper: Stepper) -> None:
        """Keep the last good checkpoint when the weights themselves have become infinite or NaN."""
        norms = torch.stack(torch._foreach_norm(stepper.parameters))
        if not bool(norms.isfinite().all()):
            raise TrainingError(
                f"Weights became infinite or NaN in experience {experience.index + 1}, phase {phase.name!r}, epoch "
                f"{epoch + 1}: lower the learning rate or clip the gradients; the last checkpoint is from before."
            )

    def _finite(self, experience: Experience, phase: Phase, epoch: int) -> dict[str, Tensor]:
        """Fetch the epoch's losses in one go, per step, and refuse to go on from one that is not a number."""
        if not self._losses:
            return {}
        losses: dict[str, Tensor] = {}
        for name in self._losses[0]:
            values = torch.stack([terms[name].float() for terms in self._losses if name in terms]).cpu()
            bad = (~values.isfinite()).nonzero().flatten()
            if len(bad):
                raise TrainingError(
                    f"The loss term {name!r} became {values[bad[0]].item()} in experience {experience.index + 1}, phase "
                    f"{phase.name!r}, epoch {epoch + 1}, step {int(bad[0]) + 1}: lower the learning rate or clip the "
                    "gradients; the last checkpoint is from before."
                )
            losses[name] = values
        return losses

    # -- scoring and saving ---------------------------------------------------------------------------------------------

    def _evaluate(self, after: int) -> None:
        stream, setup = self.setup.stream, self.setup
        tasks = [t for t in stream.tasks if setup.evaluate_future or t.available_after <= after]
        makers = {"test": self.context.test_maker, "valid": self.context.train_maker}
        splits: list[str] = ["test"] * (setup.scored_on == "test") + ["valid"] * self.valid
        cache = self.context.feature_cache(setup.precision)
        with isolated(), autocast(setup):
            for split in splits:
                heads = evaluate(
                    self.strategy,
                    stream,
                    makers[split],
                    tasks,
                    split=split,
                    batch_size=setup.eval_batch_size,
                    features=cache,
                    ranks=self.ranks,
                )
                summary = self.recorder.predictions(split, after, heads)
                if split == splits[0]:  # what the run is scored by
                    norms = _head_norms(self.strategy)
                    values = {"experience": after, "heads": list(heads), **summary, "head_norms": norms}
                    self.recorder.event("evaluation", values)

    def _measure(self, experience: Experience) -> None:
        """Log what the instruments have measured."""
        with isolated():
            values = self.instruments.report(experience)
        if values:
            self.recorder.event("measured", {"experience": experience.index + 1, "values": values})

    def _checkpoint(self, keep_as: str | None, stepper: Stepper | None = None, inside: bool = False) -> None:
        self.recorder.checkpoint(self.state(stepper, inside), keep_as)

    def state(self, stepper: Stepper | None = None, inside: bool = False) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values and tensors."""
        p = self.position
        network = pack(self.strategy.network)
        if self._flags is not None:
            network["requires_grad"] = self._flags
        scaler = stepper.scaler.state_dict() if stepper is not None and stepper.scaler.is_enabled() else None
        return {
            "schema": 1,
            "position": [p.experience, p.stage, p.phase, p.epoch, p.step],
            "network": network,
            "strategies": [strategy_state(s) for s in leaves(self.strategy)],
            "optimizer": stepper.optimizer.state_dict() if stepper is not None else None,
            "scaler": scaler,
            "random": self.context.streams.state_dict() if inside else None,
            "losses": [dict(terms) for terms in self._losses] if inside else [],
            "counters": dict(self.counters),
            "bought": pack(self._bought),
            "instruments": self.instruments.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint instead of from the start."""
        with isolated():
            factory = self.setup.skeleton
            self.strategy.network = self.context.place(unpack(state["network"], factory))
            for strategy, saved in zip(leaves(self.strategy), state["strategies"], strict=True):
                restore_strategy(strategy, saved, factory, self.context.place)
        self.counters = dict(state["counters"])
        self._bought = unpack(state["bought"], factory)
        self.instruments.load_state_dict(state["instruments"])
        experience, stage, phase, epoch, step = state["position"]
        self.position = Position(experience, stage, phase, epoch, step)
        self._continues = True
        self._resumed = state if stage == "train" else None


@contextlib.contextmanager
def _torch_settings(device: torch.device):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Choose convolutions deterministically on a GPU while a run lasts."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def _only_training(network: nn.Module, groups: Sequence[ParameterGroup]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Ask gradients only for what trains, and put the flags back afterwards; gives the flags as they were."""
    chosen = {id(p) for g in groups for p in g.parameters}
    before = [(p, p.requires_grad) for p in network.parameters()]
    for parameter, flag in before:
        parameter.requires_grad_(flag and id(parameter) in chosen)
    try:
        yield [flag for _, flag in before]
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _curve(values: Tensor) -> list[float]:
    """Means over consecutive parts of an epoch, to six digits; the steps n·p // k bound part p of k."""
    count = min(_CURVE_POINTS, len(values))
    bounds = np.arange(count + 1) * len(values) // count
    sums = np.add.reduceat(values.double().numpy(), bounds[:-1])
    return [float(f"{mean:.6g}") for mean in sums / np.diff(bounds)]


def _trainable(group: ParameterGroup) -> ParameterGroup:
    """Leave out parameters that are frozen for good."""
    kept = [p for p in group.parameters if p.requires_grad]
    return ParameterGroup(kept, group.lr_scale, group.weight_decay)


def _head_norms(strategy: Strategy) -> dict[str, list[float]]:
    """Norms of the rows of report heads, for the error decomposition."""
    weights = {name: weight for name, weight in strategy.head_weights().items() if len(weight)}
    known = strategy.scored_classes
    return {n: [round(v, 6) for v in w[:known].detach().float().norm(dim=1).tolist()] for n, w in weights.items()}
