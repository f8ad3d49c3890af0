"""One step against plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clframe.strategies.finetune import Finetune
from clframe.strategy import Batch, Strategy
from clframe.training.stepper import Stepper
from clframe.training.trainer import Trainer
from tests.fakes import make_trainer, run

ONE = {"experiences": [[0, 1, 2]], "train_per_class": 8}


def test_training_is_what_a_bare_loop_does() -> None:
    """Same initial weights, same batches: cross-entropy, SGD with momentum and decay, cosine schedule, clipping."""
    batches: list[tuple[Tensor, Tensor, int]] = []
    start: list[nn.Module] = []

    class Shown(Finetune):
        """Keeps its batches."""

        def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
            if not start:
                start.append(copy.deepcopy(self.network))
            batches.append((batch.x.clone(), batch.y.clone(), batch.epoch))
            return super().loss_terms(batch)

    recipe = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "schedule": "cosine", "clip_norm": 0.5}
    trained = run(Shown(epochs=3), ONE, optimizer=recipe, channels_last=False).strategy.network
    net: Any = start[0]
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    last = 0
    for x, y, epoch in batches:
        if epoch != last:
            schedule.step()
            last = epoch
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x).logits, y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    assert len(batches) == 18
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class Terms(Strategy):
    """Two further terms."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        return {"a": 2 * output.logits.square().mean(), "b": -output.logits.mean()}


def test_the_total_is_the_sum_of_the_terms() -> None:
    found: list[dict[str, Tensor]] = []
    steps = Stepper.step

    def spy(self: Stepper, batch: Batch) -> dict[str, Tensor]:
        found.append(steps(self, batch))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", spy)
        trainer = run(Terms(epochs=1), ONE)
    for record in found:
        assert list(record) == ["classification", "a", "b", "total"]
        torch.testing.assert_close(record["total"], record["classification"] + record["a"] + record["b"])
        assert not any(v.requires_grad for v in record.values())
    (event,) = [v for kind, v in trainer.recorder.events if kind == "epoch"]  # type: ignore[attr-defined]
    assert event["loss"] == pytest.approx(torch.stack([r["total"] for r in found]).mean().item())
    assert event["terms"]["a"] == pytest.approx(torch.stack([r["a"] for r in found]).mean().item())


class Projects(Strategy):
    """Removes every gradient."""

    def after_backward(self, batch: Batch) -> None:
        for p in self.network.parameters():
            assert p.grad is not None
            p.grad.zero_()


def test_gradients_can_be_changed_before_the_step() -> None:
    trainer = make_trainer(Projects(epochs=1), ONE, optimizer={"lr": 1.0, "weight_decay": 0.0})
    before = {n: p.clone() for n, p in trainer.context.network.named_parameters()}
    trainer.run()
    after = dict(trainer.strategy.network.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("branches"))


class Changes(Finetune):
    """Lowers the rate in its only phase."""

    def main_phase(self, experience: Any) -> Any:
        import dataclasses

        return dataclasses.replace(super().main_phase(experience), optimizer={"lr": 0.007})


def rates(trainer: Trainer) -> list[float]:
    return [v["lr"] for kind, v in trainer.recorder.events if kind == "epoch"]  # type: ignore[attr-defined]


def test_recipes_of_experiences_and_phases() -> None:
    two = {"experiences": [[0, 1], [2, 3]]}
    assert rates(run(Finetune(epochs=1), two, optimizer={"lr": 0.1}, first_optimizer={"lr": 0.3})) == [0.3, 0.1]
    assert rates(run(Changes(epochs=1), two, optimizer={"lr": 0.1})) == [0.007, 0.007]
    assert rates(
        run(Finetune(epochs=2, first_epochs=1), two, optimizer={"lr": 0.1, "schedule": "cosine"})
    ) == pytest.approx([0.1, 0.1, 0.05])


def test_mixed_precision_on_the_cpu() -> None:
    kinds: set[torch.dtype] = set()

    class Sees(Finetune):
        """Notes the type of its logits."""

        def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
            kinds.add(output.logits.dtype)
            return {}

    trainer = run(Sees(epochs=1), ONE, precision="bf16")
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in trainer.strategy.network.parameters()} == {torch.float32}
