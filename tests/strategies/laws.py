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


def ready_to_train(trial, index: int = 1, new: slice = slice(3, 9), stored: int = 6):
    """Run up to the training of an experience; returns a batch of new and stored samples, and the network in float64."""

    def stop(experience) -> None:
        if experience.index == index:
            raise KeyboardInterrupt

    trial.before("phases", stop)
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    experience, context = trial.stream.experiences[index], trial.trainer.context
    context.experience = experience
    ids = torch.cat([experience.train[new], trial.strategy.memory_.ids[:stored]])
    batch = next(iter(context.batches(ids, batch_size=len(ids))))
    batch.x, batch.phase = batch.x.double(), "train"
    trial.strategy.network.double().train()
    if getattr(trial.strategy, "teacher_", None) is not None:
        trial.strategy.teacher_.double()
    return batch


def kd(z: np.ndarray, taught: np.ndarray, temperature: float) -> float:
    return float(-(np.exp(log_softmax(taught / temperature)) * log_softmax(z / temperature)).sum(1).mean())


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def bce(z: np.ndarray, q: np.ndarray) -> float:
    p = sigmoid(z)
    return float(-(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1).mean())
