"""Fresh: every experience begins with a newly initialised network. What a network that lost no plasticity would learn."""

from __future__ import annotations

from typing import ClassVar

from clframe.strategies.finetune import Finetune
from clframe.strategy import ANY_SCORE, Tags
from clframe.stream import Experience

__all__ = ["Fresh"]


class Fresh(Finetune):
    """Training from scratch on the current experience alone: nothing is carried over.

    The reference by which plasticity is known: its accuracy on task j right after it, a_fresh[j], is what a freshly initialised
    network of the same architecture learns with the same steps and augmentation, and `fresh_gap` is how far another run falls
    short of it (`clframe.fresh_reference` makes the one beside the other). No continual learner: it forgets everything at
    once. On a stream of one experience it is fine-tuning, bit for bit.

    The classifier has rows for all classes seen, as in other methods; those of earlier classes begin anew and see no sample
    of their own. An experience without samples to train on changes nothing.

    Differs from the paper:
        There is no single paper; plasticity studies call it resets, or retraining from scratch. With pretrained weights
        "fresh" means these, except for the classifier.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_boundaries=True)

    def before_experience(self, experience: Experience) -> None:
        """Begin with fresh weights where training follows; those of the first experience are fresh already."""
        trains = len(experience.train) + len(experience.unlabelled) + experience.query_budget
        if experience.index > 0 and trains:
            self.network = self.run.fresh_network()
        super().before_experience(experience)
