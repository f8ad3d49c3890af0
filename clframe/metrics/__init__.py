"""Metrics as pure functions of kept predictions; NumPy only.

`Predictions` and `Tasks` are the raw input, an `AccuracyCube` holds their counts, and `compute_all` gives every metric
of `CATALOGUE` by its full name, or the reason why a run can't give it.
"""

from __future__ import annotations

from clframe.metrics.aggregate import Summary, bootstrap_interval, summarise, summarise_curves
from clframe.metrics.calibration import Reliability, reliability, seen_reliability
from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.compute import MetricReport, compute_all, compute_from_predictions
from clframe.metrics.cost import compute_ratio, cumulative_retrain_ratio
from clframe.metrics.cube import RESTRICTIONS, AccuracyCube
from clframe.metrics.decomposition import Decomposition, decompose, head_norm_ratio, task_confusion
from clframe.metrics.differences import MIN_SEEDS, Difference, corrected, holm, paired_difference
from clframe.metrics.measured import Measured
from clframe.metrics.metric import Metric
from clframe.metrics.open_set import auroc, fpr_at_tpr
from clframe.metrics.per_class import (
    anytime_accuracy,
    forgetting_class_last,
    rpd,
    rsd,
    seen_unseen_harmonic_mean,
    skipped_classes,
    visual_decathlon_score,
)
from clframe.metrics.predictions import Predictions, Tasks, load_predictions, prediction_path
from clframe.metrics.scores import Absent, ScoreMatrix
from clframe.metrics.transfer import (
    average_incremental_accuracy,
    backward,
    backward_transfer,
    final_accuracy,
    forgetting_first,
    forgetting_global,
    forgetting_local,
    forgetting_max,
    forgetting_max_incl,
    forward,
    forward_transfer_minus_init,
    forward_transfer_raw,
    fresh_gap,
    fresh_gap_mean,
    in_domain,
    intransigence,
    learning_accuracy,
    learning_accuracy_slope,
    over_time,
    seen_accuracy,
    seen_accuracy_macro,
)

__all__ = [
    "CATALOGUE",
    "MIN_SEEDS",
    "RESTRICTIONS",
    "Absent",
    "AccuracyCube",
    "Decomposition",
    "Difference",
    "Measured",
    "Metric",
    "MetricReport",
    "Predictions",
    "Reliability",
    "ScoreMatrix",
    "Summary",
    "Tasks",
    "anytime_accuracy",
    "auroc",
    "average_incremental_accuracy",
    "backward",
    "backward_transfer",
    "bootstrap_interval",
    "compute_all",
    "compute_from_predictions",
    "compute_ratio",
    "corrected",
    "cumulative_retrain_ratio",
    "decompose",
    "final_accuracy",
    "forgetting_class_last",
    "forgetting_first",
    "forgetting_global",
    "forgetting_local",
    "forgetting_max",
    "forgetting_max_incl",
    "forward",
    "forward_transfer_minus_init",
    "forward_transfer_raw",
    "fpr_at_tpr",
    "fresh_gap",
    "fresh_gap_mean",
    "head_norm_ratio",
    "holm",
    "in_domain",
    "intransigence",
    "learning_accuracy",
    "learning_accuracy_slope",
    "load_predictions",
    "over_time",
    "paired_difference",
    "prediction_path",
    "reliability",
    "rpd",
    "rsd",
    "seen_accuracy",
    "seen_accuracy_macro",
    "seen_reliability",
    "seen_unseen_harmonic_mean",
    "skipped_classes",
    "summarise",
    "summarise_curves",
    "task_confusion",
    "visual_decathlon_score",
]
