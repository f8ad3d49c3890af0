"""A run with its data and the models that it kept, and what a model says of some samples of any source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clframe.kept_models import context_of, kept_models, model_file
from clframe.launch.build import load_strategy
from clframe.metrics import Tasks
from clframe.models import Network
from clframe.strategy import Strategy
from clframe.stream import SampleTable, Stream
from clframe.tracking.rundir import RunDirectory
from clframe.training.batches import BatchMaker
from clframe.training.context import STATISTICS_BATCH, Setup

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
    def setup(self) -> Setup:
        """What the run is made of.

        Raises:
            RunDirectoryError: The data differs from what the run was made on.
            DataError: It is missing or damaged.
        """
        return context_of(self.directory, self.data_root, self.device, self.objects).setup

    @property
    def stream(self) -> Stream:
        """The data; see `setup`."""
        return self.setup.stream

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
        return [*(i for i in range(1, self.last) if model_file(self.directory, i).is_file()), self.last]

    def all_kept(self) -> list[int]:
        """Return 1 to T.

        Raises:
            RunDirectoryError: The run hasn't finished, or a model is missing.
        """
        return list(range(1, len(kept_models(self.directory)) + 1))

    def model(self, after: int) -> KeptModel:
        """Load the model after some experiences.

        Raises:
            RunDirectoryError: It was not kept, or is damaged.
        """
        given = {name: self.objects[name] for name in ("backbone", "strategy") if name in self.objects}
        file = "latest.pt" if after == self.last else model_file(self.directory, after).name
        strategy, maker = load_strategy(self.directory, **given, checkpoint=file, device=self.device)
        return KeptModel(after, strategy, maker)
