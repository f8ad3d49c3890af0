"""A metric: a function of a run's counts, with what a reader must know about its numbers."""

from __future__ import annotations

import numpy as np

from clframe.metrics import Absent, Metric
from clframe.metrics.evaluators import Inputs


def worst_task(inputs: Inputs) -> float:
    """Return the accuracy at the end on the task that it is lowest on.

    Raises:
        Absent: The run hasn't scored every task at its end.
    """
    last = inputs.cube.matrix(inputs.restriction)[-1]
    if np.isnan(last).any():
        raise Absent("It needs the accuracy on every task at the end.")
    return float(last.min())


WORST_TASK_ACCURACY = Metric(
    name="worst_task_accuracy",
    function=worst_task,
    higher_is_better=True,
    lower=0.0,
    upper=1.0,
    unit="fraction",
    definition="min_j a[T,j]",
    reference="",
    level=True,
)
