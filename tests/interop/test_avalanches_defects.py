"""Defects of Avalanche 0.6.0 that clframe doesn't share: each is shown in Avalanche itself, and then its absence here."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import clframe
from clframe.errors import ConfigurationError
from clframe.interop.avalanche import to_avalanche
from clframe.interop.avalanche.library import require
from clframe.models.mlp import MLP
from clframe.results import metrics_of
from clframe.scenarios.split import SplitDigits
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.strategies.si import SI
from clframe.stream import Experience, Stream
from clframe.testing import synthetic_stream
from clframe.testing.bench import first_difference
from clframe.testing.check import global_rng_unchanged
from clframe.training.flops import FlopCounter
from tests.fakes import run

pytestmark = pytest.mark.usefixtures("avalanche_warns")


def theirs(stream: Stream, plugins: Any = (), metrics: Any = (), model: nn.Module | None = None, **options: Any) -> Any:
    """A fine-tuning strategy of Avalanche's, with plugins, for a stream."""
    torch.manual_seed(0)
    size = int(np.prod(stream.shape))
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.ReLU(), nn.Linear(12, stream.num_classes))
    return require("avalanche.training.supervised").Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        evaluator=require("avalanche.training.plugins").EvaluationPlugin(*metrics, loggers=[]),
        plugins=list(plugins),
        **{"train_mb_size": 4, "train_epochs": 2, "eval_mb_size": 4, **options},
    )


def plugin(name: str, *arguments: Any, **options: Any) -> Any:
    return getattr(require("avalanche.training.plugins"), name)(*arguments, **options)


def weights(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(model.state_dict()))


def value_of(said: dict[str, Any], start: str) -> float:
    return next(float(v) for k, v in said.items() if k.startswith(start))


# -- methods --------------------------------------------------------------------------------------------------------------


def test_synaptic_intelligence_has_an_effect_on_the_cpu() -> None:
    """Avalanche keeps views of the weights for copies, so on the CPU any strength gives plain fine-tuning; ours restrains."""
    stream = synthetic_stream()

    def avalanche(strength: float) -> dict[str, Any]:
        strategy = theirs(stream, [plugin("SynapticIntelligencePlugin", si_lambda=strength)])
        for experience in to_avalanche(stream).train_stream:
            strategy.train(experience, eval_streams=[])
        return weights(strategy.model)

    assert first_difference(avalanche(0.0), avalanche(1e6)) is None
    found = [
        weights(run(SI(strength=s, epochs=2), stream, backbone=MLP(hidden=[12])).strategy.network) for s in (0, 10)
    ]
    assert first_difference(*found) is not None


def test_the_importance_of_ewc_does_not_depend_on_the_batch_size() -> None:
    """Avalanche squares the gradient of a batch's mean, so its λ changes meaning with the batch size; ours is per sample."""
    stream = synthetic_stream()

    def avalanche(size: int) -> torch.Tensor:
        strategy, ewc = theirs(stream), plugin("EWCPlugin", ewc_lambda=1.0)
        data = to_avalanche(stream).train_stream[0].dataset
        made = ewc.compute_importances(
            strategy.model, strategy._criterion, strategy.optimizer, data, strategy.device, size
        )
        return torch.cat([v.data.flatten() for v in made.values()])

    def clframes(size: int) -> torch.Tensor:
        options = {"steps_per_experience": 1, "optimizer": {"lr": 1e-9, "weight_decay": 0.0}}
        trainer = run(EWC(epochs=1), stream, backbone=MLP(hidden=[12]), batch_size=size, **options)
        fisher = trainer.strategy.measure_fisher(stream.experiences[0])
        return torch.cat([v.flatten() for v in fisher.values()])

    assert avalanche(12).sum() < 0.7 * avalanche(1).sum()
    torch.testing.assert_close(clframes(12), clframes(1), rtol=1e-4, atol=1e-8)


# -- evaluation and metrics ---------------------------------------------------------------------------------------------------


def test_forgetting_on_test_samples_ignores_what_else_is_scored(tmp_path: Path) -> None:
    """Avalanche keys forgetting by the experience's number alone: where training samples are scored after the test samples,
    their accuracy is what the test samples' forgetting begins with. Ours keeps the splits apart.
    """
    scenario = SplitDigits(classes=4, experiences=2, train_per_class=23, valid_per_class=20)
    metrics = require("avalanche.evaluation.metrics")
    strategy = theirs(
        clframe.open_scenario(scenario),
        metrics=[metrics.accuracy_metrics(experience=True), metrics.forgetting_metrics(experience=True)],
        train_epochs=20,
    )
    benchmark = to_avalanche(clframe.open_scenario(scenario))
    test, train = benchmark.test_stream[:1], benchmark.train_stream[:1]
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    before = value_of(strategy.eval(test), "Top1_Acc_Exp/eval_phase/test_stream")
    learnt = value_of(strategy.eval(train), "Top1_Acc_Exp/eval_phase/train_stream")
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    said = strategy.eval(test)
    after = value_of(said, "Top1_Acc_Exp/eval_phase/test_stream")
    assert learnt != before
    assert value_of(said, "ExperienceForgetting/eval_phase/test_stream") == pytest.approx(learnt - after)

    done = clframe.run(scenario=scenario, epochs=20, batch_size=4, run_dir=tmp_path / "run", progress=False)
    kept = {
        split: [accuracies(done.path / "predictions" / split / f"{i:04d}-classifier.npz")[0] for i in (1, 2)]
        for split in ("test", "valid")
    }
    assert kept["test"][0] != kept["valid"][0]
    for split, (first, last) in kept.items():
        found = metrics_of(done.directory, split).values["classifier"]["global"]["forgetting_first"]
        assert found == pytest.approx(first - last)


