"""The frame of classifier stages: after the main phases the classifier is changed or learnt anew, on frozen features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clframe.composite import leaves
from clframe.errors import ConfigurationError
from clframe.losses import cross_entropy
from clframe.models import CosineHead, Output
from clframe.spec import field
from clframe.strategies._checks import refuse_multi_head
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, RunContext, Strategy, Tags
from clframe.stream import Experience, Setting

__all__ = ["ClassifierStage", "RehearsedStage", "refuse_cosine_head", "stage_recipe"]


class ClassifierStage(Strategy):
    """A stage that changes the classifier alone, after the main phases of whatever it is composed with.

    It works on a copy of the classifier, `head_`. By default the copy answers for the classifier when the model is
    scored and is dropped before the next experience, so that learning goes on as it would without the stage.
    """

    tags: ClassVar[Tags] = Tags(settings=frozenset[Setting]({"class"}), needs_boundaries=True, online=False)
    before_name: ClassVar[str] = "before_stage"
    """Report head of the classifier as it was before the stage."""

    continue_from: Literal["before", "after"] = field(
        default="before",
        help="Whether the next experience, and whatever follows the stage, goes on from the classifier as it was before "
        "the stage (as SLCA does) or from the changed one (as weight alignment does).",
    )
    in_first: bool = field(
        default=False, help="Whether the first experience has the stage too; it has where it is the only one."
    )

    def check(self, run: RunContext) -> None:
        """Refuse a second stage, parts that predict in a way of their own, and a classifier of several layers."""
        parts = leaves(run.strategy)
        stages = [type(p).__name__ for p in parts if isinstance(p, ClassifierStage)]
        if len(stages) > 1:
            raise ConfigurationError(
                f"Expected one classifier stage in a composition, received {' and '.join(stages)}: choose one of them."
            )
        for part in parts:
            if type(part).predict is not Strategy.predict:
                raise ConfigurationError(
                    f"{type(self).__name__} changes the network's classifier, but {type(part).__name__} predicts in a way "
                    "of its own: compose the stage with a strategy that scores the network's classifier, such as replay."
                )
        refuse_multi_head(self, run)

    def setup(self) -> None:
        """Start without a copy."""
        self.head_: dict[str, Tensor] = {}

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier, and drop the copy of the last experience."""
        super().before_experience(experience)
        self.head_ = {}

    def has_stage(self, experience: Experience) -> bool:
        """Whether an experience has the stage: where it is scored, and not in the first of several unless asked for."""
        due = experience.index > 0 or self.in_first or self.run.num_experiences == 1
        return due and self.run.strategy.evaluates_after(experience)

    def extra_phases(self, experience: Experience) -> list[Phase]:
        """Return the stage, where the experience has it."""
        if not self.has_stage(experience):
            return []
        return [replace(self.stage_phase(experience), on_start=lambda: self.begin(experience), on_end=self.end)]

    def stage_phase(self, experience: Experience) -> Phase:
        """Return the stage, without what begins and ends it."""
        raise NotImplementedError(f"{type(self).__name__} must define stage_phase(experience).")

    def begin(self, experience: Experience) -> None:
        """Take the copy of the classifier."""
        self.copy_head()

    def end(self) -> None:
        """The copy is finished; where learning is to go on from it, classifier and copy change places."""
        self.head_ = {name: value.detach() for name, value in self.head_.items()}
        if self.continue_from == "after":
            state = self.network.classifier.state_dict()
            before = {name: state[name].clone() for name in self.head_}
            self.network.classifier.load_state_dict({**state, **self.head_})
            self.head_ = before

    def copy_head(self, *, fresh: bool = False) -> None:
        """Copy the classifier's parameters, or draw a freshly initialised one like it."""
        head = self.network.classifier
        if fresh:
            head = copy.deepcopy(head)
            head.reset_parameters()
        self.head_ = {name: nn.Parameter(value.detach().clone()) for name, value in head.named_parameters()}

    def head_parameters(self) -> list[ParameterGroup]:
        """The copy's parameters, which train in the stage."""
        return [ParameterGroup([value for value in self.head_.values() if isinstance(value, nn.Parameter)])]

    def head_logits(self, features: Tensor) -> Tensor:
        """Score features (B, D) by the copy: (B, K)."""
        logits: Tensor = functional_call(self.network.classifier, self.head_, (features,))
        return logits

    def final_output(self, output: Output) -> Output:
        """Put the copy's logits in the classifier's place, unless it holds the classifier of before."""
        if not self.head_ or self.continue_from == "after":
            return output
        return replace(output, logits=self.head_logits(output.features))

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the classifier after the stage, and as it was before it; the same where there was no stage."""
        before = output.logits
        if self.head_:
            head = self.head_logits if self.continue_from == "after" else self.network.classifier
            before = head(output.features)
        return {"classifier": output.logits, self.before_name: before}

    def head_weights(self) -> dict[str, Tensor]:
        """The classifier's rows after the stage, and as they were before it."""
        own = self.network.classifier.weight
        copy = self.head_.get("weight", own)
        after, before = (own, copy) if self.continue_from == "after" else (copy, own)
        return {"classifier": after, self.before_name: before}


