"""Scoring a model: every test image of the seen tasks goes through the strategy once, and what it predicts is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.composite import Composite, leaves
from clframe.errors import ContractError
from clframe.models import Network, eval_mode
from clframe.strategy import Strategy
from clframe.stream import EvaluationTask, Stream
from clframe.training.batches import BatchMaker
from clframe.training.feature_cache import FeatureCache
from clframe.training.ranks import ALONE, Ranks

__all__ = ["Columns", "class_masks", "classification_columns", "evaluate"]

Columns = dict[str, NDArray[Any]]
"""What is kept of one head's scores: arrays of one length by name, as `clframe.metrics.Predictions` takes them."""

_COLUMNS = ("predicted", "predicted_local", "predicted_upto", "confidence", "energy", "entropy")
_PREDICTED = frozenset(_COLUMNS[:3])


@torch.inference_mode()
def evaluate(
    strategy: Strategy,
    stream: Stream,
    maker: BatchMaker,
    tasks: Sequence[EvaluationTask],
    *,
    split: str = "test",
    batch_size: int = 512,
    features: FeatureCache | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Columns]:
    """Score a strategy on some tasks.

    The network is in eval mode meanwhile and afterwards in the modes it had; nothing is drawn and no state changes.

    Args:
        strategy: What predicts.
        stream: Tells the classes of every task.
        maker: Batches of the table that holds the split: the test table, or the training table for `valid`.
        tasks: The columns to fill. Of a task of which the head has no class only confidence, energy and entropy are kept,
            to tell what is new from what was learnt; where task ids are given it is left out.
        split: `test` or `valid`.
        batch_size: Samples per forward pass.
        features: Of the strategy's frozen network: a sample's are computed once, and scored as often as needed. Not
            used where a strategy predicts in a way of its own, for which it may need the images.
        ranks: Of several, each scores its share, and all get the whole.

    Returns:
        Kept predictions by report head, the primary head first; empty when there is nothing to score.
    """
    known = strategy.scored_classes
    answerable = [stream.score != "accuracy" or any(c < known for c in t.classes) for t in tasks]
    scored = [t for t, can in zip(tasks, answerable, strict=True) if can or (known and stream.setting != "task")]
    unanswerable = [t.index for t, can in zip(tasks, answerable, strict=True) if not can]
    ids = [t.test if split == "test" else t.valid for t in scored]
    if not sum(map(len, ids)):
        return {}
    samples = torch.cat(ids)
    owners = torch.cat([torch.full((len(part),), t.index) for t, part in zip(scored, ids, strict=True)])
    mine, mine_of = ranks.share(samples), ranks.share(owners)
    with eval_mode(strategy.network):
        if features is not None and _predicts_from_features(strategy):
            with ranks.first_then_others():
                for part in ids:  # task by task, so that the batches are the same after a resume
                    features.fill(maker, part, batch_size, strategy.network.features)
            scored_batches = _from_features(strategy, stream, maker, mine, mine_of, batch_size, features)
        else:
            scored_batches = _from_images(strategy, stream, maker, mine, mine_of, batch_size)
        columns = ranks.joined(_columns_of(_collect(stream, maker, scored_batches)))
    targets = maker.table.targets[samples]
    labels = targets.numpy() if stream.score == "accuracy" else np.zeros(len(samples))
    fixed = {"sample": samples.numpy(), "task": owners.numpy().astype(np.int32), "target": labels.astype(np.int32)}
    given = {head: {**fixed, **found} for head, found in columns.items()}
    for kept in given.values():
        for name in _PREDICTED.intersection(kept):
            kept[name][np.isin(fixed["task"], unanswerable)] = -1
    return given


