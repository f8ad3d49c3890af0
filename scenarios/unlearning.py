"""Unlearning: after learning, some classes or samples must be forgotten."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field
from clframe.stream import Experience, Setting, Stream, no_samples

__all__ = ["Unlearning"]


class Unlearning(Split):
    """Class-incremental learning, followed by an experience that asks to forget classes or samples seen before.

    `what=classes` names the classes that were learnt first, as many as `share` says (rounded, at least one);
    `what=samples` draws that share of every class's training samples. What the model may still look at while it forgets
    is `retain`: `none` (an experience without training samples; exemplars that a strategy keeps are its own), or `full`
    (all samples that stay). Evaluation tasks are those of the split stream: forgotten classes are still asked for.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("class",)
    example: ClassVar[str] = "--strategy replay --strategy.memory-size 200"
    prefix: ClassVar[str] = "unlearning"
    usual_experiences: ClassVar[int | None] = 5

    source: str = source_field("digits")
    what: Literal["classes", "samples"] = field(default="classes", help="Whether whole classes or samples are named.")
    share: float = field(default=0.1, gt=0, lt=1, help="Share of the classes, or of every class's samples, to forget.")
    retain: Literal["none", "full"] = field(default="full", help="What may be trained on in the last experience.")
    stream_seed: int = field(default=0, ge=0, help="Seed of the samples to forget; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Append the event; images are not touched.

        Raises:
            ConfigurationError: The setting isn't class-incremental.
        """
        if self.setting != "class":
            raise ConfigurationError(f"scenario.setting: unlearning expects class, received {self.setting!r}.")
        stream = super().cut(data)
        experiences = [dataclasses.replace(e, is_last=False) for e in stream.experiences]
        everything = torch.cat([e.train for e in experiences])
        labels = stream.train.targets[everything]
        forget = everything[self._chosen(labels, stream.num_classes)].sort().values
        left = everything[~torch.isin(everything, forget)].sort().values if self.retain == "full" else no_samples()
        classes = tuple(torch.unique(stream.train.targets[left]).tolist())
        event = Experience(len(experiences), classes, (), stream.num_classes, left, is_last=True, forget=forget)
        stream = dataclasses.replace(stream, experiences=(*experiences, event))
        stream.check()
        return stream

    def _chosen(self, labels: Tensor, classes: int) -> Tensor:
        """Return which samples are to be forgotten, as a mask."""
        if self.what == "classes":
            return labels < max(1, round(self.share * classes))
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(classes):
            own = (labels == label).nonzero().flatten()
            drawn = seeded(self.stream_seed, "forget", label).permutation(len(own))[: round(self.share * len(own))]
            chosen[own[torch.from_numpy(drawn)]] = True
        return chosen
