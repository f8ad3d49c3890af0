"""Every metric by its full name: what it computes, its bounds, its unit, its formula and where it comes from."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.metrics import cost, plasticity, transfer
from clframe.metrics import evaluators as read
from clframe.metrics.cube import RESTRICTIONS
from clframe.metrics.scores import Absent

__all__ = ["CATALOGUE", "RUN", "Metric"]

RUN = ("run",)
"""The restrictions of a metric of the run as a whole."""


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
        unit: `fraction`, `fraction per task`, `percent`, `points`, `classes`, `ratio`, `samples`, `dimensions`, `steps`,
            `magnitude` (of weights or gradients), `curvature` (loss per squared weight), `FLOP`, `bytes`, `seconds` or `joules`.
        definition: The formula.
        reference: Where it comes from.
        restrictions: Restrictions of the prediction that it is defined for; `run` alone for a metric of the run as a
            whole, which reads what was measured (`clframe.metrics.measured`).
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

    @property
    def of_run(self) -> bool:
        """Whether it belongs to the run as a whole, not to a report head."""
        return self.restrictions == RUN

    def named(self, score: str) -> str:
        """The name in result files, for the name of a score."""
        return self.name.replace("accuracy", score)


_OWN: dict[str, Metric] = {}


class _Catalogue(Mapping[str, Metric]):
    """clframe's own metrics, followed by those of installed packages, which are loaded when the catalogue is first read."""

    def __init__(self) -> None:
        self._joined: dict[str, Metric | None] = {}  # None: broken, and said so

    def __getitem__(self, name: str) -> Metric:
        return _OWN[name] if name in _OWN else self._plugins()[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**_OWN, **self._plugins()})

    def __len__(self) -> int:
        return len({**_OWN, **self._plugins()})

    def _plugins(self) -> dict[str, Metric]:
        for name in registry.available("metric"):
            if name not in self._joined:
                try:
                    self._joined[name] = _plugin(name)
                except ConfigurationError as error:
                    self._joined[name] = None
                    warnings.warn(str(error), stacklevel=3)
        return {name: metric for name, metric in self._joined.items() if metric is not None}


CATALOGUE: Mapping[str, Metric] = _Catalogue()
"""Every metric by name, in the order of the result file."""


