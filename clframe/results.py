"""A run's numbers from its directory: metrics recomputed from kept predictions, and the `Run` that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.metrics import (
    AccuracyCube,
    Measured,
    MetricReport,
    Predictions,
    Reliability,
    Tasks,
    compute_from_predictions,
    seen_reliability,
)
from clframe.report import RunSummary, compare, html_card, plot_curve, plot_matrix, plot_reliability
from clframe.report.cost import cost_table
from clframe.report.panels import PLASTICITY
from clframe.tracking.files import read_json
from clframe.tracking.rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from clframe.models import Network
    from clframe.report.representation import Representation
    from clframe.report.tables import Table
    from clframe.strategy import Strategy

__all__ = ["FRESH", "Run", "metrics_of", "predictions_of", "summary_of"]

FRESH = "fresh"
"""Folder of a run's fresh reference in its directory; see `clframe.reference`."""


def predictions_of(
    directory: RunDirectory, split: str | None = None, until: int | None = None
) -> dict[str, dict[int, Predictions]]:
    """Read the kept predictions of a run: `{head: {experiences trained: predictions}}`, primary head first.

    Of the split `test` or `valid`; None means the one that the run is scored on.

    Only the evaluations that the event log knows count, so that files of a stretch that is to be trained again are
    left out; and with `until` only those after at most so many experiences.

    Raises:
        RunDirectoryError: A file is missing or damaged; names it.
    """
    folder = directory.predictions / (split or scored_split(directory))
    order: list[str] = []
    done: list[int] = []
    for event in directory.events():
        if event["event"] == "evaluation" and (until is None or event["experience"] <= until):
            done.append(int(event["experience"]))
            order = list(event.get("heads", order))
    found: dict[str, dict[int, Predictions]] = {head: {} for head in order}
    for path in sorted(folder.glob("*.npz")):
        number, _, head = path.stem.partition("-")
        if int(number) in done:
            found.setdefault(head, {})[int(number)] = Predictions.load(path)
    return {head: kept for head, kept in found.items() if kept}


def scored_split(directory: RunDirectory) -> str:
    """Return the split that a run's metrics are of: `test`, or `valid` where it was asked for."""
    return str(directory.config.get("scored_on", "test"))


def metrics_of(directory: RunDirectory, split: str | None = None) -> MetricReport:
    """Compute every metric of a run from its kept predictions; no model is needed."""
    stream = directory.stream
    norms: dict[str, dict[int, ArrayLike]] = {}
    events = list(directory.events())
    for event in events:
        if event["event"] == "evaluation":
            for head, values in event.get("head_norms", {}).items():
                norms.setdefault(head, {})[int(event["experience"])] = values
    return compute_from_predictions(
        predictions_of(directory, split),
        Tasks.from_dict(stream["tasks"]),
        **_score_of(stream),
        fresh=_fresh_cube(directory, split),
        head_norms=norms,
        measured=Measured.from_events(events, len(stream["experiences"])),
    )


def _score_of(stream: Mapping[str, Any]) -> dict[str, Any]:
    """What predictions are scored by, as metrics take it."""
    error = stream["score"] == "squared_error"
    return {"score": "squared_error" if error else "accuracy", "higher_is_better": not error}


def _cube(directory: RunDirectory, kept: Mapping[int, Predictions]) -> AccuracyCube:
    """The counts of a head's kept predictions."""
    stream = directory.stream
    return AccuracyCube.from_predictions(kept, Tasks.from_dict(stream["tasks"]), **_score_of(stream))


def _fresh_cube(directory: RunDirectory, split: str | None) -> AccuracyCube | None:
    """The primary head of the run's fresh reference, where there is a finished one."""
    reference = RunDirectory(directory.path / FRESH)
    kept = predictions_of(reference, split) if reference.finished else {}
    return _cube(reference, next(iter(kept.values()))) if kept else None


