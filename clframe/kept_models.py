"""What the models that a run kept give for the run's own samples: features, Gram matrices of their layers.

Every model passes every sample once: eval mode, full precision, images normalised as in the run, not augmented.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.config import resolve
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.fingerprint import fingerprint
from clframe.launch.build import build_setup, check_same_stream, open_stream
from clframe.metrics import Tasks
from clframe.metrics.cka import gram
from clframe.models import Backbone, Network
from clframe.stream import Experience, Stream
from clframe.tracking.rundir import RunDirectory
from clframe.training.batches import BatchMaker
from clframe.training.checkpoint import read_checkpoint, unpack
from clframe.training.context import STATISTICS_BATCH, Context

__all__ = [
    "Extractor",
    "Samples",
    "choose_samples",
    "context_of",
    "extract",
    "kept_models",
    "layers_of",
    "model_file",
    "passes",
]

CKA_BATCH = 250
"""Samples of a mini-batch of the alignment, at most; a stream is cut into equal ones instead of leaving a short rest."""

Float = NDArray[np.float64]
Features = NDArray[np.float32]
Tick = Callable[[], None]


def model_file(directory: RunDirectory, after: int) -> Path:
    """Return where the model after so many experiences is kept, whether it is there or not."""
    return directory.checkpoints / f"experience-{after:03d}.pt"


def kept_models(directory: RunDirectory) -> list[Path]:
    """Return the checkpoint of every experience.

    Raises:
        RunDirectoryError: The run hasn't finished, or a model wasn't kept.
    """
    _ = directory.result  # says what to do about a run that hasn't finished
    count = len(directory.stream["experiences"])
    models = [model_file(directory, i) for i in range(1, count + 1)]
    missing = [path.name for path in models if not path.is_file()]
    if len(missing) == count:
        raise RunDirectoryError(
            f"The run in {directory.path} has kept no models: train it with `keep_models: true` (--keep-models)."
        )
    if missing:
        raise RunDirectoryError(
            f"Expected the model after every experience in {directory.checkpoints}, but {', '.join(missing)} is not "
            "there: bring it back, or train the run again with `keep_models: true`."
        )
    return models


def context_of(directory: RunDirectory, data_root: Any, device: str, objects: Mapping[str, Any]) -> Context:
    """Return a run's data and input, with networks whose values a checkpoint will fill.

    Args:
        directory: The run.
        data_root: Folders to look for data in.
        device: Where features are computed.
        objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.

    Raises:
        RunDirectoryError: The data differs from what the run was made on.
        DataError: The data is missing or damaged.
    """
    record = {**directory.config, **objects}
    record.pop("weights", None)  # of a pretrained backbone: the file may be gone by now
    config = resolve({**record, "device": device, "precision": "fp32", "threads": None})
    stream = open_stream(config, data_root, False)
    check_same_stream(directory, stream)
    setup = build_setup(config, stream)
    return Context(dataclasses.replace(setup, factory=setup.skeleton))


# -- which samples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that every model passes; the same for every model, and for every seed of the run.

    Attributes:
        train: Training ids (N,), ascending.
        labels: (N,) their labels.
        prototypes: (N,) whether a sample counts for the prototype of its class: those of the experience that taught it.
        test: Test ids of all tasks, each once.
        rows: (M,) row in `test` of every sample of every task, task after task.
        owners: (M,) its task.
        first: Test ids of the tasks that the first experience teaches, for the alignment.
        seen: Test ids of all tasks, likewise.
        seen_at: Experience (from 1) that teaches each of the latter.
    """

    train: Tensor
    labels: NDArray[np.int64]
    prototypes: NDArray[np.bool_]
    test: Tensor
    rows: NDArray[np.int64]
    owners: NDArray[np.int64]
    first: Tensor
    seen: Tensor
    seen_at: Tensor

    def aligned(self) -> dict[str, list[Tensor]]:
        """The mini-batches of the alignment, by stream of samples."""
        return {"first": in_batches(self.first), "seen": in_batches(self.seen)}


