"""The accuracy cube, the decomposition and the whole report, against scikit-learn and hand counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix

from clframe import metrics as m
from clframe.errors import ConfigurationError, DataError

LAW = settings(derandomize=True, deadline=None, max_examples=40)
COLUMN = {"global": "predicted", "local": "predicted_local", "upto": "predicted_upto"}


def run(sizes, per_class=7, seed=0, future=True, before=True):
    """Random predictions of a class-incremental run: {i: Predictions} and its tasks."""
    tasks, rng, kept = m.Tasks.split(sizes), np.random.default_rng(seed), {}
    counts = rng.integers(1, per_class + 1, tasks.num_classes)
    for i in range(0 if before else 1, tasks.num_experiences + 1):
        known = tasks.seen[i - 1] if i else 0
        last = tasks.num_classes if future else known
        target = np.repeat(np.arange(last), counts[:last])
        task = np.searchsorted(np.asarray(tasks.seen), target, side="right")
        guess = rng.integers(0, max(known, 1), target.size) if known else np.full(target.size, -1)
        right = rng.random(target.size) < 0.4
        local = np.array([rng.choice(tasks.classes[t]) for t in task], dtype=int)
        upto = np.array([rng.integers(0, tasks.seen[t]) for t in task], dtype=int)
        kept[i] = m.Predictions(
            sample=np.arange(target.size), task=task, target=target,
            predicted=np.where(right & (target < known), target, guess),
            predicted_local=np.where(right, target, local), predicted_upto=np.where(right, target, upto),
        )  # fmt: skip
    return kept, tasks


splits = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:A single label was found")
@LAW
@given(splits, st.integers(0, 1000))
def test_cells_equal_scikit_learn(sizes, seed):
    kept, tasks = run(sizes, seed=seed)
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    for restriction in m.RESTRICTIONS:
        matrix, classes = cube.matrix(restriction), cube.class_matrix(restriction)
        for i, p in kept.items():
            predicted = getattr(p, COLUMN[restriction])
            for j in range(tasks.num_tasks):
                mine = p.task == j
                if i == 0 and restriction == "global":
                    assert math.isnan(matrix[i, j])
                else:
                    assert matrix[i, j] == pytest.approx(accuracy_score(p.target[mine], predicted[mine]), abs=1e-12)
            if i:
                table = confusion_matrix(p.target, predicted, labels=np.arange(tasks.num_classes))
                np.testing.assert_allclose(classes[i], table.diagonal() / table.sum(axis=1))
        for i in range(1, tasks.num_experiences + 1):
            p = kept[i]
            seen = p.target < tasks.seen[i - 1]
            expected = accuracy_score(p.target[seen], getattr(p, COLUMN[restriction])[seen])
            assert cube.seen_at(restriction, i) == pytest.approx(expected)
            np.testing.assert_allclose(m.seen_accuracy(cube.scores(restriction))[i - 1], expected)


@pytest.mark.filterwarnings("ignore:A single label was found")
@LAW
@given(splits, st.integers(0, 1000))
def test_decomposition_is_exact(sizes, seed):
    kept, tasks = run(sizes, seed=seed, future=bool(seed % 2))
    found = m.decompose(kept, tasks)
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    which = np.repeat(np.arange(len(sizes)), sizes)
    for i in range(1, tasks.num_experiences + 1):
        p, k = kept[i], tasks.seen[i - 1]
        seen = p.target < k
        target, predicted = p.target[seen], p.predicted[seen]
        right = which[predicted] == which[target]
        assert found.right_task[i - 1] == right.sum()
        assert found.correct[i - 1] == (predicted == target).sum()
        # A = TID * WTA as an identity of whole numbers: c/n = (r/n)(c/r)
        n, r, c = found.samples[i - 1], found.right_task[i - 1], found.correct[i - 1]
        assert n == seen.sum()
        assert c * n * r == r * c * n
        assert cube.seen_at("global", i) == c / n
        if r:
            assert found.task_identification[i - 1] * found.within_task_accuracy[i - 1] == pytest.approx(c / n)
        bias = np.mean(which[predicted] == i - 1) - np.mean(which[target] == i - 1)
        assert found.new_class_bias[i - 1] == pytest.approx(bias, abs=1e-12)
        table = confusion_matrix(which[target], which[predicted], labels=np.arange(len(sizes)))
        np.testing.assert_array_equal(m.task_confusion(p, tasks, i), table)
    np.testing.assert_array_equal(found.confusion, table)
    assert found.confusion.trace() == found.right_task[-1]


def test_a_cell_without_all_its_samples_is_nan():
    kept, tasks = run([2, 2], seed=3)
    p = kept[2]
    columns = p.columns()
    kept[2] = m.Predictions(**{k: v[1:] for k, v in columns.items()})  # one sample of task 1 is missing
    matrix = m.AccuracyCube.from_predictions(kept, tasks).matrix()
    assert math.isnan(matrix[2, 0])
    assert not math.isnan(matrix[2, 1])
    predicted = p.predicted.copy()
    predicted[-1] = -1  # one sample of task 2 without a prediction
    kept[2] = m.Predictions(**{**columns, "predicted": predicted})
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    assert math.isnan(cube.matrix()[2, 1])
    assert not math.isnan(cube.matrix("local")[2, 1])
    assert math.isnan(m.decompose(kept, tasks).accuracy[1])
    with pytest.raises(m.Absent, match="not evaluated after experience 2"):
        cube.seen_at("global", 2)


def test_revisited_classes_keep_their_tasks_apart():
    """Class 0 is tested in both tasks, with samples of its own; experience 2 brings class 2."""
    tasks = m.Tasks(classes=((0, 1), (0, 2)), seen=(2, 3))
    shared = {"sample": np.arange(6), "task": np.array([0, 0, 0, 1, 1, 1]), "target": np.array([0, 0, 1, 0, 2, 2])}
    one = m.Predictions(**shared, predicted=np.array([0, 1, 1, 0, 0, 0]))
    two = m.Predictions(**shared, predicted=np.array([0, 2, 0, 0, 2, 1]))
    cube = m.AccuracyCube.from_predictions({1: one, 2: two}, tasks)
    np.testing.assert_allclose(cube.matrix(), [[np.nan] * 2, [2 / 3, 1 / 3], [1 / 3, 2 / 3]])
    np.testing.assert_allclose(cube.class_matrix()[2], [2 / 3, 0, 1 / 2])
    # After experience 1 the seen samples are those of classes 0 and 1, in whatever task.
    assert cube.seen_at("global", 1) == 3 / 4
    assert cube.seen_at("global", 2) == 3 / 6
    found = m.decompose({1: one, 2: two}, tasks)
    assert found.right_task.tolist() == [4, 4]  # class 0 lies in both tasks
    np.testing.assert_array_equal(found.confusion, [[2, 1], [1, 2]])


def test_domain_incremental():
    """The same classes in each task: 'introduced' says when a task counts."""
    tasks = m.Tasks(classes=((0, 1), (0, 1)), seen=(2, 2), introduced=(1, 2))
    shared = {"sample": np.arange(4), "task": np.array([0, 0, 1, 1]), "target": np.array([0, 1, 0, 1])}
    rows = {i: m.Predictions(**shared, predicted=np.array(g)) for i, g in [(1, [0, 1, 1, 1]), (2, [0, 0, 0, 1])]}
    report = m.compute_from_predictions({"classifier": rows}, tasks)
    values = report.values["classifier"]["global"]
    assert values["seen_accuracy"] == [1.0, 0.75]
    assert values["forgetting_max"] == 0.5
    assert values["forward_transfer_raw"] == 0.5
    assert values["new_class_bias"] == [0.0, None]
    assert "no new class" in report.gaps["classifier/global/new_class_bias"]


def test_online_stream_with_an_empty_task():
    """Five chunks, two task ends, a task without classes, a class seen late."""
    tasks = m.Tasks(classes=((0, 2), (1,), ()), seen=(1, 2, 2, 3), task_ends=(2, 4), evaluation_interval=10)
    rows = {}
    for i, predicted in [(1, [0, 0]), (2, [0, 1]), (3, [1, 1]), (4, [1, 1, 2])]:
        target, task = np.array([0, 1, 2][: len(predicted)]), np.array([0, 1, 0][: len(predicted)])
        if i == 1:
            target, task, predicted = target[:1], task[:1], predicted[:1]
        rows[i] = m.Predictions(sample=target, task=task, target=target, predicted=np.array(predicted))
    report = m.compute_from_predictions({"h": rows}, tasks)
    values = report.values["h"]["global"]
    np.testing.assert_allclose(values["seen_accuracy"], [1, 1, 0.5, 2 / 3])
    assert values["anytime_accuracy"] == pytest.approx((1 + 1 + 0.5 + 2 / 3) / 4)
    assert values["average_incremental_accuracy"] == pytest.approx((1 + 2 / 3) / 2)  # A_avg: at the ends of tasks
    assert values["final_accuracy"] == pytest.approx(2 / 3)
    assert values["forgetting_class_last"] == pytest.approx((1 - 0 + 1 - 1) / 2)  # class 2 comes with the last task
    assert values["forgetting_max"] == 0.0  # only task 2 was complete before the end


def test_scores_other_than_accuracy():
    tasks = m.Tasks.split([1, 1])

    def row(values):
        return m.Predictions(
            sample=np.arange(4), task=np.array([0, 0, 1, 1]), target=np.array([0, 0, 1, 1]), score=np.array(values)
        )

    kept = {1: row([1, 3, 9, 9]), 2: row([4, 6, 1, 2])}
    report = m.compute_from_predictions({"h": kept}, tasks, score="squared_error", higher_is_better=False)
    values = report.values["h"]["global"]
    assert values["final_squared_error"] == (10 + 3) / 4
    assert values["seen_squared_error"] == [2.0, 3.25]
    assert values["forgetting_max"] == 5.0 - 2.0
    assert values["backward_transfer"] == -3.0
    assert "larger is better" in report.absent["forgetting_class_last"]
    assert list(report.values["h"]) == ["global"]
    again = m.AccuracyCube.from_predictions(kept, tasks)
    assert m.AccuracyCube.from_dict(json.loads(json.dumps(again.to_dict()))).matrix()[2, 0] == 5.0


def test_report_bounds_reasons_and_json():
    for seed, sizes in enumerate([[2, 3, 1], [1], [4, 1], [1, 1, 1, 1]]):
        kept, tasks = run(sizes, seed=seed)
        joint = m.AccuracyCube.from_predictions(run(sizes, seed=seed)[0], tasks)
        fresh = m.AccuracyCube.from_predictions(run(sizes, seed=seed + 9)[0], tasks)
        norms = {"a": {i: np.ones(tasks.seen[i - 1]) for i in range(1, len(sizes) + 1)}}
        report = m.compute_from_predictions(
            {"a": kept, "b": kept},
            tasks,
            joint=joint,
            fresh=fresh,
            decathlon_baseline=[0.5] * len(sizes),
            head_norms=norms,
        )
        for head, restrictions in report.values.items():
            assert list(restrictions) == ["global", "local", "upto"]
            for restriction, found in restrictions.items():
                for name, metric in m.CATALOGUE.items():
                    if restriction not in metric.restrictions:
                        assert name not in found
                        continue
                    reason = report.absent.get(name) or report.absent.get(f"{head}/{restriction}/{name}")
                    assert (name in found) != bool(reason), (name, reason)
                    assert not reason or (reason.endswith(".") and reason.count(". ") == 0)
                    for number in np.ravel([v for v in np.ravel(found.get(name, [])) if v is not None]):
                        assert metric.lower is None or number >= metric.lower - 1e-12, name
                        assert metric.upper is None or number <= metric.upper + 1e-12, name
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert m.MetricReport.from_dict(json.loads(text)) == report
        if len(sizes) > 1:
            assert report.values["a"]["global"]["rsd"] == pytest.approx(0)
            assert report.values["a"]["local"]["intransigence"] == pytest.approx(0)
            assert set(report.absent) >= {"anytime_accuracy", "a/global/forward_transfer_minus_init"}
            assert report.values["a"]["global"]["head_norm_ratio"] == [None] + [1.0] * (len(sizes) - 1)


def test_plain_run_gives_every_m1_metric_or_a_reason():
    kept, tasks = run([2, 2, 2], future=False, before=False)
    report = m.compute_from_predictions({"classifier": kept}, tasks)
    assert {name for name in report.absent if not m.CATALOGUE[name].of_run} == {
        "forward_transfer_minus_init", "forward_transfer_raw", "forward", "intransigence", "anytime_accuracy", "rsd",
        "rpd", "rsd_skipped_classes", "rpd_skipped_classes", "visual_decathlon_score", "seen_unseen_harmonic_mean",
        "head_norm_ratio", "final_calibration_error", "calibration_error", "fresh_gap", "fresh_gap_mean",
        *(f"open_set_{what}_{score}" for what in ("auroc", "fpr95") for score in ("confidence", "entropy", "energy")),
    }  # fmt: skip
    assert report.absent["forward"] == "It needs the score on task 2 after experience 1, which was not evaluated."
    assert report.get("final_accuracy") == report.values["classifier"]["global"]["final_accuracy"]
    with pytest.raises(ConfigurationError, match="joint reference"):
        report.get("rsd")
    with pytest.raises(ConfigurationError, match="Did you mean 'final_accuracy'"):
        report.get("final_acuracy")


def test_after_one_task_forgetting_has_a_reason_and_no_value():
    kept, tasks = run([2])
    report = m.compute_from_predictions({"classifier": kept}, tasks)
    assert "before the last experience" in report.absent["forgetting_max"]
    assert "forgetting_max" not in report.values["classifier"]["global"]


def test_interrupted_run_has_gaps_not_numbers():
    kept, tasks = run([2, 2, 2], future=False)
    del kept[3]
    report = m.compute_from_predictions({"h": kept}, tasks)
    values = report.values["h"]["global"]
    assert values["seen_accuracy"][2] is None
    assert values["seen_accuracy"][1] is not None
    assert "experience 3" in report.gaps["h/global/seen_accuracy"]
    assert "final_accuracy" in report.absent


def test_deficits_by_hand():
    joint = np.array([0.8, 0.0, 0.5, 0.4])
    own = np.array([0.4, 0.3, 0.5, 0.6])
    assert m.rsd(own, joint, [0, 1, 2]) == pytest.approx(100 * (0.5 + 0) / 2)
    assert m.rpd(own, joint, [3]) == pytest.approx(-50)
    assert m.skipped_classes(joint, [0, 1, 2]) == 1
    assert math.isnan(m.rsd(own, joint, []))
    assert math.isnan(m.rsd(own, joint, [1]))
    assert math.isnan(m.rsd([math.nan, 1, 1, 1], joint, [0]))


def test_class_forgetting_by_hand():
    scores = np.array([[0.9, 0, 0, 0], [0.5, 0, 0.9, 0], [0.7, 0.6, 0.0, 0], [0.6, 0.8, 0.0, 1]])
    # class 0: .7-.6; class 1: .6-.8; class 2 never positive once seen (row 2); class 3 first seen at the end
    assert m.forgetting_class_last(scores, [1, 2, 2, 3]) == pytest.approx((0.1 - 0.2) / 2)
    assert math.isnan(m.forgetting_class_last(scores[:2], [1, 1, 1, 1]))


def test_decathlon_by_hand():
    # errors .1 and .5, most allowed .4 and .4: 1000 (.3/.4)² + 0
    assert m.visual_decathlon_score([0.9, 0.5], [0.2, 0.2]) == pytest.approx(562.5)
    assert m.visual_decathlon_score([0.8], [0.2]) == pytest.approx(250)
    with pytest.raises(ConfigurationError, match="above 0"):
        m.visual_decathlon_score([0.9], [0.0])


def test_harmonic_mean_head_norms_anytime():
    assert m.seen_unseen_harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert m.seen_unseen_harmonic_mean(0.0, 0.0) == 0.0
    assert m.head_norm_ratio([1, 1, 3], 2) == 3.0
    assert math.isnan(m.head_norm_ratio([1, 1], 0))
    assert m.anytime_accuracy([1, 0.5]) == 0.75


def test_from_matrix_keeps_the_scores_exactly():
    matrix = np.random.default_rng(0).random((4, 3))
    matrix[1, 2] = np.nan
    cube = m.AccuracyCube.from_matrix(matrix, [3, 7, 9], score="auroc")
    np.testing.assert_array_equal(cube.matrix(), matrix)
    np.testing.assert_array_equal(cube.scores().values, matrix)
    again = m.AccuracyCube.from_dict(json.loads(json.dumps(cube.to_dict())))
    np.testing.assert_array_equal(again.matrix(), matrix)
    report = m.compute_all({"h": cube})
    expected = m.final_accuracy(m.ScoreMatrix.of(matrix, sizes=[3, 7, 9]))
    assert report.values["h"]["global"]["final_auroc"] == pytest.approx(expected)
    assert "per class" in report.absent["forgetting_class_last"]
    with pytest.raises(ConfigurationError, match="give 'tasks'"):
        m.AccuracyCube.from_matrix(np.zeros((5, 2)))


@LAW
@given(splits, st.integers(0, 100))
def test_cube_json_round_trip(sizes, seed):
    kept, tasks = run(sizes, seed=seed)
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    again = m.AccuracyCube.from_dict(json.loads(json.dumps(cube.to_dict(), allow_nan=False)))
    assert again.tasks == tasks
    for restriction in cube.restrictions:
        np.testing.assert_array_equal(again.matrix(restriction), cube.matrix(restriction))
        np.testing.assert_array_equal(again.class_matrix(restriction), cube.class_matrix(restriction))


@LAW
@given(splits, st.integers(0, 100))
def test_the_order_of_samples_does_not_matter(sizes, seed):
    kept, tasks = run(sizes, seed=seed)
    rng = np.random.default_rng(seed)
    mixed = {}
    for i, p in kept.items():
        order = rng.permutation(len(p))
        mixed[i] = m.Predictions(**{name: column[order] for name, column in p.columns().items()})
    assert m.compute_from_predictions({"h": mixed}, tasks) == m.compute_from_predictions({"h": kept}, tasks)


def test_foreign_predictions_are_refused():
    kept, tasks = run([2, 2])
    with pytest.raises(DataError, match="has no class"):
        m.AccuracyCube.from_predictions(kept, m.Tasks.split([1, 1]))
    with pytest.raises(DataError, match="after experience 2"):
        m.AccuracyCube.from_predictions(kept, m.Tasks(classes=((0, 1), (2, 3)), seen=(4,)))
    p = kept[2].columns()
    with pytest.raises(DataError, match="class 9 was predicted"):
        m.decompose({2: m.Predictions(**{**p, "predicted": np.full(len(kept[2]), 9)})}, tasks)
    with pytest.raises(ConfigurationError, match="Did you mean 'local'"):
        m.AccuracyCube.from_predictions(kept, tasks).matrix("locl")
    with pytest.raises(DataError, match="unexpected form"):
        m.AccuracyCube.from_dict({"tasks": tasks.to_dict()})


def test_speed_of_a_large_cube():
    tasks = m.Tasks.split([10] * 10)
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(100), 100)
    shared = {"sample": np.arange(10_000), "task": target // 10, "target": target}
    guesses = {name: rng.integers(0, 100, 10_000) for name in COLUMN.values()}
    kept = {i: m.Predictions(**shared, **guesses) for i in range(1, 11)}
    start = time.process_time()
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    for restriction in m.RESTRICTIONS:
        cube.matrix(restriction)
    assert time.process_time() - start < 0.5


def test_import_needs_numpy_only():
    code = "import sys, clframe.metrics; print(sorted({'torch', 'scipy', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_deficits_of_a_run_split_the_classes_at_the_last_task():
    kept, tasks = run([2, 3, 2], seed=1)
    cube = m.AccuracyCube.from_predictions(kept, tasks)
    better = np.where(np.arange(len(kept[3])) % 3, kept[3].target, kept[3].predicted_local)
    last = m.Predictions(**{**kept[3].columns(), "predicted_local": better})
    joint = m.AccuracyCube.from_predictions({**kept, 3: last}, tasks)
    report = m.compute_all({"h": cube}, joint=joint)
    own, best = cube.class_matrix("local")[-1], joint.class_matrix("local")[-1]
    assert report.get("rsd", restriction="local") == m.rsd(own, best, range(5))
    assert report.get("rpd", restriction="local") == m.rpd(own, best, [5, 6])
    assert m.rsd(own, best, range(5)) != m.rpd(own, best, [5, 6])
    assert report.get("rsd_skipped_classes", restriction="local") == np.sum(best[:5] == 0)
    other = m.AccuracyCube.from_predictions(*run([3, 4], seed=1))
    assert m.compute_all({"h": cube}, joint=other).absent["rsd"] == "The joint reference belongs to another stream."
