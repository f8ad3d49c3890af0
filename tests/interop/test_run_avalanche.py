"""A whole Avalanche strategy as a run: its own training, our predictions and metrics, one table for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import clframe
from clframe.errors import ConfigurationError, ContractError, RunDirectoryError
from clframe.interop.avalanche import run_avalanche
from clframe.interop.avalanche.library import require
from clframe.scenarios.split import SplitDigits
from clframe.stream import Stream
from clframe.testing import synthetic_stream
from clframe.testing.check import global_rng_unchanged

SCENARIO = SplitDigits(classes=6, experiences=3, train_per_class=30, test_per_class=15)
REHEARSAL: dict[str, dict[str, int]] = {
    "Replay": {"mem_size": 30},
    "DER": {"mem_size": 30, "batch_size_mem": 10},
    "ER_ACE": {"mem_size": 30, "batch_size_mem": 10},
}


class CutWhenScored(nn.Module):
    """A mistake that only scoring shows: all outputs in training, the first few of them afterwards."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x[:, : self.outputs]


def maker(
    name: str = "Naive", metrics: Callable[[], list[Any]] | None = None, outputs: int | None = None, **options: Any
) -> Any:
    def make(stream: Stream) -> Any:
        size = int(np.prod(stream.shape))
        model = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, stream.num_classes))
        if outputs is not None:
            model.append(CutWhenScored(outputs))
        plugin = require("avalanche.training.plugins").EvaluationPlugin(*(metrics() if metrics else []), loggers=[])
        made = getattr(require("avalanche.training.supervised"), name)
        common = {"train_mb_size": 10, "train_epochs": 12, "eval_mb_size": 8, "evaluator": plugin, **options}
        return made(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
            criterion=lambda out, y: nn.functional.cross_entropy(out, y.clamp(max=out.shape[1] - 1)),
            **common,
        )

    return make


def test_a_strategy_trains_and_every_metric_is_there(tmp_path: Path) -> None:
    run = run_avalanche(maker(), scenario=SCENARIO, run_dir=tmp_path / "run", progress=False)
    matrix = run.matrix()
    assert matrix.shape == (4, 3)
    assert np.isnan(matrix[np.triu_indices(4, 0, 3)[0], np.triu_indices(4, 0, 3)[1]]).all()
    assert np.diag(matrix, -1).min() > 0.9  # every task is learnt
    assert run.metric("forgetting_max") > 0.5  # and forgotten
    assert run.config["strategy"] == {"name": "avalanche.Naive", "epochs": 12}
    assert run.result["counters"]["steps"] == 3 * 12 * 6
    assert run.result["counters"]["presentations"] == 3 * 12 * 60
    recorded = json.loads((tmp_path / "run" / "stream.json").read_text())
    assert recorded["fingerprint"] == clframe.open_scenario(SCENARIO).fingerprint


@pytest.mark.parametrize("name", REHEARSAL)
def test_strategies_that_rehearse_beat_one_that_does_not(name: str, tmp_path: Path) -> None:
    made = maker(name, **REHEARSAL[name])
    run = run_avalanche(made, scenario=SCENARIO, run_dir=tmp_path / "run", progress=False)
    plain = run_avalanche(maker(), scenario=SCENARIO, run_dir=tmp_path / "plain", progress=False)
    assert run.metric("final_accuracy") > plain.metric("final_accuracy") + 0.2