def accuracies(path: Path) -> dict[int, float]:
    kept = np.load(path)
    correct = kept["predicted"] == kept["target"]
    return {int(t): float(correct[kept["task"] == t].mean()) for t in np.unique(kept["task"])}


def test_scoring_more_often_changes_no_training() -> None:
    """Avalanche's evaluation draws from the generator that training draws from; ours draws from none."""
    stream = synthetic_stream()

    def avalanche(extra: bool) -> dict[str, Any]:
        strategy, benchmark = theirs(stream), to_avalanche(stream)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
            if extra:
                strategy.eval(benchmark.test_stream)
        return weights(strategy.model)

    assert first_difference(avalanche(False), avalanche(True)) is not None
    found = [weights(run(Finetune(epochs=2), stream, evaluate_future=v).strategy.network) for v in (False, True)]
    assert first_difference(*found) is None


def test_scoring_tasks_to_come_leaves_the_model_as_it_is() -> None:
    """Avalanche adapts the model in evaluation too, so its classifier grows for classes that were never trained."""
    stream = synthetic_stream()
    classifier = require("avalanche.models").IncrementalClassifier(64, 2)
    strategy, benchmark = theirs(stream, model=nn.Sequential(nn.Flatten(), classifier)), to_avalanche(stream)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert classifier.classifier.out_features == 2
    strategy.eval(benchmark.test_stream)
    assert classifier.classifier.out_features == 6
    widths = []

    class Watching(Finetune):
        """Notes how wide the classifier is after each experience's scoring."""

        def before_experience(self, experience: Experience) -> None:
            widths.append(self.network.num_classes)
            super().before_experience(experience)

    run(Watching(epochs=1), stream, evaluate_future=True)
    assert widths == [0, 2, 4]


def test_what_was_not_scored_is_neither_a_zero_nor_an_old_number(tmp_path: Path) -> None:
    """Avalanche's accuracy matrix says 0 where nothing was scored, its stream accuracy counts tasks to come as wrong, its
    forgetting after one task is 0, and `eval` returns numbers of evaluations long past. Ours are NaN, or absent with a reason.
    """
    stream = synthetic_stream(test_per_class=6)
    metrics = require("avalanche.evaluation.metrics")
    wanted = [
        metrics.accuracy_metrics(experience=True, stream=True),
        metrics.forgetting_metrics(stream=True),
        metrics.accuracy_matrix_metrics(),
    ]
    strategy, benchmark = theirs(stream, metrics=wanted, train_epochs=20), to_avalanche(stream)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    said = strategy.eval(benchmark.test_stream)
    assert value_of(said, "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000") > 0.9
    assert value_of(said, "Top1_Acc_Stream") < 0.4
    assert value_of(said, "StreamForgetting") == 0
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    said = strategy.eval(benchmark.test_stream[:1])
    assert any(key.endswith("Exp002") for key in said), "of the first evaluation"
    matrix = next(v for k, v in said.items() if "matrix" in k.lower())
    assert matrix[1, 1] == 0, "never scored after the second task"

    done = clframe.run(
        scenario=stream, backbone=MLP(hidden=[12]), epochs=20, batch_size=4, run_dir=tmp_path / "run", progress=False
    )
    assert done.metric("seen_accuracy")[0] > 0.9
    assert np.isnan(done.matrix()[1, 1:]).all()
    one = clframe.run(
        scenario=stream, backbone="mlp", epochs=1, first_experiences=1, run_dir=tmp_path / "one", progress=False
    )
    assert "forgetting_max" in one.report.absent
    assert set(accuracies(done.path / "predictions" / "test" / "0002-classifier.npz")) == {0, 1}


def test_operations_of_a_convolution_count_its_input_channels() -> None:
    """Avalanche's MAC leaves them out; ours, two operations for a multiplication and an addition, doesn't."""
    layer, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 6, 6)
    macs = 8 * 6 * 6 * 3 * 3 * 3
    mac = require("avalanche.evaluation.metrics").MAC()
    mac.update(layer, x)
    assert 3 * mac.result() == macs
    with FlopCounter() as counter:
        layer(x)
    assert counter.flops == 2 * macs


# -- loaders and buffers --------------------------------------------------------------------------------------------------------


