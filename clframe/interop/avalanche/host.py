"""What Avalanche's plugins take for their strategy, inside a run of clframe's.

The names are those that plugins read and write: see `avalanche.training.templates.SupervisedTemplate`. Hooks are called
in the order of Avalanche's own loop. Every call of a plugin has the global generators to itself, under a seed derived
from the run's and from its place; so what a plugin draws changes nothing outside, and a resumed run draws it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from clframe.errors import ContractError
from clframe.interop.avalanche.datasets import Origin, make_dataset
from clframe.interop.avalanche.known import HOSTED
from clframe.interop.avalanche.library import quietly, require
from clframe.interop.avalanche.loaders import reopenable
from clframe.interop.avalanche.model import ClassModel, task_model
from clframe.interop.avalanche.state import Keeper, NotKeptError, kept_ids
from clframe.strategy import Batch
from clframe.stream import Experience
from clframe.training.batches import BatchMaker
from clframe.training.context import Context
from clframe.training.seeds import derive_seed, isolated

__all__ = ["EVENTS", "Host", "HostedExperience", "overridden"]

EVENTS = (
    "before_training", "before_train_dataset_adaptation", "after_train_dataset_adaptation", "before_training_exp",
    "before_training_epoch", "before_training_iteration", "before_forward", "after_forward", "before_backward",
    "after_backward", "before_update", "after_update", "after_training_iteration", "after_training_epoch",
    "after_training_exp", "after_training",
)  # fmt: skip
"""The hooks that are called, in order."""


@dataclasses.dataclass(eq=False)
class HostedExperience:
    """An experience as plugins see it; of the stream around it they see nothing.

    Attributes:
        dataset: Its samples.
        current_experience: Its number, from 0.
        classes_in_this_experience: Its labels.
        previous_classes: Labels of the experiences before it that it hasn't got itself.
        classes_seen_so_far: Labels seen once it is over.
        task_labels: Its task label, in a list.
        origin_stream: Has a name, `train`.
    """

    dataset: Any
    current_experience: int
    classes_in_this_experience: list[int]
    previous_classes: list[int]
    classes_seen_so_far: list[int]
    task_labels: list[int]
    origin_stream: Any = dataclasses.field(default_factory=lambda: SimpleNamespace(name="train"))

    @property
    def task_label(self) -> int:
        """Its task label."""
        return self.task_labels[0]

    def train(self) -> HostedExperience:
        """Return itself, as in Avalanche's modes of an experience."""
        return self

    eval = logging = train