ScoredBatch = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Ids, tasks, and the scores of every report head."""


def _predicts_from_features(strategy: Strategy) -> bool:
    """Whether predicting is the report heads of one plain forward pass, in every part of a composition."""
    network, parts = strategy.network, (strategy, *leaves(strategy))
    plain = type(network).forward is Network.forward and not (network._forward_hooks or network._forward_pre_hooks)
    return plain and all(type(p).predict in (Strategy.predict, Composite.predict) for p in parts)


def _from_images(
    strategy: Strategy, stream: Stream, maker: BatchMaker, samples: Tensor, owners: Tensor, batch_size: int
) -> Iterator[ScoredBatch]:
    """Forward every sample once."""
    parts = list(torch.split(samples, batch_size))
    for part, own, images in zip(parts, torch.split(owners, batch_size), maker.table.batches(parts), strict=True):
        yield part, own, strategy.predict(maker.test_input(images), _task_ids(stream, own, maker))


def _from_features(
    strategy: Strategy,
    stream: Stream,
    maker: BatchMaker,
    samples: Tensor,
    owners: Tensor,
    batch_size: int,
    features: FeatureCache,
) -> Iterator[ScoredBatch]:
    """Read every sample's features, and compute what follows them."""
    network = strategy.network
    for part, own in zip(torch.split(samples, batch_size), torch.split(owners, batch_size), strict=True):
        found = features.get(maker, part, batch_size, network.features)
        output = network.from_features(maker.on_device(found), _task_ids(stream, own, maker))
        yield part, own, strategy.report_heads(output)


def _collect(stream: Stream, maker: BatchMaker, batches: Iterator[ScoredBatch]) -> dict[str, dict[str, list[Tensor]]]:
    """Collect the columns of every head, on the device."""
    local, upto = (m.to(maker.device) for m in class_masks(stream))
    columns: dict[str, dict[str, list[Tensor]]] = {}
    for part, own, heads in batches:
        tasks = own.to(maker.device)
        for head, scores in heads.items():
            if scores.ndim != 2 or len(scores) != len(part):
                raise ContractError(
                    f"The report head {head!r} must give scores ({len(part)}, K), received {tuple(scores.shape)}."
                )
            found = columns.setdefault(head, {})
            if stream.score == "squared_error":
                error = (scores.float() - maker.on_device(maker.table.targets[part])).square().sum(dim=1)
                found.setdefault("score", []).append(error)
                continue
            masks = (local[tasks, : scores.shape[1]], upto[tasks, : scores.shape[1]])
            for name, column in zip(_COLUMNS, classification_columns(scores.float(), *masks), strict=True):
                found.setdefault(name, []).append(column)
    return columns


def _columns_of(parts: dict[str, dict[str, list[Tensor]]]) -> dict[str, Columns]:
    """Put the batches' columns together, on the CPU."""
    return {head: {n: torch.cat(v).cpu().numpy() for n, v in found.items()} for head, found in parts.items()}


def classification_columns(scores: Tensor, local: Tensor, upto: Tensor) -> tuple[Tensor, ...]:
    """Reduce scores (B, K) to the kept columns.

    Args:
        scores: (B, K) over all classes seen.
        local: (B, K) bool, the classes of every sample's own task.
        upto: (B, K) bool, the classes of the tasks up to it.

    Returns:
        The argmax over all, within `local` and within `upto` (int32; -1 where the mask allows no class, or only
        classes that the head can't predict, whose score is -inf), the largest softmax probability, the energy
        -logsumexp, and the entropy in nats (float32).
    """
    log_sum = scores.logsumexp(dim=1)
    log_p = scores - log_sum[:, None]
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(dim=1)
    return (
        scores.argmax(dim=1).int(),
        _argmax_within(scores, local),
        _argmax_within(scores, upto),
        p.amax(dim=1),
        -log_sum,
        entropy,
    )


def _argmax_within(scores: Tensor, mask: Tensor) -> Tensor:
    highest, best = scores.masked_fill(~mask, -torch.inf).max(dim=1)
    return best.masked_fill(highest == -torch.inf, -1).int()


def class_masks(stream: Stream) -> tuple[Tensor, Tensor]:
    """Return (J, K_all) masks of each task's own classes and of the classes up to it."""
    local = torch.zeros(len(stream.tasks), stream.num_classes, dtype=torch.bool)
    for task in stream.tasks:
        local[task.index, list(task.classes)] = True
    return local, local.cumsum(dim=0) > 0


def _task_ids(stream: Stream, owners: Tensor, maker: BatchMaker) -> Tensor | None:
    """Return the task id of every sample, on the device, in the setting that gives it."""
    if stream.setting != "task":
        return None
    table = torch.tensor([-1 if t.task_id is None else t.task_id for t in stream.tasks])
    return table[owners].to(maker.device)
