"""Losses as pure functions: tensors in, one scalar out, nothing stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "auxiliary_targets",
    "balanced_distillation",
    "binary_cross_entropy",
    "binary_distillation",
    "class_weights",
    "cross_entropy",
    "distillation",
    "logit_matching",
    "mixed_cross_entropy",
    "nca",
    "normalised_cross_entropy",
    "pod_flat",
    "pod_spatial",
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


def binary_cross_entropy(logits: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Cross-entropy of one sigmoid per class, summed over the classes; the mean over the labelled samples of a batch.

    Args:
        logits: (B, K); −∞ marks a class that a multi-head hides, which counts for nothing.
        targets: (B,) labels; -1 marks a sample whose label is withheld, which counts for nothing.
        allowed: Bool mask (K,) or (B, K) of the classes that count; None means all.

    Returns:
        -(1/B) Σ_b Σ_c [y_c = 1] log sig(z_c) + [y_c = 0] log (1 − sig(z_c)), a scalar; zero when no sample is labelled.
    """
    labelled = targets >= 0
    counted = ~logits.isneginf() & labelled[:, None]
    counted = counted if allowed is None else counted & allowed
    is_own = targets[:, None] == torch.arange(logits.shape[1], device=logits.device)
    each = functional.binary_cross_entropy_with_logits(
        logits.masked_fill(~counted, 0), is_own.to(logits.dtype), weight=counted.to(logits.dtype), reduction="sum"
    )
    return each / labelled.sum().clamp(min=1)


def binary_distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0, *, scale: bool = False) -> Tensor:
    """Cross-entropy between teacher and student of one sigmoid per class, summed over the classes.

    Args:
        logits: (B, K) of the student.
        teacher: (B, K) of the teacher; no gradient flows into it.
        temperature: T; both are divided by it.
        scale: Multiply by T².

    Returns:
        -(1/B) Σ_b Σ_c q_c log sig(z_c/T) + (1 − q_c) log (1 − sig(z_c/T)) with q = sig(z'/T), a scalar.
    """
    target = torch.sigmoid(teacher.detach() / temperature)
    total = functional.binary_cross_entropy_with_logits(logits / temperature, target, reduction="sum")
    loss = total / len(logits)
    return loss * temperature**2 if scale else loss


def normalised_cross_entropy(
    logits: Tensor, targets: Tensor, tasks: Sequence[Sequence[int]], temperature: float
) -> Tensor:
    """Cross-entropy of logits whose length is made the same for every sample (Zhang et al. 2023, SLCA).

    Args:
        logits: (B, K).
        targets: (B,) labels; -1 marks a sample whose label is withheld.
        tasks: The classes of every task; n̄ is the mean over tasks of the length of a sample's logits of the task.
        temperature: τ.

    Returns:
        CE(z / (n̄ τ), y), a scalar.
    """
    norms = torch.stack([logits[:, list(classes)].norm(dim=1) for classes in tasks]).mean(dim=0)
    return cross_entropy(logits / (temperature * (norms[:, None] + 1e-7)), targets)


def nca(logits: Tensor, targets: Tensor, margin: float | Tensor = 0.0, *, public: bool = False) -> Tensor:
    """PODNet's classification loss (Douillard et al. 2020, section 3.2): the positive stands apart from the others.

    Args:
        logits: (B, K) scaled similarities η ŝ.
        targets: (B,) labels.
        margin: η δ, by which the positive must lead.
        public: What the authors' code computes: the margin, taken from every similarity alike, cancels; the largest
            term, taken as the reference of the exponentials, stands in the sum in the positive's place; there is no hinge.

    Returns:
        (1/B) Σ_b [−(z_y − margin) + log Σ_{i≠y} exp z_i]₊, a scalar; with `public`
        (1/B) Σ_b [−z_y + log(Σ_{i≠y} exp z_i + exp max_i z_i)]. Where there is a single class the sum over the others
        is empty and its logarithm is left out.
    """
    positive = logits.gather(1, targets[:, None])[:, 0]
    others = logits.masked_fill(functional.one_hot(targets, logits.shape[1]).bool(), -torch.inf)
    if public:
        return (torch.cat([others, logits.amax(1, keepdim=True)], 1).logsumexp(1) - positive).mean()
    loss = margin - positive
    if logits.shape[1] > 1:
        loss = loss + others.logsumexp(1)
    return loss.clamp(min=0).mean()


def pod_flat(features: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over the batch of 1 − cos(f, f⁻), for features (B, D); no gradient flows into the teacher's."""
    return (1 - functional.cosine_similarity(features, teacher.detach(), dim=1)).mean()


def pod_spatial(stages: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """PODNet's pooled distillation of stage maps (Douillard et al. 2020, eq. 4).

    With a = h² of a map h, p(h) is the L2-normalised vector of all sums of a over the width and all its sums over the
    height, channel by channel.

    Args:
        stages: Maps (B, C, H, W) before their ReLU, one per stage. Tokens (B, N, D) count as D channels of N × 1
            pixels, vectors (B, D) as maps of one pixel.
        teacher: The same maps of the teacher; no gradient flows into them.

    Returns:
        The mean over stages and batch of ‖p(h) − p(h⁻)‖₂, a scalar.
    """
    found = [
        torch.linalg.vector_norm(_pooled(h) - _pooled(t.detach()), dim=1).mean()
        for h, t in zip(stages, teacher, strict=True)
    ]
    return torch.stack(found).mean()


def _pooled(h: Tensor) -> Tensor:
    """Return p(h), (B, C·(H + W))."""
    if h.ndim == 3:
        h = h.transpose(1, 2)
    while h.ndim < 4:
        h = h.unsqueeze(-1)
    a = h.square()
    return functional.normalize(torch.cat([a.sum(3).flatten(1), a.sum(2).flatten(1)], 1), dim=1)


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
