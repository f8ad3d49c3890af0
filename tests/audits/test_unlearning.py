"""The unlearning audit: accuracies by the run's own predictions, gaps, relearning against a plain loop, references."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

import clframe
from clframe.audits.models import AuditedRun
from clframe.audits.relearn import Lesson
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.metrics.unlearning import klom, margins


def predicted_right(run, table, ids, names):
    """Which samples a run names as they are called, by its public `predict`."""
    found = np.array(run.predict(table.gather(ids)))
    return found == np.array(names)[table.targets[ids]]


@pytest.mark.parametrize("what", ["classes", "samples"])
def test_accuracies_and_gaps_are_those_of_predict(unlearned, what):
    run, reference = unlearned(what=what), unlearned(what=what, retrain=True)
    found = clframe.audit("unlearning", run, references=[reference]).data[0]
    stream = clframe.open_scenario(run.config["scenario"])
    event = stream.experiences[-1]
    seen = torch.cat([e.train for e in stream.experiences[:-1]])
    test = torch.cat([t.test for t in stream.tasks])
    sets = {
        "forget": (stream.train, event.forget),
        "retain": (stream.train, seen[~torch.isin(seen, event.forget)]),
        "test": (stream.test, test),
    }
    if what == "classes":  # two of six digits
        sets["test_kept"] = (stream.test, test[stream.test.targets[test] >= 2])
    (values,) = found["events"]
    assert (values["experience"], values["forgotten"]) == (4, len(event.forget))
    assert set(values["accuracy"]) == set(values["before"]) == set(found["gap"]) == set(sets)
    for name, (table, ids) in sets.items():
        mine, theirs = (predicted_right(r, table, ids, stream.class_names).mean() for r in (run, reference))
        assert values["accuracy"][name] == pytest.approx(mine)
        assert found["reference"][name] == pytest.approx(theirs)
        assert found["gap"][name] == pytest.approx(mine - theirs)
    assert values["before"]["forget"] > 0.5
    assert (found["reference"]["forget"] == 0.0) == (what == "classes")
    assert json.loads((run.path / "unlearning.json").read_text()) == found


def test_nothing_to_forget_is_left_in_memory(unlearned):
    run = unlearned(what="classes")
    values = clframe.audit("unlearning", run).data[0]["events"][0]
    assert values["exemplars_left"] == 0
    before = AuditedRun(run.directory).model(3)
    forget = clframe.open_scenario(run.config["scenario"]).experiences[-1].forget
    assert torch.isin(before.strategy.exemplars(), forget).any()


def lesson_of(run, limit):
    audited = AuditedRun(run.directory)
    forget, setup = audited.stream.experiences[-1].forget, audited.setup
    return audited, Lesson(setup.stream.train, forget, setup.recipe, setup.batch_size, limit, 10**6)


def test_relearning_is_plain_training(unlearned):
    """The curve is that of a loop of its own: SGD with the run's recipe on the same batches."""
    run = unlearned(what="samples")
    audited, lesson = lesson_of(run, limit=5)
    labels = audited.stream.train.targets[lesson.ids]
    network = copy.deepcopy(run.model)
    found = lesson.curve(audited.model(4), labels, target=2.0)
    recipe = audited.setup.recipe
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    _, maker = run.strategy, audited.model(4).maker
    x = maker.test_input(audited.stream.train.gather(lesson.ids))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    expected = []
    for step in range(6):
        with torch.no_grad():
            expected.append((network(x).logits.argmax(dim=1) == labels).double().mean().item())
        rows = order[64 * step : 64 * step + 64]
        if not len(rows):
            break
        optimizer.zero_grad()
        functional.cross_entropy(network(x[rows]).logits, labels[rows]).backward()
        optimizer.step()
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-12)
    assert len(found) == 6
    assert found[0] == pytest.approx(lesson.accuracy(audited.model(4), labels))


