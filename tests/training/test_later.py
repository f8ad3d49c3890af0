"""Phases whose parts are made only when they begin: a student network, Gaussian features, parameters of their own."""

from __future__ import annotations

import torch
from torch.nn import functional

from clframe import DataView, ParameterGroup, Phase, Strategy, TensorView
from clframe.models import Network
from clframe.testing import check_strategy
from tests.fakes import run

TWO = {"experiences": [[0, 1], [2, 3]], "train_per_class": 6}


class Compress(Strategy):
    """Trains a network, draws Gaussian features of it to train its head, then distils it into a fresh student."""

    def setup(self) -> None:
        self.student_: Network | None = None
        self.modes_: list[list[bool]] = []

    def phases(self, experience):
        student = lambda: self.student_  # noqa: E731 - the student doesn't exist yet
        return [
            self.main_phase(experience),
            Phase(
                name="head",
                data=lambda: self.gaussians(experience),
                epochs=2,
                loss=lambda batch: {"head": functional.cross_entropy(self.network.classifier(batch.x), batch.y)},
                parameters=lambda: [ParameterGroup(list(self.network.classifier.parameters()))],
                eval_modules=lambda: [self.network],
            ),
            Phase(
                name="compress",
                data=DataView(experience.train),
                epochs=2,
                loss=self.compress_loss,
                parameters=lambda: [ParameterGroup(list(student().parameters()))],
                train_modules=lambda: [student()],
                eval_modules=lambda: [self.network],
                on_start=lambda: self.make_student(experience),
            ),
        ]

    def gaussians(self, experience) -> TensorView:
        features = self.run.features(experience.train)
        labels = self.run.targets(experience.train)
        noise = torch.randn(features.shape, generator=self.run.rng("gaussians"))
        return TensorView(features + 0.1 * noise, labels, batch_size=5)

    def make_student(self, experience) -> None:
        self.student_ = self.run.fresh_network()
        self.student_.grow(experience.num_seen_classes)
        self.run.place(self.student_)

    def compress_loss(self, batch):
        self.modes_.append([self.network.training, self.student_.training])
        with torch.no_grad():
            taught = self.network(batch.x).logits
        return {"distil": functional.mse_loss(self.student_(batch.x).logits, taught)}


def test_a_strategy_of_such_phases_keeps_the_contract() -> None:
    check_strategy(Compress)


def test_only_what_a_phase_names_trains_and_in_the_mode_it_asks_for() -> None:
    trainer = run(Compress(epochs=1), TWO)
    strategy = trainer.strategy
    assert set(map(tuple, strategy.modes_)) == {(False, True)}
    assert not strategy.student_.training
    assert all(p.requires_grad for p in strategy.network.parameters())