class RehearsedStage(ClassifierStage):
    """A stage that trains the copy on equally many images of every class seen, new data ∪ the exemplars kept."""

    tags: ClassVar[Tags] = replace(ClassifierStage.tags, needs_exemplars=True, can_unlearn=True)

    stage_epochs: int = field(default=10, ge=1, unit="epochs", help="Length of the stage (paper: 10; DER: 30).")
    stage_lr: float = field(default=0.1, gt=0, help="Learning rate of the stage, SGD with momentum 0.9 (DER: 0.1).")
    stage_weight_decay: float = field(default=5e-4, ge=0, help="Weight decay of the stage (DER: 5e-4).")
    stage_schedule: Literal["constant", "multistep", "cosine"] = field(
        default="cosine", help="Of the stage's rate: cosine to zero, or multistep, a tenth in the second half (DER)."
    )

    def check(self, run: RunContext) -> None:
        """Refuse memories without room, too."""
        super().check(run)
        sizes = [getattr(p, "memory_size", 1) for p in leaves(run.strategy) if p.tags.stores_samples]
        if sizes and not any(sizes):
            raise ConfigurationError(
                f"{type(self).__name__} trains the classifier on exemplars of the classes seen before, received memory_size "
                "0: raise it."
            )

    def stage_data(self, experience: Experience) -> Tensor:
        """New data ∪ the exemplars of whichever part keeps some, each sample once."""
        kept = self.run.strategy.exemplars()
        return torch.cat([experience.train, kept[~torch.isin(kept, experience.train)]])

    def rehearsal(
        self, name: str, data: Callable[[], DataView], parameters: Callable[[], list[ParameterGroup]]
    ) -> Phase:
        """Return the stage: some data, on frozen features."""
        return Phase(
            name=name,
            data=data,
            epochs=self.stage_epochs,
            loss=self.stage_loss,
            parameters=parameters,
            eval_modules=lambda: [self.network],
            optimizer=stage_recipe(self.stage_lr, self.stage_weight_decay, self.stage_schedule),
        )

    def stage_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over all classes seen."""
        return {"classification": cross_entropy(self.stage_logits(batch), batch.y)}

    def stage_logits(self, batch: Batch) -> Tensor:
        """Score a batch by the copy, on features that get no gradient."""
        with torch.no_grad():
            features = self.network.features(batch.x)
        return self.head_logits(features)


def stage_recipe(lr: float, weight_decay: float, schedule: str) -> dict[str, object]:
    """Return the changes to a run's recipe for a stage: SGD with momentum; `multistep` drops the rate at half the way."""
    return {
        "name": "sgd",
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": [0.5],
        "gamma": 0.1,
        "warmup": 0.0,
    }


def refuse_cosine_head(strategy: Strategy, run: RunContext) -> None:
    """Refuse a classifier whose scores don't depend on its rows' lengths.

    Raises:
        ConfigurationError: `head.name` is `cosine`.
    """
    if isinstance(run.network.classifier, CosineHead):
        raise ConfigurationError(
            f"head.name: {type(strategy).__name__} changes the lengths of the classifier's rows, which a cosine head's "
            "scores don't depend on: set it to linear."
        )