def test_metrics_agree_with_avalanches_where_those_are_right(tmp_path: Path) -> None:
    """One stream, whole evaluations, tasks of one size and no revisits: then its accuracy, forgetting (first minus last)
    and backward transfer are the usual ones.
    """
    kept: list[Any] = []

    def metrics() -> list[Any]:
        found = require("avalanche.evaluation.metrics")
        kept.extend(
            [
                found.accuracy_metrics(experience=True, stream=True),
                found.forgetting_metrics(experience=True, stream=True),
                found.bwt_metrics(experience=True, stream=True),
            ]
        )
        return kept

    strategies: list[Any] = []

    def make(stream: Stream) -> Any:
        strategies.append(maker("Replay", metrics, mem_size=12)(stream))
        return strategies[-1]

    run = run_avalanche(make, scenario=SCENARIO, run_dir=tmp_path / "run", progress=False)
    theirs = strategies[0].evaluator.get_last_metrics()

    def said(start: str) -> float:
        return next(float(v) for k, v in theirs.items() if k.startswith(start))

    assert run.metric("final_accuracy") == pytest.approx(said("Top1_Acc_Stream/eval_phase/test_stream"))
    assert run.metric("forgetting_first") == pytest.approx(said("StreamForgetting/eval_phase/test_stream"))
    assert run.metric("backward_transfer") == pytest.approx(said("StreamBWT/eval_phase/test_stream"))
    last = run.matrix()[3]
    for j in range(3):
        assert last[j] == pytest.approx(said(f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{j:03d}"))
    assert run.metric("forgetting_first") != pytest.approx(0)


def test_a_seed_says_all_and_scoring_changes_nothing(tmp_path: Path) -> None:
    """Avalanche's own evaluation draws from the global generator, and so changes the training that follows (D10)."""
    with global_rng_unchanged("run_avalanche"):
        first = run_avalanche(maker(), scenario=SCENARIO, seed=3, run_dir=tmp_path / "a", progress=False)
    torch.manual_seed(99)
    again = run_avalanche(maker(), scenario=SCENARIO, seed=3, run_dir=tmp_path / "b", progress=False)
    other = run_avalanche(maker(), scenario=SCENARIO, seed=4, run_dir=tmp_path / "c", progress=False)

    def confidences(run: Any) -> Any:
        return np.load(run.path / "predictions" / "test" / "0003-classifier.npz")["confidence"]

    assert np.array_equal(confidences(first), confidences(again))
    assert not np.array_equal(confidences(first), confidences(other))


def test_the_task_incremental_setting_gives_task_ids(tmp_path: Path) -> None:
    scenario = SCENARIO.replace(setting="task")
    run = run_avalanche(maker(), scenario=scenario, run_dir=tmp_path / "run", progress=False)
    assert run.primary == ("classifier", "local")
    assert run.metric("final_accuracy") > 0.5


def test_both_stand_in_one_table(tmp_path: Path) -> None:
    theirs = [
        run_avalanche(maker(), scenario="split_digits", seed=s, run_dir=tmp_path / f"a{s}", progress=False)
        for s in range(3)
    ]
    ours = [
        clframe.run(
            scenario="split_digits", strategy="finetune", epochs=3, seed=s, run_dir=tmp_path / f"c{s}", progress=False
        )
        for s in range(3)
    ]
    text = str(clframe.compare([*theirs, *ours]))
    rows = [line for line in text.splitlines() if line.startswith("split_digits")]
    assert len(rows) == 2
    assert {line.split()[1] for line in rows} == {"avalanche.Naive", "finetune"}
    assert all("finished" in line for line in rows)
    assert text.count("differ in") <= 4
    assert "Other rows of split_digits have settings that avalanche.Naive haven't: " in text


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="return an Avalanche strategy, received Linear"):
        run_avalanche(lambda stream: nn.Linear(2, 2), scenario=SCENARIO, run_dir=tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()
    stream = synthetic_stream(pool_per_class=1, query_budget=1)
    with pytest.raises(ConfigurationError, match="no form for labels to buy"):
        run_avalanche(maker(), scenario=stream, run_dir=tmp_path / "no", progress=False)
    with pytest.raises(ContractError, match=r"Expected outputs \(30, 4 or more\), .* received \(30, 3\)"):
        run_avalanche(maker(outputs=3), scenario=SCENARIO, run_dir=tmp_path / "few", progress=False)
    with pytest.raises(RunDirectoryError, match="exists already"):
        run_avalanche(maker(), scenario=SCENARIO, run_dir=tmp_path / "few", progress=False)
    with pytest.raises(ConfigurationError, match="keeps no model and can't be resumed"):
        clframe.resume(tmp_path / "few")
