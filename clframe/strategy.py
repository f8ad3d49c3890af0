"""The contract of a strategy: hyperparameters, phases, loss terms and report heads.

A method overrides only what makes it different from plain fine-tuning. The trainer owns the loop; a strategy returns
loss terms and never writes its own epochs. State is built in `setup` or later, lives in attributes whose names end in
an underscore, and is saved with every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clframe.errors import ContractError
from clframe.losses import cross_entropy
from clframe.memory import ExemplarMemory
from clframe.models import Network, Output
from clframe.spec import Configurable, field
from clframe.stream import Experience, Score, Setting

if TYPE_CHECKING:
    from clframe.composite import Composite

T = TypeVar("T")
Later: TypeAlias = "T | Callable[[], T]"
"""A value, or a function that makes it when it is needed."""

__all__ = [
    "ANY_SCORE",
    "Batch",
    "BegunPhase",
    "DataView",
    "ParameterGroup",
    "Phase",
    "RunContext",
    "Strategy",
    "Tags",
    "TensorView",
]


ANY_SCORE: frozenset[Score] = frozenset({"accuracy", "squared_error"})
"""For the tag `scores` of methods that regression can use too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What a method needs and what it can do; a combination that makes no sense is refused before any computing.

    Attributes:
        settings: The settings in which the method is defined.
        scores: What its tasks may be scored by.
        needs_boundaries: It must be told where a task ends.
        needs_all_data: It keeps the whole history (an upper bound, not a continual learner).
        needs_pretrained: It needs a backbone with weights.
        needs_layernorm: It needs a backbone that has LayerNorm.
        needs_exemplars: It needs the exemplars of another part of its composition.
        needs_batchnorm: It needs a backbone that has BatchNorm.
        needs_own_channels: It needs a backbone that describes channels which no shortcut joins (`ChannelLayer.own`).
        stores_samples: It keeps exemplars.
        grows_features: It adds extractors, so that features of different experiences have different lengths.
        online: It also works when every sample is presented once.
        uses_unlabelled: It can learn from samples without labels.
        can_unlearn: It can serve experiences that ask to forget.
        head: Options of the classifier, `name` among them, that hold where the run's configuration names no other kind.
    """

    settings: frozenset[Setting] = frozenset({"class", "task", "domain"})
    scores: frozenset[Score] = frozenset({"accuracy"})
    needs_boundaries: bool = False
    needs_all_data: bool = False
    needs_pretrained: bool = False
    needs_layernorm: bool = False
    needs_exemplars: bool = False
    needs_batchnorm: bool = False
    needs_own_channels: bool = False
    stores_samples: bool = False
    grows_features: bool = False
    online: bool = True
    uses_unlabelled: bool = False
    can_unlearn: bool = False
    head: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Batch:
    """What a loss sees: one step's samples on the device.

    Attributes:
        x: (B, C, H, W) float, normalised and augmented; or (B, D) features. Replayed samples come last.
        y: (B,) stream labels, -1 where withheld; or (B, D) regression targets.
        ids: (B,) ids in the training table, on the CPU; empty in a `TensorView`.
        num_new: The first `num_new` samples are the view's own; the rest were drawn from the memory beside them.
        task_ids: (B,) where the scenario gives them.
        views: All augmented views, `x` first.
        memory_rows: Positions in the memory of the replayed samples, on the CPU.
        experience: Where the batch was drawn.
        phase: The phase's name.
        epoch: From 0.
        step: Of the epoch, from 0.
        num_steps: Steps in the epoch.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    num_new: int
    task_ids: Tensor | None
    views: tuple[Tensor, ...]
    memory_rows: Tensor | None
    experience: Experience
    phase: str
    epoch: int
    step: int
    num_steps: int


