"""What a dashboard shows of a run, put together from its events; W&B, TensorBoard and others say how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from clframe.metrics import AccuracyCube, Predictions, Tasks, prediction_path
from clframe.metrics.scores import Absent
from clframe.spec import Configurable
from clframe.tracking.rundir import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clframe.results import Run

__all__ = ["Axis", "Board"]

Axis = Literal["step", "experience"]
"""What a curve runs over: optimiser steps since the start of the run, or experiences."""

_PICTURES = 10
"""At most so many times the heat map of a run is drawn."""

Point = tuple[Axis, int, dict[str, float]]


class Board(Tracker, Configurable):
    """A tracker that shows a run on a dashboard: curves, the accuracy matrix, the configuration, the result.

    A subclass says how the parts are drawn, by the methods from `open` to `finish`; its options are declared as those of
    a strategy. The keys are the same for all:

    - `train/loss`, `train/terms/TERM`, `train/lr`, `train/parameters`, over steps;
    - `eval/HEAD/RESTRICTION/METRIC` over experiences: `seen_accuracy` as the run goes, at its end every other metric that
      has a value after each experience;
    - `task/NNN` over experiences: the accuracy of the primary head on each task;
    - `measured/NAME` or `measured/NAME/LAYER` over experiences;
    - `matrix/HEAD`, a heat map, and `matrix_table/HEAD`, the same numbers;
    - `result/METRIC` of the primary head, `result/HEAD/RESTRICTION/METRIC` of all, `result/run/METRIC`.
    """

    # -- what a subclass does --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The run starts or goes on; `self.run_` is known."""

    def scalars(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Show numbers by key at a place of an axis."""
        raise NotImplementedError

    def picture(self, key: str, figure: Figure, at: int) -> None:
        """Show a figure, as of after `at` experiences."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table; called once, at the end."""

    def result(self, values: Mapping[str, float]) -> None:
        """Show the numbers of a finished run by key."""

    def finish(self, complete: bool) -> None:
        """Nothing more comes; `complete` says whether the run has reached its end."""

    # -- what it is told -------------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Begin with nothing shown."""
        self.run_ = run
        stream = run.directory.stream
        self.tasks_ = Tasks.from_dict(stream["tasks"])
        self.score_ = str(stream["score"])
        self.primary_ = "local" if stream["setting"] == "task" else "global"
        self.experiences_ = len(stream["experiences"])
        self.steps_ = 0
        self.rows_: dict[tuple[str, str], dict[int, list[float]]] = {}
        self.drawn_ = 0
        self.open()

    def past(self, kind: str, values: Mapping[str, Any]) -> None:
        """Recall what later events build on."""
        for _ in self._points(kind, values):
            pass
        if kind == "evaluation" and self._draws(values["experience"]):
            self.drawn_ = values["experience"]

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Show what happened."""
        for axis, at, numbers in self._points(kind, values):
            known = {key: value for key, value in numbers.items() if _is_number(value)}
            if known:
                self.scalars(axis, at, known)
        if kind == "evaluation" and self._draws(values["experience"]):
            self._draw(values["experience"])

    def close(self) -> None:
        """Show the end: the matrix of every head, and the result of a finished run."""
        last = max((max(rows) for rows in self.rows_.values()), default=0)
        if last > self.drawn_:
            self._draw(last)
        for head in self._heads():
            self.table(
                f"matrix_table/{head}", ["restriction", "experience", "task", self.score_], list(self._cells(head))
            )
        if self.run_.finished:
            self._show_result(self.run_.result)
        self.finish(self.run_.finished)

    # -- from events to numbers ------------------------------------------------------------------------------------------

    def _points(self, kind: str, values: Mapping[str, Any]) -> Iterator[Point]:
        if kind == "epoch":
            yield from self._of_epoch(values)
        elif kind == "evaluation":
            yield from self._of_evaluation(values)
        elif kind == "measured":
            numbers = dict(_flat("measured", values["values"]))
            yield "experience", values["experience"], numbers

    def _of_epoch(self, values: Mapping[str, Any]) -> Iterator[Point]:
        steps, begun = values["steps"], self.steps_
        self.steps_ += steps
        curves = values.get("curve") or {n: [v] for n, v in {"total": values["loss"], **values["terms"]}.items()}
        count = max(map(len, curves.values()), default=0)
        for part in range(count):
            numbers = {_loss_key(name): curve[part] for name, curve in curves.items() if part < len(curve)}
            if part < count - 1:
                yield "step", begun + steps * (part + 1) // count, numbers
            else:
                yield "step", self.steps_, {**numbers, **_of_whole_epoch(values)}

    def _of_evaluation(self, values: Mapping[str, Any]) -> Iterator[Point]:
        after = values["experience"]
        numbers: dict[str, float] = {}
        for number, head in enumerate(values["heads"]):
            path = prediction_path(self.run_.directory.predictions, "test", after, head)
            if not path.is_file():
                continue
            error = self.score_ == "squared_error"
            cube = AccuracyCube.from_predictions(
                {after: Predictions.load(path)},
                self.tasks_,
                score="squared_error" if error else "accuracy",
                higher_is_better=not error,
            )
            for restriction in cube.restrictions:
                row = cube.matrix(restriction)[after].tolist()
                self.rows_.setdefault((head, restriction), {})[after] = row
                if number == 0 and restriction == self.primary_:
                    numbers |= {f"task/{j:03d}": value for j, value in enumerate(row, 1)}
                if after:
                    key = f"eval/{head}/{restriction}/seen_{cube.score}"
                    numbers[key] = _or_nan(cube, restriction, after)
        yield "experience", after, numbers

    # -- the matrix ------------------------------------------------------------------------------------------------------

    def _draws(self, after: int) -> bool:
        every = -(-self.experiences_ // _PICTURES)
        return after > 0 and (after % every == 0 or after == self.experiences_)

    def _draw(self, after: int) -> None:
        self.drawn_ = after
        for head in self._heads():
            self.picture(f"matrix/{head}", self.run_.plot_matrix(head, after=after), after)

    def _heads(self) -> list[str]:
        return list(dict.fromkeys(head for head, _ in self.rows_))

    def _cells(self, head: str) -> Iterator[list[Any]]:
        for (of, restriction), rows in self.rows_.items():
            for after in sorted(rows) if of == head else ():
                yield from ([restriction, after, j, v] for j, v in enumerate(rows[after], 1) if _is_number(v))

    # -- the result ------------------------------------------------------------------------------------------------------

    def _show_result(self, result: Mapping[str, Any]) -> None:
        primary = (result["primary"]["head"], result["primary"]["restriction"])
        numbers: dict[str, float] = {}
        curves: dict[str, Any] = {}
        for head, by in result["values"].items():
            for restriction, values in by.items():
                if (head, restriction) == primary:
                    numbers |= {f"result/{name}": value for name, value in values.items() if _is_number(value)}
                numbers |= dict(_flat(f"result/{head}/{restriction}", values))
                shown = f"seen_{self.score_}"  # as the run went
                curves |= {f"eval/{head}/{restriction}/{name}": v for name, v in values.items() if name != shown}
        of_run = result.get("run", {})
        numbers |= dict(_flat("result/run", of_run)) | dict(_flat("result/counters", result.get("counters", {})))
        curves |= {f"run/{name}": value for name, value in of_run.items()}
        for i in range(1, self.experiences_ + 1):
            found = {key: value for name, curve in curves.items() for key, value in _at(name, curve, i)}
            if found:
                self.scalars("experience", i, found)
        self.result(numbers)


def _loss_key(name: str) -> str:
    return "train/loss" if name == "total" else f"train/terms/{name}"


def _of_whole_epoch(values: Mapping[str, Any]) -> dict[str, float]:
    return {f"train/{name}": values[name] for name in ("lr", "parameters", "experience")}


def _or_nan(cube: AccuracyCube, restriction: str, after: int) -> float:
    try:
        return cube.seen_at(restriction, after)
    except Absent:
        return math.nan


def _flat(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested mappings, by its path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{key}/{name}", inner)
    elif _is_number(value):
        yield key, value


def _at(key: str, curve: Any, i: int) -> Iterator[tuple[str, float]]:
    """The values of a curve, or of curves by layer or phase, after experience i."""
    if isinstance(curve, Mapping):
        for name, inner in curve.items():
            yield from _at(f"{key}/{name}", inner, i)
    elif isinstance(curve, list) and i <= len(curve) and _is_number(curve[i - 1]):
        yield key, curve[i - 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
