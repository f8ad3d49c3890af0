"""What a sweep shows: a table that is drawn again on a terminal, a line per run in a pipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clframe.launch.executors import Update
from clframe.launch.sweep_progress import SweepProgress
from clframe.launch.sweep_run import SweepRun


def make(tmp_path: Path, count: int) -> list[SweepRun]:
    return [SweepRun({}, tmp_path / f"run-{i}") for i in range(count)]


def under_way(run: SweepRun, *events: dict[str, Any]) -> None:
    run.directory.mkdir()
    (run.directory / "stream.json").write_text(json.dumps({"experiences": [{}] * 5}))
    text = "".join(json.dumps(e) + "\n" for e in events)
    (run.directory / "events.jsonl").write_text(text + '{"event": "epo')  # being written


def test_where_a_run_is_follows_from_its_last_events(tmp_path: Path) -> None:
    (run,) = make(tmp_path, 1)
    assert run.whereabouts == ""
    begun = {"event": "experience", "experience": 2}
    epoch = {"event": "epoch", "experience": 2, "phase": "stage1", "epoch": 3, "epochs": 10}
    under_way(run, begun)
    assert run.whereabouts == "experience 2/5"
    (run.directory / "events.jsonl").write_text(json.dumps(begun) + "\n" + (json.dumps(epoch) + "\n") * 5000)
    assert run.whereabouts == "experience 2/5, stage1 3/10"
    with (run.directory / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "evaluation", "experience": 2}) + "\n")
    assert run.whereabouts == "experience 2/5, scored"


def test_the_table_has_what_runs_first_then_what_ended_last_and_fits(tmp_path: Path) -> None:
    runs = make(tmp_path, 30)
    under_way(runs[3], {"event": "experience", "experience": 1})
    shown = SweepProgress(runs, "search ", live=False)
    for i, state in ((0, "finished"), (1, "failed"), (3, "running")):
        shown.show(Update(runs[i], "running"))
        shown.show(Update(runs[i], state, "out of luck" if state == "failed" else ""))  # type: ignore[arg-type]
    lines = shown.text(100, 24).split("\n")
    assert re.fullmatch(r"search 30 runs: 1 finished, 1 failed, 1 running, 27 waiting; 00:0\d", lines[0])
    assert [re.split(r"  +", line)[:2] for line in lines[3:]] == [
        ["run-3", "running"],
        ["run-1", "failed"],
        ["run-0", "finished"],
    ]
    assert "experience 1/5" in lines[3]
    for run in runs:
        shown.show(Update(run, "running"))
    for columns, rows in ((100, 24), (40, 10)):
        text = shown.text(columns, rows).split("\n")
        assert len(text) < rows
        assert max(map(len, text)) < columns


def test_lines_in_a_pipe_and_a_table_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make(tmp_path, 2)
    for live in (False, True):
        with SweepProgress(runs, live=live) as shown:
            shown.show(None)
            for run, state in zip(runs, ("finished", "failed"), strict=True):
                shown.show(Update(run, "running"))
                shown.show(Update(run, state, "out of luck" if state == "failed" else ""))  # type: ignore[arg-type]
        err = capsys.readouterr().err
        failed = f"2/2 run-1: failed: out of luck (see {runs[1].log})"
        if not live:
            assert err.splitlines() == ["1/2 run-0: finished", failed]
        else:
            assert f"{failed}\n" in err
            assert "1/2 run-0: finished" not in err
            moves = re.findall(r"\x1b\[(\d+)F\x1b\[J", err)
            drawn = re.split(r"\x1b\[\d+F\x1b\[J", err)
            # Every table is taken away by as many lines as it had.
            assert [int(m) for m in moves] == [part.removeprefix(failed + "\n").count("\n") for part in drawn[:-1]]
            assert "2 runs: 1 finished, 1 failed" in drawn[-1]
