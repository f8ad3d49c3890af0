"""A tracker chosen by its name lives apart: whatever it does, the run is the same bit for bit, and its time its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.config import resolve
from clframe.errors import ConfigurationError, RunDirectoryError, TrackerError
from clframe.launch import follow
from clframe.launch.sweep import Sweep
from clframe.tracking.rundir import run_name
from clframe.training.trainer import Stopped

CONFIG: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 40},
    "strategy": {"name": "replay", "memory_size": 8, "epochs": 2},
    "backbone": {"name": "mlp", "hidden": [8], "dropout": 0.2},
    "measure": ["dormant_units", "weight_magnitude"],  # not the cost, whose seconds no two runs share
}
HEAD = """
import json, os, time
import clframe
from clframe.spec import Configurable

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "out.jsonl")

def note(*what):
    with open(OUT, "a") as file:
        file.write(json.dumps([time.time(), *what]) + "\\n")

class Mine(clframe.Tracker{more}):
"""
NOTES = """
    def begin(self, run): note("begin", run.path.name, dict(self.kept)); self.kept["n"] = self.kept.get("n", 0) + 1
    def past(self, kind, values): note("past", kind, values)
    def event(self, kind, values): note("event", kind, values)
    def close(self): note("close", None, None)
"""


def tracker(folder: Path, body: str, more: str = "") -> str:
    """A user's file with a tracker, and its name."""
    (folder / "mine.py").write_text(HEAD.format(more=more) + body)
    return f"{folder / 'mine.py'}:Mine"


def told(folder: Path) -> list[list[Any]]:
    file = folder / "out.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def outcome(run: clframe.Run) -> dict[str, Any]:
    """What a run gives: every number but times."""
    result = dict(run.result)
    result["counters"] = {k: v for k, v in result["counters"].items() if k != "train_seconds"}
    kept = {p.name: p.read_bytes() for p in sorted(run.directory.predictions.rglob("*.npz"))}
    return {"result": result, "kept": kept, "weights": (run.path / "checkpoints" / "model.safetensors").read_bytes()}


def start(path: Path, **more: Any) -> clframe.Run:
    return clframe.run(run_dir=path, progress=False, **CONFIG, **more)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> clframe.Run:
    return start(tmp_path_factory.mktemp("reference") / "run")


def plain_events(run: clframe.Run) -> list[tuple[str, dict[str, Any]]]:
    leave = ("schema", "time", "event")
    return [(e["event"], {k: v for k, v in e.items() if k not in leave}) for e in run.events()]


# -- what it is told ---------------------------------------------------------------------------------------------------


def test_it_is_told_what_the_log_holds_in_order(tmp_path: Path, reference: clframe.Run) -> None:
    run = start(tmp_path / "run", track=tracker(tmp_path, NOTES))
    (_, *first), *middle, (_, *last) = told(tmp_path)
    assert first == ["begin", "run", {}]
    assert [(kind, values) for _, _, kind, values in middle] == plain_events(run)
    assert {what for _, what, _, _ in middle} == {"event"}
    assert last == ["close", None, None]
    assert outcome(run) == outcome(reference)


