"""TensorBoard's own reader finds the run's numbers in the event files, once each, whatever way they came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.training.trainer import Stopped

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

CONFIG: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 6, "experiences": 3, "train_per_class": 40},
    "strategy": {"name": "replay", "memory_size": 12, "epochs": 2},
    "backbone": {"name": "mlp", "hidden": [8]},
}


def read(folder: Path) -> Any:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    found = accumulator.EventAccumulator(str(folder), size_guidance=everything)
    found.Reload()
    return found


def scalars(found: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> clframe.Run:
    """A run that TensorBoard has watched, stopped in its second experience and resumed."""
    directory = tmp_path_factory.mktemp("board") / "run"
    with pytest.raises(Stopped):
        clframe.run(run_dir=directory, track=["tensorboard"], progress=False, stop_after=9, **CONFIG)
    return clframe.resume(directory, progress=False)


@pytest.fixture(scope="module")
def shown(run: clframe.Run) -> dict[str, list[tuple[int, float]]]:
    return scalars(read(run.path / "tensorboard"))


def test_curves_over_steps(run: clframe.Run, shown: dict[str, list[tuple[int, float]]]) -> None:
    assert [step for step, _ in shown["train/loss"]] == list(range(1, run.result["counters"]["steps"] + 1))
    done = 0
    for epoch in run.events("epoch"):
        values = [v for s, v in shown["train/loss"] if done < s <= done + epoch["steps"]]
        done += epoch["steps"]
        assert sum(values) / len(values) == pytest.approx(epoch["loss"], rel=1e-5)
        assert dict(shown["train/lr"])[done] == pytest.approx(epoch["lr"])


def test_curves_over_experiences(run: clframe.Run, shown: dict[str, list[tuple[int, float]]]) -> None:
    for head, by in run.result["values"].items():
        for restriction, values in by.items():
            for name in ("seen_accuracy", "seen_accuracy_macro"):
                expected = list(enumerate(values[name], 1))
                found = shown[f"eval/{head}/{restriction}/{name}"]
                assert found == [(i, pytest.approx(v)) for i, v in expected]
    assert shown["task/001"] == [(i, pytest.approx(v)) for i, v in enumerate(run.matrix()[1:, 0], 1)]
    assert [i for i, _ in shown["task/003"]] == [3]


def test_result_pictures_and_configuration(run: clframe.Run, shown: dict[str, list[tuple[int, float]]]) -> None:
    assert shown["result/final_accuracy"][-1] == (3, pytest.approx(run.metric("final_accuracy")))
    assert shown["result/nme/local/final_accuracy"] == [
        (3, pytest.approx(run.metric("final_accuracy", "nme", "local")))
    ]
    found = read(run.path / "tensorboard")
    pictures = {head: {p.step for p in found.Images(f"matrix/{head}")} for head in ("classifier", "nme")}
    assert pictures == {"classifier": {1, 2, 3}, "nme": {1, 2, 3}}
    assert found.Images("matrix/nme")[-1].encoded_image_string.startswith(b"\x89PNG")

    def text(tag: str) -> str:
        return found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()

    assert "memory_size: 12" in text("config")
    assert f"| local | 3 | 1 | {run.matrix('nme', 'local')[3, 0]:.4f} |" in text("matrix_table/nme")


def test_sent_afterwards_it_is_the_same(
    run: clframe.Run, shown: dict[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    (said,) = clframe.log(run.path, {"name": "tensorboard", "logdir": str(tmp_path)}, again=True)
    assert said.startswith("tensorboard took ")
    assert scalars(read(tmp_path / "run")) == shown
    assert "has everything" in clframe.log(run.path, "tensorboard")[0]
