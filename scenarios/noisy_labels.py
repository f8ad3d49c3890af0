"""Noisy labels: a share of the training labels is wrong."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.scenarios._parts import seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field
from clframe.stream import Experience, Stream

__all__ = ["NoisyLabels"]


class NoisyLabels(Split):
    """Class-incremental learning with wrong training labels; validation and test labels are true.

    A wrong label is another class of the same experience, so that an experience shows no class of another: `symmetric`
    draws it uniformly, `pair` takes the next class of the experience. Exactly round(noise · n) of the n samples of every
    class are wrong, drawn by `stream_seed`. An experience of one class stays clean.

    Version history:
        1: first version.
    """

    prefix: ClassVar[str] = "noisy_labels"
    usual_experiences: ClassVar[int | None] = 5

    source: str = source_field("digits")
    noise: float = field(default=0.2, ge=0, le=1, help="Share of every class's training labels that is wrong.")
    kind: Literal["symmetric", "pair"] = field(default="symmetric", help="Which wrong label, see above.")
    stream_seed: int = field(default=0, ge=0, help="Seed of the noise; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Change training labels; images are not touched."""
        stream = super().cut(data)
        targets = stream.train.targets.clone()
        for e in stream.experiences:
            targets[e.train] = self._noisy(e, stream.train.targets[e.train])
        stream = dataclasses.replace(stream, train=dataclasses.replace(stream.train, targets=targets))
        stream.check()
        return stream

    def _noisy(self, experience: Experience, labels: Tensor) -> Tensor:
        noisy, classes = labels.clone(), experience.classes
        if len(classes) < 2:
            return noisy
        for k, label in enumerate(classes):
            own = (labels == label).nonzero().flatten()
            draw = seeded(self.stream_seed, "noise", experience.index, label)
            wrong = own[torch.from_numpy(draw.permutation(len(own))[: round(self.noise * len(own))])]
            others = [*classes[k + 1 :], *classes[:k]]
            picks = draw.integers(len(others), size=len(wrong)) if self.kind == "symmetric" else [0] * len(wrong)
            noisy[wrong] = torch.tensor([others[int(i)] for i in picks], dtype=noisy.dtype)
        return noisy
