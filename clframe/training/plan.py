"""What a run would do, without training: its phases, steps and bytes."""

from __future__ import annotations

from typing import Any

from clframe.training.footprint import kept_bytes
from clframe.training.seeds import isolated
from clframe.training.trainer import Trainer

__all__ = ["memory_bytes", "plan_phases"]


def plan_phases(trainer: Trainer) -> list[dict[str, Any]]:
    """Walk through the stream of a dry trainer and return a row per phase: samples, epochs, steps.

    Hooks that grow the model, choose exemplars or make a phase's parts are called; no sample is trained on, and
    statistics passes see two samples at most.
    """
    rows: list[dict[str, Any]] = []
    strategy, streams = trainer.strategy, trainer.context.streams
    with isolated():
        streams.enter("setup")
        strategy.setup()
        for experience in trainer.setup.stream.experiences:
            current = trainer.begin_experience(experience)
            streams.enter("phases", experience.index)
            phases = trainer.check_phases(strategy.phases(current))
            budgets = trainer.epoch_steps(current, phases)
            for number, (phase, budget) in enumerate(zip(phases, budgets, strict=True)):
                begun = trainer.begin_phase(current, number, phase, start=True)
                whole = trainer.steps_per_epoch(begun.data)
                steps = phase.epochs * whole if budget is None or not whole else sum(budget)
                row = {"experience": experience.index + 1, "phase": phase.name, "samples": len(begun.data)}
                rows.append({**row, "epochs": phase.epochs, "steps": steps})
                if phase.on_end is not None:
                    streams.enter("end", experience.index, number)
                    phase.on_end()
            streams.enter("after", experience.index)
            strategy.network.eval()
            strategy.after_experience(current)
    return rows


def memory_bytes(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of what a run keeps, by purpose: `kept_bytes`, and what the optimiser will hold."""
    tensors_per_parameter = 1 if trainer.setup.recipe.name == "sgd" else 2
    optimizer = tensors_per_parameter * trainer.strategy.network.parameter_bytes()
    return {**kept_bytes(trainer.strategy, trainer.context.sample_bytes), "optimizer": optimizer}
