"""Losses as pure functions: tensors in, one scalar out, nothing stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "auxiliary_targets",
    "balanced_distillation",
    "class_weights",
    "cross_entropy",
    "distillation",
    "logit_matching",
    "mixed_cross_entropy",
]


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


def auxiliary_targets(targets: Tensor, classes: Sequence[int]) -> Tensor:
    """Relabel for DER's auxiliary head (Yan et al. 2021, section 3.3): 0 for any other class, 1 + k for `classes[k]`.

    Args:
        targets: (B,) labels.
        classes: The classes C_t that the head tells apart.

    Returns:
        (B,) int64 in [0, |C_t|].
    """
    is_own = targets[:, None] == torch.tensor(list(classes), device=targets.device)
    return (is_own * torch.arange(1, len(classes) + 1, device=targets.device)).sum(dim=1)


def class_weights(counts: Tensor, beta: float) -> Tensor:
    """Weigh classes by the inverse of their effective number of samples (Cui et al. 2019, eq. 2), as FOSTER does.

    Args:
        counts: (K,) samples of every class; an empty class counts as one sample.
        beta: In [0, 1); 0 gives uniform weights.

    Returns:
        (K,) float32: (1 − β) / (1 − β^n_c), rescaled to a mean of 1.
    """
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1).double())
    return (weights / weights.mean()).float()


def balanced_distillation(logits: Tensor, teacher: Tensor, weights: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy between a softened teacher, rebalanced by class weights, and the student (Wang et al. 2022, FOSTER).

    Args:
        logits: (B, K) of the student.
        teacher: (B, K) of the teacher; no gradient flows into it.
        weights: (K,) of the classes; uniform ones give plain distillation.
        temperature: T; both are divided by it.

    Returns:
        -(1/B) Σ_b Σ_c q_c · log softmax(z/T)_c with q_c ∝ w_c · softmax(z'/T)_c, a scalar.
    """
    target = weights * functional.softmax(teacher.detach() / temperature, dim=1)
    target = target / target.sum(dim=1, keepdim=True)
    return -(target * functional.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def logit_matching(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared difference to logits stored earlier (Buzzega et al. 2020, eq. 6), when there may have been fewer classes.

    Args:
        logits: (B, K) now; −∞ where a head hides another task's class.
        stored: (B, K') with K' ≤ K; NaN for classes that were unknown then, −∞ for hidden ones. No gradient flows into it.

    Returns:
        The mean over samples of the mean over the classes that are finite on both sides, a scalar; 0 where there is none.
    """
    logits, stored = logits[:, : stored.shape[1]], stored.detach().to(logits.dtype)
    known = logits.isfinite() & stored.isfinite()
    difference = logits.masked_fill(~known, 0.0) - stored.masked_fill(~known, 0.0)
    return (difference.square().sum(dim=1) / known.sum(dim=1).clamp(min=1)).sum() / max(1, len(logits))


def mixed_cross_entropy(
    logits: Tensor, targets: Tensor, others: Tensor, share: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of inputs that show two samples each, as CutMix makes them (Yun et al. 2019, eq. 1).

    Args:
        logits: (B, K).
        targets: (B,) labels of the one sample.
        others: (B,) labels of the other.
        share: (B,) of the one, in [0, 1].
        allowed: Bool mask (K,) or (B, K) of the classes in the softmax; both labels must be allowed.

    Returns:
        (1/B) Σ_b s_b CE(z_b, y_b) + (1 − s_b) CE(z_b, y'_b), a scalar.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    own = functional.cross_entropy(logits, targets, reduction="none")
    other = functional.cross_entropy(logits, others, reduction="none")
    return (share * own + (1 - share) * other).mean()
