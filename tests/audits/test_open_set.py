"""The open-set audit: the kept predictions give the same numbers, and feature scores are those of plain NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import weibull_min
from sklearn.metrics import roc_auc_score

import clframe
from clframe.audits.models import AuditedRun
from clframe.errors import ConfigurationError, DataError


@pytest.fixture(scope="module")
def found(digits_run):
    return clframe.audit("open-set", digits_run)


def test_softmax_scores_are_those_of_the_kept_predictions(digits_run, found):
    rows = {(r["after"], r["unknown"]): r for r in found.data[0]["rows"]}
    for score in ("confidence", "entropy", "energy"):
        for measure in ("auroc", "fpr95"):
            curve = digits_run.metric(f"open_set_{measure}_{score}")
            for after in (1, 2):
                assert rows[after, "all to come"][measure][score] == pytest.approx(curve[after - 1], abs=2e-3)
    assert curve[2] is None
    assert {unknown for after, unknown in rows if after == 3} == set()


def test_feature_scores_are_plain_numpy(digits_run, found):
    """After two experiences: class means of the training samples predicted right, and the nearest one's distance."""
    run = AuditedRun(digits_run.directory)
    stream, model = run.stream, run.model(2)
    train = torch.cat([e.train for e in stream.experiences[:2]])
    features, labels = model.embed(stream.train, train).numpy(), stream.train.targets[train].numpy()
    right = model.scores(stream.train, train).argmax(dim=1).numpy() == labels
    means = {c: features[(labels == c) & right].mean(axis=0) for c in range(4)}
    test = torch.cat([t.test for t in stream.tasks])
    seen = stream.test.targets[test].numpy() < 4
    tested = model.embed(stream.test, test).numpy()
    distances = np.stack([np.linalg.norm(tested - means[c], axis=1) for c in range(4)], axis=1)
    row = next(r for r in found.data[0]["rows"] if (r["after"], r["unknown"]) == (2, "all to come"))
    assert row["known_samples"] == seen.sum()
    assert row["auroc"]["distance"] == pytest.approx(roc_auc_score(seen, -distances.min(axis=1)), abs=1e-6)
    tails = []
    for c in range(4):
        own = np.sort(np.linalg.norm(features[(labels == c) & right] - means[c], axis=1))[-20:]
        shape, _, scale = weibull_min.fit(own, floc=0)
        tails.append(weibull_min.logsf(distances[:, c], shape, scale=scale))  # falls where the CDF rises
    assert row["auroc"]["weibull"] == pytest.approx(roc_auc_score(seen, np.max(tails, axis=0)), abs=5e-3)


def test_tasks_to_come_are_told_one_by_one(digits_run, found):
    rows = {(r["after"], r["unknown"]): r for r in found.data[0]["rows"]}
    assert set(rows) == {(1, "all to come"), (1, "task 2"), (1, "task 3"), (2, "all to come"), (2, "task 3")}
    assert rows[2, "task 3"]["auroc"] == rows[2, "all to come"]["auroc"]
    parts = [rows[1, f"task {j}"] for j in (2, 3)]
    whole = sum(p["auroc"]["energy"] * p["unknown_samples"] for p in parts) / sum(p["unknown_samples"] for p in parts)
    assert rows[1, "all to come"]["auroc"]["energy"] == pytest.approx(whole)
    assert json.loads((digits_run.path / "open_set.json").read_text()) == found.data[0]
    text = str(found)
    assert "task 2 (next)" in text
    assert "task 3 (next)" in text
    assert "task 2 (next)" in found.tables[0].to_html()
    assert text.count("all to come") == 4


def test_another_data_set_is_unknown_to_every_model(digits_run):
    """The other digits stand for a foreign set: as a scenario, and after the last experience too."""
    rows = clframe.audit("open-set", digits_run, foreign="split_digits", final_only=True).data[0]["rows"]
    assert [(r["after"], r["unknown"], r["unknown_samples"]) for r in rows] == [(3, "split_digits", 359)]
    whole = clframe.audit("open_set", digits_run.path, foreign="digits").data[0]
    last = [r for r in whole["rows"] if r["unknown"] == "digits"]
    assert [r["after"] for r in last] == [1, 2, 3]
    assert last[2]["auroc"] == pytest.approx(rows[0]["auroc"])
    # Known images are part of the set, so that nothing tells all of it apart.
    assert 0.5 < last[2]["auroc"]["energy"] < 0.95


def test_foreign_images_are_brought_to_shape(digits_run, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for value, name in enumerate(("dark", "light")):
            (tmp_path / "shades" / split / name).mkdir(parents=True)
            Image.fromarray(np.full((12, 12, 3), 90 * value, np.uint8)).save(
                tmp_path / "shades" / split / name / "a.png"
            )
    with pytest.raises(DataError, match="channels to join"):
        clframe.audit("open-set", digits_run, foreign=str(tmp_path / "shades"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"final_only": True}, r"no task is to come.*give --foreign NAME, or train with --keep-models true"),
        ({"foreign": "digts"}, "'digts'"),
        ({"foregn": "digits"}, r"audit open-set\.foregn is not an option of OpenSet\. Did you mean 'foreign'\?"),
        ({"tail": 1}, "audit open-set.tail: expected int ≥ 2 samples, received 1"),
        ({"references": ["x"]}, "x"),
    ],
)
def test_bad_input(digits_run, options, words):
    if "references" in options:
        options, words = {"references": [digits_run]}, "compares with no other run, received 1 --reference"
    with pytest.raises(ConfigurationError, match=words):
        clframe.audit("open-set", digits_run, **options)


def test_streams_without_a_new_class_are_refused(train):
    ids = train({"name": "split_digits", "classes": 4, "experiences": 2, "setting": "task"}, "finetune", epochs=1)
    with pytest.raises(ConfigurationError, match="on a stream that gives task ids"):
        clframe.audit("open-set", ids)
    numbers = train({"name": "sandbox", "experiences": 2, "train_samples": 20}, "finetune", epochs=1)
    with pytest.raises(ConfigurationError, match="on a stream that has no classes"):
        clframe.audit("open-set", numbers)
