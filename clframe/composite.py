"""Several strategies in one: `replay+ewc`, explicit and ordered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.models import Output
from clframe.spec import field, fields_of
from clframe.strategy import Batch, DataView, Phase, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["Composite"]

_EXCLUSIVE = ("phases", "training_data", "main_loss", "loss_terms", "predict", "query")
"""Hooks of which a composition can hold only one that differs from fine-tuning."""

SHARED_FIELDS = tuple(f.name for f in fields_of(Strategy))
"""Hyperparameters that every strategy has: a composition has them once."""


class Composite(Strategy):
    """Strategies that train one network together.

    Their extra losses add up, their hooks run in the order given, and their report heads stand side by side, the first
    strategy's first. Only one part may replace the main loss, the phases, the training data, or prediction. Fields
    that every strategy has, such as `epochs` and `loss_over`, are the first part's: `replay+lwf` trains with replay's
    softmax over all classes seen, `lwf+finetune` with LwF's.

    Raises:
        ConfigurationError: Two parts replace the same thing.
    """

    tags: ClassVar[Tags] = Tags()

    parts: list[Strategy] = field(default_factory=list, help="The strategies, in order.")

    def _owner(self, hook: str) -> Strategy | None:
        """The one part that overrides a hook, or None when all leave fine-tuning as it is."""
        owners = [p for p in self.parts if getattr(type(p), hook) is not getattr(Strategy, hook)]
        if len(owners) > 1:
            names = " and ".join(type(p).__name__ for p in owners)
            raise ConfigurationError(f"{names} each bring their own {hook} and can't be composed: choose one of them.")
        return owners[0] if owners else None

    def bind(self, run: RunContext) -> None:
        """Lend the run to every part, and give all parts the shared hyperparameters."""
        super().bind(run)
        self.share_fields()
        for part in self.parts:
            part.bind(run)

    def share_fields(self) -> None:
        """Give the composition and all parts the first part's shared hyperparameters; fills `parts` in order."""
        flat = [q for p in self.parts for q in (p.parts if isinstance(p, Composite) else [p])]
        self.parts = flat
        for name in SHARED_FIELDS:
            for holder in (self, *flat):
                setattr(holder, name, getattr(flat[0], name))

    def check(self, run: RunContext) -> None:
        """Refuse parts that get in each other's way."""
        for hook in _EXCLUSIVE:
            self._owner(hook)
        phases, data = self._owner("phases"), self._owner("training_data")
        if phases is not None and data is not None and phases is not data:
            raise ConfigurationError(
                f"{type(phases).__name__} brings its own phases and {type(data).__name__} its own training data: "
                "they can't be composed."
            )
        for part in self.parts:
            part.check(run)

    @property
    def merged_tags(self) -> Tags:
        """What the parts need, together."""
        return reduce(_merge, (tags_of(p) for p in self.parts))

    def setup(self) -> None:
        """Set up every part."""
        self._each(lambda p: p.setup())

    def before_experience(self, experience: Experience) -> None:
        """Let every part grow the model; growing twice to the same size changes nothing."""
        self._each(lambda p: p.before_experience(experience))

    def query(self, experience: Experience) -> Tensor:
        """Ask the part that chooses, or draw at random."""
        owner = self._owner("query")
        return owner.query(experience) if owner else super().query(experience)

    def phases(self, experience: Experience) -> list[Phase]:
        """Return the phases of the part that has some, with the other parts' extra losses, then all extra phases."""
        owner = self._owner("phases")
        if owner is None:
            return [self.main_phase(experience), *self.extra_phases(experience)]
        own = [self._with_extras(phase, owner) for phase in owner.phases(experience)]
        return [*own, *self.extra_phases(experience)]

    def extra_phases(self, experience: Experience) -> list[Phase]:
        """Return the extra phases of all parts, in order."""
        return [phase for part in self.parts for phase in part.extra_phases(experience)]

    def training_data(self, experience: Experience) -> DataView:
        """Return the training data of the part that replaces it, or the experience's own."""
        owner = self._owner("training_data")
        return owner.training_data(experience) if owner else super().training_data(experience)

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        """Tell every part."""
        self._each(lambda p: p.before_epoch(phase, epoch))

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """Return the main loss of the part that replaces it, or cross-entropy."""
        owner = self._owner("main_loss")
        return owner.main_loss(batch, output) if owner else super().main_loss(batch, output)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the main loss and everybody's extra losses from one forward pass."""
        owner = self._owner("loss_terms")
        if owner is None:
            return super().loss_terms(batch)
        terms = owner.loss_terms(batch)
        return {**terms, **self._extras(batch, self.forward(batch), owner, terms)}

    def needs_stages(self) -> bool:
        """Whether some part's loss terms read the stage maps."""
        return any(p.needs_stages() for p in self.parts)

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the extra losses of all parts."""
        return self._extras(batch, output, None, ("classification",))

    def after_backward(self, batch: Batch) -> None:
        """Let every part change the gradients, in order."""
        self._each(lambda p: p.after_backward(batch))

    def after_step(self, batch: Batch) -> None:
        """Tell every part."""
        self._each(lambda p: p.after_step(batch))

    def after_experience(self, experience: Experience) -> None:
        """Let every part update its state."""
        self._each(lambda p: p.after_experience(experience))

    def forget(self, experience: Experience) -> None:
        """Let every part forget."""
        self._each(lambda p: p.forget(experience))

    def exemplars(self) -> Tensor:
        """Return the past samples that any part keeps."""
        found: Tensor = torch.unique(torch.cat([p.exemplars() for p in self.parts]))
        return found

    def evaluates_after(self, experience: Experience) -> bool:
        """Whether every part has something to score."""
        return all(p.evaluates_after(experience) for p in self.parts)

    def final_output(self, output: Output) -> Output:
        """Let every part change what is scored, in order."""
        return reduce(lambda changed, part: part.final_output(changed), self.parts, output)

    @property
    def scored_classes(self) -> int:
        """The classes that every part scores."""
        return min(p.scored_classes for p in self.parts)

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Return the report heads of all parts, the first part's primary one first."""
        heads: dict[str, Tensor] = {}
        for part in self.parts:
            for name, scores in part.report_heads(output).items():
                heads.setdefault(name, scores)
        return heads

    def head_weights(self) -> dict[str, Tensor]:
        """Return the network's classifier, and what parts say instead or beside, in order."""
        own = [p.head_weights() for p in self.parts if type(p).head_weights is not Strategy.head_weights]
        return reduce(lambda found, weights: {**found, **weights}, own, super().head_weights())

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        """Predict as the part that replaces prediction does, or from one forward pass."""
        owner = self._owner("predict")
        return owner.predict(x, task_ids) if owner else super().predict(x, task_ids)

    def _each(self, call: Callable[[Strategy], None]) -> None:
        for part in self.parts:
            call(part)

    def _extras(
        self, batch: Batch, output: Output, without: Strategy | None, taken: Iterable[str]
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for part in self.parts:
            if part is without:
                continue
            for name, value in part.extra_losses(batch, output).items():
                terms[_free(name, {*taken, *terms})] = value
        return terms

    def _with_extras(self, phase: Phase, owner: Strategy) -> Phase:
        """Add the other parts' extra losses to a phase of the owner."""
        own = phase.loss
        if own is None:  # the composition's own loss terms: everybody's, from one forward pass
            return phase

        def loss(batch: Batch) -> dict[str, Tensor]:
            terms = own(batch)
            return {**terms, **self._extras(batch, self.forward(batch), owner, terms)}

        adds = any(type(p).extra_losses is not Strategy.extra_losses for p in self.parts if p is not owner)
        return dataclasses.replace(phase, loss=loss) if adds else phase


def _free(name: str, taken: Iterable[str]) -> str:
    """Number a term's name when another part has it already."""
    candidates = (name if n == 1 else f"{name}_{n}" for n in range(1, 100))
    return next(c for c in candidates if c not in set(taken))


def _merge(a: Tags, b: Tags) -> Tags:
    """Both must be able to, either may need."""
    either: dict[str, Any] = {
        f.name: getattr(a, f.name) or getattr(b, f.name)
        for f in dataclasses.fields(Tags)
        if f.name.startswith("needs_") or f.name in ("stores_samples", "grows_features")
    }
    return Tags(
        settings=a.settings & b.settings,
        scores=a.scores & b.scores,
        online=a.online and b.online,
        uses_unlabelled=a.uses_unlabelled or b.uses_unlabelled,
        can_unlearn=a.can_unlearn and b.can_unlearn,
        head=a.head or b.head,
        **either,
    )


def tags_of(strategy: Strategy) -> Tags:
    """Return a strategy's tags, those of all its parts for a composition."""
    return strategy.merged_tags if isinstance(strategy, Composite) else strategy.tags


def leaves(strategy: Strategy) -> list[Strategy]:
    """Return the parts of a composition, or the strategy alone."""
    return list(strategy.parts) if isinstance(strategy, Composite) else [strategy]