def _plugin(name: str) -> Metric:
    """Load a package's metric.

    Raises:
        ConfigurationError: It can't be imported, is no metric, or has a name that doesn't fit.
    """
    metric = registry.load("metric", name)
    if not isinstance(metric, Metric):
        raise ConfigurationError(
            f"Expected the metric {name!r} of a package to be a clframe.metrics.Metric, received {type(metric).__name__}: "
            "register the object itself."
        )
    if name in _OWN or metric.name != name:
        why = "clframe has a metric of that name" if name in _OWN else f"it calls itself {metric.name!r}"
        raise ConfigurationError(f"The metric {name!r} of a package is left out, because {why}: rename it there.")
    return replace(metric, function=_guarded(name, metric.function))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a package's metric fail without taking the run's other metrics with it; numbers of NumPy become Python's."""

    @functools.wraps(function)
    def value(*args: Any) -> Any:
        try:
            found = function(*args)
        except Absent:
            raise
        except Exception as error:
            raise Absent(f"The metric {name!r} of a package failed ({type(error).__name__}: {error}).") from error
        return found.tolist() if hasattr(found, "tolist") else found

    return value


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
    _OWN[name] = Metric(
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


def _add_cost(
    name: str, function: Callable[..., Any], unit: str, definition: str, reference: str = "", *, curve: bool = True
) -> None:
    """A metric of what a run as a whole has cost."""
    _add(name, function, False, (0.0, None), definition, reference, unit=unit, restrictions=RUN, curve=curve)


_add_cost(
    "train_flops",
    cost.train_flops,
    "FLOP",
    "operations (a multiplication and an addition are 2) of optimiser steps and of hooks outside of them, for experience i",
)
_add_cost("phase_flops", cost.phase_flops, "FLOP", "operations of the optimiser steps of every phase")
_add_cost("evaluation_flops", cost.cost_curve("evaluation_flops"), "FLOP", "operations of scoring after experience i")
_add_cost("inference_flops", cost.cost_curve("inference_flops"), "FLOP", "operations of predicting one sample")
_add_cost("steps", cost.cost_curve("steps"), "steps", "optimiser steps of all phases of experience i")
_add_cost(
    "presentations",
    cost.cost_curve("presentations"),
    "samples",
    "samples that these steps trained on, each view and each replay counted",
)
_add_cost(
    "train_cpu_seconds", cost.train_seconds("cpu_seconds"), "seconds", "CPU time of phases and hooks, over all threads"
)
_add_cost("train_wall_seconds", cost.train_seconds("wall_seconds"), "seconds", "time of phases and hooks by the clock")
_add_cost("deployed_bytes", cost.cost_curve("deployed_bytes"), "bytes", "parameters and buffers of the network after i")
_add_cost(
    "training_only_bytes",
    cost.cost_curve("training_only_bytes"),
    "bytes",
    "other networks and modules that the strategy keeps after i, such as teachers",
)
_add_cost(
    "exemplar_bytes",
    cost.cost_curve("exemplar_bytes"),
    "bytes",
    "stored samples after i as raw bytes, 8 bytes for each label, and what is stored beside them",
)
_add_cost(
    "statistics_bytes",
    cost.cost_curve("statistics_bytes"),
    "bytes",
    "all other tensors that the strategy keeps after i",
)
_add_cost(
    "optimizer_bytes", cost.cost_curve("optimizer_bytes"), "bytes", "largest state of an optimiser during experience i"
)
_add_cost(
    "peak_memory_bytes", cost.cost_curve("peak_memory_bytes"), "bytes", "largest resident memory of the process until i"
)
_add_cost(
    "peak_device_bytes",
    cost.cost_curve("peak_device_bytes", "The run didn't use a GPU, or didn't measure its cost."),
    "bytes",
    "largest memory that tensors held on the GPU until i",
)
_add_cost(
    "energy_joules", cost.energy, "joules", "energy of processor packages (RAPL) and the GPU (NVML), whoever used it"
)
_add_cost("total_train_flops", cost.total_train_flops, "FLOP", "Σ_i train_flops", curve=False)
_add_cost(
    "storage_ratio",
    cost.storage_ratio,
    "ratio",
    "σ = (deployed + training-only + exemplar + statistics bytes after T) / (bytes of the training samples of 1..T)",
    curve=False,
)


def _add_plasticity(
    name: str, function: Callable[..., Any], better: bool | None, unit: str, definition: str, reference: str = ""
) -> None:
    """A metric of how well the network can still learn, with a value after every experience."""
    upper = 1.0 if unit == "fraction" else None
    lower = None if name == "curvature" else 0.0
    _add(name, function, better, (lower, upper), definition, reference, unit=unit, restrictions=RUN, curve=True)


_REDO = "Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning"
_CBP = "Dohare et al. 2024, Loss of plasticity in deep continual learning"

_add_plasticity(
    "dormant_units",
    plasticity.layers("dormant_units"),
    False,
    "fraction",
    "share of a layer's units with E|h_i| / ((1/H) Σ_k E|h_k|) ≤ 0.025, by layer",
    _REDO,
)
_add_plasticity(
    "dormant_units_mean",
    plasticity.layers_mean("dormant_units"),
    False,
    "fraction",
    "mean over layers of dormant_units",
    _REDO,
)
_add_plasticity(
    "dead_units",
    plasticity.layers("dead_units"),
    False,
    "fraction",
    "share of a layer's units with E|h_i| = 0, by layer",
)
_add_plasticity(
    "effective_rank",
    plasticity.curve("effective_rank"),
    True,
    "dimensions",
    "exp(-Σ p_i ln p_i), p_i = σ_i / Σ σ, σ the singular values of the features of the probe set",
    "Roy and Vetterli 2007, The Effective Rank - A Measure of Effective Dimensionality",
)
_add_plasticity(
    "srank",
    plasticity.curve("srank"),
    True,
    "dimensions",
    "smallest k with Σ_{i≤k} σ_i ≥ 0.99 Σ σ_i",
    "Kumar et al. 2021, Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning",
)
_add_plasticity(
    "stable_rank", plasticity.curve("stable_rank"), True, "dimensions", "‖Φ‖_F² / ‖Φ‖₂² = Σ σ_i² / max σ_i²"
)
_add_plasticity(
    "weight_magnitude",
    plasticity.curve("weight_magnitude"),
    None,
    "magnitude",
    "mean |w| over all weight matrices and kernels of the network",
    _CBP,
)
_add_plasticity(
    "weight_magnitude_layers",
    plasticity.layers("weight_magnitude_layers"),
    None,
    "magnitude",
    "mean |w| of a layer's weights, by layer",
    _CBP,
)
_add_plasticity(
    "weight_distance",
    plasticity.curve("weight_distance"),
    None,
    "magnitude",
    "‖θ - θ_0‖₂, θ_0 the values with which each parameter first began to train",
)
_add_plasticity(
    "gradient_norm",
    plasticity.curve("gradient_norm", "No step of the run had a gradient."),
    None,
    "magnitude",
    "mean over the optimiser steps of experience i of ‖∇L‖₂, as given to the optimiser",
)
_add_plasticity(
    "gradient_norm_first",
    plasticity.curve("gradient_norm_first", "No step of the run had a gradient."),
    None,
    "magnitude",
    "‖∇L‖₂ of the first optimiser step of experience i",
)
_add_plasticity(
    "online_accuracy",
    plasticity.curve("online_accuracy"),
    True,
    "fraction",
    "mean over the optimiser steps of experience i of the accuracy on the step's new samples before learning from them",
    _CBP,
)
_add_plasticity(
    "steps_to_threshold",
    plasticity.curve("steps_to_threshold", "The running accuracy reached the threshold in no experience."),
    False,
    "steps",
    "first step at which the mean of online accuracy over 20 steps is 0.9 of the level at the end of the first experience",
)
_add_plasticity(
    "curvature",
    plasticity.curve("curvature", "No experience had training samples and weights that can train."),
    None,
    "curvature",
    "largest eigenvalue of the Hessian of the plain loss on 128 training samples of experience i, by power iteration",
    "Lyle et al. 2023, Understanding plasticity in neural networks",
)