def result_of(directory: RunDirectory, report: MetricReport, counters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `result.json`."""
    stream = directory.stream
    primary = {
        "head": next(iter(report.values), None),
        "restriction": "local" if stream["setting"] == "task" else "global",
    }
    return {
        "schema": 1,
        "stream": scored_split(directory),
        "primary": primary,
        **report.to_dict(),
        "counters": dict(counters),
    }


_SEEDS = ("seed", "init_seed", "data_seed")
_WATCHING = ("measure", "keep_models", "checkpoint_minutes")
"""Settings that change no number of a run, so that runs which differ in them are still the same but for the seed."""


def summary_of(directory: RunDirectory) -> RunSummary:
    """Describe a run for tables, finished or not.

    Raises:
        RunDirectoryError: A file is missing or damaged.
    """
    try:
        return _summary(directory)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{directory.path} is damaged (its files don't hold what a run's do, {type(error).__name__}: {error}): bring them "
            "back from a copy, or start the run again."
        ) from error


def _summary(directory: RunDirectory) -> RunSummary:
    config, stream = directory.config, directory.stream
    done = max((int(e["experience"]) for e in directory.events() if e["event"] == "evaluation"), default=0)
    result = directory.result if directory.finished else {}
    return RunSummary(
        directory=directory.path,
        scenario=str(config["scenario"]["name"]),
        scenario_hash=str(stream["fingerprint"]),
        strategy=str(config["strategy"]["name"]),
        backbone=str(config["backbone"]["name"]),
        seed=int(config["seed"]),
        metrics={head: dict(by) for head, by in result.get("values", {}).items()},
        finished=directory.finished,
        settings={k: v for k, v in config.items() if k not in _SEEDS + _WATCHING},
        progress=f"{done} of {len(stream['experiences'])} experiences",
        score=str(stream["score"]),
        higher_is_better=stream["score"] == "accuracy",
        restriction="local" if stream["setting"] == "task" else "global",
        measured=result.get("run", {}),
        counters=result.get("counters", {}),
        absent=result.get("absent", {}),
        environment=_optional(directory.path / "environment.json") or {},
        representation=_optional(directory.path / "representation.json"),
        read_matrix=Run(directory).matrix if done else None,
    )


def _optional(file: Path) -> Any:
    """The content of a file that not every run has; None without it."""
    return read_json(file) if file.is_file() else None


class Run:
    """A run, finished or not: its numbers, its pictures, its model.

    Get one from `clframe.run`, `clframe.resume` or `clframe.load`. In Jupyter it shows itself.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._model: Any = None

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.directory.config

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return self.directory.finished

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`: every metric by head and restriction, and why others are absent."""
        return self.directory.result

    @property
    def report(self) -> MetricReport:
        """Every metric, with the reasons of those that the run can't give."""
        result = self.result
        return MetricReport(**{part: result[part] for part in ("values", "absent", "gaps", "run")})

    @property
    def primary(self) -> tuple[str, str]:
        """The head and restriction that headline numbers come from."""
        chosen = self.result["primary"]
        return chosen["head"], chosen["restriction"]

    def metric(self, name: str, head: str | None = None, restriction: str | None = None) -> Any:
        """Return one metric by its full name, by default of the primary head.

        Raises:
            ConfigurationError: There is no such metric, or this run can't give it; says why.
        """
        first_head, first_restriction = self.primary
        return self.report.get(name, head or first_head, restriction or first_restriction)

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the primary head and restriction, by name."""
        head, restriction = self.primary
        return dict(self.result["values"][head][restriction])

    def matrix(
        self, head: str | None = None, restriction: str | None = None, after: int | None = None
    ) -> NDArray[np.float64]:
        """Return the accuracy matrix a[i, j]: (T+1, J); row 0 is before training, NaN where nothing was scored.

        Args:
            head: The report head; by default the primary one.
            restriction: Of the prediction; by default that of the setting.
            after: As it was after so many experiences; None means now.
        """
        _, kept = self._kept(head, after)
        task_ids = self.directory.stream["setting"] == "task"
        return _cube(self.directory, kept).matrix(restriction or ("local" if task_ids else "global"))

    def _kept(self, head: str | None, until: int | None = None) -> tuple[str, dict[int, Predictions]]:
        """Return the name and the kept predictions of a head, by default the primary one.

        Raises:
            RunDirectoryError: Nothing has been scored yet.
            ConfigurationError: There is no such head.
        """
        kept = predictions_of(self.directory, until=until)
        if not kept:
            raise RunDirectoryError(f"The run in {self.path} has scored nothing yet.")
        chosen = head or next(iter(kept))
        if chosen not in kept:
            raise ConfigurationError(f"There is no report head {chosen!r}; this run has {', '.join(kept)}.")
        return chosen, kept[chosen]

    def reliability(self, head: str | None = None, after: int | None = None) -> Reliability:
        """Return the reliability diagram of the samples of everything seen: 15 bins of confidence.

        Args:
            head: The report head; by default the primary one.
            after: Number of experiences trained; by default the last evaluation.

        Raises:
            ConfigurationError: There is no such head or evaluation, or its confidence was not kept.
        """
        chosen, kept = self._kept(head)
        after = max(kept) if after is None else after
        if after not in kept:
            raise ConfigurationError(
                f"Head {chosen!r} was not evaluated after experience {after}; it was after {', '.join(map(str, kept))}."
            )
        return seen_reliability(kept[after], Tasks.from_dict(self.directory.stream["tasks"]), after)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what was logged, for instance every `epoch` with its losses."""
        return [e for e in self.directory.events() if kind is None or e["event"] == kind]

    def plot_matrix(self, head: str | None = None, after: int | None = None) -> Figure:
        """Draw the accuracy matrix as a heat map, as it is now or was after so many experiences."""
        return plot_matrix(self.matrix(head, after=after), title=self._title)

    def plot_curve(self) -> Figure:
        """Draw the accuracy over the classes seen after every experience, a line per report head."""
        _, restriction = self.primary
        curves = {h: [v[restriction]["seen_accuracy"]] for h, v in self.result["values"].items()}
        return plot_curve(curves, title=self._title)

    def plot_confusion(self) -> Figure:
        """Draw which task the test samples of each task were taken for at the end.

        Raises:
            ConfigurationError: The run can't tell; says why.
        """
        return compare([summary_of(self.directory)]).plot_confusion()

    def plot_plasticity(self, quantity: str = "effective_rank") -> Figure:
        """Draw a measure of plasticity over the experiences, a line per layer where it has one per layer.

        Args:
            quantity: `effective_rank`, `dormant_units`, `weight_magnitude`, or another metric of the run as a whole.

        Raises:
            ConfigurationError: The run didn't measure it.
        """
        found = self.result.get("run", {}).get(quantity)
        curves = found if isinstance(found, dict) else {quantity: found}
        if not curves or not all(isinstance(curve, list) for curve in curves.values()):
            raise ConfigurationError(f"The run in {self.path} has no {quantity} over the experiences.")
        named = {name: [curve] for name, curve in curves.items()}
        return plot_curve(named, title=self._title, ylabel=PLASTICITY.get(quantity, quantity), limits=None)

    def cost(self, joint: Run | None = None) -> Table:
        """Return what every experience cost, and how that compares with joint training.

        Args:
            joint: A run of joint training on the same stream: after every experience (`every: experience`), or at the end.

        Raises:
            ConfigurationError: A run didn't measure its cost, or the streams differ.
        """
        if joint is not None and joint.directory.stream["fingerprint"] != self.directory.stream["fingerprint"]:
            raise ConfigurationError(
                f"The cost expects a joint run on the same stream, received {joint.path}, whose stream differs from that of "
                f"{self.path}: run joint training on this one."
            )
        return cost_table(self.result["run"], None if joint is None else joint.result["run"], title=self._title)

    def plot_reliability(self, head: str | None = None, after: int | None = None) -> Figure:
        """Draw accuracy over confidence; see `reliability`."""
        chosen, kept = self._kept(head)
        title = f"{self._title}: {chosen} after experience {max(kept) if after is None else after}"
        return plot_reliability(self.reliability(chosen, after), title=title)

    @property
    def _title(self) -> str:
        config = self.config
        return f"{config['strategy']['name']} on {config['scenario']['name']}, seed {config['seed']}"

    def representation(
        self,
        *,
        again: bool = False,
        data_root: str | Path | None = None,
        device: str = "auto",
        progress: bool = True,
        objects: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Representation:
        """Return the stability-plasticity report of the models that the run kept; it needs the data the first time.

        Args:
            again: Make the report anew, though there is one.
            data_root: Folders to look for data in.
            device: Where features are computed.
            progress: Show a bar (on a terminal) and a line per model.
            objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.
            **options: `probe` (`logistic` or `knn`), `train_per_class`, `layers`, `cka_samples`; see
                `clframe.representation.RepresentationOptions`.

        Raises:
            ConfigurationError: The run can't give a report, or an option is wrong.
            RunDirectoryError: The run has kept no models (`keep_models: true` keeps them).
        """
        from clframe.representation import represent

        return represent(
            self.directory,
            again=again,
            data_root=data_root,
            device=device,
            progress=progress,
            objects=objects,
            **options,
        )

    # -- the model ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Network:
        """The trained network, in eval mode, on the CPU."""
        return self.strategy.network

    @property
    def strategy(self) -> Strategy:
        """The strategy with its final state; its `predict` gives every report head."""
        if self._model is None:
            from clframe.launch.build import load_strategy

            self._model = load_strategy(self.directory)
        strategy: Strategy = self._model[0]
        return strategy

    def predict(
        self, images: ArrayLike | Tensor, head: str | None = None, task_ids: ArrayLike | None = None
    ) -> list[str]:
        """Name the class of every image.

        Args:
            images: (B, H, W, C) uint8 as the stream's own images, or (B, D) float32 features.
            head: The report head; by default the primary one.
            task_ids: (B,) where the setting is task-incremental.

        Returns:
            A class name per image.
        """
        import torch

        strategy, maker = self.strategy, self._model[1]
        given = torch.as_tensor(np.asarray(images)) if not isinstance(images, torch.Tensor) else images
        tasks = None if task_ids is None else torch.as_tensor(np.asarray(task_ids))
        with torch.inference_mode():
            scores = strategy.predict(maker.test_input(given), tasks)
        chosen = scores[head or next(iter(scores))]
        if tasks is not None:
            chosen = chosen.masked_fill(~strategy.run.task_mask(tasks), -torch.inf)
        names = self.directory.stream["class_names"]
        return [names[k] for k in chosen.argmax(dim=1).tolist()]

    def __repr__(self) -> str:
        """Show where the run is and its headline numbers."""
        if not self.finished:
            return f"<Run {self.path} (unfinished)>"
        shown = ("final_accuracy", "average_incremental_accuracy", "forgetting_max")
        metrics = self.metrics
        numbers = ", ".join(f"{n} {100 * metrics[n]:.2f} %" for n in shown if isinstance(metrics.get(n), float))
        return f"<Run {self.path}: {numbers}>"

    def _repr_html_(self) -> str:
        return html_card(summary_of(self.directory))


def open_run(path: str | Path) -> Run:
    """Open a run directory for reading.

    Raises:
        RunDirectoryError: There is no run.
    """
    directory = RunDirectory.open(Path(path))
    read_json(directory.path / "stream.json")
    return Run(directory)