class Host:
    """Calls plugins as Avalanche's own loop does, and lends them what they look for.

    Args:
        run: The services of the run.
        masked: Whether only the classes of a sample's own task count, in the task-incremental setting.
        make_plugins: Makes the plugins, given the model.
    """

    def __init__(self, run: Context, masked: bool, make_plugins: Callable[[Any], Sequence[Any]]) -> None:
        self.run = run
        self.device = run.device
        self.origin = Origin(
            run.stream,
            BatchMaker(
                run.stream.train, run.train_maker.to_input, torch.device("cpu"), None, run.train_maker.test_transform
            ),
        )
        self.seed = 0
        self._base_seed = run.streams.seed_for("avalanche")
        self._criterion = nn.CrossEntropyLoss()
        self._with_tasks = run.setting == "task" and masked
        self._model: Any = (
            task_model(run.network, lambda ids: run.task_mask(ids)) if self._with_tasks else ClassModel(run.network)
        )
        with quietly():
            self.clock: Any = require("avalanche.training.plugins.clock").Clock()
            self.plugins: list[Any] = [*make_plugins(self._model), self.clock]
        self._listening = {
            event: [(n, p) for n, p in enumerate(self.plugins) if overridden(p, event)] for event in EVENTS
        }
        self.train_mb_size = self.eval_mb_size = run.batch_size
        self.train_epochs = 0
        self.eval_every = -1
        self.evaluator: Any = None
        self.is_training, self.is_eval = True, False
        self.retain_graph = self._stop_training = False
        self._eval_streams: list[Any] = []
        self.current_eval_stream: Any = None
        self.experience: HostedExperience | None = None
        self.adapted_dataset: Any = None
        self.dataloader: Any = ()
        self.mbatch: list[Tensor] = []
        self.mb_output = self.loss = torch.zeros(1, device=run.device)
        self.frozen: list[str] = []
        """Modules of the network that a plugin has put into eval mode for the experience."""

    # -- what plugins look for ---------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The run's network, from which logits come; assigning replaces the network."""
        if self._model.network is not self.run.network:  # another part of a composition has replaced it
            self._model.network = self.run.network
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model.network = self.run.network = model.network  # plugins keep references to the model itself

    @property
    def optimizer(self) -> Any:
        """The optimiser of the phase that trains now, or a stand-in that steps nothing."""
        return self.run.optimizer or _Idle(self.model, self.run.setup.recipe.lr)

    @property
    def mb_x(self) -> Tensor:
        """(B, C, H, W) or (B, F) input of the batch."""
        return self.mbatch[0]

    @property
    def mb_y(self) -> Tensor:
        """(B,) labels of the batch."""
        return self.mbatch[1]

    @property
    def mb_task_id(self) -> Tensor:
        """(B,) task labels of the batch."""
        return self.mbatch[-1]

    def forward(self) -> Tensor:
        """Compute the batch's logits."""
        logits: Tensor = self.model(self.mb_x, self.mb_task_id) if self._with_tasks else self.model(self.mb_x)
        return logits

    def criterion(self) -> Tensor:
        """Compute the loss of the batch's logits."""
        loss: Tensor = self._criterion(self.mb_output, self.mb_y)
        return loss

    def model_adaptation(self, model: Any = None) -> Any:
        """Grow a plugin's own model to the classes seen, as the run's network grows at the beginning of the experience."""
        if model is None or model is self._model or self.experience is None:
            return self.model
        network, number = self.run.network, self.experience.current_experience
        try:
            self.run.network = model.network
            with isolated(self.run.streams.seed_for("init", "growth", number)):
                self.run.grow(self.run.experience)
                self.run.place(model.network)
        finally:
            self.run.network = network
        return model

    def make_optimizer(self, **_: Any) -> None:
        """Do nothing: the trainer makes an optimiser for every phase."""

    def stop_training(self) -> None:
        """Refuse: the length of a phase is fixed.

        Raises:
            ContractError: Always.
        """
        raise ContractError(
            "A hosted plugin asked to stop training early, which clframe's trainer doesn't do: choose the number of epochs, or "
            "run the plugin in Avalanche's own loop with run_avalanche."
        )

    # -- the loop ----------------------------------------------------------------------------------------------------

    def begin(self, experience: Experience, epochs: int, grow: Callable[[], None]) -> None:
        """Do what comes before an experience's first epoch; `grow` grows the run's network."""
        self._enter(experience, epochs)
        if not self.run.network.num_classes:  # no model of Avalanche's begins with an empty classifier
            grow()
        self.model.train()
        self.trigger("before_training")
        self.trigger("before_train_dataset_adaptation")
        self.trigger("after_train_dataset_adaptation")
        grow()
        self.trigger("before_training_exp")
        self.frozen = [name for name, module in self.run.network.named_modules() if not module.training]

    def _enter(self, experience: Experience, epochs: int) -> None:
        dataset = make_dataset(self.origin, experience.train)
        seen = list(range(experience.num_seen_classes))
        self.experience = HostedExperience(
            dataset=dataset,
            current_experience=experience.index,
            classes_in_this_experience=list(experience.classes),
            previous_classes=[c for c in seen if c not in experience.new_classes],
            classes_seen_so_far=seen,
            task_labels=list(dataset.targets_task_labels.uniques),
        )
        self.train_epochs = epochs
        self.adapted_dataset, self.dataloader = dataset.train(), ()
        if self._with_tasks:
            self.model.known_train_tasks_labels.update(self.experience.task_labels)

    def begin_epoch(self, epoch: int) -> None:
        """Do what comes between two epochs; the first is 0."""
        if epoch > self.clock.train_exp_epochs:
            self.trigger("after_training_epoch")
        self.trigger("before_training_epoch")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Do the first half of an iteration, up to the loss; returns its terms."""
        if self.frozen:
            modules = dict(self.run.network.named_modules())
            for name in self.frozen:
                modules[name].training = False
        tasks = torch.zeros_like(batch.y) if batch.task_ids is None else batch.task_ids
        self.mbatch = [batch.x, batch.y, tasks]
        reads = self.origin.reads
        self.trigger("before_training_iteration")
        self.loss = torch.zeros(1, device=self.device)
        self.trigger("before_forward")
        self.mb_output = self.forward()
        self.trigger("after_forward")
        main = self.criterion()
        self.loss += main  # plugins add to it, in place too
        self.trigger("before_backward")
        self.run.presented += self.origin.reads - reads
        return {"classification": main, "plugins": self.loss.squeeze() - main}

    def end(self) -> None:
        """Do what comes after an experience's last epoch; nothing where no step was taken, as in a dry run."""
        if self.clock.train_exp_iterations:
            self.model.train()
            if self.clock.train_exp_epochs < self.train_epochs:
                self.trigger("after_training_epoch")
            self.trigger("after_training_exp")
            self.trigger("after_training")
            self.run.network.eval()
        self.experience, self.adapted_dataset, self.dataloader = None, None, ()
        self.mbatch, self.frozen = [], []

    def trigger(self, event: str) -> None:
        """Call a hook of all plugins that have it, in order."""
        for number, plugin in self._listening[event]:
            clock = self.clock
            place = (clock.train_exp_counter, clock.train_exp_epochs, clock.train_epoch_iterations)
            self.seed = derive_seed(self._base_seed, event, number, *place)
            with isolated(self.seed), quietly():
                getattr(plugin, event)(self)
            if not event.endswith(("iteration", "forward", "backward", "update")):
                self._make_reopenable(plugin)

    def _make_reopenable(self, plugin: Any) -> None:
        vars(plugin).update({name: reopenable(value, self) for name, value in vars(plugin).items()})

    def draw(self) -> list[Tensor]:
        """Draw the batches of ids of an epoch from the loader that a plugin has brought."""
        seed = int(torch.randint(2**62, (), generator=self.run.rng("loader")))
        with isolated(seed), quietly(), self.origin.showing_ids():
            return [batch[0] for batch in self.dataloader]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the state of plugins and clock, as plain values, tensors and networks."""
        keeper = Keeper(self, self._model)
        own = self.adapted_dataset
        if not self._can_ask_again():
            raise NotKeptError("the loader that a plugin has brought")
        return {
            "plugins": [keeper.pack_attributes(p) for p in self.plugins],
            "model": keeper.pack_attributes(self._model),
            "adapted": None if own is None else keeper.pack(own, "adapted_dataset"),
            "loader": self.brings_loader,
            "frozen": list(self.frozen),
            "epochs": self.train_epochs,
            "labels": self.mbatch[1:],
        }

    def held(self) -> Tensor:
        """Return the ids of all samples that plugins keep in their datasets and buffers, ascending."""
        keeper = Keeper(self, self._model)
        found = [torch.empty(0, dtype=torch.int64)]
        for plugin in self.plugins:
            with contextlib.suppress(NotKeptError):
                found.append(kept_ids(keeper.pack_attributes(plugin)))
        held: Tensor = torch.unique(torch.cat(found))
        return held

    @property
    def brings_loader(self) -> bool:
        """Whether a plugin has brought a loader of its own for the experience."""
        return not isinstance(self.dataloader, tuple)

    def _can_ask_again(self) -> bool:
        return not self.brings_loader or any(self._makes_loader(p) for p in self.plugins)

    @staticmethod
    def _makes_loader(plugin: Any) -> bool:
        name = type(plugin).__name__
        return name in HOSTED and HOSTED[name].loader

    def load_state(self, saved: Mapping[str, Any], experience: Experience | None) -> None:
        """Go on from a state; `experience` is the one that it was taken in, None between two."""
        keeper = Keeper(self, self._model)
        for plugin, values in zip(self.plugins, saved["plugins"], strict=True):
            keeper.restore_attributes(plugin, values)
        keeper.restore_attributes(self._model, saved["model"])
        if experience is None:
            return
        self._enter(experience, saved["epochs"])
        self.adapted_dataset = keeper.unpack(saved["adapted"])
        self.frozen = list(saved["frozen"])
        self.mbatch = [torch.empty(0), *saved["labels"]]  # of the batch before, some look at the labels alone
        if saved["loader"]:
            for plugin in filter(self._makes_loader, self.plugins):
                with quietly():
                    plugin.before_training_exp(self)
                self._make_reopenable(plugin)


class _Idle:
    """Stands for the optimiser while none trains: gradients can be cleared, and there is a rate to look at."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "lr": lr}]
        self.state: dict[Any, Any] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None


def overridden(plugin: Any, event: str) -> bool:
    """Whether a plugin does something at an event: Avalanche's base classes have all hooks, which do nothing."""
    hook = getattr(type(plugin), event, None)
    return hook is not None and getattr(hook, "__module__", "") != "avalanche.core"
