"""Gaussian schedule: every class comes and goes smoothly, without task boundaries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clframe.scenarios._parts import Material, seeded
from clframe.scenarios._sequence import SequenceScenario
from clframe.spec import field

__all__ = ["GaussianSchedule"]


class GaussianSchedule(SequenceScenario):
    """Task-free stream in which every class comes and goes smoothly, each with a peak at a time of its own.

    After Shanahan et al. 2021 and Wang et al. 2022, "DualPrompt". With time from 0 to 1, the K classes peak at (k +
    ½)/K in the class order; every sample of a class draws its time from a normal distribution about the peak, and the
    samples come in the order of their times. All samples of all classes are presented, each once.

    Version history:
        1: first version.
    """

    width: float = field(
        default=1.0,
        ge=0,
        unit="classes",
        help="Standard deviation of a class's times, in multiples of the distance between two peaks; 0: one class after "
        "the other.",
    )
    evaluate_every: int = field(
        default=250, ge=1, unit="samples", help="Samples of a mini-experience; the model is scored after each."
    )

    def sequence(self, found: Material) -> list[Tensor]:
        """Draw the time of every sample and sort."""
        count = found.num_classes
        times = []
        for k, rows in enumerate(found.train):
            draw = seeded(self.stream_seed, "gaussian_schedule", found.order[k])
            offsets = draw.standard_normal(len(rows)) * self.width
            if self.width == 0:
                offsets = draw.uniform(-0.5, 0.5, len(rows))
            times.append((k + 0.5 + offsets) / count)
        order = np.argsort(np.concatenate(times), kind="stable")
        return [torch.cat(found.train)[torch.from_numpy(order)]]
