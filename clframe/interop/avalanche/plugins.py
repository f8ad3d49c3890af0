"""Avalanche's plugins as a clframe strategy."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

from torch import Tensor

from clframe.errors import ConfigurationError, did_you_mean
from clframe.interop.avalanche.datasets import ids_of
from clframe.interop.avalanche.host import Host, overridden
from clframe.interop.avalanche.known import HOSTED, hosted
from clframe.interop.avalanche.library import quietly, require
from clframe.interop.avalanche.model import ClassModel
from clframe.interop.avalanche.state import NotKeptError
from clframe.memory import ExemplarMemory
from clframe.spec import field
from clframe.strategy import Batch, DataView, Phase, RunContext, Strategy, Tags
from clframe.stream import Experience
from clframe.training.context import Context
from clframe.training.seeds import isolated

__all__ = ["AvalanchePlugins"]

_CLASSIFIER = "network.heads.classifier"
_EVALUATING = tuple(
    f"{when}_eval{what}" for when in ("before", "after") for what in ("", "_exp", "_iteration", "_forward")
)


class AvalanchePlugins(Strategy):
    """Plugins of Avalanche 0.6.0 (`avalanche.training.plugins`) in the place of a method of clframe's.

    Fine-tuning with the hooks of Avalanche's training loop, called in Avalanche's order: what a plugin adds to the loss, does
    to gradients or weights, and keeps between experiences is its own code. Data, augmentation, batches, optimiser,
    scoring and checkpoints are clframe's; where a plugin brings a loader of its own, its batches are drawn from that. Plugins
    read their own samples (for Fisher information, reference gradients, replay beside the loss) without augmentation.

    Every call of a plugin draws from the global generators under a seed of its own, and leaves them as they were. A
    resumed run is bit-identical, for all plugins that can be hosted by their name.

    For a plugin of your own, or one that takes more than plain values, override `make_plugins` in a subclass.

    Report heads: `classifier`.

    Differs from the paper:
        As Avalanche's plugin does. A new optimiser begins every experience, and the classifier grows with the classes seen.
    """

    tags: ClassVar[Tags] = Tags(stores_samples=True)

    plugins: list[Any] = field(
        default_factory=list,
        help="In order: names, or mappings of a name and the plugin's arguments, such as {name: EWCPlugin, ewc_lambda: 0.4}.",
    )

    def make_plugins(self, model: Any) -> list[Any]:
        """Make the plugins of a run, fresh ones every time.

        Args:
            model: Gives the logits (B, K) of the run's network; its classifier is `network.heads.classifier`.

        Raises:
            ConfigurationError: There is no such plugin, or it takes other arguments.
        """
        return [_made(name, arguments, model) for name, arguments in self._given()]

    def _given(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for given in self.plugins:
            arguments = dict(given) if isinstance(given, Mapping) else {"name": given}
            name = arguments.pop("name", None)
            if not isinstance(name, str):
                raise ConfigurationError(
                    "strategy.plugins: expected names, or mappings of a name and arguments, received "
                    f"{given!r}: write {{name: EWCPlugin, ewc_lambda: 0.4}}."
                )
            yield name, arguments

    # -- before anything is computed ---------------------------------------------------------------------------------

    def check(self, run: RunContext) -> None:
        """Refuse plugins that can't be hosted, at all or in this run."""
        require()
        if cast(Context, run).setup.ranks.several:
            raise ConfigurationError("Avalanche's plugins run in a single process: start the run without torchrun.")
        for name, _ in self._given():
            self._check_known(name, run)
        if self.loss_over == "experience" and run.setting != "task":
            raise ConfigurationError(
                "strategy.loss_over: Avalanche's plugins compute their losses over all classes seen, expected auto or seen, "
                "received 'experience'."
            )
        with isolated(0), quietly():
            made = self.make_plugins(ClassModel(run.network))
        if not made:
            raise ConfigurationError(
                f"strategy.plugins: expected at least one of {', '.join(HOSTED)}, received none: name it."
            )
        for plugin in made:
            scoring = [e for e in _EVALUATING if overridden(plugin, e)]
            if scoring:
                raise ConfigurationError(
                    f"{type(plugin).__name__} takes part in Avalanche's evaluation ({scoring[0]}), which clframe's doesn't call: "
                    "run it as a whole with clframe.interop.avalanche.run_avalanche."
                )

    def _check_known(self, name: str, run: RunContext) -> None:
        known = hosted(name)
        if known.boundaries and not run.boundaries:
            raise ConfigurationError(
                f"{name} must be told where a task ends, which this stream doesn't say: choose another plugin or scenario."
            )
        if not known.tasks and run.setting == "task":
            raise ConfigurationError(
                f"{name} gives its model no task labels, so that it can't run in the task-incremental setting: choose another."
            )
        if known.idle_on_cpu and run.device.type == "cpu":
            raise ConfigurationError(
                f"{name} has no effect on the CPU in Avalanche 0.6.0, because it keeps views of the weights for copies of "
                f"them: use clframe's {known.like}, or a GPU."
            )
        if known.needs and importlib.util.find_spec(known.needs) is None:
            raise ConfigurationError(
                f"{name} needs the package {known.needs}, found none: pip install 'clframe[{known.needs}]'."
            )

    # -- the run -----------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Make the plugins."""
        self.hosted_: Mapping[str, Any] = _Live(self._new_host())
        self.memory_ = ExemplarMemory(0, policy="random", sample_bytes=self.run.sample_bytes)

    def _new_host(self) -> Host:
        return Host(cast(Context, self.run), self.loss_over != "seen", self.make_plugins)

    @property
    def host(self) -> Host:
        """What the plugins are hosted by; after a resume it is made of the checkpoint when it is first asked for.

        Raises:
            ConfigurationError: The checkpoint doesn't hold all that the plugins had kept.
        """
        if not isinstance(self.hosted_, _Live):
            saved = self.hosted_["state"]
            if isinstance(saved, str):
                raise ConfigurationError(
                    f"The run can't be resumed, because a checkpoint can't hold {saved}, without pickling it: start it again."
                )
            host = self._new_host()
            host.load_state(saved, cast(Context, self.run).experience if saved["adapted"] is not None else None)
            self.hosted_ = _Live(host)
        return self.hosted_.host

    def before_experience(self, experience: Experience) -> None:
        """Call the hooks before training, and grow the classifier among them."""
        if len(experience.train):
            epochs = (self.first_epochs if experience.index == 0 else None) or self.epochs
            self.host.begin(experience, epochs, lambda: self.run.grow(experience))
        else:
            self.run.grow(experience)

    def training_data(self, experience: Experience) -> DataView:
        """Return the samples that plugins have left or put in place, in the order of their own loader if there is one."""
        if not len(experience.train):
            return super().training_data(experience)
        adapted = ids_of(self.host.adapted_dataset)
        return DataView(adapted, order=self.host.draw if self.host.brings_loader else None)

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        """Call the hooks between epochs."""
        if self._trains(phase.name):
            self.host.begin_epoch(epoch)

    def _trains(self, phase: str) -> bool:
        """Whether a phase is the one that plugins take part in; a composition may add others."""
        return phase == "train"

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy over all classes seen (of the sample's own task), and what plugins add to it."""
        return self.host.losses(batch)

    def after_backward(self, batch: Batch) -> None:
        """Let plugins change the gradients."""
        if self._trains(batch.phase):
            self.host.trigger("after_backward")
            self.host.trigger("before_update")

    def after_step(self, batch: Batch) -> None:
        """Call the hooks after a step."""
        if self._trains(batch.phase):
            self.host.trigger("after_update")
            self.host.trigger("after_training_iteration")

    def after_experience(self, experience: Experience) -> None:
        """Call the hooks after training, and note which samples plugins keep."""
        if self.host.experience is None:
            return
        self.host.end()
        ids = self.host.held()
        self.memory_ = ExemplarMemory(len(ids), policy="random", sample_bytes=self.run.sample_bytes)
        self.memory_.ids, self.memory_.targets = ids, self.run.targets(ids)


class _Live(Mapping[str, Any]):
    """The host while it runs, whose state is packed when a checkpoint asks for it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __getitem__(self, key: str) -> Any:
        if key != "state":
            raise KeyError(key)
        try:
            return self.host.state()
        except NotKeptError as error:
            return str(error)

    def __iter__(self) -> Iterator[str]:
        return iter(("state",))

    def __len__(self) -> int:
        return 1


def _made(name: str, arguments: dict[str, Any], model: Any) -> Any:
    """Make one plugin of Avalanche's."""
    cls = getattr(require("avalanche.training.plugins"), name)
    accepted = inspect.signature(cls.__init__).parameters
    defaults: dict[str, Callable[[], Any]] = {
        "model": lambda: model,
        "cwr_layer_name": lambda: _CLASSIFIER,
        "name_ext_layer": lambda: _last_features(model),
    }
    given = {**{n: make() for n, make in defaults.items() if n in accepted and n not in arguments}, **arguments}
    unknown = [a for a in given if a not in accepted]
    if unknown:
        names = [a for a in accepted if a not in ("self", "model")]
        hint = did_you_mean(unknown[0], names) or f" It takes: {', '.join(names) or 'none'}."
        raise ConfigurationError(f"strategy.plugins: {name} has no argument {unknown[0]!r}.{hint}")
    try:
        return cls(**given)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"strategy.plugins: {name} refuses its arguments ({str(error).removeprefix(f'{name}.')})."
        ) from error


def _last_features(model: Any) -> str:
    """Return the name, in a trace of the model, of what the classifier reads."""
    from torchvision.models.feature_extraction import get_graph_node_names

    names = get_graph_node_names(model)[0]
    return str([n for n in names if not n.startswith("network.heads.")][-1])
