"""The linear-Gaussian sandbox: regression tasks whose errors, optima and forgetting are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clframe.data import DataRoot, MemoryReader
from clframe.scenario import Scenario
from clframe.scenarios._parts import seeded
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream

__all__ = ["LinearTask", "Sandbox", "expected_error", "projected", "ridge"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearTask:
    """One task's truth and samples.

    Attributes:
        theta: (D,) true coefficients.
        covariance: (D, D) of the inputs, whose mean is zero.
        noise: Standard deviation s of the targets about the truth.
        x: (N, D) training inputs.
        y: (N,) training targets.
        test_x: (M, D).
        test_y: (M,).
    """

    theta: Float
    covariance: Float
    noise: float
    x: Float
    y: Float
    test_x: Float
    test_y: Float


def expected_error(theta: Float, task: LinearTask) -> float:
    """Return the expected squared error of coefficients (D,) on a task: (θ − θ*)ᵀ Σ (θ − θ*) + s²."""
    gap = theta - task.theta
    return float(gap @ task.covariance @ gap + task.noise**2)


def ridge(tasks: list[LinearTask], strength: float) -> Float:
    """Return the minimiser of Σ (y − θᵀx)² + strength · ‖θ‖² over all samples, whatever the order of the tasks."""
    size = len(tasks[0].theta)
    x, y = np.concatenate([t.x for t in tasks]), np.concatenate([t.y for t in tasks])
    found: Float = np.linalg.solve(x.T @ x + strength * np.eye(size), x.T @ y)
    return found


def projected(start: Float, task: LinearTask) -> Float:
    """Return what training to convergence from `start` on a task alone gives: its least-squares fit nearest to `start`.

    Gradient descent moves only in the span of the inputs, so it ends at θ + X⁺(y − Xθ): the affine projection when there
    are fewer samples than dimensions, the ordinary least-squares fit otherwise.
    """
    found: Float = start + np.linalg.pinv(task.x) @ (task.y - task.x @ start)
    return found


class Sandbox(Scenario):
    """Linear regression tasks with Gaussian inputs (after Peng & Vidal 2025, "Mathematics of Continual Learning").

    Task t draws inputs x ~ N(0, Σ_t) and targets y = θ*_tᵀ x + ε, ε ~ N(0, s²). The true coefficients are the same in
    every task (`stationary`), drift by a Gaussian random walk (`walk`), or are drawn anew (`specific`). Scored by
    squared error: lower is better. With the backbone `mlp` without hidden layers and a head without bias
    (`--backbone.hidden [] --head.bias false`) the network is the linear model itself; `tasks()` gives every task's
    truth, `expected_error`, `ridge` and `projected` the closed forms.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("domain",)
    example: ClassVar[str] = "--backbone.hidden '[]' --head.bias false"

    experiences: int = field(default=5, ge=1, help="Number of tasks.")
    dimensions: int = field(default=10, ge=1, help="Length D of the inputs.")
    train_samples: int = field(default=100, ge=1, unit="samples", help="Training samples of every task.")
    test_samples: int = field(default=200, ge=1, unit="samples", help="Test samples of every task.")
    noise: float = field(default=0.1, ge=0, help="s, standard deviation of the targets about the truth.")
    truth: Literal["stationary", "walk", "specific"] = field(default="specific", help="How θ* moves, see above.")
    step: float = field(
        default=0.3, ge=0, help="walk: standard deviation of each coefficient's step between two tasks."
    )
    condition: float = field(
        default=1.0,
        ge=1,
        help="Ratio of the largest to the smallest variance of the inputs, along random axes; 1: Σ = I.",
    )
    stream_seed: int = field(default=0, ge=0, help="Seed of everything drawn; independent of the run's seed.")

    def tasks(self) -> list[LinearTask]:
        """Draw the truth and the samples of every task."""
        size, found = self.dimensions, []
        theta = seeded(self.stream_seed, "theta", 0).standard_normal(size)
        for i in range(self.experiences):
            if i and self.truth != "stationary":
                drawn = seeded(self.stream_seed, "theta", i).standard_normal(size)
                theta = drawn if self.truth == "specific" else theta + self.step * drawn
            draw = seeded(self.stream_seed, "samples", i)
            axes = np.linalg.qr(draw.standard_normal((size, size)))[0]
            root = axes * np.geomspace(1, self.condition, size) ** -0.5
            x, test_x = (draw.standard_normal((n, size)) @ root.T for n in (self.train_samples, self.test_samples))
            y, test_y = (v @ theta + self.noise * draw.standard_normal(len(v)) for v in (x, test_x))
            found.append(LinearTask(theta.copy(), root @ root.T, self.noise, x, y, test_x, test_y))
        return found

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Lay the samples of all tasks into two tables."""
        tasks = self.tasks()
        train = _table([t.x for t in tasks], [t.y for t in tasks])
        test = _table([t.test_x for t in tasks], [t.test_y for t in tasks])
        new, tested = (
            list(torch.arange(len(t)).view(-1, n)) for t, n in ((train, self.train_samples), (test, self.test_samples))
        )
        last = len(tasks) - 1
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        stream = Stream(
            name="sandbox",
            experiences=tuple(
                Experience(i, (0,), (0,) if i == 0 else (), 1, ids, is_last=i == last) for i, ids in enumerate(new)
            ),
            tasks=tuple(EvaluationTask(i, (0,), ids, ids[:0], i + 1) for i, ids in enumerate(tested)),
            train=train,
            test=test,
            class_names=("y",),
            class_order=(0,),
            mean=(0.0,),
            std=(1.0,),
            setting="domain",
            score="squared_error",
            augmentation="none",
            data_fingerprint=f"sandbox-{sorted(options.items())}",
        )
        stream.check()
        return stream


def _table(inputs: list[Float], targets: list[Float]) -> SampleTable:
    x = torch.from_numpy(np.concatenate(inputs)).float()
    return SampleTable(MemoryReader(x), torch.from_numpy(np.concatenate(targets)).float()[:, None])
