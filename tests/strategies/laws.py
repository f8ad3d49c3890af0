"""What the tests of several methods hold them against: numpy references, finite differences, copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def at_begin_of(trial, name: str, call) -> None:
    """Call something with the experience when a phase begins."""
    inner = trial.trainer.begin_phase

    def both(experience, number, phase, start):
        begun = inner(experience, number, phase, start)
        if phase.name == name:
            call(experience)
        return begun

    trial.trainer.begin_phase = both


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def ce(z: np.ndarray, y: np.ndarray) -> float:
    return float(-log_softmax(z)[np.arange(len(y)), y].mean())


def assert_gradients(total, parameters) -> None:
    """Compare autograd with central differences at the steepest entry of every parameter."""
    for p in parameters:
        p.grad = None
    total().backward()
    checked = 0
    for p in parameters:
        if p.grad is None or float(p.grad.abs().max()) < 1e-6:
            continue
        k, values = tuple(int(i) for i in np.unravel_index(int(p.grad.abs().argmax()), p.shape)), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                p[k] += shift
            values.append(total().item())
        with torch.no_grad():
            p[k] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(p.grad[k].item(), rel=1e-4)
        checked += 1
    assert checked > 2
