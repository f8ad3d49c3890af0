"""Metrics of where the errors lie: the wrong task or the wrong class within it, and the bias towards new classes."""

from __future__ import annotations

from clframe.metrics import evaluators as read
from clframe.metrics.metric import BOTH, UNIT, Family

__all__ = ["METRICS"]

METRICS = Family()

METRICS.add(
    "task_identification",
    read.decomposed("task_identification"),
    True,
    UNIT,
    "TID_i: fraction of seen test samples predicted as a class of the right task",
    restrictions=("global",),
    curve=True,
)
METRICS.add(
    "within_task_accuracy",
    read.decomposed("within_task_accuracy"),
    True,
    UNIT,
    "WTA_i: accuracy given the right task; A_i = TID_i · WTA_i",
    restrictions=("global",),
    curve=True,
)
METRICS.add(
    "new_class_bias",
    read.decomposed("new_class_bias"),
    None,
    BOTH,
    "B_i = (fraction predicted as classes of experience i) - (fraction truly of them)",
    restrictions=("global",),
    curve=True,
)
METRICS.add(
    "head_norm_ratio",
    read.norm_ratio,
    None,
    (0.0, None),
    "mean_{c∈C_i} ‖w_c‖ / mean_{c old} ‖w_c‖",
    unit="ratio",
    restrictions=("global",),
    curve=True,
)
METRICS.add(
    "task_confusion",
    read.confusion,
    None,
    (0.0, None),
    "counts at the end, rows the true task, columns the task of the predicted class",
    unit="samples",
    restrictions=("global",),
)
