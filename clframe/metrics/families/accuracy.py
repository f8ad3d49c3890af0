"""Metrics of the accuracy matrix and of accuracies per class: level, forgetting, transfer."""

from __future__ import annotations

from functools import partial

from clframe.metrics import evaluators as read
from clframe.metrics import transfer
from clframe.metrics.metric import BOTH, UNIT, Family

__all__ = ["METRICS"]

METRICS = Family()

_RIEMANNIAN = "Chaudhry et al. 2018, Riemannian Walk for Incremental Learning"
_GEM = "Lopez-Paz and Ranzato 2017, Gradient Episodic Memory for Continual Learning"
_TIC = "Garg et al. 2024, TiC-CLIP: Continual Training of CLIP Models"
_CLOSER = "Smith et al. 2023, A Closer Look at Rehearsal-Free Continual Learning"
_REVIEW = "Menezes et al. 2023, Continual Object Detection: A Review of Definitions, Strategies, and Challenges"

METRICS.add("final_accuracy", read.final, True, UNIT, "A_T", level=True)
METRICS.add(
    "average_incremental_accuracy",
    read.average_incremental,
    True,
    UNIT,
    "(1/T) Σ_i A_i, base step included",
    "Rebuffi et al. 2017, iCaRL",
    level=True,
)
METRICS.add(
    "seen_accuracy",
    read.weighted,
    True,
    UNIT,
    "A_i = Σ_{j≤i} n_j a[i,j] / Σ_{j≤i} n_j, sample-weighted; partly seen tasks count with the classes seen",
    curve=True,
    level=True,
)
METRICS.add("seen_accuracy_macro", read.macro, True, UNIT, "mean_{j≤i} a[i,j]", curve=True, level=True)
METRICS.add(
    "forgetting_max",
    read.of_matrix(transfer.forgetting_max),
    False,
    BOTH,
    "(1/(T-1)) Σ_{j<T} ( max_{j≤i<T} a[i,j] - a[T,j] )",
    _RIEMANNIAN,
)
METRICS.add(
    "forgetting_max_incl",
    read.of_matrix(transfer.forgetting_max_incl),
    False,
    UNIT,
    "(1/(T-1)) Σ_{j<T} ( max_{j≤i≤T} a[i,j] - a[T,j] )",
    "mammoth's form of " + _RIEMANNIAN,
)
METRICS.add(
    "forgetting_first",
    read.of_matrix(transfer.forgetting_first),
    False,
    BOTH,
    "(1/(T-1)) Σ_{j<T} ( a[j,j] - a[T,j] ) = -backward_transfer",
)
METRICS.add(
    "backward_transfer",
    read.of_matrix(transfer.backward_transfer),
    True,
    BOTH,
    "(1/(T-1)) Σ_{j<T} ( a[T,j] - a[j,j] )",
    _GEM,
)
METRICS.add(
    "forward_transfer_minus_init",
    read.of_matrix(transfer.forward_transfer_minus_init),
    True,
    BOTH,
    "(1/(T-1)) Σ_{j>1} ( a[j-1,j] - a[0,j] )",
    _GEM,
)
METRICS.add(
    "forward_transfer_raw",
    read.of_matrix(transfer.forward_transfer_raw),
    True,
    UNIT,
    "(1/(T-1)) Σ_{j>1} a[j-1,j]",
    level=True,
)
METRICS.add(
    "learning_accuracy",
    read.of_matrix(transfer.learning_accuracy),
    True,
    UNIT,
    "(1/T) Σ_j a[j,j]",
    "Riemer et al. 2019, Learning to Learn without Forgetting",
    level=True,
)
METRICS.add(
    "learning_accuracy_slope",
    read.of_matrix(transfer.learning_accuracy_slope),
    True,
    BOTH,
    "least-squares slope of a[j,j] over j",
    unit="fraction per task",
    level=True,
)
METRICS.add(
    "intransigence",
    read.versus_joint,
    False,
    BOTH,
    "(1/T) Σ_j ( a*_j - a[j,j] ), a*_j of the joint reference trained on tasks 1..j",
    _RIEMANNIAN,
)
METRICS.add(
    "fresh_gap",
    read.versus_fresh,
    False,
    BOTH,
    "a_fresh[j] - a[j,j] of the tasks j that experience i completed, a_fresh[j] of a freshly initialised network trained on task "
    "j alone with as many steps",
    curve=True,
)
METRICS.add("fresh_gap_mean", read.versus_fresh_mean, False, BOTH, "(1/T) Σ_j ( a_fresh[j] - a[j,j] )")
METRICS.add("in_domain", read.of_matrix(transfer.learning_accuracy), True, UNIT, "mean_i a[i,i]", _TIC, level=True)
METRICS.add("backward", read.of_matrix(transfer.backward), True, UNIT, "mean_{i>j} a[i,j]", _TIC, level=True)
METRICS.add("forward", read.of_matrix(transfer.forward), True, UNIT, "mean_{i<j} a[i,j]", _TIC, level=True)
METRICS.add(
    "forgetting_global",
    read.of_matrix(transfer.forgetting_global),
    False,
    BOTH,
    "(1/(T-1)) Σ_{i=2}^{T} Σ_{n<i} (|C_n|/|C_{1:i}|) (R[n,n] - R[i,n]), R predicted among C_{1:n}",
    _CLOSER,
    restrictions=("upto",),
)
METRICS.add(
    "forgetting_local",
    read.of_matrix(transfer.forgetting_local),
    False,
    BOTH,
    "(1/(T-1)) Σ_{n<T} (a^L[n,n] - a^L[T,n]), a^L predicted among C_n",
    _CLOSER,
    restrictions=("local",),
)
METRICS.add(
    "anytime_accuracy",
    read.anytime,
    True,
    UNIT,
    "mean of A measured every k samples of an online stream",
    "Moon et al. 2023, Si-Blurry",
    level=True,
)
METRICS.add(
    "forgetting_class_last",
    read.class_last,
    False,
    BOTH,
    "mean_c ( max_{i<T} acc[i,c] - acc[T,c] ) over classes with a positive best value",
    "Moon et al. 2023, Si-Blurry",
)
METRICS.add(
    "rsd",
    partial(read.deficit, new=False),
    False,
    (None, 100.0),
    "(100/|C_old|) Σ_{c∈C_old} (acc^joint_c - acc_c) / acc^joint_c",
    _REVIEW,
    unit="percent",
)
METRICS.add(
    "rpd",
    partial(read.deficit, new=True),
    False,
    (None, 100.0),
    "(100/|C_T|) Σ_{c∈C_T} (acc^joint_c - acc_c) / acc^joint_c",
    _REVIEW,
    unit="percent",
)
METRICS.add(
    "rsd_skipped_classes",
    partial(read.skipped, new=False),
    None,
    (0.0, None),
    "number of old classes with acc^joint_c = 0, left out of rsd",
    unit="classes",
)
METRICS.add(
    "rpd_skipped_classes",
    partial(read.skipped, new=True),
    None,
    (0.0, None),
    "number of the last task's classes with acc^joint_c = 0, left out of rpd",
    unit="classes",
)
METRICS.add(
    "visual_decathlon_score",
    read.decathlon,
    True,
    (0.0, None),
    "Σ_d α_d max(0, E_d^max - E_d)², E_d^max = 2 × baseline error, α_d = 1000/(E_d^max)²",
    "Rebuffi et al. 2017, Learning multiple visual domains with residual adapters",
    unit="points",
)
METRICS.add(
    "seen_unseen_harmonic_mean",
    read.harmonic,
    True,
    UNIT,
    "2 s u / (s + u), s and u the accuracies on samples of seen and of unseen classes after experience i",
    "Xian et al. 2017, Zero-Shot Learning - The Good, the Bad and the Ugly",
    curve=True,
    level=True,
)