def in_batches(values: Tensor) -> list[Tensor]:
    """Cut into mini-batches of the alignment, whose sizes differ by one at most."""
    return list(torch.tensor_split(values, -(-len(values) // CKA_BATCH))) if len(values) else []


def choose_samples(stream: Stream, tasks: Tasks, train_per_class: int | None, cka_samples: int) -> Samples:
    """Choose the samples.

    Args:
        stream: Of the run.
        tasks: Its evaluation tasks.
        train_per_class: Training samples of each class; None means all.
        cka_samples: Test samples of each alignment, at most.

    Raises:
        ConfigurationError: The stream has nothing to test.
    """
    owners = torch.cat([torch.full((len(t.test),), t.index) for t in stream.tasks])
    test, rows = torch.unique(torch.cat([t.test for t in stream.tasks]), return_inverse=True)
    if not len(test):
        raise ConfigurationError(
            f"A representation report needs test samples, but {stream.name!r} has none: choose a run of another scenario."
        )
    after = torch.tensor([t.available_after for t in stream.tasks])[owners]
    seen_at = torch.full((len(test),), len(stream.experiences) + 1).scatter_reduce(0, rows, after, "amin")
    first = _shuffled(torch.nonzero(seen_at == 1).flatten())[:cka_samples]
    seen = _shuffled(torch.arange(len(test)))[:cka_samples]
    parts = [_training_ids(e) for e in stream.experiences]
    train = torch.unique(torch.cat(parts))
    if train_per_class is not None:
        train = _per_class(train, stream.train.targets[train], train_per_class)
    labels = stream.train.targets[train]
    taught = torch.tensor([tasks.first_seen(c) for c in range(stream.num_classes)])[labels]
    prototypes = torch.zeros(len(train), dtype=torch.bool)
    for i, ids in enumerate(parts, 1):
        prototypes |= (taught == i) & torch.isin(train, ids)
    return Samples(
        train=train, labels=labels.numpy(), prototypes=prototypes.numpy(), test=test, rows=rows.numpy(),
        owners=owners.numpy(), first=test[first], seen=test[seen], seen_at=seen_at[seen],
    )  # fmt: skip


def _training_ids(experience: Experience) -> Tensor:
    """Every sample that a run could learn from; of those without a label a probe is told it."""
    return torch.cat([experience.train, experience.unlabelled, experience.pool])


def _shuffled(values: Tensor) -> Tensor:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]


def _per_class(ids: Tensor, targets: Tensor, count: int) -> Tensor:
    """Choose so many ids of every class, ascending."""
    order = _shuffled(torch.arange(len(ids)))
    chosen = [order[targets[order] == label][:count] for label in torch.unique(targets).tolist()]
    return ids[torch.cat(chosen).sort().values]


# -- what a model gives ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Extractor:
    """What one model gives.

    Attributes:
        train: (N, D) features of the training samples; those of several branches stand side by side.
        test: (M', D) features of the test samples, each once.
        grams: By stream of samples and layer, a Gram matrix per mini-batch.
    """

    train: Features
    test: Features
    grams: dict[str, dict[str, list[Float]]]


def passes(samples: Samples) -> int:
    """Return how many batches go through every model: how often `extract` ticks."""
    features = sum(-(-len(ids) // STATISTICS_BATCH) for ids in (samples.train, samples.test))
    return features + sum(map(len, samples.aligned().values()))


def extract(
    models: Sequence[Path], context: Context, samples: Samples, layers: Sequence[str], tick: Tick
) -> Iterator[Extractor]:
    """Yield what every kept model gives; where no branch has changed since the one before, the very same object.

    Args:
        models: Their checkpoints.
        context: The run's data and input.
        samples: What passes.
        layers: Whose Gram matrices are wanted; see `layers_of`.
        tick: Called after every batch.
    """
    before: list[str | None] = []
    found: Extractor | None = None
    for path in models:
        state = read_checkpoint(path, context.device)
        network = context.place(unpack(state["network"], context.setup.skeleton)).eval()
        now = [fingerprint(branch) for branch in network.branches]
        if found is None or None in now or now != before:
            found = _extract(network, context, samples, layers, tick)
        before = now
        yield found


@torch.inference_mode()
def _extract(network: Network, context: Context, samples: Samples, layers: Sequence[str], tick: Tick) -> Extractor:
    def features(maker: BatchMaker, ids: Tensor) -> Features:
        parts = []
        for batch in maker.in_order(ids, STATISTICS_BATCH, context.experience):
            parts.append(network.features(batch.x).float().cpu().numpy())
            tick()
        return np.concatenate(parts)

    train, test = features(context.train_maker, samples.train), features(context.test_maker, samples.test)
    grams: dict[str, dict[str, list[Float]]] = {}
    for name, batches in samples.aligned().items():
        grams[name] = {layer: [] for layer in layers}
        for images in context.test_maker.table.batches(batches):
            for layer, values in _grams_of(network, context.test_maker.test_input(images), layers).items():
                grams[name][layer].append(values)
            tick()
    return Extractor(train, test, grams)


def _grams_of(network: Network, x: Tensor, layers: Sequence[str]) -> dict[str, Float]:
    """Return the Gram matrix of every layer; what several branches give at one depth is one layer."""
    parts: dict[str, list[Features]] = {layer: [] for layer in layers}
    for branch in network.branches:
        for layer, values in _shown(cast(Backbone, branch), x).items():
            if layer in parts:
                parts[layer].append(values.float().cpu().numpy())
    return {layer: gram(*found) for layer, found in parts.items()}


def _shown(branch: Backbone, x: Tensor) -> dict[str, Tensor]:
    features, stages = branch.forward_stages(x)
    return {**{f"stage{k}": stage for k, stage in enumerate(stages, 1)}, "features": features}


@torch.inference_mode()
def layers_of(context: Context, samples: Samples) -> list[str]:
    """Name what the run's backbone shows: its stages, shallowest first, and `features`."""
    x = context.test_maker.test_input(context.stream.test.gather(samples.test[:1]))
    return list(_shown(cast(Backbone, context.network.eval().branches[0]), x))
