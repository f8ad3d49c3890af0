"""What instruments tell of a run's plasticity: how well its network can still learn.

After every experience one pass of a fixed probe set shows units and features; weights are read as they are. Accuracy on every
batch before learning from it, and gradients, are watched while the run trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clframe.models import Output, eval_mode
from clframe.plasticity import (
    DORMANT,
    THRESHOLD,
    dormant_units,
    effective_rank,
    largest_eigenvalue,
    running_level,
    srank,
    stable_rank,
    steps_to_threshold,
    weight_distance,
    weight_magnitude,
)
from clframe.strategy import Batch, BegunPhase, Strategy
from clframe.stream import Experience, Stream
from clframe.training.activations import watch_network
from clframe.training.context import Context
from clframe.training.instruments import Instrument
from clframe.training.stepper import Stepper

__all__ = ["CURVATURE_SAMPLES", "PROBE_SAMPLES", "LearningPace", "Probe", "probe_ids"]

PROBE_SAMPLES = 512
"""Test samples that units and features are measured on, at most."""
CURVATURE_SAMPLES = 128
"""Training samples of the loss whose curvature is measured, at most."""
_RANKS: dict[str, Callable[[Tensor], float]] = {
    "effective_rank": effective_rank,
    "srank": srank,
    "stable_rank": stable_rank,
}


def probe_ids(stream: Stream, samples: int = PROBE_SAMPLES, scored_on: Literal["test", "valid"] = "test") -> Tensor:
    """Choose the samples of the probe, of those that the run is scored on: the same share of every task, evenly spaced within it.

    Nothing is drawn, and tasks to come take part from the start: so what changes over a run, or differs between seeds and
    methods on a stream, are weights, never the samples. Labels aren't read. Of more tasks than samples some have none.

    Returns:
        Up to `samples` ids in the test table; in the training table for `valid`.
    """
    count = len(stream.tasks)
    parts = []
    for k, task in enumerate(stream.tasks):
        own = task.test if scored_on == "test" else task.valid
        parts.append(evenly(own, samples * (k + 1) // count - samples * k // count))
    return torch.cat([torch.empty(0, dtype=torch.int64), *parts])


def evenly(ids: Tensor, samples: int) -> Tensor:
    """Return up to so many ids, evenly spaced."""
    count = min(samples, len(ids))
    return ids[torch.arange(count) * len(ids) // max(count, 1)]


class Probe(Instrument):
    """Units, features, weights and curvature after every experience.

    Args:
        names: Which of `dormant_units` (and with it `dead_units`), `effective_rank`, `srank`, `stable_rank`,
            `weight_magnitude`, `weight_distance` and `curvature`.
    """

    name: ClassVar[str] = "plasticity"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._ranks = {name: rank for name, rank in _RANKS.items() if name in names}
        self._initial: dict[str, Tensor] = {}
        self._of_frozen: tuple[int, dict[str, Any]] | None = None

    def begin(self, context: Context) -> None:
        """Choose the probe set."""
        self.context = context
        self.ids = probe_ids(context.stream, scored_on=context.setup.scored_on)

    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> AbstractContextManager[Any]:
        """Note with which values weights begin to train."""
        if "weight_distance" in self.names:
            self._note_initial()
        return contextlib.nullcontext()

    def report(self, experience: Experience) -> dict[str, Any]:
        """Measure."""
        if self.context.setup.dry or self.context.device.type == "meta":
            return {}
        found = {**self._seen_by_the_probe(), **self._of_weights()}
        if "curvature" in self.names:
            found["curvature"] = curvature(self.context, experience)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights, where they are asked for."""
        return dict(self._initial)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the initial weights."""
        device = self.context.device
        self._initial = {name: value.to(device) for name, value in state.items()}

    # -- the probe set ----------------------------------------------------------------------------------------------

    def _seen_by_the_probe(self) -> dict[str, Any]:
        """Measure units and features; of a network that is frozen as a whole only once."""
        network = self.context.network
        if not len(self.ids) or not (self._ranks or "dormant_units" in self.names):
            return {}
        if not network.backbone_frozen:
            self._of_frozen = None
            return self._one_pass()
        if self._of_frozen is None or self._of_frozen[0] != id(network):
            self._of_frozen = id(network), self._one_pass()
        return self._of_frozen[1]

    def _one_pass(self) -> dict[str, Any]:
        context, found = self.context, dict[str, Any]()
        maker = context.test_maker if context.setup.scored_on == "test" else context.train_maker
        features, levels = watch_network(self.context.network, maker.test_input(maker.table.gather(self.ids)))
        if "dormant_units" in self.names:
            found["dormant_units"] = dormant_units(levels, DORMANT)
            found["dead_units"] = dormant_units(levels, 0.0)
        if self._ranks:
            singular_values = torch.linalg.svdvals(features.cpu().double())
            found |= {name: rank(singular_values) for name, rank in self._ranks.items()}
        return found

    # -- weights ----------------------------------------------------------------------------------------------------

    def _of_weights(self) -> dict[str, Any]:
        parameters, found = dict(self.context.network.named_parameters()), dict[str, Any]()
        if "weight_magnitude" in self.names:
            weights = {
                n.removeprefix("branches.0.").removesuffix(".weight"): p
                for n, p in parameters.items()
                if n.endswith("weight") and p.dim() > 1  # scales of norms are no weights between units
            }
            overall, by_layer = weight_magnitude(weights)
            found |= {"weight_magnitude": overall, "weight_magnitude_layers": by_layer}
        if "weight_distance" in self.names:
            found["weight_distance"] = weight_distance(parameters, self._initial)
        return found

    def _note_initial(self) -> None:
        """Keep the values of parameters that are new, and of the rows and columns by which some have grown."""
        for name, parameter in self.context.network.named_parameters():
            known, present = self._initial.get(name), parameter.detach().clone()
            if known is not None and known.shape != present.shape and _fits(known, present):
                present[tuple(slice(0, n) for n in known.shape)] = known
            if known is None or known.shape != present.shape:
                self._initial[name] = present


def _fits(small: Tensor, large: Tensor) -> bool:
    return small.dim() == large.dim() and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


# -- curvature -----------------------------------------------------------------------------------------------------------


def curvature(context: Context, experience: Experience) -> float | None:
    """Compute the largest eigenvalue of the Hessian of the classification loss (mean squared error of a regression).

    The loss is that of plain fine-tuning in eval mode, on up to 128 training samples of the experience, evenly spaced and not
    augmented; the Hessian is over all parameters that can train.

    Returns:
        None where there are no such samples, or nothing can train.
    """
    network = context.network
    ids = evenly(experience.train, CURVATURE_SAMPLES)
    parameters = [p for p in network.parameters() if p.requires_grad and p.numel()]
    if not len(ids) or not parameters:
        return None
    (batch,) = context.train_maker.in_order(ids, len(ids), experience)
    with eval_mode(network), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
        loss = Strategy.main_loss(context.strategy, batch, network(batch.x, batch.task_ids))
        return hessian_eigenvalue(loss, parameters)


def hessian_eigenvalue(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """Compute the largest eigenvalue of the Hessian of a scalar, by products with vectors; no gradient is left behind."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in gradients])
    if not flat.requires_grad:
        return 0.0

    def product(vector: Tensor) -> Tensor:
        rows = torch.autograd.grad(flat, parameters, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([row.flatten() for row in rows])

    start = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=flat.dtype)
    return largest_eigenvalue(product, start.to(flat.device))


