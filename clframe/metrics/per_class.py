"""Metrics per class, deficits versus a joint reference, and the few that combine other scores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.metrics.scores import Absent, nan_if_absent

__all__ = [
    "anytime_accuracy",
    "forgetting_class_last",
    "rpd",
    "rsd",
    "seen_unseen_harmonic_mean",
    "skipped_classes",
    "visual_decathlon_score",
]

Float = NDArray[np.float64]


def anytime_accuracy(accuracies: ArrayLike) -> float:
    """Mean of the accuracies on the classes seen so far, one every k samples of an online stream.

    Source: Koh et al. 2022 (A_AUC), in the form of Si-Blurry (Moon et al. 2023).
    """
    values = np.asarray(accuracies, dtype=np.float64)
    return float(values.mean()) if values.size else float("nan")


@nan_if_absent
def forgetting_class_last(class_scores: ArrayLike, first_rows: ArrayLike) -> float:
    """mean_c( max_{i<T} acc[i,c] - acc[T,c] ) over the classes with a positive best value. Source: Si-Blurry's code.

    Args:
        class_scores: `(T + 1, C)`, row 0 before training, rows at the ends of tasks.
        first_rows: `(C,)` first row that has seen each class; earlier rows don't count, nor do classes first seen in
            the last row.
    """
    scores, first = np.asarray(class_scores, dtype=np.float64), np.asarray(first_rows)
    last = scores.shape[0] - 1
    losses = []
    for c in np.flatnonzero((first >= 1) & (first < last)):
        history = scores[first[c] :, c]
        if np.isnan(history).any():
            raise Absent(f"It needs the score of class {c} after each task since it was seen; some were not evaluated.")
        if history[:-1].max() > 0:
            losses.append(history[:-1].max() - history[-1])
    if not losses:
        raise Absent("It needs a class that had a positive score before the last experience.")
    return float(np.mean(losses))


def _deficit(class_scores: ArrayLike, joint: ArrayLike, classes: Iterable[int], which: str) -> float:
    chosen = np.fromiter(classes, dtype=np.int64)
    if chosen.size == 0:
        raise Absent(f"The stream has no class {which}.")
    reached = np.asarray(class_scores, dtype=np.float64)[chosen]
    best = np.asarray(joint, dtype=np.float64)[chosen]
    for name, values in (("run", reached), ("joint reference", best)):
        if np.isnan(values).any():
            raise Absent(f"The {name} has no final score of class {chosen[np.isnan(values)][0]}.")
    kept = best != 0
    if not kept.any():
        raise Absent(f"The joint reference scores 0 on every class {which}.")
    return float(100.0 * np.mean((best[kept] - reached[kept]) / best[kept]))


@nan_if_absent
def rsd(class_scores: ArrayLike, joint: ArrayLike, old_classes: Iterable[int]) -> float:
    """Relative stability deficit: (100/|C_old|) Σ_{c∈C_old} (acc^joint_c - acc_c) / acc^joint_c, in percent.

    Classes on which the joint reference scores 0 are left out of sum and divisor; `skipped_classes` counts them.

    Args:
        class_scores: `(C,)` final score of the run per class.
        joint: `(C,)` final score of the joint reference per class: same architecture, epochs per sample and
            augmentation, all data.
        old_classes: Classes seen before the last task.
    """
    return _deficit(class_scores, joint, old_classes, "from before the last task")


@nan_if_absent
def rpd(class_scores: ArrayLike, joint: ArrayLike, new_classes: Iterable[int]) -> float:
    """Relative plasticity deficit: as `rsd`, over the classes of the last task."""
    return _deficit(class_scores, joint, new_classes, "of the last task")


def skipped_classes(joint: ArrayLike, classes: Iterable[int]) -> int:
    """How many classes `rsd` or `rpd` leave out because the joint reference scores 0 on them."""
    return int(np.sum(np.asarray(joint, dtype=np.float64)[np.fromiter(classes, dtype=np.int64)] == 0))


@nan_if_absent
def visual_decathlon_score(accuracies: ArrayLike, baseline_errors: ArrayLike) -> float:
    """S = Σ_d α_d max(0, E_d^max - E_d)², E_d^max twice the baseline's error, α_d = 1000 / (E_d^max)².

    Source: Rebuffi et al. 2017, "Learning multiple visual domains with residual adapters". At most 1000 points per
    domain; 250 for the baseline itself.

    Args:
        accuracies: `(D,)` accuracy per domain.
        baseline_errors: `(D,)` error of the baseline per domain, above 0.

    Raises:
        ConfigurationError: The baseline errors don't fit the domains.
    """
    reached, baseline = np.asarray(accuracies, dtype=np.float64), np.asarray(baseline_errors, dtype=np.float64)
    if baseline.shape != reached.shape or not (baseline > 0).all():
        raise ConfigurationError(
            f"The Visual Decathlon score needs a baseline error above 0 for each of {reached.size} domains, "
            f"but received {baseline.tolist()}; correct them."
        )
    if np.isnan(reached).any():
        raise Absent(f"Domain {int(np.flatnonzero(np.isnan(reached))[0]) + 1} was not evaluated.")
    most = 2 * baseline
    return float(np.sum(1000 / most**2 * np.maximum(0, most - (1 - reached)) ** 2))


def seen_unseen_harmonic_mean(seen: float, unseen: float) -> float:
    """Harmonic mean of the scores on seen and on unseen classes; 0 when both are 0, NaN when one is NaN.

    Source: Xian et al. 2017, "Zero-shot learning: the good, the bad and the ugly".
    """
    return 0.0 if seen == unseen == 0 else 2 * seen * unseen / (seen + unseen)
