"""Metrics of how sure a head is: calibration, and telling what it has learnt from what is new."""

from __future__ import annotations

from clframe.metrics import evaluators as read
from clframe.metrics.metric import UNIT, Family
from clframe.metrics.open_set import SCORES, auroc, fpr_at_tpr

__all__ = ["METRICS"]

METRICS = Family()

_GUO = "Guo et al. 2017, On Calibration of Modern Neural Networks"
_HENDRYCKS = "Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples"
_LIU = "Liu et al. 2020, Energy-based Out-of-distribution Detection"
_KNOWN = {"confidence": "max softmax", "entropy": "-entropy", "energy": "-energy"}

METRICS.add(
    "final_calibration_error",
    read.final_calibration,
    False,
    UNIT,
    "calibration_error after the last experience",
    _GUO,
    restrictions=("global",),
)
METRICS.add(
    "calibration_error",
    read.calibration,
    False,
    UNIT,
    "ECE_i = Σ_b (n_b/n) |acc_b - conf_b| over 15 bins of equal width of the confidence, samples of seen classes",
    _GUO,
    restrictions=("global",),
    curve=True,
)
for _score in SCORES:
    _s = f"s = {_KNOWN[_score]}; samples of what was seen are positive, those of what comes later negative"
    METRICS.add(
        f"open_set_auroc_{_score}",
        read.open_set(_score, auroc),
        True,
        UNIT,
        f"P(s_known > s_unknown) + P(s_known = s_unknown)/2, {_s}",
        _LIU if _score == "energy" else _HENDRYCKS,
        restrictions=("global",),
        curve=True,
    )
    METRICS.add(
        f"open_set_fpr95_{_score}",
        read.open_set(_score, fpr_at_tpr),
        False,
        UNIT,
        f"fraction of unknown samples accepted by the largest threshold on s that accepts 95 % of the known; {_s}",
        _LIU if _score == "energy" else _HENDRYCKS,
        restrictions=("global",),
        curve=True,
    )
