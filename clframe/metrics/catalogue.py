"""Every metric by its full name: what it computes, its bounds, its unit, its formula and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from clframe.metrics import evaluators as read
from clframe.metrics import transfer
from clframe.metrics.cube import RESTRICTIONS
from clframe.metrics.open_set import SCORES, auroc, fpr_at_tpr

__all__ = ["CATALOGUE", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A metric's function with what a reader must know about its numbers.

    Attributes:
        name: Full name, as in result files; for another score its name
            replaces the word `accuracy`.
        function: Of the inputs, or of the inputs and the experience i for a curve; raises `Absent` with the reason.
        higher_is_better: Whether a larger value is the better one; None where neither is. For metrics of level it
            follows the score.
        lower: Smallest possible value for accuracies, None if unbounded.
        upper: Largest possible value for accuracies, None if unbounded.
        unit: `fraction`, `fraction per task`, `percent`, `points`, `classes`, `ratio` or `samples`.
        definition: The formula.
        reference: Where it comes from.
        restrictions: Restrictions of the prediction that it is defined for.
        curve: Whether it has a value after every experience.
        level: Whether it keeps the score's own value and direction, unlike a loss or a gain.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool | None
    lower: float | None
    upper: float | None
    unit: str
    definition: str
    reference: str
    restrictions: tuple[str, ...] = RESTRICTIONS
    curve: bool = False
    level: bool = False

    def named(self, score: str) -> str:
        """The name in result files, for the name of a score."""
        return self.name.replace("accuracy", score)


CATALOGUE: dict[str, Metric] = {}
"""Every metric by name, in the order of the result file."""


def _add(
    name: str,
    function: Callable[..., Any],
    better: bool | None,
    bounds: tuple[float | None, float | None],
    definition: str,
    reference: str = "",
    *,
    unit: str = "fraction",
    restrictions: tuple[str, ...] = RESTRICTIONS,
    curve: bool = False,
    level: bool = False,
) -> None:
    lower, upper = bounds
    CATALOGUE[name] = Metric(
        name, function, better, lower, upper, unit, definition, reference, restrictions, curve=curve, level=level
    )


_UNIT: tuple[float, float] = (0.0, 1.0)
_BOTH: tuple[float, float] = (-1.0, 1.0)
_RIEMANNIAN = "Chaudhry et al. 2018, Riemannian Walk for Incremental Learning"
_GEM = "Lopez-Paz and Ranzato 2017, Gradient Episodic Memory for Continual Learning"
_TIC = "Garg et al. 2024, TiC-CLIP: Continual Training of CLIP Models"
_CLOSER = "Smith et al. 2023, A Closer Look at Rehearsal-Free Continual Learning"
_REVIEW = "Menezes et al. 2023, Continual Object Detection: A Review of Definitions, Strategies, and Challenges"

_add("final_accuracy", read.final, True, _UNIT, "A_T", level=True)
_add(
    "average_incremental_accuracy",
    read.average_incremental,
    True,
    _UNIT,
    "(1/T) Σ_i A_i, base step included",
    "Rebuffi et al. 2017, iCaRL",
    level=True,
)
_add(
    "seen_accuracy",
    read.weighted,
    True,
    _UNIT,
    "A_i = Σ_{j≤i} n_j a[i,j] / Σ_{j≤i} n_j, sample-weighted; partly seen tasks count with the classes seen",
    curve=True,
    level=True,
)
_add("seen_accuracy_macro", read.macro, True, _UNIT, "mean_{j≤i} a[i,j]", curve=True, level=True)
_add(
    "forgetting_max",
    read.of_matrix(transfer.forgetting_max),
    False,
    _BOTH,
    "(1/(T-1)) Σ_{j<T} ( max_{j≤i<T} a[i,j] - a[T,j] )",
    _RIEMANNIAN,
)
_add(
    "forgetting_max_incl",
    read.of_matrix(transfer.forgetting_max_incl),
    False,
    _UNIT,
    "(1/(T-1)) Σ_{j<T} ( max_{j≤i≤T} a[i,j] - a[T,j] )",
    "mammoth's form of " + _RIEMANNIAN,
)
_add(
    "forgetting_first",
    read.of_matrix(transfer.forgetting_first),
    False,
    _BOTH,
    "(1/(T-1)) Σ_{j<T} ( a[j,j] - a[T,j] ) = -backward_transfer",
)
_add(
    "backward_transfer",
    read.of_matrix(transfer.backward_transfer),
    True,
    _BOTH,
    "(1/(T-1)) Σ_{j<T} ( a[T,j] - a[j,j] )",
    _GEM,
)
_add(
    "forward_transfer_minus_init",
    read.of_matrix(transfer.forward_transfer_minus_init),
    True,
    _BOTH,
    "(1/(T-1)) Σ_{j>1} ( a[j-1,j] - a[0,j] )",
    _GEM,
)
_add(
    "forward_transfer_raw",
    read.of_matrix(transfer.forward_transfer_raw),
    True,
    _UNIT,
    "(1/(T-1)) Σ_{j>1} a[j-1,j]",
    level=True,
)
_add(
    "learning_accuracy",
    read.of_matrix(transfer.learning_accuracy),
    True,
    _UNIT,
    "(1/T) Σ_j a[j,j]",
    "Riemer et al. 2019, Learning to Learn without Forgetting",
    level=True,
)
_add(
    "learning_accuracy_slope",
    read.of_matrix(transfer.learning_accuracy_slope),
    True,
    _BOTH,
    "least-squares slope of a[j,j] over j",
    unit="fraction per task",
    level=True,
)
_add(
    "intransigence",
    read.versus_joint,
    False,
    _BOTH,
    "(1/T) Σ_j ( a*_j - a[j,j] ), a*_j of the joint reference trained on tasks 1..j",
    _RIEMANNIAN,
)
_add("in_domain", read.of_matrix(transfer.learning_accuracy), True, _UNIT, "mean_i a[i,i]", _TIC, level=True)
_add("backward", read.of_matrix(transfer.backward), True, _UNIT, "mean_{i>j} a[i,j]", _TIC, level=True)
_add("forward", read.of_matrix(transfer.forward), True, _UNIT, "mean_{i<j} a[i,j]", _TIC, level=True)
_add(
    "forgetting_global",
    read.of_matrix(transfer.forgetting_global),
    False,
    _BOTH,
    "(1/(T-1)) Σ_{i=2}^{T} Σ_{n<i} (|C_n|/|C_{1:i}|) (R[n,n] - R[i,n]), R predicted among C_{1:n}",
    _CLOSER,
    restrictions=("upto",),
)
_add(
    "forgetting_local",
    read.of_matrix(transfer.forgetting_local),
    False,
    _BOTH,
    "(1/(T-1)) Σ_{n<T} (a^L[n,n] - a^L[T,n]), a^L predicted among C_n",
    _CLOSER,
    restrictions=("local",),
)
_add(
    "anytime_accuracy",
    read.anytime,
    True,
    _UNIT,
    "mean of A measured every k samples of an online stream",
    "Moon et al. 2023, Si-Blurry",
    level=True,
)
_add(
    "forgetting_class_last",
    read.class_last,
    False,
    _BOTH,
    "mean_c ( max_{i<T} acc[i,c] - acc[T,c] ) over classes with a positive best value",
    "Moon et al. 2023, Si-Blurry",
)
_add(
    "rsd",
    partial(read.deficit, new=False),
    False,
    (None, 100.0),
    "(100/|C_old|) Σ_{c∈C_old} (acc^joint_c - acc_c) / acc^joint_c",
    _REVIEW,
    unit="percent",
)
_add(
    "rpd",
    partial(read.deficit, new=True),
    False,
    (None, 100.0),
    "(100/|C_T|) Σ_{c∈C_T} (acc^joint_c - acc_c) / acc^joint_c",
    _REVIEW,
    unit="percent",
)
_add(
    "rsd_skipped_classes",
    partial(read.skipped, new=False),
    None,
    (0.0, None),
    "number of old classes with acc^joint_c = 0, left out of rsd",
    unit="classes",
)
_add(
    "rpd_skipped_classes",
    partial(read.skipped, new=True),
    None,
    (0.0, None),
    "number of the last task's classes with acc^joint_c = 0, left out of rpd",
    unit="classes",
)
_add(
    "visual_decathlon_score",
    read.decathlon,
    True,
    (0.0, None),
    "Σ_d α_d max(0, E_d^max - E_d)², E_d^max = 2 × baseline error, α_d = 1000/(E_d^max)²",
    "Rebuffi et al. 2017, Learning multiple visual domains with residual adapters",
    unit="points",
)
_add(
    "seen_unseen_harmonic_mean",
    read.harmonic,
    True,
    _UNIT,
    "2 s u / (s + u), s and u the accuracies on samples of seen and of unseen classes after experience i",
    "Xian et al. 2017, Zero-Shot Learning - The Good, the Bad and the Ugly",
    curve=True,
    level=True,
)
_add(
    "task_identification",
    read.decomposed("task_identification"),
    True,
    _UNIT,
    "TID_i: fraction of seen test samples predicted as a class of the right task",
    restrictions=("global",),
    curve=True,
)
_add(
    "within_task_accuracy",
    read.decomposed("within_task_accuracy"),
    True,
    _UNIT,
    "WTA_i: accuracy given the right task; A_i = TID_i · WTA_i",
    restrictions=("global",),
    curve=True,
)
_add(
    "new_class_bias",
    read.decomposed("new_class_bias"),
    None,
    _BOTH,
    "B_i = (fraction predicted as classes of experience i) - (fraction truly of them)",
    restrictions=("global",),
    curve=True,
)
_add(
    "head_norm_ratio",
    read.norm_ratio,
    None,
    (0.0, None),
    "mean_{c∈C_i} ‖w_c‖ / mean_{c old} ‖w_c‖",
    unit="ratio",
    restrictions=("global",),
    curve=True,
)
_add(
    "task_confusion",
    read.confusion,
    None,
    (0.0, None),
    "counts at the end, rows the true task, columns the task of the predicted class",
    unit="samples",
    restrictions=("global",),
)
_GUO = "Guo et al. 2017, On Calibration of Modern Neural Networks"
_add(
    "final_calibration_error",
    read.final_calibration,
    False,
    _UNIT,
    "calibration_error after the last experience",
    _GUO,
    restrictions=("global",),
)
_add(
    "calibration_error",
    read.calibration,
    False,
    _UNIT,
    "ECE_i = Σ_b (n_b/n) |acc_b - conf_b| over 15 bins of equal width of the confidence, samples of seen classes",
    _GUO,
    restrictions=("global",),
    curve=True,
)
_OPEN_SET = "Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples"
_ENERGY = "Liu et al. 2020, Energy-based Out-of-distribution Detection"
_KNOWN = {"confidence": "max softmax", "entropy": "-entropy", "energy": "-energy"}
for _score in SCORES:
    _s = f"s = {_KNOWN[_score]}; samples of what was seen are positive, those of what comes later negative"
    _add(
        f"open_set_auroc_{_score}",
        read.open_set(_score, auroc),
        True,
        _UNIT,
        f"P(s_known > s_unknown) + P(s_known = s_unknown)/2, {_s}",
        _ENERGY if _score == "energy" else _OPEN_SET,
        restrictions=("global",),
        curve=True,
    )
    _add(
        f"open_set_fpr95_{_score}",
        read.open_set(_score, fpr_at_tpr),
        False,
        _UNIT,
        f"fraction of unknown samples accepted by the largest threshold on s that accepts 95 % of the known; {_s}",
        _ENERGY if _score == "energy" else _OPEN_SET,
        restrictions=("global",),
        curve=True,
    )
