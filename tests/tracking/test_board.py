"""What every dashboard shows: the keys, their places, and that nothing is shown that isn't known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clframe
from clframe.testing import synthetic_stream
from clframe.tracking.board import Board


class Notes(Board):
    """Keeps what it would show."""

    def open(self) -> None:
        self.said_: list[tuple[Any, ...]] = []

    def scalars(self, axis: Any, at: int, values: Mapping[str, float]) -> None:
        self.said_ += [(axis, at, key, value) for key, value in values.items()]

    def picture(self, key: str, figure: Any, at: int) -> None:
        image = np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)
        self.said_.append(("picture", at, key, tuple(image[~np.isnan(image)].tolist())))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.said_.append(("table", None, key, tuple(map(tuple, rows))))

    def result(self, values: Mapping[str, float]) -> None:
        self.said_ += [("result", None, key, value) for key, value in values.items()]

    def finish(self, complete: bool) -> None:
        self.said_.append(("finish", None, None, complete))

    def of(self, kind: str, start: str = "") -> list[tuple[Any, ...]]:
        return [s[1:] for s in self.said_ if s[0] == kind and (s[2] or "").startswith(start)]


def told(run: clframe.Run, known: int = 0, events: Sequence[Mapping[str, Any]] | None = None) -> Notes:
    """A board that is told of a run, some of whose events it knows already."""
    board = Notes()
    board.begin(run)
    for number, event in enumerate(run.events() if events is None else events):
        values = {k: v for k, v in event.items() if k not in ("schema", "time", "event")}
        (board.past if number < known else board.event)(event["event"], values)
    board.close()
    return board


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> clframe.Run:
    return clframe.run(
        scenario={"name": "split_digits", "experiences": 5, "train_per_class": 60},
        strategy={"name": "replay", "memory_size": 20, "epochs": 3},
        backbone={"name": "mlp", "hidden": [8]},
        batch_size=8,
        evaluate_future=True,
        run_dir=tmp_path_factory.mktemp("board") / "run",
        progress=False,
    )


@pytest.fixture(scope="module")
def board(run: clframe.Run) -> Notes:
    return told(run)


def test_an_epoch_is_ten_values_whose_means_are_those_of_its_parts(run: clframe.Run, board: Notes) -> None:
    done = 0
    shown = {at: value for at, key, value in board.of("step") if key == "train/loss"}
    for epoch in run.events("epoch"):
        steps = epoch["steps"]
        places = [at for at in shown if done < at <= done + steps]
        assert len(places) == 10 < steps
        lengths = np.diff([done, *places])
        mean = sum(n * shown[at] for n, at in zip(lengths, places, strict=True)) / steps
        assert math.isclose(mean, epoch["loss"], rel_tol=1e-4)
        assert max(lengths) - min(lengths) <= 1
        done += steps
        assert places[-1] == done
    assert done == run.result["counters"]["steps"]


def test_accuracies_after_every_experience(run: clframe.Run, board: Notes) -> None:
    matrix = run.matrix()
    tasks = {(at, key): value for at, key, value in board.of("experience", "task/")}
    assert tasks == {
        (i, f"task/{j:03d}"): matrix[i, j - 1] for i in range(6) for j in range(1, 6) if not np.isnan(matrix[i, j - 1])
    }
    curves = {key: [] for _, key, _ in board.of("experience", "eval/")}
    for at, key, value in board.of("experience", "eval/"):
        curves[key].append((at, value))
    expected = {
        f"eval/{head}/{restriction}/{name}": [(i, v) for i, v in enumerate(values, 1) if v is not None]
        for head, by in run.result["values"].items()
        for restriction, found in by.items()
        for name, values in found.items()
        if isinstance(values, list) and not isinstance(values[0], list)
    }
    assert curves == expected


def test_the_numbers_of_the_result(run: clframe.Run, board: Notes) -> None:
    shown = {key: value for _, key, value in board.of("result")}
    assert (
        shown["result/final_accuracy"]
        == shown["result/classifier/global/final_accuracy"]
        == run.metric("final_accuracy")
    )
    assert shown["result/nme/local/forgetting_max"] == run.metric("forgetting_max", "nme", "local")
    assert shown["result/counters/steps"] == run.result["counters"]["steps"]
    assert "result/task_confusion" not in shown
    assert board.said_[-1] == ("finish", None, None, True)


def test_a_picture_shows_what_was_known_then(run: clframe.Run, board: Notes) -> None:
    """Also where the log is ahead of what the tracker has been told, as it always is here."""
    matrix = run.matrix("nme")
    for at, _, drawn in board.of("picture", "matrix/nme"):
        known = matrix[: at + 1]
        assert drawn == tuple(known[~np.isnan(known)].tolist())
    assert [at for at, _, _ in board.of("picture", "matrix/nme")] == [1, 2, 3, 4, 5]


def test_it_goes_on_as_if_it_had_not_been_stopped(run: clframe.Run, board: Notes) -> None:
    total = len(run.events())
    for known in (5, total // 2, total - 2):
        rest = told(run, known).said_
        assert rest == board.said_[-len(rest) :]
        assert len(rest) < len(board.said_)


def test_a_long_stream_is_drawn_ten_times(tmp_path: Path) -> None:
    stream = synthetic_stream(experiences=[[k] for k in range(23)])
    run = clframe.run(scenario=stream, backbone="mlp", epochs=1, progress=False, run_dir=tmp_path / "run")
    drawn = [at for at, _, _ in told(run).of("picture")]
    assert drawn == [3, 6, 9, 12, 15, 18, 21, 23]


def test_a_run_that_stops_shows_how_far_it_came(tmp_path: Path) -> None:
    from clframe.training.trainer import Stopped

    with pytest.raises(Stopped):
        clframe.run(
            scenario={"name": "split_digits", "experiences": 2},
            run_dir=tmp_path / "run",
            progress=False,
            stop_after=125,
        )
    board = told(clframe.load(tmp_path / "run"))
    assert board.of("result") == []
    assert board.said_[-1] == ("finish", None, None, False)
    assert board.of("table")


def _events() -> Iterator[dict[str, Any]]:
    epoch = {"event": "epoch", "experience": 1, "phase": "train", "epoch": 1, "epochs": 1, "parameters": 5, "lr": 0.1}
    yield {**epoch, "steps": 4, "loss": 2.0, "terms": {"a": 1.5, "b": 0.5}}  # of a clframe that logged no curves
    yield {**epoch, "steps": 3, "loss": None, "terms": {}, "curve": {"total": [1.0, math.nan, math.inf]}}
    yield {**epoch, "steps": 0, "loss": 0.0, "terms": {}, "curve": {}}
    values = {"flops": 3, "share": {"stem": 0.25, "deep": {"er": 2, "no": None}}, "text": "x", "yes": True}
    yield {"event": "measured", "experience": 2, "values": values}


def test_what_is_no_number_is_not_shown(run: clframe.Run) -> None:
    board = told(run, events=list(_events()))
    steps = [s for s in board.of("step") if s[1] not in ("train/lr", "train/parameters", "train/experience")]
    assert steps[:4] == [
        (4, "train/loss", 2.0),
        (4, "train/terms/a", 1.5),
        (4, "train/terms/b", 0.5),
        (5, "train/loss", 1.0),
    ]
    assert {s[0] for s in board.of("step")} == {4, 5, 7}
    assert board.of("experience", "measured/") == [
        (2, "measured/flops", 3), (2, "measured/share/stem", 0.25), (2, "measured/share/deep/er", 2),
    ]  # fmt: skip