class Empty:
    """A loader without a batch, which gives up where nobody else does."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        if self.passes > 1000:
            raise TimeoutError
        return iter(())


def test_a_memory_smaller_than_a_batch_ends_no_run() -> None:
    """Avalanche's `cycle` goes round an empty loader for ever, so ER_AML hangs while its buffer holds less than a batch; our
    replay draws from what there is.
    """
    with pytest.raises(TimeoutError):
        next(require("avalanche.training.utils").cycle(Empty()))
    trainer = run(Replay(memory_size=3, form="step", memory_batch=16, epochs=1), batch_size=16, measure="none")
    assert trainer.counters["steps"] == 3


def test_a_class_balanced_buffer_works_on_any_stream() -> None:
    """Avalanche's adds task labels to what it stores alone, so new and stored samples don't fit into one batch of a plain
    dataset. On our streams, and with our memory, they do.
    """
    stream = synthetic_stream()
    buffer = require("avalanche.training.storage_policy").ClassBalancedBuffer
    utils = require("avalanche.benchmarks.utils")

    def train(experiences: Any) -> None:
        strategy = theirs(stream, [plugin("ReplayPlugin", mem_size=6, storage_policy=buffer(max_size=6))])
        for experience in experiences:
            strategy.train(experience, eval_streams=[])

    x, y = stream.train.images.gather(torch.arange(36)).float(), stream.train.targets
    plain = []
    for experience in stream.experiences:
        part = TensorDataset(x[experience.train].flatten(1), y[experience.train])
        part.targets = y[experience.train].tolist()
        plain.append(utils.as_classification_dataset(part))
    with pytest.raises(RuntimeError, match="equal size"):
        train(require("avalanche.benchmarks").benchmark_from_datasets(train=plain, test=plain).train_stream)
    train(to_avalanche(stream).train_stream)
    memory = run(Replay(memory_size=6, policy="class_balanced", form="step", epochs=1), stream).strategy.memory_
    assert sorted(stream.train.targets[memory.ids].tolist()) == [0, 1, 2, 3, 4, 5]


# -- benchmarks ------------------------------------------------------------------------------------------------------------------


def datasets(classes: int) -> dict[str, Any]:
    made = {}
    for name in ("train", "test"):
        y = torch.arange(classes).repeat_interleave(4)
        made[name] = TensorDataset(torch.rand(len(y), 3, 4, 4), y)
        made[name].targets = y.tolist()
    return made


def test_no_class_is_lost_where_the_number_of_experiences_does_not_divide() -> None:
    """Avalanche leaves the remainder out without a word; ours refuses, or gives it to the last experience, as asked."""
    make = require("avalanche.benchmarks").class_incremental_benchmark
    benchmark = make(datasets(10), num_experiences=3)
    assert len(set().union(*(e.classes_in_this_experience for e in benchmark.train_stream))) == 9
    with pytest.raises(ConfigurationError, match="10 classes"):
        clframe.open_scenario("split_digits", experiences=3)
    stream = clframe.open_scenario("split_digits", increment=4)
    assert [len(e.classes) for e in stream.experiences] == [4, 4, 2]


def test_what_is_given_stays_as_it_was(tmp_path: Path) -> None:
    """Avalanche puts other datasets into the caller's mapping, and its strategies add plugins to the caller's list."""
    given = datasets(4)
    before = dict(given)
    require("avalanche.benchmarks").class_incremental_benchmark(given, num_experiences=2)
    assert any(given[k] is not before[k] for k in before)
    mine: list[Any] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    require("avalanche.training.supervised").Replay(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        evaluator=plugin("EvaluationPlugin", loggers=[]),
        plugins=mine,
    )
    assert mine
    config = {
        "scenario": {"name": "split_digits", "classes": [3, 1], "experiences": 2},
        "strategy": {"name": "clframe.interop.avalanche:AvalanchePlugins", "plugins": ["ReplayPlugin"]},
        "measure": ["default", "online_accuracy"],
    }
    kept = copy.deepcopy(config)
    clframe.run(**config, epochs=1, run_dir=tmp_path / "run", progress=False)
    assert config == kept


def test_a_seed_of_a_stream_moves_no_global_generator() -> None:
    """Avalanche's generators seed torch's global one; ours draw from their own."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    require("avalanche.benchmarks").class_incremental_benchmark(datasets(4), num_experiences=2, seed=5)
    assert not torch.equal(state, torch.get_rng_state())
    with global_rng_unchanged("open_scenario"):
        first = clframe.open_scenario("split_digits", order="seed:5", train_per_class=9)
        clframe.open_scenario({"name": "si_blurry", "source": "digits", "classes": 8, "num_tasks": 2})
    assert first.class_order != tuple(range(10))


def test_importing_leaves_torchs_classes_alone() -> None:
    """Importing Avalanche replaces `Dataset.__add__` in the whole process."""
    require()
    assert torch.utils.data.Dataset.__add__.__module__.startswith("avalanche")
    code = """
from torch.utils.data import Dataset, DataLoader
before = dict(vars(Dataset)), dict(vars(DataLoader))
import clframe.api, clframe.interop.avalanche, clframe.strategies.replay, clframe.scenarios.split
assert before == (dict(vars(Dataset)), dict(vars(DataLoader)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
