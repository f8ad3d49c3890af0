"""Kept models are those of the run: what they say is what the run said then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.audits.models import AuditedRun
from clframe.errors import RunDirectoryError
from clframe.results import predictions_of


def test_every_kept_model_says_what_the_run_kept(digits_run):
    run = AuditedRun(digits_run.directory)
    assert run.all_kept() == run.kept() == [1, 2, 3]
    for after in run.kept():
        kept = predictions_of(digits_run.directory)["classifier"][after]
        model = run.model(after)
        scores = model.scores(run.stream.test, torch.tensor(kept.sample.tolist()))
        assert (scores.argmax(dim=1).numpy() == kept.predicted)[kept.predicted >= 0].all()
        np.testing.assert_allclose(-scores.logsumexp(dim=1).numpy(), kept.energy, rtol=1e-5)
        assert model.after == after
        assert not any(m.training for m in model.network.modules())


def test_features_are_those_before_the_head(digits_run):
    model = AuditedRun(digits_run.directory).model(3)
    stream = AuditedRun(digits_run.directory).stream
    ids = torch.tensor([5, 3, 8])
    features = model.embed(stream.test, ids)
    logits = features @ model.network.classifier.weight.T + model.network.classifier.bias
    torch.testing.assert_close(logits.detach(), model.scores(stream.test, ids))
    assert model.embed(stream.test, ids[:0]).shape == (0, features.shape[1])


def test_without_kept_models_there_is_the_final_one(train):
    run = AuditedRun(train("split_digits", "finetune", epochs=1, keep_models=False).directory)
    assert run.kept() == [5]
    assert run.model(5).after == 5
    with pytest.raises(RunDirectoryError, match="has kept no models: train it with"):
        run.all_kept()
    with pytest.raises(RunDirectoryError, match="Expected a checkpoint at"):
        run.model(2)
