"""Several processes for one run take the steps that one takes: the same losses, weights, exemplars and predictions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clframe
from clframe.errors import ConfigurationError
from clframe.training.ranks import ALONE, Ranks, join_ranks

DRIVER = Path(__file__).parent / "rank_driver.py"
MLP = {
    "scenario": {"name": "split_digits", "experiences": 2, "classes": 4, "train_per_class": 30},
    "backbone": {"name": "mlp", "hidden": [16]},
    "optimizer": {"lr": 0.05, "momentum": 0.9},
    "augmentation": [{"name": "random_crop", "padding": 1}, {"name": "horizontal_flip"}],
    "batch_size": 16,
    "epochs": 3,
    "device": "cpu",
    "threads": 1,
}


def torchrun(count: int, task: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(DRIVER)]
    return subprocess.run([*command, json.dumps(task)], capture_output=True, text=True, timeout=300)


def by_ranks(count: int, path: Path, **task: Any) -> clframe.Run:
    done = torchrun(count, {**MLP, **task, "run_dir": str(path)})
    assert done.returncode == 0, done.stderr[-3000:]
    return clframe.load(path)


def losses(run: clframe.Run) -> list[float]:
    return [value for event in run.events("epoch") for value in (event["loss"], *event["terms"].values())]


def check_equal(one: clframe.Run, two: clframe.Run) -> None:
    assert len(losses(one)) > 0
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
    assert two.metrics["seen_accuracy"] == one.metrics["seen_accuracy"]
    for left, right in zip(memories(one), memories(two), strict=True):
        assert torch.equal(left, right)


def memories(run: clframe.Run) -> list[torch.Tensor]:
    memory = getattr(run.strategy, "memory_", None)
    return [] if memory is None else [memory.ids]


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "replay", "memory_size": 12},
        {"name": "replay", "memory_size": 12, "form": "step", "memory_batch": 8},
        {"name": "dark_er", "memory_size": 12, "memory_batch": 8},
    ],
    ids=["replay", "replay_step", "dark_er"],
)
def test_two_ranks_train_as_one(strategy: dict[str, Any], tmp_path: Path) -> None:
    one = clframe.run(**MLP, strategy=strategy, run_dir=tmp_path / "one", progress=False)
    check_equal(one, by_ranks(2, tmp_path / "two", strategy=strategy))


def test_ranks_score_what_is_to_come_without_an_answer(tmp_path: Path) -> None:
    task = {"strategy": {"name": "replay", "memory_size": 12}, "evaluate_future": True}
    one = clframe.run(**MLP, **task, run_dir=tmp_path / "one", progress=False)
    assert one.metrics["open_set_auroc_energy"][0] is not None
    check_equal(one, by_ranks(2, tmp_path / "two", **task))


def test_three_ranks_and_a_last_batch_that_does_not_divide(tmp_path: Path) -> None:
    strategy = {"name": "replay", "memory_size": 11}
    one = clframe.run(**{**MLP, "batch_size": 14}, strategy=strategy, run_dir=tmp_path / "one", progress=False)
    check_equal(one, by_ranks(3, tmp_path / "three", strategy=strategy, batch_size=14))


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_class_means_of_a_frozen_network_are_the_same(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "base.safetensors"
    scenario = {"name": "split_digits", "classes": [0, 1, 2, 3], "train_per_class": 30}
    made = {"scenario": scenario, "backbone": "resnet8", "epochs": 1, "device": "cpu"}
    clframe.pretrain(out=weights, run_dir=tmp_path / "pretraining", progress=False, **made)
    task = {**MLP, "strategy": "nmc", "backbone": {"name": "resnet8", "weights": str(weights)}, "feature_cache": cache}
    task["scenario"] = {"name": "split_digits", "classes": [4, 5, 6, 7], "experiences": 2}
    two = by_ranks(2, tmp_path / "two", **task)
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "another_cache"))
    one = clframe.run(**task, run_dir=tmp_path / "one", progress=False)
    assert 0.3 < one.metrics["final_accuracy"] < 1
    assert one.metrics["seen_accuracy"] == two.metrics["seen_accuracy"]


def test_a_stopped_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    strategy = {"name": "replay", "memory_size": 12}
    one = clframe.run(**MLP, strategy=strategy, run_dir=tmp_path / "one", progress=False)
    path = tmp_path / "two"
    done = torchrun(2, {**MLP, "strategy": strategy, "run_dir": str(path), "stop_after": 6})
    assert done.returncode == 0
    assert not clframe.load(path).finished
    assert torchrun(2, {"run_dir": str(path), "resume": True}).returncode == 0
    check_equal(one, clframe.load(path))


def test_shares_of_a_batch_make_the_batch() -> None:
    values = torch.arange(7)
    shares = [Ranks(r, 3).share(values) for r in range(3)]
    assert sorted(torch.cat(shares).tolist()) == values.tolist()
    assert [len(s) for s in shares] == [3, 2, 2]
    assert ALONE.share(values).tolist() == values.tolist()
    assert ALONE.gathered(values) is values


def test_torchrun_without_its_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE is 2, but RANK.*start the run with torchrun"):
        join_ranks()


def test_a_gpu_by_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(
        ConfigurationError, match=r"expected auto, cpu or cuda for a run of 2 processes, received 'cuda:1'"
    ):
        join_ranks("cuda:1")


def test_more_ranks_than_samples_in_a_batch_are_refused(tmp_path: Path) -> None:
    done = torchrun(2, {**MLP, "batch_size": 1, "run_dir": str(tmp_path / "run")})
    assert done.returncode != 0
    assert "expected at least a sample for each of the 2 processes, received 1" in done.stderr
    assert not (tmp_path / "run").exists()
