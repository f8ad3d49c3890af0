"""Unlearning: after learning, some classes or samples must be forgotten."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, join, seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field, fields_of
from clframe.stream import Experience, Setting, Stream, no_samples

__all__ = ["Unlearning"]


class Unlearning(Split):
    """Class-incremental learning, followed by an experience that asks to forget classes or samples seen before.

    `what=classes` names the classes that were learnt first, as many as `share` says (rounded, at least one);
    `what=samples` draws that share of every class's training samples. What the model may still look at while it forgets
    is `retain`: `none` (an experience without training samples; exemplars that a strategy keeps are its own), or `full`
    (all samples that stay). Evaluation tasks are those of the split stream: forgotten classes are still asked for.

    `retrain=true` is the stream of the reference that never learnt them: the same experiences without the samples, or
    without the classes; in the last one, where `retain` is full, the rest is trained on once more. `clframe audit
    unlearning` compares with runs on it.

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
    retrain: bool = field(
        default=False,
        help="Leave out from the start what is to be forgotten, the reference of an audit.",
    )
    stream_seed: int = field(default=0, ge=0, help="Seed of the samples to forget; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Append the event; images are not touched.

        Raises:
            ConfigurationError: The setting isn't class-incremental.
        """
        if self.setting != "class":
            raise ConfigurationError(f"scenario.setting: unlearning expects class, received {self.setting!r}.")
        forget = no_samples() if self.retrain else self._forgotten(self.material(data))
        stream = self._retrained(data) if self.retrain else super().cut(data)
        if self.retrain and self.retain == "none":
            return stream
        experiences = [dataclasses.replace(e, is_last=False) for e in stream.experiences]
        everything = torch.cat([e.train for e in experiences])
        left = everything[~torch.isin(everything, forget)].sort().values if self.retain == "full" else no_samples()
        classes = tuple(torch.unique(stream.train.targets[left]).tolist())
        event = Experience(len(experiences), classes, (), stream.num_classes, left, is_last=True, forget=forget)
        stream = dataclasses.replace(stream, experiences=(*experiences, event))
        stream.check()
        return stream

    def _forgotten(self, found: Material) -> Tensor:
        """Return the training rows that are to be forgotten, ascending."""
        if self.what == "classes":
            return join(found.train, range(self._first_classes(found.num_classes)))
        chosen = [no_samples()]
        for label, own in enumerate(found.train):
            drawn = seeded(self.stream_seed, "forget", label).permutation(len(own))[: round(self.share * len(own))]
            chosen.append(own[torch.from_numpy(drawn)])
        return torch.cat(chosen).sort().values

    def _first_classes(self, total: int) -> int:
        """Return how many classes are to be forgotten."""
        return max(1, round(self.share * total))

    def _retrained(self, data: ImageData) -> Stream:
        """Cut the stream without what is to be forgotten.

        Raises:
            ConfigurationError: Nothing, or no sample of some class, would stay.
        """
        if self.what == "classes":
            return self._without_classes(data)
        return _without_samples(super().cut(data), self._forgotten(self.material(data)))

    def _without_classes(self, data: ImageData) -> Stream:
        """Cut the same groups from the classes that stay; a group of which none stays is left out.

        Raises:
            ConfigurationError: No class would stay.
        """
        whole = self.material(data)
        gone = self._first_classes(whole.num_classes)
        if gone == whole.num_classes:
            raise ConfigurationError(
                f"scenario.share: expected to leave some of the {gone} classes for the reference, received {self.share}."
            )
        sizes = [sum(label >= gone for label in group) for group in self.groups(whole.num_classes)]
        options = {f.name: getattr(self, f.name) for f in fields_of(Split)}
        stays = list(whole.order[gone:])
        options |= {"order": stays, "classes": stays, "exclude": None, "sizes": [n for n in sizes if n]}
        plain = Split(**{**options, "experiences": None, "increment": None, "base": None})
        return dataclasses.replace(plain.cut(data), name=self.name)


def _without_samples(stream: Stream, gone: Tensor) -> Stream:
    """Take samples out of every experience.

    Raises:
        ConfigurationError: A class would have none left.
    """
    experiences = [dataclasses.replace(e, train=e.train[~torch.isin(e.train, gone)]) for e in stream.experiences]
    for e in experiences:
        if len(torch.unique(stream.train.targets[e.train])) < len(e.classes):
            raise ConfigurationError(
                "scenario.share: expected to leave training samples of every class for the reference, but all of one are to "
                "be forgotten: lower it, or name whole classes."
            )
    return dataclasses.replace(stream, experiences=tuple(experiences))
