"""Fine-tuning: the lower bound of continual learning."""

from __future__ import annotations

from typing import ClassVar

from clframe.strategy import ANY_SCORE, Strategy, Tags

__all__ = ["Finetune"]


class Finetune(Strategy):
    """Fine-tuning: go on from the previous weights with the current experience's data alone.

    Loss: cross-entropy, over all classes seen (`loss_over=seen`, "global") or over the experience's own
    (`loss_over=experience`, "local"). The two give different results and are named in the run's record.

    Differs from the paper:
        There is no single paper. Public class-incremental code (PyCIL) trains with the local form; the default here is
        the global one in class- and domain-incremental runs and the local one in task-incremental runs.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE)
