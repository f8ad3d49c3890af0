"""What methods that hold weights near an anchor share: quadratic penalties by parameter name, and gradients per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from clframe.models import Network, Output
from clframe.spec import field
from clframe.strategy import Batch, Strategy, Tags
from clframe.stream import Experience

__all__ = [
    "AnchoredStrategy",
    "mean_over_samples",
    "padded",
    "prefix",
    "quadratic",
    "quadratic_gradient",
    "sample_gradients",
    "weights_of",
]

_CHUNK = 32
"""Samples whose gradients are computed at once."""


class AnchoredStrategy(Strategy):
    """The frame of methods that add λ Σ_i Ω_i (θ_i − θ*_i)²: importances that add up, and the latest weights as anchor.

    A method calls `consolidate` with what an experience adds to the importances Ω. Classifier rows that came later than
    an importance are not held back by it.
    """

    tags: ClassVar[Tags] = Tags(scores=frozenset({"accuracy", "squared_error"}), needs_boundaries=True)
    term: ClassVar[str] = "penalty"
    """Name of the loss term."""

    strength: float = field(default=1.0, ge=0, help="λ, the weight of the penalty.")
    importance_max: float | None = field(
        default=None,
        gt=0,
        help="Largest importance that a weight gains in an experience; none: any. Steps diverge where lr · λ · Ω is above 1.",
    )

    def setup(self) -> None:
        """Start without a penalty."""
        self.importance_: dict[str, Tensor] = {}
        self.anchor_: dict[str, Tensor] = {}

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the penalty once there is a past."""
        return {self.term: self.penalty()} if self.anchor_ and self.strength else {}

    def penalty(self) -> Tensor:
        """Return λ Σ_i Ω_i (θ_i − θ*_i)²."""
        return self.strength * quadratic(self.network, self.anchor_, self.importance_)

    def consolidate(self, gained: Mapping[str, Tensor]) -> None:
        """Add to the importances, each up to `importance_max`, and move the anchor to the weights as they are now."""
        for name, full in gained.items():
            new = full if self.importance_max is None else full.clamp(max=self.importance_max)
            old = self.importance_.get(name)
            self.importance_[name] = new if old is None else padded(old, new) + new
        held = [(n, p) for n, p in self.network.named_parameters() if n in self.importance_]
        self.anchor_ = {n: prefix(p.detach(), self.importance_[n]).clone() for n, p in held}


# -- quadratic penalties -----------------------------------------------------------------------------------------------


def quadratic(
    network: nn.Module, anchor: Mapping[str, Tensor], curvature: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return Σ_i w_i (θ_i − a_i)² over the parameters that have an anchor.

    Args:
        network: Whose parameters.
        anchor: a by parameter name; a parameter that has grown since is compared on its old part.
        curvature: w by parameter name, of the anchor's shapes; None means 1.
    """
    terms = []
    for name, difference in _differences(network, anchor):
        square = difference.square()
        terms.append((square if curvature is None else curvature[name] * square).sum())
    return torch.stack(terms).sum()


def quadratic_gradient(
    network: nn.Module, anchor: Mapping[str, Tensor], curvature: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of `quadratic`, 2 w_i (θ_i − a_i), by parameter name and in the anchor's shapes."""
    return {n: 2 * curvature[n] * d.detach() for n, d in _differences(network, anchor)}


def _differences(network: nn.Module, anchor: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in network.named_parameters():
        if name in anchor:
            yield name, prefix(parameter, anchor[name]) - anchor[name]


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters that can train, by name."""
    return {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}


def prefix(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a tensor that has grown since to its old shape."""
    return tensor if tensor.shape == like.shape else tensor[tuple(slice(0, n) for n in like.shape)]


def padded(tensor: Tensor, like: Tensor) -> Tensor:
    """Extend an old tensor with zeros to the shape that its parameter has now."""
    if tensor.shape == like.shape:
        return tensor
    grown = torch.zeros_like(like)
    grown[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return grown


# -- gradients per sample ----------------------------------------------------------------------------------------------


def mean_over_samples(
    strategy: Strategy,
    experience: Experience,
    samples: int | None,
    purpose: str,
    measure: Callable[[Batch, dict[str, nn.Parameter], dict[str, Tensor]], int],
) -> dict[str, Tensor]:
    """Average something over an experience by parameter name: eval mode, no augmentation.

    Args:
        strategy: Whose network.
        experience: Whose training samples.
        samples: How many of them, drawn at random; None means all.
        purpose: Names the random draw.
        measure: Given a batch, the trainable parameters and the totals so far, all by name: adds to the totals in place,
            which spares the memory of a further copy of all weights, and returns how many values it has added to each.
    """
    ids = experience.train
    if samples is not None and samples < len(ids):
        ids = ids[torch.randperm(len(ids), generator=strategy.run.rng(purpose))[:samples]]
    parameters = {n: p for n, p in strategy.network.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    strategy.network.eval()
    count = 0
    for batch in strategy.run.batches(ids):
        count += measure(batch, parameters, total)
    return {n: t / max(count, 1) for n, t in total.items()}


def sample_gradients(
    network: Network,
    batch: Batch,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[..., Tensor],
    *others: Tensor,
) -> dict[str, Tensor]:
    """Return every sample's own gradient, many samples at a time.

    Args:
        network: In eval mode, so that samples don't mix.
        batch: B samples.
        parameters: By name; what to differentiate by.
        loss: Maps the logits (1, K) of a sample and its slices (1, …) of `others` to a scalar.
        others: (B, …), handed to `loss` sample by sample.

    Returns:
        (B, …) by parameter name.
    """
    tasks = torch.zeros_like(batch.y) if batch.task_ids is None else batch.task_ids
    fixed = {n: p.detach() for n, p in parameters.items()}
    knows_tasks = batch.task_ids is not None

    def of_one(values: dict[str, Tensor], x: Tensor, task: Tensor, *rest: Tensor) -> Tensor:
        inputs = (x[None], task[None]) if knows_tasks else (x[None],)
        logits = torch.func.functional_call(network, values, inputs).logits
        return loss(logits, *(r[None] for r in rest))

    in_dims = (None, 0, 0, *(0 for _ in others))
    gradients = torch.func.vmap(torch.func.grad(of_one), in_dims=in_dims, chunk_size=_CHUNK)
    found: dict[str, Tensor] = gradients(fixed, batch.x, tasks, *others)
    return found
