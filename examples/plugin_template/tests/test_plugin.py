"""The plugins keep clframe's contract and do what they say; run with pytest, once the package is installed."""

from __future__ import annotations

import numpy as np
import pytest
from clframe_plugin_template.metric import worst_task
from clframe_plugin_template.scenario import Stripes
from clframe_plugin_template.strategy import ConfidencePenalty

import clframe
from clframe import registry
from clframe.metrics import AccuracyCube
from clframe.metrics.evaluators import Inputs
from clframe.testing import parametrize_with_checks


@parametrize_with_checks([ConfidencePenalty(), Stripes()])
def test_contract(subject, check):
    check(subject)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("strategy", "confidence_penalty"),
        ("scenario", "stripes"),
        ("metric", "worst_task_accuracy"),
        ("tracker", "csv"),
    ],
)
def test_clframe_knows_it(kind, name):
    assert name in registry.available(kind)


def test_the_worst_task():
    cube = AccuracyCube.from_matrix([[np.nan, np.nan], [0.9, np.nan], [0.4, 0.7]])
    assert worst_task(Inputs(cube)) == 0.4


def test_a_run_uses_all_four(tmp_path):
    run = clframe.run(
        scenario="stripes",
        strategy={"name": "replay+confidence_penalty", "memory_size": 30, "strength": 0.2},
        epochs=2,
        track="csv",
        run_dir=tmp_path / "run",
        progress=False,
    )
    assert run.metric("worst_task_accuracy") == np.nanmin(run.matrix()[-1])
    lines = (run.path / "accuracies.csv").read_text().splitlines()
    assert lines[0] == "experience,head,accuracy"
    curve = run.metric("seen_accuracy")
    assert [line for line in lines if ",classifier," in line] == [
        f"{i},classifier,{value:.6f}" for i, value in enumerate(curve, 1)
    ]
    assert all("confidence" in event["terms"] for event in run.events("epoch"))
