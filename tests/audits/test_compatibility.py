"""The compatibility audit: searches by scikit-learn, galleries that stay, ties of grown features, references."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

import clframe
from clframe.audits.models import AuditedRun
from clframe.errors import ConfigurationError, RunDirectoryError

MEASURES = ("verification", "top1", "mean_average_precision")


def test_the_matrix_is_that_of_scikit_learn(compatible):
    found = clframe.audit("compatibility", compatible).data[0]
    run = AuditedRun(compatible.directory)
    shown = run.stream.retrieval
    wanted, there = (shown.table.targets[ids].numpy() for ids in (shown.queries, shown.gallery))
    features = {
        i: [run.model(i).embed(shown.table, ids).double().numpy() for ids in (shown.queries, shown.gallery)]
        for i in (1, 2, 3)
    }
    for i in (1, 2, 3):
        for j in (1, 2, 3):
            cells = [found[m]["matrix"][i - 1][j - 1] for m in MEASURES]
            if j > i:
                assert cells == [None, None, None]
                continue
            similarity = np.round(
                cosine_similarity(features[i][0], features[j][1]), 9
            )  # few units are active: some tie
            near = similarity == similarity.max(axis=1, keepdims=True)
            right = (near & (there[None] == wanted[:, None])).sum(axis=1) / near.sum(axis=1)
            assert cells[1] == pytest.approx(right.mean(), abs=1e-9)
            expected = [average_precision_score(there == w, row) for w, row in zip(wanted, similarity, strict=True)]
            assert cells[2] == pytest.approx(np.mean(expected), abs=1e-9)
            pairs = similarity[shown.pairs[:, 0], shown.pairs[:, 1]]
            same = wanted[shown.pairs[:, 0]] == there[shown.pairs[:, 1]]
            best = max(np.mean((pairs >= t) == same) for t in pairs)
            assert best - 0.05 < cells[0] <= best + 1e-9, (
                "the folds' own thresholds are at most as good as the best one"
            )
    assert found["feature_dims"] == [24, 24, 24]
    assert json.loads((compatible.path / "compatibility.json").read_text()) == found


def test_a_kept_gallery_is_never_computed_again(train):
    run = train({"name": "compatibility", "held_out": 4, "experiences": 2}, "finetune", epochs=1)
    before = clframe.audit("compatibility", run).data[0]
    first, second = (run.path / "galleries" / f"{j:03d}.safetensors" for j in (1, 2))
    kept = first.read_bytes(), second.read_bytes()
    assert clframe.audit("compatibility", run).data[0] == before
    assert (first.read_bytes(), second.read_bytes()) == kept
    # With another gallery in its place the old model's column changes, and no other.
    features, header = (
        load_file(first)["features"],
        {"protocol": AuditedRun(run.directory).stream.retrieval.fingerprint},
    )
    save_file({"features": features.flip(0)}, first, header)
    after = clframe.audit("compatibility", run).data[0]["mean_average_precision"]["matrix"]
    matrix = before["mean_average_precision"]["matrix"]
    assert after[1][1] == matrix[1][1]
    assert after[0][0] != matrix[0][0]
    assert after[1][0] != matrix[1][0]
    save_file({"features": features}, first, {"protocol": "other"})
    with pytest.raises(RunDirectoryError, match=r"001\.safetensors is of other images"):
        clframe.audit("compatibility", run)
    first.write_bytes(b"no gallery")
    with pytest.raises(RunDirectoryError, match=r"001\.safetensors is damaged"):
        clframe.audit("compatibility", run)


def test_features_that_only_grow_tie_and_ties_are_not_compatible(train):
    """DER freezes its extractors and appends a new one: truncated to the old length, its features are the old ones."""
    strategy = {"name": "der", "memory_size": 40, "balanced_epochs": 1}
    found = clframe.audit(
        "compatibility", train({"name": "compatibility", "held_out": 4, "experiences": 2}, strategy)
    ).data[0]
    assert found["feature_dims"] == [24, 48]
    for measure in MEASURES:
        matrix = found[measure]["matrix"]
        assert matrix[1][0] == matrix[0][0]
        assert found[measure]["average_compatibility"] == 0.0


def test_independent_models_give_gain_and_price(compatible, train):
    scenario = {"name": "compatibility", "held_out": 4, "experiences": 3}
    others = [train(scenario, {"name": "cumulative", "start": "scratch"}, seed=s) for s in (0, 1)]
    found = clframe.audit("compatibility", compatible, references=others).data[0]
    alone = [clframe.audit("compatibility", other).data[0] for other in others]
    for measure in MEASURES:
        values = np.array(found[measure]["matrix"], dtype=float)
        best = np.mean([np.diagonal(np.array(a[measure]["matrix"], dtype=float)) for a in alone], axis=0)
        np.testing.assert_allclose(found[measure]["independent"], best)
        np.testing.assert_allclose(found[measure]["price"], np.diagonal(values) - best)
        for i in range(3):
            for j in range(i):
                room = best[i] - values[j, j]
                expected = pytest.approx((values[i, j] - values[j, j]) / room) if room > 0 else None
                assert found[measure]["gain"][i][j] == expected
    again = clframe.audit("compatibility", compatible, references=others[:1])
    assert "M* of independent models" in str(again)
    assert np.array(again.data[0]["top1"]["price"]).shape == (3,)
    assert clframe.audit("compatibility", compatible).data[0]["top1"]["gain"] is None


def test_bad_input(compatible, digits_run, train):
    with pytest.raises(ConfigurationError, match=r"is on split_digits: run the scenario compatibility"):
        clframe.audit("compatibility", digits_run)
    other = train({"name": "compatibility", "held_out": 4, "experiences": 2}, "finetune", epochs=1)
    with pytest.raises(ConfigurationError, match="needs the very same stream"):
        clframe.audit("compatibility", compatible, references=[other])
    unkept = train({"name": "compatibility", "experiences": 2}, "finetune", epochs=1, keep_models=False)
    with pytest.raises(RunDirectoryError, match="has kept no models: train it with"):
        clframe.audit("compatibility", unkept)
    with pytest.raises(ConfigurationError, match="expects one run, received 2"):
        clframe.audit("compatibility", [compatible, compatible])
    with pytest.raises(ConfigurationError, match=r"There is no audit 'compatability'\. Did you mean 'compatibility'"):
        clframe.audit("compatability", compatible)


def test_a_run_on_features_searches_features(train):
    scenario = {"name": "feature_stream", "scenario": {"name": "compatibility", "experiences": 2},
                "backbone": {"name": "mlp", "hidden": [12]}}  # fmt: skip
    run = train(scenario, "finetune", backbone={"name": "mlp", "hidden": []}, epochs=1)
    found = clframe.audit("compatibility", run).data[0]
    assert found["feature_dims"] == [12, 12]
    matrix = found["top1"]["matrix"]
    assert matrix[1][0] == matrix[0][0] == matrix[1][1]  # nothing trains but the head
    assert torch.equal(*(load_file(run.path / "galleries" / f"{j:03d}.safetensors")["features"] for j in (1, 2)))