def test_who_never_learnt_it_needs_more_steps(unlearned):
    run, reference = unlearned(what="classes"), unlearned(what="classes", retrain=True)
    relearn = clframe.audit("unlearning", run, references=[reference]).data[0]["relearn"]
    assert relearn["steps"] is not None
    assert relearn["reference_steps"][0] is not None
    assert relearn["reference_steps"][0] > relearn["steps"]
    shorter = clframe.audit("unlearning", run, references=[reference], relearn_limit=1, regain=1.0)
    assert shorter.data[0]["relearn"]["reference_steps"] == [None]
    assert "> 1" in str(shorter)


def test_divergence_of_margins_over_runs(unlearned):
    runs = [unlearned(seed=s, what="samples") for s in (0, 1)]
    others = [unlearned(seed=s, what="samples", retrain=True) for s in (0, 1)]
    found = clframe.audit("unlearning", runs, references=others)
    assert len(found.data) == 2
    assert found.data[0]["klom"] == found.data[1]["klom"]
    sets = found.data[0]["klom"]["sets"]
    stream = clframe.open_scenario(runs[0].config["scenario"])
    forget = stream.experiences[-1].forget
    labels = stream.train.targets[forget].numpy()
    sides = []
    for side in (runs, others):
        models = [AuditedRun(r.directory) for r in side]
        sides.append([margins(m.model(m.last).scores(stream.train, forget).numpy(), labels) for m in models])
    values = klom(*sides)
    assert sets["forget"] == {
        "points": len(forget), "mean": pytest.approx(values.mean()), "p95": pytest.approx(np.percentile(values, 95)),
    }  # fmt: skip
    assert set(sets) == {"forget", "retain", "test"}
    assert "KLoM" in str(found)


def test_classes_never_heard_of_have_no_margin(unlearned):
    runs = [unlearned(seed=s, what="classes") for s in (0, 1)]
    others = [unlearned(seed=s, what="classes", retrain=True) for s in (0, 1)]
    found = clframe.audit("unlearning", runs, references=others).data[0]["klom"]
    assert "never heard of these classes" in found["absent"]["forget"]
    assert set(found["sets"]) == {"retain", "test", "test_kept"}
    assert found["sets"]["test"] == found["sets"]["test_kept"]  # the others have no margin
    alone = clframe.audit("unlearning", runs[0]).data[0]
    assert "at least 2 runs and 2 references, received 1 and 0" in alone["klom"]["absent"]["retain"]
    assert alone["gap"] is None


def test_without_the_model_from_before_there_is_no_relearning(train):
    scenario = {"name": "unlearning", "classes": 4, "experiences": 2, "retain": "none"}
    found = clframe.audit("unlearning", train(scenario, "replay", epochs=1, keep_models=False))
    assert found.data[0]["events"][0]["before"] is None
    assert found.data[0]["relearn"]["steps"] is None
    assert "Relearning needs the model from before the event" in str(found)
    assert "the same command with --scenario.retrain true" in str(found)


@pytest.mark.filterwarnings("ignore:.*fewer samples than their quota:UserWarning")
def test_bad_input(unlearned, digits_run, train):
    run, reference = unlearned(what="classes"), unlearned(what="classes", retrain=True)
    with pytest.raises(ConfigurationError, match="is on split_digits, which doesn't: run the scenario unlearning"):
        clframe.audit("unlearning", digits_run)
    with pytest.raises(ConfigurationError, match="give it as --reference of a run that did"):
        clframe.audit("unlearning", reference)
    with pytest.raises(ConfigurationError, match=r"not on such a stream.*--scenario\.retrain true"):
        clframe.audit("unlearning", run, references=[unlearned(what="classes", seed=1)])
    with pytest.raises(ConfigurationError, match=r"differs from .* in scenario\.what"):
        clframe.audit("unlearning", run, references=[unlearned(what="samples", retrain=True)])
    with pytest.raises(ConfigurationError, match="need the very same stream"):
        clframe.audit("unlearning", [run, unlearned(what="samples")])
    with pytest.raises(ConfigurationError, match=r"audit unlearning\.regain: expected float > 0 and ≤ 1"):
        clframe.audit("unlearning", run, regain=1.5)
    with pytest.raises(RunDirectoryError, match="found no config"):
        clframe.audit("unlearning", run.path.with_name("none"))
