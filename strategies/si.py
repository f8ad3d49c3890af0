"""Synaptic intelligence: hold weights back in proportion to what their path did for the loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clframe.models import Output
from clframe.spec import field
from clframe.strategies._anchors import AnchoredStrategy, prefix, quadratic_gradient
from clframe.strategy import Batch
from clframe.stream import Experience

__all__ = ["SI"]


class SI(AnchoredStrategy):
    """Synaptic intelligence.

    Zenke, Poole & Ganguli 2017, "Continual Learning Through Synaptic Intelligence", eq. 3–5. At every optimiser step,
    with g the gradient of the loss without this penalty and Δθ the step that was really taken,

        ω_i ← ω_i − g_i Δθ_i                                          the path integral
        Ω_i ← Ω_i + max(ω_i, 0) / ((θ_i − θ_i^start)² + ξ),  ω ← 0    at the end of an experience
        L = CE + c Σ_i Ω_i (θ_i − θ*_i)²                              θ* the weights after the last experience

    What is measured: g is what backward left in `.grad`, unscaled under mixed precision and before clipping, minus
    2 c Ω (θ − θ*) in steps whose loss held the penalty. It holds every other term of the loss, in a composition those
    of the other parts too. Δθ is the difference of the weights after and before the optimiser's step, so that it holds
    clipping, momentum and weight decay; a step that mixed precision skips adds nothing. All phases of an experience
    count, each with the parameters that it trains; a parameter without gradient gains nothing.

    The paper: c = 0.1, ξ = 0.1 on permuted MNIST; c = 1, ξ = 0.001 on split MNIST; Adam, started afresh for every task.

    Differs from the paper:
        ω is clipped at zero before it is divided, as in most public code. With noisy small batches ω over-estimates the
        decrease of the loss, as the paper says of its own. Classifier rows added later are not held back.
    """

    term: ClassVar[str] = "si"

    strength: float = field(default=1.0, ge=0, help="c, the weight of the penalty (0.1 to 1 in the paper).")
    damping: float = field(default=0.1, gt=0, help="ξ, which bounds Ω where a weight hardly moved (0.1 or 0.001).")

    def setup(self) -> None:
        """Start without a past, and before any path."""
        super().setup()
        self.path_: dict[str, Tensor] = {}
        self.start_: dict[str, Tensor] = {}
        self.gradient_: dict[str, Tensor] = {}  # the next two live from backward to the end of the step
        self.before_: dict[str, Tensor] = {}
        self.penalised_ = False

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier; a new path begins."""
        super().before_experience(experience)
        self.path_, self.start_ = {}, {}

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the penalty once there is a past, and note whether this step's loss holds it."""
        terms = super().extra_losses(batch, output)
        self.penalised_ = bool(terms)
        return terms

    def after_backward(self, batch: Batch) -> None:
        """Keep the gradient of the loss without the penalty, and the weights before the step: copies, not views."""
        own = quadratic_gradient(self.network, self.anchor_, self.importance_) if self.penalised_ else {}
        self.penalised_ = False
        for name, parameter in self.network.named_parameters():
            if parameter.grad is None or not parameter.requires_grad:
                continue
            gradient, weight = parameter.grad.clone(), parameter.detach().clone()
            if name in own:
                prefix(gradient, own[name]).sub_(own[name], alpha=self.strength)
            self.gradient_[name], self.before_[name] = gradient, weight
            if name not in self.path_ or self.path_[name].shape != weight.shape:
                self.path_[name], self.start_[name] = torch.zeros_like(weight), weight

    def after_step(self, batch: Batch) -> None:
        """Go on with the path integral."""
        for name, parameter in self.network.named_parameters():
            if name in self.before_:
                moved = parameter.detach() - self.before_[name]
                # a skipped step's gradient may be infinite
                self.path_[name] -= torch.where(moved == 0, 0.0, self.gradient_[name] * moved)
        self.gradient_, self.before_ = {}, {}

    def after_experience(self, experience: Experience) -> None:
        """Turn the paths into importances, and move the anchor here."""
        gained = {}
        for name, parameter in self.network.named_parameters():
            path = self.path_.get(name)
            if path is not None and path.shape == parameter.shape:
                distance = (parameter.detach() - self.start_[name]).square()
                gained[name] = path.clamp(min=0) / (distance + self.damping)
        self.consolidate(gained)
