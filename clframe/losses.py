"""Losses as pure functions: tensors in, one scalar out, nothing stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "distillation"]


def cross_entropy(logits: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled samples of a batch, optionally over a part of the classes.

    Args:
        logits: (B, K).
        targets: (B,) labels; -1 marks a sample whose label is withheld, which counts for nothing.
        allowed: Bool mask (K,) or (B, K) of the classes that take part in the softmax; None means all. The target of
            every labelled sample must be allowed.

    Returns:
        A scalar; zero, with zero gradient, when no sample is labelled.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    total = functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)  # PyTorch's own mean over nothing is NaN


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 2.0, *, scale: bool = False) -> Tensor:
    """Cross-entropy between softened teacher and student, KD_T(z ‖ z') of Hinton et al. 2015.

    Args:
        logits: (B, K) of the student.
        teacher: (B, K) of the teacher; no gradient flows into it.
        temperature: T; both are divided by it.
        scale: Multiply by T², which keeps the gradient's size; public class-incremental code leaves it out.

    Returns:
        -(1/B) Σ_b Σ_c softmax(z'/T)_c · log softmax(z/T)_c, a scalar.
    """
    target = functional.softmax(teacher.detach() / temperature, dim=1)
    loss = -(target * functional.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()
    return loss * temperature**2 if scale else loss