# -- while training ------------------------------------------------------------------------------------------------------


class LearningPace(Instrument):
    """How fast an experience is learned: accuracy before each step, steps to a threshold, and sizes of gradients.

    Args:
        names: Which of `online_accuracy`, `steps_to_threshold` and `gradient_norm`.
    """

    name: ClassVar[str] = "learning_pace"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._watches = bool(self.names & {"online_accuracy", "steps_to_threshold"})
        self._parameters: Sequence[nn.Parameter] = ()
        self._right: list[Tensor] = []  # of every step (samples right, samples), on the device
        self._norms: list[Tensor] = []
        self._level: float | None = None
        self._logits: Tensor | None = None

    def begin(self, context: Context) -> None:
        """Take what the run is made of."""
        self.context = context

    @contextlib.contextmanager
    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> Iterator[None]:
        """Listen to the network while it trains."""
        self._parameters = stepper.parameters

        def listen(_: nn.Module, __: Any, output: Any) -> None:  # a copy of the network copies no instrument with it
            if self._logits is None and isinstance(output, Output) and output.logits.requires_grad:
                self._logits = output.logits.detach()

        hook = self.context.network.register_forward_hook(listen) if self._watches else None
        try:
            yield
        finally:
            self._parameters = ()
            if hook is not None:
                hook.remove()

    @contextlib.contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Score the batch by the first forward pass of the step that learns from it."""
        self._logits = None
        yield
        self._note(batch)

    def _note(self, batch: Batch) -> None:
        """Keep the score of a step of classification whose first pass through the network was that of its batch."""
        logits, self._logits = self._logits, None
        ranks, weight = self.context.setup.ranks, 1.0
        if ranks.several:
            batch, weight = ranks.of_batch(batch)
        if logits is not None and self.context.score == "accuracy" and len(logits) == len(batch.x) and weight:
            self._right.append(self._score(batch, logits))

    def _score(self, batch: Batch, logits: Tensor) -> Tensor:
        """Count (right, all) among the batch's new labelled samples, among the classes in the loss."""
        allowed = self.context.strategy.allowed_classes(batch)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        labels = batch.y[: batch.num_new]
        right = (logits[: batch.num_new].argmax(1) == labels) & (labels >= 0)
        return torch.stack([right.sum(), (labels >= 0).sum()])

    def stepped(self, batch: Batch, terms: Mapping[str, Tensor]) -> None:
        """Take the norm of the gradient that the optimiser was given."""
        if "gradient_norm" in self.names:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            if gradients:
                self._norms.append(torch.stack(torch._foreach_norm(gradients)).norm())

    def report(self, experience: Experience) -> dict[str, Any]:
        """Put the steps of the experience together, and forget them."""
        counts = torch.stack(self._right).cpu() if self._right else torch.zeros(0, 2, dtype=torch.int64)
        everybodys = self.context.setup.ranks.everybodys(counts)
        if len({len(part) for part in everybodys}) == 1:
            counts = torch.stack(everybodys).sum(0)
        accuracies = [right / total for right, total in counts.tolist() if total]
        norms = torch.stack(self._norms).cpu().tolist() if self._norms else []
        self._right, self._norms = [], []
        return {**self._of_accuracies(accuracies), **_of_norms(norms)}

    def _of_accuracies(self, accuracies: list[float]) -> dict[str, Any]:
        if not accuracies:
            return {}
        if self._level is None:
            self._level = running_level(accuracies)
        found = {
            "online_accuracy": sum(accuracies) / len(accuracies),
            "steps_to_threshold": steps_to_threshold(accuracies, THRESHOLD * self._level),
        }
        return {name: value for name, value in found.items() if name in self.names}

    def state_dict(self) -> dict[str, Any]:
        """Return the steps since the last report, and the level of the first experience."""
        return {"right": list(self._right), "norms": list(self._norms), "level": self._level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these steps."""
        device = self.context.device
        self._right = [counts.to(device) for counts in state["right"]]
        self._norms = [norm.to(device) for norm in state["norms"]]
        self._level = state["level"]


def _of_norms(norms: list[float]) -> dict[str, float]:
    return {"gradient_norm": sum(norms) / len(norms), "gradient_norm_first": norms[0]} if norms else {}
