"""The sandbox's closed forms against samples, training and the metrics; plasticity streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clframe
from clframe.scenarios.plasticity import Plasticity
from clframe.scenarios.sandbox import Sandbox, expected_error, projected, ridge

LINEAR = {"backbone": {"name": "mlp", "hidden": []}, "head": {"bias": False, "init": "zeros"}}


def test_the_expected_error_is_the_mean_over_many_samples():
    task = Sandbox(test_samples=200_000, condition=7.0, noise=0.5, dimensions=4).tasks()[1]
    theta = np.array([0.3, -1.0, 0.5, 2.0])
    sampled = np.square(task.test_y - task.test_x @ theta).mean()
    assert expected_error(theta, task) == pytest.approx(sampled, rel=0.02)
    assert expected_error(task.theta, task) == pytest.approx(0.25)


def test_inputs_have_the_declared_covariance():
    task = Sandbox(train_samples=100_000, condition=9.0, dimensions=3).tasks()[0]
    np.testing.assert_allclose(task.x.T @ task.x / 100_000, task.covariance, atol=0.02)
    values = np.linalg.eigvalsh(task.covariance)
    assert values.max() / values.min() == pytest.approx(9.0)


@pytest.mark.parametrize("truth", ["stationary", "walk", "specific"])
def test_how_the_truth_moves(truth):
    thetas = np.stack([t.theta for t in Sandbox(truth=truth, experiences=400, dimensions=3, step=0.2).tasks()])
    steps = np.diff(thetas, axis=0)
    expected = {"stationary": 0.0, "walk": 0.2, "specific": np.sqrt(2)}[truth]
    assert steps.std() == pytest.approx(expected, rel=0.1)


def test_ridge_does_not_depend_on_the_order_of_the_tasks_and_solves_its_normal_equations():
    tasks = Sandbox().tasks()
    theta = ridge(tasks, 0.7)
    np.testing.assert_allclose(ridge(tasks[::-1], 0.7), theta, rtol=1e-9)
    x, y = np.concatenate([t.x for t in tasks]), np.concatenate([t.y for t in tasks])
    np.testing.assert_allclose(x.T @ (y - x @ theta), 0.7 * theta, rtol=1e-8)


@pytest.mark.parametrize("samples", [4, 60], ids=["projection", "least squares"])
def test_training_to_convergence_equals_the_closed_form_and_so_does_forgetting(tmp_path, samples):
    options = {"experiences": 3, "dimensions": 8, "train_samples": samples, "noise": 0.2}
    scenario = Sandbox(**options)
    run = clframe.run(
        scenario={"name": "sandbox", **options},
        **LINEAR,
        epochs=400,
        batch_size=samples,
        optimizer={"lr": 0.15, "momentum": 0.9, "weight_decay": 0.0},
        run_dir=tmp_path / "run",
        progress=False,
    )
    tasks, theta, errors = scenario.tasks(), np.zeros(8), np.full((3, 3), np.nan)
    for i, task in enumerate(tasks):
        theta = projected(theta, task)
        for j in range(i + 1):
            errors[i, j] = np.square(tasks[j].test_y - tasks[j].test_x @ theta).mean()
    weight = run.model.classifier.weight.detach().numpy()[0]
    np.testing.assert_allclose(weight, theta, atol=2e-4)
    found = np.asarray(run.matrix(), dtype=float)[-3:]
    np.testing.assert_allclose(found[np.tril_indices(3)], errors[np.tril_indices(3)], rtol=2e-3)
    # lower is better: forgetting is how much the error has grown since it was smallest
    last, best = errors[2, :2], np.nanmin(errors[:2, :2], axis=0)
    assert run.metric("forgetting_max") == pytest.approx((last - best).mean(), rel=2e-3)


def test_joint_training_is_ridge_without_strength(tmp_path):
    options = {"experiences": 3, "dimensions": 5, "train_samples": 40}
    run = clframe.run(
        scenario={"name": "sandbox", **options},
        strategy="joint",
        **LINEAR,
        epochs=400,
        batch_size=120,
        optimizer={"lr": 0.15, "momentum": 0.9, "weight_decay": 0.0},
        run_dir=tmp_path / "run",
        progress=False,
    )
    weight = run.model.classifier.weight.detach().numpy()[0]
    np.testing.assert_allclose(weight, ridge(Sandbox(**options).tasks(), 0.0), atol=2e-4)


# ---- plasticity


def test_every_task_permutes_the_inputs_or_the_labels():
    inputs = clframe.open_scenario("plasticity", experiences=4)
    assert len({t.spec()["order"] for t in inputs.train.transforms}) == 4
    labels = clframe.open_scenario("plasticity", experiences=4, kind="permuted_labels")
    plain = inputs.train.targets.view(4, -1)[0]
    shown = labels.train.targets.view(4, -1)
    maps = []
    for row in shown:
        pairs = set(zip(plain.tolist(), row.tolist(), strict=True))
        assert len(pairs) == 10  # a permutation of the classes
        maps.append(tuple(sorted(pairs)))
    assert len(set(maps)) == 4
    first = [int(e.train[0]) for e in labels.experiences]
    assert torch.equal(labels.train.gather(torch.tensor(first[:1])), labels.train.gather(torch.tensor(first[1:2])))
    tests = labels.test.targets[labels.tasks[2].test]
    assert set(zip(inputs.test.targets[inputs.tasks[2].test].tolist(), tests.tolist(), strict=True)) == set(maps[2])


def test_a_thousand_tasks_are_cut_in_moments():
    stream = clframe.open_scenario(Plasticity(experiences=1000, train_per_class=5, test_per_class=2))
    assert len(stream.experiences) == len(stream.tasks) == 1000
