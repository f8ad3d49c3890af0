"""Instruments: when the trainer calls them, that they survive a resume, and what becomes of what they measure."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.metrics import Measured
from clframe.metrics.scores import Absent
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.strategy import Batch, BegunPhase
from clframe.stream import Experience
from clframe.testing import MemoryRecorder
from clframe.testing.bench import first_difference
from clframe.training.checkpoint import pack
from clframe.training.instruments import Instrument
from clframe.training.measures import instruments_for
from clframe.training.stepper import Stepper
from clframe.training.trainer import Stopped, Trainer
from tests.fakes import make_setup, run

TWO = {"experiences": [[0, 1], [2, 3]]}


class Diary(Instrument):
    """Writes down every call, and counts the steps of an experience."""

    name = "diary"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps = 0

    @contextlib.contextmanager
    def work(self, kind: str, experience: Experience | None) -> Iterator[None]:
        self.calls.append(f"{kind} {None if experience is None else experience.index}")
        yield
        self.calls.append(f"/{kind}")

    @contextlib.contextmanager
    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> Iterator[None]:
        self.calls.append(f"phase {begun.phase.name}")
        yield
        self.calls.append("/phase")

    @contextlib.contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        self.calls.append("step")
        yield
        self.calls.append("/step")

    def stepped(self, batch: Batch, terms: Mapping[str, Tensor]) -> None:
        self.steps += 1
        self.calls.append("stepped")

    def report(self, experience: Experience) -> dict[str, Any]:
        found, self.steps = self.steps, 0
        return {"diary_steps": found}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


def trainer_with(instrument: Instrument, strategy: Any = None, **options: Any) -> Trainer:
    setup = make_setup(strategy or Finetune(epochs=1), TWO, batch_size=100)
    return Trainer(dataclasses.replace(setup, instruments=(instrument,)), MemoryRecorder(), **options)


def test_the_trainer_calls_an_instrument_around_everything_it_does():
    diary = Diary()
    trainer_with(diary).run()
    one = [
        "before {}",
        "/before",
        "phases {}",
        "/phases",
        "start {}",
        "/start",
        "phase train",
        "epoch {}",
        "/epoch",
        "step",
        "/step",
        "stepped",
    ]
    one += ["/phase", "after {}", "/after", "evaluation {}", "/evaluation"]
    assert diary.calls == ["setup None", "/setup", *(c.format(i) for i in (0, 1) for c in one)]


def test_what_it_reports_is_logged_after_every_experience():
    trainer = trainer_with(Diary(), Finetune(epochs=3))
    trainer.run()
    logged = [e for e in trainer.recorder.events if e[0] == "measured"]
    assert [e[1] for e in logged] == [{"experience": i, "values": {"diary_steps": 3}} for i in (1, 2)]


def test_a_resumed_run_goes_on_measuring_where_it_was_stopped():
    stopped = trainer_with(Diary(), Finetune(epochs=3), stop_after=2)
    with pytest.raises(Stopped):
        stopped.run()
    goes_on = trainer_with(Diary(), Finetune(epochs=3))
    goes_on.load_state(stopped.recorder.latest())
    goes_on.run()
    logged = [e[1]["values"]["diary_steps"] for e in goes_on.recorder.events if e[0] == "measured"]
    assert logged == [3, 3]


def test_measuring_changes_no_bit():
    plain = run(Replay(epochs=2, memory_size=6), TWO, batch_size=4, measure="none")
    setup = make_setup(Replay(epochs=2, memory_size=6), TWO, batch_size=4, measure="all")
    measured = Trainer(setup, MemoryRecorder())
    measured.run()
    assert first_difference(pack(plain.strategy.network), pack(measured.strategy.network)) is None


def test_a_typo_in_a_measure_is_refused():
    with pytest.raises(ConfigurationError, match=r"received 'defualt'\. Did you mean 'default'"):
        instruments_for(["defualt"])


def test_measured_values_become_curves_over_the_experiences():
    events = [
        {"event": "epoch", "experience": 1},
        {"event": "measured", "experience": 1, "values": {"rank": 2.0, "dormant": {"a": 0.5}}},
        {"event": "measured", "experience": 3, "values": {"rank": 1.0, "dormant": {"a": 0.25, "b": 1.0}}},
        {"event": "measured", "experience": 3, "values": {"rank": 4.0}},
    ]
    measured = Measured.from_events(events, 3)
    assert measured.curve("rank") == [2.0, None, 4.0]
    assert measured.layers("dormant") == {"a": [0.5, None, 0.25], "b": [None, None, 1.0]}
    with pytest.raises(Absent, match="didn't measure norm"):
        measured.curve("norm")
