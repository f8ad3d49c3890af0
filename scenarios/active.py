"""Active: a pool of unlabelled samples, from which labels are bought round by round."""

from __future__ import annotations

from typing import ClassVar

import torch

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import SourceScenario, join, seeded, source_field
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream

__all__ = ["Active"]


class Active(SourceScenario):
    """Pool-based active learning in rounds: in each, the strategy's `query` chooses the samples whose labels are bought.

    Das et al. 2023, "Continual Active Learning". The first round gives `budget` samples of the whole set, drawn by
    `stream_seed` and thus the same for every method. In every later round the pool is all other samples whose labels
    have not been bought yet, and `budget` more may be chosen. An experience trains on what was bought in its round;
    whether earlier ones are trained on again is the strategy's matter (`cumulative`, `replay`). All classes are known
    from the start.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("domain",)

    source: str = source_field("digits")
    rounds: int = field(default=5, ge=1, help="Number of rounds, the first, random one included.")
    budget: int = field(default=50, ge=1, unit="labels", help="Labels bought in every round.")
    stream_seed: int = field(default=0, ge=0, help="Seed of the first round; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Draw the first round; images are not touched.

        Raises:
            ConfigurationError: There are fewer samples than labels to buy.
        """
        found = self.material(data)
        every = tuple(range(found.num_classes))
        rows = join(found.train, every)
        if self.rounds * self.budget > len(rows):
            raise ConfigurationError(
                f"scenario.budget: expected {self.rounds} rounds to buy at most the {len(rows)} training samples, received "
                f"{self.budget} a round: lower rounds or budget."
            )
        order = torch.from_numpy(seeded(self.stream_seed, "active").permutation(len(rows)))
        first, rest = rows[order[: self.budget]].sort().values, rows[order[self.budget :]].sort().values
        valid = join(found.valid, every)
        last = self.rounds - 1
        experiences = [Experience(0, every, every, len(every), first, valid, is_last=last == 0)]
        experiences += [
            Experience(
                i, every, (), len(every), first[:0], valid, is_last=i == last, pool=rest, query_budget=self.budget
            )
            for i in range(1, self.rounds)
        ]
        return self.stream(
            data,
            name=self.title("active"),
            experiences=tuple(experiences),
            tasks=(EvaluationTask(0, every, join(found.test, every), valid, 1),),
            train=SampleTable(data.train.images, found.train_labels),
            test=SampleTable(data.test.images, found.test_labels),
            class_names=found.names,
            class_order=found.order,
            setting="domain",
        )