@dataclass(frozen=True, eq=False)
class DataView:
    """The samples of a phase and how they are mixed.

    Attributes:
        ids: (N,) ids in the training table; an epoch presents each once, shuffled.
        memory: Memory from which `memory_batch` samples are drawn beside every batch, anew at every step.
        memory_batch: Samples drawn beside every batch.
        unlabelled: (M,) ids presented without label, shuffled among the others.
        balanced: Draw the epoch's samples so that every class is equally likely (with replacement).
        views: Augmented views of every image.
        augment: Whether images are augmented at all.
        batch_size: Samples of `ids` per step; None means the run's.
        order: Draws an epoch's batches of ids itself, where shuffling `ids` isn't what the method needs; None shuffles them.
            It draws from the generators of the current scope alone (`run.rng`), and is called again when a run is resumed
            inside the epoch.
    """

    ids: Tensor
    memory: ExemplarMemory | None = None
    memory_batch: int = 0
    unlabelled: Tensor | None = None
    balanced: bool = False
    views: int = 1
    augment: bool = True
    batch_size: int | None = None
    order: Callable[[], Sequence[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.unlabelled is None else len(self.unlabelled))


@dataclass(frozen=True, eq=False)
class TensorView:
    """Inputs that are no images of the stream, such as Gaussian features.

    Attributes:
        x: (N, …) inputs as the loss wants them.
        y: (N,) labels.
        batch_size: Samples per step; None means the run's.
    """

    x: Tensor
    y: Tensor
    batch_size: int | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters with their own learning rate or weight decay.

    Attributes:
        parameters: What trains.
        lr_scale: Multiplies the recipe's learning rate.
        weight_decay: Replaces the recipe's; None keeps it.
    """

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Phase:
    """One stage of training of an experience. The trainer runs it; hooks mark its beginning and end.

    `data`, `parameters`, `eval_modules` and `train_modules` may be given as functions without arguments, which the
    trainer calls when the phase begins, after `on_start`: for what an earlier phase or `on_start` has yet to make, such
    as Gaussian features or a student network. Whatever they or `Strategy.phases` read must not change while the phase
    trains, so that a resumed run makes the same phase again.

    Attributes:
        name: Unique within the experience.
        data: What is presented.
        epochs: Length in epochs.
        loss: Maps a batch to named loss terms; None means `Strategy.loss_terms`.
        parameters: What trains, as groups; None means every parameter of the network.
        eval_modules: Modules kept in eval mode, so that their BatchNorm statistics stay.
        train_modules: Modules outside the network that are in train mode during the phase and in eval mode after it.
        optimizer: Changes to the run's recipe for this phase, by field name (`{"lr": 0.01}`).
        on_start: Called before the first step, for instance to re-initialise a head.
        on_end: Called after the last step.
    """

    name: str
    data: Later[DataView | TensorView]
    epochs: int
    loss: Callable[[Batch], dict[str, Tensor]] | None = None
    parameters: Later[Sequence[ParameterGroup] | None] = None
    eval_modules: Later[Sequence[nn.Module]] = ()
    train_modules: Later[Sequence[nn.Module]] = ()
    optimizer: dict[str, object] | None = None
    on_start: Callable[[], None] | None = None
    on_end: Callable[[], None] | None = None

    def begun(self) -> BegunPhase:
        """Return the phase with what was left for later; called by the trainer when the phase begins."""
        return BegunPhase(
            phase=self,
            data=cast("DataView | TensorView", _now(self.data)),
            parameters=_now(self.parameters),
            eval_modules=tuple(_now(self.eval_modules)),
            train_modules=tuple(_now(self.train_modules)),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class BegunPhase:
    """A phase whose parts are all made.

    Attributes:
        phase: As the strategy gave it.
        data: What is presented.
        parameters: What trains; None means every parameter of the network.
        eval_modules: Kept in eval mode.
        train_modules: Outside the network, in train mode meanwhile.
        steps: Of every epoch, where the run states a budget; None means whole passes over the data.
    """

    phase: Phase
    data: DataView | TensorView
    parameters: Sequence[ParameterGroup] | None
    eval_modules: Sequence[nn.Module]
    train_modules: Sequence[nn.Module]
    steps: Sequence[int] | None = None


def _now(value: Later[T]) -> T:
    """Return a part of a phase, made now when it was left for later."""
    return value() if callable(value) else value


class RunContext(Protocol):
    """What the trainer lends to a strategy for the length of a run."""

    network: Network
    strategy: Strategy
    device: torch.device
    setting: Setting
    score: Score
    boundaries: bool
    batch_size: int
    num_classes: int
    num_experiences: int
    sample_bytes: int
    pretrained: bool
    input_shape: tuple[int, ...]

    def rng(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of a purpose in the current scope (experience, phase, epoch)."""
        ...

    def fresh_network(self) -> Network:
        """Return a newly initialised network of the run's architecture, without classes."""
        ...

    def grow(self, experience: Experience) -> None:
        """Grow the classifier to the classes seen; growing again for the same experience changes nothing."""
        ...

    def targets(self, ids: Tensor) -> Tensor:
        """Return the labels of training samples, on the CPU."""
        ...

    def batches(self, ids: Tensor, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield samples in order under the test transform: for statistics."""
        ...

    def training_batch(self, ids: Tensor, purpose: str) -> Batch:
        """Return samples as one batch under the training augmentation, drawn from the purpose's own generator.

        For a loss or a gradient that needs samples of its own beside the batch; they count as presented.
        """
        ...

    def features(self, ids: Tensor, network: Network | None = None) -> Tensor:
        """Return (N, D) features on the CPU: test transform, eval mode, no gradient."""
        ...

    def gathered(self, values: Tensor) -> Tensor:
        """Return the rows (N, …) of the whole batch from those (n, …) of the batch that a hook was given.

        The same tensor, unless several processes train the run together and each sees its share of every batch. A
        strategy that decides or remembers something by the samples of a step asks for all of them first.
        """
        ...

    def task_mask(self, task_ids: Tensor) -> Tensor:
        """Return the (B, K) bool mask of the classes of every sample's task."""
        ...

    def forget_moments(self, parameter: nn.Parameter, dim: int, index: Tensor) -> None:
        """Set the optimiser's running averages (momentum, moments) of some entries of a parameter to zero, while a phase trains.

        Args:
            parameter: One that the phase trains; another has none.
            dim: The dimension of `index`.
            index: (n,) int64 on the parameter's device; rows for dimension 0, columns for 1.
        """
        ...


class Strategy(Configurable):
    """Plain fine-tuning, and the base of every method.

    The order of hooks in a run: `setup` once; for every experience `before_experience`, `phases`, the steps (with
    `loss_terms`, `after_backward`, `after_step`, and `before_epoch`), `after_experience`; then `predict`.
    """

    tags: ClassVar[Tags] = Tags()
    version: ClassVar[int] = 1
    history: ClassVar[tuple[str, ...]] = ("1: first version.",)

    epochs: int = field(default=10, ge=1, unit="epochs", help="Length of the main phase of every experience.")
    first_epochs: int | None = field(
        default=None, ge=1, unit="epochs", help="Length of the main phase of the first experience; none means `epochs`."
    )
    loss_over: Literal["auto", "seen", "experience"] = field(
        default="auto",
        help="Classes in the softmax of the classification loss: all seen so far, or those of the experience (of the "
        "sample's own task where there are task ids). auto: experience in the task-incremental setting, else seen.",
    )

    # -- what the trainer lends ------------------------------------------------------------------------------------

    def bind(self, run: RunContext) -> None:
        """Take the services of a run; called by the trainer before `setup`."""
        self._run = run

    @property
    def run(self) -> RunContext:
        """The services of the current run.

        Raises:
            ContractError: No run has started.
        """
        run: RunContext | None = getattr(self, "_run", None)
        if run is None:
            raise ContractError(f"{type(self).__name__} belongs to no run yet: its hooks are called by the trainer.")
        return run

    @property
    def network(self) -> Network:
        """The network that is trained; assigning replaces it."""
        return self.run.network

    @network.setter
    def network(self, network: Network) -> None:
        self.run.network = network

    # -- hooks, in the order in which they are called --------------------------------------------------------------

    def check(self, run: RunContext) -> None:
        """Refuse hyperparameters that can't serve this run, before anything is computed.

        Raises:
            ConfigurationError: In one sentence.
        """

    def setup(self) -> None:
        """Build the state, in attributes whose names end in an underscore."""

    def before_experience(self, experience: Experience) -> None:
        """Grow the model; the default grows the classifier to the classes seen, in one piece, unless it has more."""
        self.run.grow(experience)

    def query(self, experience: Experience) -> Tensor:
        """Choose which samples of the pool to buy labels for; the default draws them at random.

        Returns:
            Up to `experience.query_budget` ids of `experience.pool`.
        """
        order = torch.randperm(len(experience.pool), generator=self.run.rng("query"))
        return experience.pool[order[: experience.query_budget]]

    def phases(self, experience: Experience) -> list[Phase]:
        """Return the stages of training; an experience without training has none."""
        return [self.main_phase(experience), *self.extra_phases(experience)]

    def extra_phases(self, experience: Experience) -> list[Phase]:
        """Return stages that follow the main ones, such as a classifier stage; in a composition, every part's."""
        return []

    def training_data(self, experience: Experience) -> DataView:
        """Return what the main phase presents."""
        return DataView(experience.train)

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        """Called before the first step of every epoch (from 0)."""

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """Return the loss that fits the labels; one strategy of a composition may replace it."""
        if self.run.score == "squared_error":
            return functional.mse_loss(output.logits, batch.y)
        return cross_entropy(output.logits, batch.y, self.allowed_classes(batch))

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return named terms that are added to the main loss, such as a regulariser or a distillation."""
        return {}

    def after_backward(self, batch: Batch) -> None:
        """Change gradients before the optimiser's step, for instance by a projection."""

    def after_step(self, batch: Batch) -> None:
        """Called after every optimiser step, for instance to offer the batch to a memory."""

    def after_experience(self, experience: Experience) -> None:
        """Update memory and statistics once an experience's phases are over."""

    def forget(self, experience: Experience) -> None:
        """Unlearn `experience.forget`; the default removes those samples from every memory kept as state."""
        for name, value in vars(self).items():
            if name.endswith("_") and isinstance(value, ExemplarMemory):
                value.remove(experience.forget)

    def exemplars(self) -> Tensor:
        """Return the ids of the past samples kept; in a composition, every part's (`self.run.strategy.exemplars()`).

        The default collects every memory kept as state; a memory filled while training may hold new samples too.

        Returns:
            (M,) ids in the training table, each once.
        """
        kept = [v.ids for n, v in vars(self).items() if n.endswith("_") and isinstance(v, ExemplarMemory)]
        found: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *kept]))
        return found

    def evaluates_after(self, experience: Experience) -> bool:
        """Whether the model is to be scored after this experience."""
        return True

    def final_output(self, output: Output) -> Output:
        """Change what is scored, such as the logits of a classifier stage; in a composition, every part in order."""
        return output

    @property
    def scored_classes(self) -> int:
        """How many classes the report heads score, the first ones: a task of later classes alone is left out."""
        return self.network.num_classes

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Map one forward pass over test images to scores (B, K) of every report head, the primary one first."""
        return {"classifier": output.logits}

    def head_weights(self) -> dict[str, Tensor]:
        """Return the weight matrix (K, D) of report heads that are linear, whose row norms are recorded."""
        weight = getattr(self.network.classifier, "weight", None)
        return {} if weight is None else {"classifier": weight}

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        """Score test images for every report head; pure, whatever the batch's size or order.

        Args:
            x: (B, C, H, W) normalised, or (B, D) features.
            task_ids: (B,) only in the task-incremental setting.
        """
        return self.report_heads(self.final_output(self.network(x, task_ids)))

    # -- parts to build with ---------------------------------------------------------------------------------------

    def main_phase(self, experience: Experience) -> Phase:
        """Return the phase that plain fine-tuning would train."""
        first = self.first_epochs if experience.index == 0 else None
        return Phase(name="train", data=self.training_data(experience), epochs=first or self.epochs)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return every named loss term of a batch; their sum is minimised."""
        output = self.forward(batch)
        terms = {"classification": self.main_loss(batch, output)}
        terms.update(self.extra_losses(batch, output))
        return terms

    def forward(self, batch: Batch) -> Output:
        """Return the one forward pass of a batch that the loss terms read."""
        output: Output = self.network(batch.x, batch.task_ids, self.needs_stages())
        return output

    def needs_stages(self) -> bool:
        """Whether the loss terms read the backbone's stage maps; the output holds them only then."""
        return False

    def allowed_classes(self, batch: Batch) -> Tensor | None:
        """Return the mask of classes in the softmax that `loss_over` asks for, None for all seen."""
        if self.loss_over == "seen" or (self.loss_over == "auto" and self.run.setting != "task"):
            return None
        return self.experience_classes(batch)

    def experience_classes(self, batch: Batch) -> Tensor:
        """Return the mask (K,) of the experience's classes, or (B, K) of every sample's own task where there are task ids."""
        if batch.task_ids is not None:
            return self.run.task_mask(batch.task_ids)
        mask = torch.zeros(self.network.num_classes, dtype=torch.bool)
        mask[list(batch.experience.classes)] = True
        return mask.to(batch.x.device)

    def __add__(self, other: Strategy) -> Composite:
        """Compose two strategies: `Replay(memory_size=500) + EWC(strength=100.0)`."""
        from clframe.composite import Composite

        return Composite(parts=[self, other])