def test_a_resumed_run_goes_on_with_its_trackers_and_recalls_the_rest(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        start(tmp_path / "run", track=tracker(tmp_path, NOTES), stop_after=5)
    before = told(tmp_path)
    run = clframe.resume(tmp_path / "run", progress=False)
    after = told(tmp_path)[len(before) :]
    assert [t[1] for t in (before[0], before[-1], after[0], after[-1])] == ["begin", "close", "begin", "close"]
    assert after[0][3] == {"n": 1}, "what it kept"
    counted = ("epoch", "evaluation", "measured", "finished")
    new = [(kind, values) for _, what, kind, values in [*before, *after] if what == "event" and kind in counted]
    assert new == [(kind, values) for kind, values in plain_events(run) if kind in counted], "each of them once"
    past = [kind for _, what, kind, _ in after if what == "past" and kind in counted]
    assert past == [kind for _, what, kind, _ in before if what == "event" and kind in counted]


def test_options_and_what_another_process_cannot_make(tmp_path: Path) -> None:
    body = "    label: str = clframe.field(default='x', help='A name.')\n" + NOTES.replace(
        "run.path.name", "self.label"
    )
    name = tracker(tmp_path, body, ", Configurable")
    start(tmp_path / "run", track={"name": name, "label": "mine"})
    assert told(tmp_path)[0][2] == "mine"

    seen: list[str] = []

    class Here(clframe.Tracker):
        def begin(self, run: clframe.Run) -> None:
            seen.append(run.path.name)

        def event(self, kind: str, values: Any) -> None:
            seen.append(kind)

    start(tmp_path / "other", track=[Here()])
    assert seen[:3] == ["other", "run", "experience"]
    assert "steps" in seen, "an object is told as the steps go"
    assert not (tmp_path / "other" / "tracking").exists()


# -- what it can't do ----------------------------------------------------------------------------------------------------

_WAYS = {
    "raises at once": "    def begin(self, run): raise OSError('no network')\n",
    "raises on every call": "    def event(self, kind, values): raise OSError('no network')\n"
    "    def close(self): raise OSError('no network')\n",
    "exits": "    def event(self, kind, values): raise SystemExit(3)\n",
    "is killed": "    def event(self, kind, values): os.kill(os.getpid(), 9)\n",
    "draws random numbers": "    def event(self, kind, values):\n"
    "        import random, numpy, torch\n        random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n",
    "cannot be made": "    def __init__(self): 1 / 0\n",
}


@pytest.mark.parametrize("way", _WAYS)
def test_whatever_it_does_the_run_is_the_same(
    tmp_path: Path, reference: clframe.Run, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path / "run", track=tracker(tmp_path, _WAYS[way]))
    assert outcome(run) == outcome(reference)
    assert plain_events(run)[:-1] == plain_events(reference)[:-1]
    said = capsys.readouterr().err
    if way.startswith(("raises", "exits", "cannot")):
        what = {"exits": "SystemExit: 3", "cannot be made": "ZeroDivisionError: division by zero"}.get(
            way, "OSError: no network"
        )
        assert said == (
            f"clframe: warning: The tracker {tmp_path}/mine.py:Mine failed ({what}) and is dropped; the run goes on. "
            f"`clframe log {tmp_path}/run --to {tmp_path}/mine.py:Mine` sends what it has missed.\n"
        )
    elif way == "is killed":
        assert said.endswith("mine.py:Mine was ended by SIGKILL; `clframe log` sends the rest.\n")
    else:
        assert said == ""


def test_a_slow_tracker_does_not_hold_the_run(tmp_path: Path) -> None:
    body = "    def event(self, kind, values): time.sleep(0.3); note(kind)\n"
    run = start(tmp_path / "run", track=tracker(tmp_path, body))
    ended = next(e["time"] for e in run.events("finished"))
    taken = [moment for moment, _ in told(tmp_path)]
    assert len(taken) == len(run.events()), "it is waited for at the end"
    assert sum(moment > ended for moment in taken) > len(taken) / 2


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "_PATIENCE", 2.0)
    name = tracker(tmp_path, "    def close(self): note(os.getpid()); time.sleep(600)\n")
    begun = time.monotonic()
    run = start(tmp_path / "run", track=name)
    assert run.finished
    assert time.monotonic() - begun < 30
    assert "has not taken everything after 2 s and is left behind" in capsys.readouterr().err
    for _, pid in told(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# -- what is no part of a run ----------------------------------------------------------------------------------------------


def test_trackers_are_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    plain, tracked = resolve(CONFIG), resolve({**CONFIG, "track": ["wandb", {"name": "tensorboard", "logdir": "x"}]})
    assert plain.record == tracked.record
    assert run_name(plain.record) == run_name(tracked.record)
    assert [choice.name for choice in tracked.track] == ["wandb", "tensorboard"]
    assert plain.track == []


@pytest.mark.parametrize(
    ("track", "sentence"),
    [
        ("wandbb", "There is no tracker named 'wandbb'. Did you mean 'wandb'?"),
        ({"name": "wandb", "projekt": 1}, "track.wandb.projekt is not an option of WandB. Did you mean 'project'?"),
        ({"name": "wandb", "mode": "of"}, "track.wandb.mode: expected 'auto' | 'online' | 'offline', received 'of'."),
        (["wandb", "wandb"], "track: expected each tracker once, received wandb twice."),
        (3, "track: expected names, mappings with a name and options, or trackers, received 3"),
        ({"project": "x"}, "track: expected names, mappings with a name"),
        ("clframe.strategy:Strategy", "must derive from clframe.Tracker, but Strategy doesn't."),
        ({"name": "clframe.tracking.progress:Progress", "speed": 3}, "Progress can't be made with the options given"),
    ],
)
def test_what_cannot_track_is_refused_before_anything_is_computed(tmp_path: Path, track: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        start(tmp_path / "run", track=track)
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_gone_does_not_stop_a_resume(tmp_path: Path, reference: clframe.Run) -> None:
    with pytest.raises(Stopped):
        start(tmp_path / "run", track=tracker(tmp_path, NOTES), stop_after=5)
    (tmp_path / "mine.py").unlink()
    import sys

    for name in [n for n in sys.modules if n.startswith("clframe_user_") and n.endswith("_mine")]:
        del sys.modules[name]
    with pytest.warns(UserWarning, match=r"The run goes on without the tracker of .*There is no file"):
        run = clframe.resume(tmp_path / "run", progress=False)
    assert outcome(run) == outcome(reference)


def test_a_finished_run_is_not_repeated_for_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = clframe.run(progress=False, **CONFIG)
    with pytest.warns(UserWarning, match=r"has finished already: `clframe log runs/.* --to wandb` sends it"):
        assert clframe.run(progress=False, track="wandb", **CONFIG).path == first.path


def test_a_sweep_hands_its_trackers_on(tmp_path: Path) -> None:
    name = tracker(tmp_path, NOTES)
    sweep = Sweep.from_plan({"out": str(tmp_path / "runs"), "base": {**CONFIG, "track": name}, "seeds": [1]})
    assert all(run.track == [{"name": name}] for run in sweep.runs)
    assert sweep.run() == 0
    assert [t[2] for t in told(tmp_path) if t[1] == "begin"] == [run.name for run in sweep.runs]
    with pytest.raises(ConfigurationError, match="expected trackers by name"):
        Sweep.from_plan({"out": "runs", "base": {**CONFIG, "track": clframe.Tracker()}, "seeds": [0]})


# -- afterwards ------------------------------------------------------------------------------------------------------------


def test_sent_afterwards_it_is_told_the_same_once(tmp_path: Path, reference: clframe.Run) -> None:
    name = tracker(tmp_path, NOTES)
    run = start(tmp_path / "run")
    assert clframe.log(run.path, name) == [f"{name} took 9 events of {run.path}."]
    notes = told(tmp_path)
    assert [(kind, values) for _, what, kind, values in notes if what == "event"] == plain_events(run)
    assert clframe.log(run.path, name) == [f"{name} has everything of {run.path} already; --again sends it anew."]
    assert told(tmp_path) == notes
    clframe.log(run.path, name, again=True)
    assert [t[1:] for t in told(tmp_path)] == [t[1:] for t in [*notes, *notes]]


def test_an_unfinished_run_is_sent_as_far_as_it_is_and_then_the_rest(tmp_path: Path) -> None:
    name = tracker(tmp_path, NOTES)
    with pytest.raises(Stopped):
        start(tmp_path / "run", stop_after=5)
    clframe.log(tmp_path / "run", name)
    assert "finished" not in {t[2] for t in told(tmp_path)}
    clframe.resume(tmp_path / "run", progress=False)
    clframe.log(tmp_path / "run", name)
    epochs = [t[3] for t in told(tmp_path) if t[1] == "event" and t[2] == "epoch"]
    assert [(e["experience"], e["epoch"]) for e in epochs] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_what_fails_is_told_again_the_next_time(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    name = tracker(tmp_path, NOTES + "    def close(self): raise OSError('no network')\n")
    for _ in range(2):
        with pytest.raises(TrackerError, match=r"failed \(OSError: no network\): the same command tries again"):
            clframe.log(run.path, name)
    assert [t[1] for t in told(tmp_path)].count("event") == 2 * len(run.events())


def test_two_do_not_tell_one_tracker_at_once(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    name = tracker(tmp_path, NOTES)
    record = follow.Record(run.path, follow.Choice(name))
    with record.locked(wait=False), pytest.raises(RunDirectoryError, match=r"is watching the run in .* already"):
        clframe.log(run.path, name)


def test_the_tail_of_a_growing_log_yields_whole_lines_once(tmp_path: Path, reference: clframe.Run) -> None:
    text = (reference.path / "events.jsonl").read_bytes()
    grows = tmp_path / "events.jsonl"
    cuts = [0, 10, 11, 300, 301, len(text) // 2, len(text) - 1, len(text)]
    left = iter(cuts)

    def ended() -> bool:
        size = next(left, None)
        if size is not None:
            grows.write_bytes(text[:size])
        return size is None

    class Directory:
        path = tmp_path

    found = list(follow.follow(Directory(), ended))  # type: ignore[arg-type]
    assert found == [json.loads(line) for line in text.splitlines()]


def test_only_events_that_a_resumed_run_repeats_are_counted(tmp_path: Path, reference: clframe.Run) -> None:
    record = follow.Record(reference.path, follow.Choice(tracker(tmp_path, NOTES)))
    once = [{"event": "run"}, {"event": "experience", "experience": 1}, {"event": "epoch", "epoch": 1}]
    again = [*once[:2], *once, {"event": "evaluation", "experience": 1}]
    for events in (once, again):
        follow.send(reference, record, iter(events))
    heard = [(what, kind) for _, what, kind, _ in told(tmp_path) if kind in ("epoch", "evaluation")]
    assert heard == [("event", "epoch"), ("past", "epoch"), ("event", "evaluation")]
    assert record.sent == 2
    record.path.unlink()
