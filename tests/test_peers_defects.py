"""Defects of other frameworks that clframe doesn't share; those of Avalanche stand in `tests/interop/test_avalanches_defects.py`.

The frameworks (PyCIL f3509b8, Mammoth e75a491, CLArena 1.1.0, FACIL of 2023-05, GMvandeVen/continual-learning of 2025-11) are not
installed here: each docstring says what theirs does, and where that is arithmetic the test does it too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clframe.metrics import AccuracyCube, Predictions, Tasks, compute_from_predictions
from clframe.models.mlp import MLP
from clframe.strategies import foster
from clframe.strategies.dark_er import DarkER
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.stream import Stream
from clframe.testing import synthetic_stream
from clframe.testing.bench import WatchedReader, first_difference
from tests.fakes import make_trainer, run


def predictions(task: list[int], target: list[int], predicted: list[int]) -> Predictions:
    columns = {"task": task, "target": target, "predicted": predicted}
    return Predictions(
        sample=np.arange(len(task)),
        predicted_local=np.array(predicted, np.int32),
        predicted_upto=np.array(predicted, np.int32),
        **{n: np.array(v, np.int32) for n, v in columns.items()},
    )


# -- metrics ----------------------------------------------------------------------------------------------------------------


def test_forgetting_is_that_of_the_streams_tasks() -> None:
    """PyCIL groups accuracy by blocks of ten classes, whatever an experience holds: in three experiences of two classes there
    is one block, which nothing can be told to have been forgotten of. Ours has a column for every task of the stream.
    """
    kept = {}
    for i in (1, 2, 3):  # only the newest task is known
        target = [c for c in range(2 * i) for _ in range(4)]
        predicted = [c if c >= 2 * (i - 1) else 2 * i - 1 for c in target]
        kept[i] = predictions([c // 2 for c in target], target, predicted)
    blocks = {
        i: [
            float((p.predicted == p.target)[(p.target >= k) & (p.target < k + 10)].mean())
            for k in range(0, p.target.max() + 1, 10)
        ]
        for i, p in kept.items()
    }
    assert {len(b) for b in blocks.values()} == {1}
    tasks = Tasks(classes=((0, 1), (2, 3), (4, 5)), seen=(2, 4, 6))
    report = compute_from_predictions({"classifier": kept}, tasks)
    assert report.values["classifier"]["global"]["forgetting_max"] == 1.0
    assert np.diag(AccuracyCube.from_predictions(kept, tasks).matrix(), -1).tolist() == [1.0, 1.0, 1.0]


def test_accuracy_of_many_predictions_takes_no_loop_over_samples() -> None:
    """FACIL asks sample by sample whether the prediction is among the task's own; so does the loop here."""
    rng = np.random.default_rng(0)
    target = np.sort(rng.integers(0, 100, 50_000))
    predicted = np.where(rng.random(target.size) < 0.6, target, rng.integers(0, 100, target.size))
    kept = predictions((target // 10).tolist(), target.tolist(), predicted.tolist())
    tasks = Tasks(classes=tuple(tuple(range(k, k + 10)) for k in range(0, 100, 10)), seen=tuple(range(10, 101, 10)))

    def loop() -> list[float]:
        right, total = [0] * 10, [0] * 10
        for p, t in zip(torch.from_numpy(predicted), torch.from_numpy(target), strict=True):
            right[int(t) // 10] += int((p == t).item())
            total[int(t) // 10] += 1
        return [r / n for r, n in zip(right, total, strict=True)]

    def ours() -> list[float]:
        return list(AccuracyCube.from_predictions({10: kept}, tasks).matrix()[10])

    ours()
    (expected, slow), (found, fast) = timed(loop), timed(ours)
    assert found == pytest.approx(expected)
    assert fast < slow / 5


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


# -- data -------------------------------------------------------------------------------------------------------------------


def watched(stream: Stream) -> tuple[Stream, dict[str, list[Tensor]]]:
    """The stream, and the rows of its images that are read, table by table."""
    read: dict[str, list[Tensor]] = {"train": [], "test": []}
    tables = {
        name: dataclasses.replace(
            getattr(stream, name), images=WatchedReader(getattr(stream, name).images, rows.append)
        )
        for name, rows in read.items()
    }
    return dataclasses.replace(stream, **tables), read


def test_an_image_is_read_when_it_is_presented_or_scored_and_at_no_other_time() -> None:
    """CLArena walks through all images of a task to learn their labels, and GMvandeVen's code through the whole data set once
    for every class; others score with a pass for every task and every head. Ours reads a training image once for every
    presentation, and a test image once for every evaluation, whatever there is of tasks and heads.
    """
    stream, read = watched(synthetic_stream())
    stream.describe()
    assert stream.train.targets.shape == (36,)
    trainer = make_trainer(Finetune(epochs=2), stream, measure="none")
    assert not read["train"]
    assert not read["test"]
    trainer.run()
    assert sum(map(len, read["train"])) == trainer.counters["presentations"] == 2 * 36
    assert sum(map(len, read["test"])) == 6 + 12 + 18
    assert len(read["test"]) == 3, "one pass, in batches of their own size"

    stream, read = watched(synthetic_stream())
    heads = run(Replay(memory_size=6, epochs=1), stream, measure="none").recorder.kept  # type: ignore[attr-defined]
    assert {head for _, _, head in heads} == {"classifier", "nme"}
    assert sum(map(len, read["test"])) == 6 + 12 + 18


def test_validation_images_are_seen_as_test_images_are() -> None:
    """CLArena scores validation images under the training augmentation, and keeps exemplars augmented and normalised. In ours
    what is scored is the image itself, and an exemplar is the id of its image.
    """
    seen: list[Tensor] = []

    class Watching(Finetune):
        """Keeps what it is asked to predict."""

        def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
            seen.append(x.clone())
            return super().predict(x, task_ids)

    stream = synthetic_stream(valid_per_class=2, experiences=[[0, 1]])
    run(Watching(epochs=1), stream, augmentation="crop_flip", valid=True)
    mean, std = torch.tensor(stream.mean), torch.tensor(stream.std)

    def plain(table: Any, ids: Tensor) -> Tensor:
        return ((table.gather(ids).float() / 255 - mean) / std).permute(0, 3, 1, 2)

    task = stream.tasks[0]
    expected = {"test": plain(stream.test, task.test), "valid": plain(stream.train, task.valid)}
    for split, images in expected.items():
        assert any(x.shape == images.shape and torch.allclose(x, images, atol=1e-6) for x in seen), split
    memory = run(Replay(memory_size=4, epochs=1), stream, augmentation="crop_flip").strategy.memory_
    assert memory.ids.dtype == torch.int64
    assert memory.bytes == 4 * (8 * 8 + 8), "a byte for a pixel, and the label"


# -- training -----------------------------------------------------------------------------------------------------------------


def test_a_seed_varies_the_initial_weights_and_not_the_class_order() -> None:
    """PyCIL's seed permutes the classes, and every run begins with the weights of seed 1: three seeds of it are three orders."""
    first, again, other = (make_trainer(Finetune(epochs=1), seed=s) for s in (0, 0, 1))

    def weights(trainer: Any) -> dict[str, Any]:
        return dict(trainer.strategy.network.state_dict())

    assert first_difference(weights(first), weights(again)) is None
    assert first_difference(weights(first), weights(other)) is not None
    assert first.setup.stream.class_order == other.setup.stream.class_order


def test_dark_experience_replay_passes_once_over_new_and_replayed_samples() -> None:
    """Mammoth's DER++ takes three forward passes a step: of the new samples, and of each of its two draws. Ours joins the new
    samples and the draw for the loss on labels; only the draw for the logits, which is augmented anew, has a second.
    """
    calls: list[int] = []
    trainer = make_trainer(DarkER(memory_size=8, epochs=1), backbone=MLP(hidden=[8]), measure="none")
    trainer.strategy.network.register_forward_hook(lambda module, args, _: calls.append(len(args[0])))
    step = trainer.strategy.after_step
    per_step: list[list[int]] = []

    def counted(batch: Any) -> None:
        per_step.append(calls[:])
        calls.clear()
        step(batch)

    trainer.strategy.after_step = counted  # type: ignore[method-assign]
    trainer.run()
    assert per_step[0] == [4], "nothing to replay yet"
    assert per_step[1] == [8, 4], "new and replayed samples together, then the draw for the logits"
    assert max(map(len, per_step[1:3])) == 2


def test_fosters_class_weights_know_how_many_samples_a_class_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyCIL adds up the positions of a class's samples in place of counting them: 374,750 for 500."""
    found: list[list[int]] = []
    weigh = foster.class_weights

    def noted(counts: Tensor, beta: float) -> Tensor:
        found.append(counts.tolist())
        return weigh(counts, beta)

    monkeypatch.setattr(foster, "class_weights", noted)
    stream = synthetic_stream(train_per_class=[8, 5, 6])
    run(foster.FOSTER(memory_size=12, epochs=1, compression_epochs=1), stream, measure="none")
    assert set(map(tuple, found[-2:])) == {(3, 3, 3, 3, 6, 6)}, "three exemplars of each old class, six new samples"
