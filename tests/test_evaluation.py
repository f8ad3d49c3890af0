"""Kept predictions against NumPy, and what scoring must leave alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.config import resolve
from clframe.errors import ContractError
from clframe.evaluation import classification_columns, evaluate
from clframe.launch.build import build_setup
from clframe.strategies.finetune import Finetune
from clframe.strategy import Tags
from clframe.stream import Stream
from clframe.testing.bench import first_difference
from clframe.testing.streams import TinyBackbone, synthetic_stream
from clframe.training.checkpoint import pack
from clframe.training.context import Context
from clframe.training.seeds import global_state


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), classes=st.integers(1, 7), hidden=st.booleans())
def test_columns_equal_numpy(seed, count, classes, hidden):
    draws = np.random.default_rng(seed)
    scores = draws.normal(scale=4, size=(count, classes))
    if hidden:
        scores[draws.random((count, classes)) < 0.2] = -np.inf
        scores[np.isinf(scores).all(axis=1), 0] = 1.0
    local, upto = draws.random((count, classes)) < 0.4, draws.random((count, classes)) < 0.7
    found = classification_columns(torch.from_numpy(scores), torch.from_numpy(local), torch.from_numpy(upto))
    predicted, predicted_local, predicted_upto, confidence, energy, entropy = (f.numpy() for f in found)
    for b, row in enumerate(scores):
        total = np.exp(row - row.max()).sum()
        p = np.exp(row - row.max()) / total
        assert predicted[b] == row.argmax()
        for column, mask in ((predicted_local, local[b]), (predicted_upto, upto[b])):
            possible = [c for c in range(classes) if mask[c] and np.isfinite(row[c])]
            assert column[b] == (max(possible, key=row.__getitem__) if possible else -1)
        assert confidence[b] == pytest.approx(p.max())
        assert energy[b] == pytest.approx(-(np.log(total) + row.max()))
        assert entropy[b] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-9)


class Fixed(Finetune):
    """Scores samples by their pixels, so that every prediction is known."""

    tags = Tags(scores=frozenset({"accuracy", "squared_error"}))

    def predict(self, x, task_ids=None):
        self.calls.append((len(x), task_ids))
        return {name: make(x, self.network.num_classes) for name, make in self.heads.items()}


def pixel_scores(x: torch.Tensor, classes: int) -> torch.Tensor:
    """As good as random, and a function of the image."""
    return torch.sin(x.flatten(1)[:, :classes] * 37.0)


def scene(stream: Stream, known: int, strategy: Finetune | None = None, **heads):
    strategy = strategy or Fixed()
    config = resolve({"scenario": stream, "strategy": strategy, "backbone": TinyBackbone(), "device": "cpu"})
    context = Context(build_setup(config, stream))
    strategy = context.strategy
    strategy.bind(context)
    strategy.calls, strategy.heads = [], heads or {"classifier": pixel_scores}
    strategy.network.grow(known)
    return strategy, context


def every_score(context: Context, columns, known: int) -> np.ndarray:
    images = context.stream.test.gather(torch.from_numpy(columns["sample"]))
    return pixel_scores(context.test_maker.test_input(images), known).numpy()


def within(scores: np.ndarray, classes) -> np.ndarray:
    allowed = [c for c in sorted(classes) if c < scores.shape[1]]
    return np.array(allowed)[scores[:, allowed].argmax(axis=1)]


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3], [4, 5]], [[0, 1, 2], [1, 2, 3], [0, 3, 4, 5]]])
def test_masks_are_those_of_the_own_task_and_of_the_tasks_up_to_it(groups):
    stream = synthetic_stream(experiences=groups, test_per_class=5, setting="task")  # tasks may overlap
    strategy, context = scene(stream, known=6)
    columns = evaluate(strategy, stream, context.test_maker, stream.tasks, batch_size=7)["classifier"]
    scores = every_score(context, columns, 6)
    assert columns["task"].tolist() == [t.index for t in stream.tasks for _ in t.test]
    assert columns["sample"].tolist() == [i for t in stream.tasks for i in t.test.tolist()]
    assert (columns["target"] == stream.test.targets[columns["sample"]].numpy()).all()
    assert (columns["predicted"] == scores.argmax(axis=1)).all()
    for j, task in enumerate(stream.tasks):
        own = columns["task"] == j
        seen = {c for t in stream.tasks[: j + 1] for c in t.classes}
        assert (columns["predicted_local"][own] == within(scores[own], task.classes)).all()
        assert (columns["predicted_upto"][own] == within(scores[own], seen)).all()


def test_a_task_of_which_the_head_knows_nothing_has_no_answers_and_half_a_task_is_scored_by_its_half():
    stream = synthetic_stream(experiences=[[0, 1], [2, 3], [4, 5]], test_per_class=4)
    strategy, context = scene(stream, known=3)
    columns = evaluate(strategy, stream, context.test_maker, stream.tasks)["classifier"]
    new = columns["task"] == 2
    for name in ("predicted", "predicted_local", "predicted_upto"):
        assert (columns[name][new] == -1).all()
        assert (columns[name][~new] >= 0).all()
    assert (columns["predicted_local"][columns["task"] == 1] == 2).all()
    scores = every_score(context, columns, 3)
    np.testing.assert_allclose(columns["energy"], -np.log(np.exp(scores).sum(axis=1)), rtol=1e-5)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(columns["confidence"], shares.max(axis=1), rtol=1e-5)
    with_ids = synthetic_stream(experiences=[[0, 1], [2, 3], [4, 5]], test_per_class=4, setting="task")
    knowing, context = scene(with_ids, known=3)
    assert set(evaluate(knowing, with_ids, context.test_maker, with_ids.tasks)["classifier"]["task"]) == {0, 1}
    untrained, context = scene(stream, known=0)
    assert evaluate(untrained, stream, context.test_maker, stream.tasks) == {}
    assert evaluate(strategy, stream, context.test_maker, []) == {}


def narrow(x, classes):
    return pixel_scores(x, 2)


def test_a_head_without_a_tasks_units_says_minus_one():
    stream = synthetic_stream(test_per_class=4)
    strategy, context = scene(stream, known=6, classifier=pixel_scores, early=narrow)
    columns = evaluate(strategy, stream, context.test_maker, stream.tasks)["early"]
    assert (columns["predicted_local"][columns["task"] > 0] == -1).all()
    assert (columns["predicted_local"][columns["task"] == 0] >= 0).all()
    assert set(columns["predicted_upto"].tolist()) <= {0, 1}


def test_all_heads_come_from_one_pass_the_primary_first():
    stream = synthetic_stream(test_per_class=4)
    strategy, context = scene(stream, known=6, second=pixel_scores, first=narrow, third=pixel_scores)
    found = evaluate(strategy, stream, context.test_maker, stream.tasks, batch_size=5)
    assert list(found) == ["second", "first", "third"]
    assert [count for count, _ in strategy.calls] == [5, 5, 5, 5, 4]
    assert all(len(v) == 24 for columns in found.values() for v in columns.values())


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_the_task_id_is_given_in_the_task_setting_only(setting):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    stream = synthetic_stream(setting=setting, experiences=groups)
    strategy, context = scene(stream, known=stream.num_classes)
    evaluate(strategy, stream, context.test_maker, stream.tasks, batch_size=4)
    given = [ids for _, ids in strategy.calls]
    if setting == "task":
        assert torch.cat(given).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    else:
        assert given == [None] * len(given)


def test_validation_comes_from_the_training_table():
    stream = synthetic_stream(valid_per_class=2)
    strategy, context = scene(stream, known=6)
    columns = evaluate(strategy, stream, context.train_maker, stream.tasks, split="valid")["classifier"]
    assert columns["sample"].tolist() == [i for t in stream.tasks for i in t.valid.tolist()]
    assert (columns["target"] == stream.train.targets[columns["sample"]].numpy()).all()


def test_a_regression_keeps_the_squared_error_instead_of_classes():
    stream = synthetic_stream(experiences=[[0, 1]] * 3, setting="domain", score="squared_error")
    strategy, context = scene(stream, known=2)
    columns = evaluate(strategy, stream, context.test_maker, stream.tasks, batch_size=5)["classifier"]
    assert set(columns) == {"sample", "task", "target", "score"}
    scores, targets = every_score(context, columns, 2), stream.test.targets[columns["sample"]].numpy()
    np.testing.assert_allclose(columns["score"], ((scores - targets) ** 2).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_what_is_kept_depends_on_no_batch_size(batch_size):
    stream = synthetic_stream(test_per_class=5)
    strategy, context = scene(stream, known=6, strategy=Finetune())
    found = [
        evaluate(strategy, stream, context.test_maker, stream.tasks, batch_size=size)["classifier"]
        for size in (batch_size, 7)
    ]
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-5, atol=1e-6)
    dtypes = {n: v.dtype for n, v in found[0].items()}
    assert {n: d for n, d in dtypes.items() if d.kind == "f"} == dict.fromkeys(
        ["confidence", "energy", "entropy"], np.float32
    )
    assert dtypes["sample"] == np.int64
    assert all(dtypes[n] == np.int32 for n in ("task", "target", "predicted", "predicted_local", "predicted_upto"))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_generators_and_weights_stay_as_they_were(fails):
    stream = synthetic_stream()
    strategy, context = scene(stream, known=6, strategy=Finetune())
    strategy.network.train()
    strategy.network.branches[0].bn.eval()  # as a phase's eval_modules would have it
    if fails:
        strategy.report_heads = lambda output: {"classifier": output.logits[:, 0]}
    modes = [m.training for m in strategy.network.modules()]
    weights, generators = {k: v.clone() for k, v in strategy.network.state_dict().items()}, global_state()
    if fails:
        with pytest.raises(
            ContractError, match=r"The report head 'classifier' must give scores \(18, K\), received \(18,\)"
        ):
            evaluate(strategy, stream, context.test_maker, stream.tasks)
    else:
        assert evaluate(strategy, stream, context.test_maker, stream.tasks)
    assert [m.training for m in strategy.network.modules()] == modes
    assert first_difference(pack(weights), pack(dict(strategy.network.state_dict()))) is None
    assert first_difference(generators, global_state()) is None


def test_tasks_without_samples_are_no_obstacle():
    stream = synthetic_stream()
    empty = dataclasses.replace(stream.tasks[1], test=torch.empty(0, dtype=torch.int64))
    strategy, context = scene(stream, known=6)
    columns = evaluate(strategy, stream, context.test_maker, [stream.tasks[0], empty])["classifier"]
    assert set(columns["task"].tolist()) == {0}
