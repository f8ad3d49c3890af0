"""The models that a run kept, one after every experience, and what each of them says of some samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clframe.config import RunConfig, resolve
from clframe.errors import RunDirectoryError
from clframe.launch.build import check_same_stream, load_strategy, open_stream
from clframe.metrics import Tasks
from clframe.models import Network
from clframe.strategy import Strategy
from clframe.stream import SampleTable, Stream
from clframe.tracking.rundir import RunDirectory
from clframe.training.batches import BatchMaker
from clframe.training.context import STATISTICS_BATCH

__all__ = ["AuditedRun", "KeptModel"]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptModel:
    """A model as it was after some experiences, in eval mode and full precision.

    Attributes:
        after: How many experiences it was trained on.
        strategy: With its state.
        maker: Turns images into the network's input as in the run: test transform, the run's normalisation.
    """

    after: int
    strategy: Strategy
    maker: BatchMaker

    @property
    def network(self) -> Network:
        """The network."""
        return self.strategy.network

    def inputs(self, table: SampleTable, ids: Tensor) -> Iterator[Tensor]:
        """Yield the network's input of some samples, in batches."""
        batches = list(torch.split(ids, STATISTICS_BATCH)) if len(ids) else []
        return (self.maker.test_input(images) for images in table.batches(batches))

    @torch.no_grad()
    def embed(self, table: SampleTable, ids: Tensor) -> Tensor:
        """Return features (N, D) of some samples, on the CPU; those of several branches side by side.

        Args:
            table: Of any source, with images of the stream's shape.
            ids: (N,) samples.
        """
        parts = [self.network.features(x).float().cpu() for x in self.inputs(table, ids)]
        return torch.cat([torch.empty(0, self.network.feature_dim), *parts])

    @torch.no_grad()
    def scores(self, table: SampleTable, ids: Tensor) -> Tensor:
        """Return scores (N, K) of the primary report head among the classes it knows, on the CPU.

        Args:
            table: Of any source, with images of the stream's shape.
            ids: (N,) samples; at least one.
        """
        heads = (self.strategy.predict(x) for x in self.inputs(table, ids))
        return torch.cat([next(iter(found.values())).float().cpu() for found in heads])


class AuditedRun:
    """A run, its data, and its models.

    Args:
        directory: The run.
        data_root: Folders to look for data in.
        device: Where models compute.
        objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        data_root: Any = None,
        device: str = "auto",
        objects: Mapping[str, Any] | None = None,
    ) -> None:
        """Read nothing yet."""
        self.directory, self.data_root, self.device = directory, data_root, device
        self.objects = dict(objects or {})

    @property
    def path(self) -> str:
        """The run directory."""
        return str(self.directory.path)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, with the objects in their places."""
        record = {**self.directory.config, **self.objects}
        record.pop("weights", None)  # every value comes from a checkpoint: the file may be gone
        return resolve({**record, "device": self.device})

    @cached_property
    def stream(self) -> Stream:
        """The data.

        Raises:
            RunDirectoryError: It differs from what the run was made on.
            DataError: It is missing or damaged.
        """
        stream = open_stream(self.config, self.data_root, False)
        check_same_stream(self.directory, stream)
        return stream

    @cached_property
    def tasks(self) -> Tasks:
        """The evaluation tasks."""
        return Tasks.from_dict(self.directory.stream["tasks"])

    @property
    def last(self) -> int:
        """Number T of experiences."""
        return self.tasks.num_experiences

    @property
    def title(self) -> str:
        """How tables call the run."""
        config = self.directory.config
        return f"{config['strategy']['name']} on {config['scenario']['name']}, seed {config['seed']}"

    def kept(self) -> list[int]:
        """Return the experiences after which a model is there: those that were kept, and the final one.

        Raises:
            RunDirectoryError: The run hasn't finished.
        """
        _ = self.directory.result  # says what to do about a run that hasn't finished
        found = [i for i in range(1, self.last) if (self.directory.checkpoints / _name(i)).is_file()]
        return [*found, self.last]

    def all_kept(self) -> list[int]:
        """Return 1 to T.

        Raises:
            RunDirectoryError: The run hasn't finished, or a model is missing.
        """
        kept = self.kept()
        missing = sorted(set(range(1, self.last + 1)) - set(kept))
        if missing:
            raise RunDirectoryError(
                f"Expected the model after every experience in {self.directory.checkpoints}, but that after "
                f"{', '.join(map(str, missing))} was not kept: train the run with --keep-models true."
            )
        return kept

    def model(self, after: int) -> KeptModel:
        """Load the model after some experiences.

        Raises:
            RunDirectoryError: It was not kept, or is damaged.
        """
        given = {name: self.objects[name] for name in ("backbone", "strategy") if name in self.objects}
        file = "latest.pt" if after == self.last else _name(after)
        strategy, maker = load_strategy(self.directory, **given, checkpoint=file, device=self.device)
        return KeptModel(after, strategy, maker)


def _name(after: int) -> str:
    return f"experience-{after:03d}.pt"
