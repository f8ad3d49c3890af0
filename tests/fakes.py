"""One configurable fake of everything that a trainer needs, for the tests of the engine."""

from __future__ import annotations

import signal
from typing import Any

from clframe.config import resolve
from clframe.launch.build import build_setup
from clframe.strategy import Strategy
from clframe.testing import MemoryRecorder, TinyBackbone, synthetic_stream
from clframe.training.context import Setup
from clframe.training.trainer import Stopped, Trainer


def make_setup(strategy: Strategy, stream: Any = None, *, backbone: Any = None, **options: Any) -> Setup:
    """The objects of a tiny run; stream options go to `stream` as a dictionary."""
    if stream is None or isinstance(stream, dict):
        stream = synthetic_stream(**(stream or {}))
    chosen = {
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 4,
        "augmentation": "none",
        "optimizer": {"lr": 0.05},
        **options,
    }
    parts = {"scenario": stream, "strategy": strategy, "backbone": backbone or TinyBackbone()}
    return build_setup(resolve({**parts, **chosen}), stream)


def make_trainer(
    strategy: Strategy, stream: Any = None, *, state: Any = None, recorder: Any = None, **options: Any
) -> Trainer:
    """A trainer with a recorder in memory; `stop_after` and `checkpoint_seconds` go to the trainer."""
    trainer_options = {
        k: options.pop(k) for k in ("stop_after", "checkpoint_seconds", "keep_models", "valid") if k in options
    }
    trainer = Trainer(make_setup(strategy, stream, **options), recorder or MemoryRecorder(), **trainer_options)
    if state is not None:
        trainer.load_state(state)
    return trainer


def run(strategy: Strategy, stream: Any = None, **options: Any) -> Trainer:
    """Train to the end, or to where `stop_after` says."""
    trainer = make_trainer(strategy, stream, **options)
    try:
        trainer.run()
    except Stopped:
        assert trainer.stop_after is not None
    return trainer


def hear_interrupts() -> None:
    """In a child process: listen to Ctrl-C even where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
