"""The representation report end to end: small runs that keep their models, and every number made again by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import clframe
from clframe.cli import main
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.kept_models import choose_samples
from clframe.launch.build import load_strategy, stream_record
from clframe.metrics import Tasks
from clframe.report.representation import FILE, Representation, compare_representations
from clframe.results import summary_of
from clframe.strategies.finetune import Finetune
from clframe.strategy import Tags
from clframe.stream import SampleTable
from clframe.testing import synthetic_stream
from clframe.training.checkpoint import read_checkpoint, unpack

DIGITS = {"name": "split_digits", "classes": 6, "experiences": 3, "train_per_class": 30, "test_per_class": 20}
SYNTHETIC = "clframe.testing.streams:SyntheticScenario"


def train(folder: Path, **config: Any) -> clframe.Run:
    settings = {"scenario": DIGITS, "backbone": "resnet8", "epochs": 1, "keep_models": True, "device": "cpu", **config}
    return clframe.run(run_dir=folder, progress=False, **settings)


def report(run: clframe.Run, **options: Any) -> Representation:
    return run.representation(progress=False, device="cpu", **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> clframe.Run:
    """A run with a report; not to be changed."""
    run = train(tmp_path_factory.mktemp("kept") / "run", strategy={"name": "replay", "memory_size": 12}, epochs=3)
    report(run)
    return run


@pytest.fixture
def copied(finished: clframe.Run, tmp_path: Path) -> clframe.Run:
    """A copy without its report, to be changed."""
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    return clframe.load(tmp_path / "run")


def activations(run: clframe.Run, number: int, table: SampleTable, ids: torch.Tensor) -> Any:
    """What a kept model gives for some samples, from the images on, without anything of the report's code."""
    setup = load_strategy(run.directory)[0].run.setup
    state = read_checkpoint(run.directory.checkpoints / f"experience-{number:03d}.pt")
    network = unpack(state["network"], setup.skeleton).eval()
    pixels = table.gather(ids).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (setup.stream.mean, setup.stream.std))
    with torch.no_grad():
        return network((pixels - mean) / deviation, stages=True)


@pytest.fixture(scope="module")
def by_hand(finished: clframe.Run) -> list[dict[str, Any]]:
    """Features, stages and labels of all samples by every kept model."""
    stream = clframe.open_scenario(DIGITS)
    parts = {
        "train": (stream.train, [e.train for e in stream.experiences]),
        "test": (stream.test, [t.test for t in stream.tasks]),
    }
    found: list[dict[str, Any]] = [{}, {}, {}]
    for i, values in enumerate(found, 1):
        for name, (table, ids) in parts.items():
            output = activations(finished, i, table, torch.cat(ids))
            values[name] = output.features.double().numpy()
            values[f"{name}_labels"] = table.targets[torch.cat(ids)].numpy()
            values[f"{name}_stages"] = [s.double().flatten(1).numpy() for s in output.stages]
    return found


def changed(run: clframe.Run, **derived: Any) -> Representation:
    """A report with some other derived numbers."""
    data = json.loads(json.dumps(report(run).data))
    data["derived"] |= derived
    return Representation(data)


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    total = k.sum() * m.sum() / ((n - 1) * (n - 2)) + (k * m).sum() - 2 / (n - 2) * (k @ m).sum()
    return total / (n * (n - 3))


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


# -- the numbers ---------------------------------------------------------------------------------------------------------


def test_probe_matrix_is_what_scikit_learn_reads_in_the_features(finished: clframe.Run, by_hand: list[Any]) -> None:
    found = report(finished)
    assert np.isnan(found.probe_matrix[0]).all()
    for i, values in enumerate(by_hand, 1):
        scaler = StandardScaler().fit(values["train"])
        strength = found.data["probe"]["strength"][i - 1]
        model = LogisticRegression(C=1 / (strength * 180), max_iter=5000, tol=1e-7)
        model.fit(scaler.transform(values["train"]), values["train_labels"])
        scores, labels = model.decision_function(scaler.transform(values["test"])), values["test_labels"]
        right = (scores.argmax(axis=1) == labels).reshape(3, 40).mean(axis=1)
        np.testing.assert_allclose(found.probe_matrix[i], right, atol=1 / 40 + 1e-9)
        among = scores[:, : 2 * i].argmax(axis=1) == labels
        assert found.data["probe"]["seen_accuracy"][i - 1] == pytest.approx(among[labels < 2 * i].mean(), abs=0.02)


def test_derived_numbers_are_those_of_the_matrix(finished: clframe.Run) -> None:
    found, p = report(finished), report(finished).probe_matrix
    np.testing.assert_allclose(found.stability, [p[3, j] - p[j + 1, j] for j in range(3)])
    np.testing.assert_allclose(found.plasticity[1:], [p[2, 1] - p[1, 1], p[3, 2] - p[2, 2]])
    np.testing.assert_allclose(found.probe_accuracy, p[1:].mean(axis=1))  # tasks of equal size
    assert found.gain == pytest.approx(p[3].mean() - p[1].mean())
    assert found.scalars()["stability"] == pytest.approx(
        found.stability[:2].mean()
    )  # the last task has lost nothing yet
    reached = finished.metric("seen_accuracy")
    np.testing.assert_allclose(found.joint_probe_gap, np.array(reached) - found.data["probe"]["seen_accuracy"])
    assert found.data["classifier"] == {"head": "classifier", "seen_accuracy": reached}


def test_the_last_task_has_lost_nothing_yet_and_counts_for_no_mean(finished: clframe.Run) -> None:
    found = changed(finished, stability=[-0.3, -0.1, 0.0], plasticity=[None, 0.2, 0.4]).scalars()
    assert (found["stability"], found["plasticity"]) == (pytest.approx(-0.2), pytest.approx(0.3))


def test_alignment_is_that_of_the_activations(finished: clframe.Run, by_hand: list[Any]) -> None:
    found = report(finished)
    assert found.layers == ["stage1", "stage2", "stage3", "features"]
    layers = [{**{f"stage{k}": s for k, s in enumerate(v["test_stages"], 1)}, "features": v["test"]} for v in by_hand]
    for name, size in (("first", [40, 40, 40]), ("seen", [40, 80, 120])):
        for layer in found.layers:
            a, b, c = (values[layer] for values in layers)
            pairs = [(b[: size[1]], a[: size[1]]), (c[: size[2]], a[: size[2]]), (c[: size[2]], b[: size[2]])]
            direct = [cka(*pair) for pair in pairs]
            assert found.cka_to_first[name][layer] == pytest.approx([1, *direct[:2]], abs=1e-4), (name, layer)
            previous = found.cka_to_previous[name][layer]
            assert np.isnan(previous[0])
            assert previous[1:] == pytest.approx([direct[0], direct[2]], abs=1e-4), (name, layer)


def test_drift_is_that_of_the_class_means(finished: clframe.Run, by_hand: list[Any]) -> None:
    found = report(finished)
    labels = by_hand[0]["train_labels"]
    for i in (1, 2, 3):
        for c in range(6):
            taught = c // 2 + 1
            if taught >= i:
                assert np.isnan(found.drift_by_class[i - 1, c])
                continue
            then, now = by_hand[taught - 1]["train"][labels == c], by_hand[i - 1]["train"][labels == c]
            moved = np.linalg.norm(now.mean(axis=0) - then.mean(axis=0)) / np.sqrt(np.trace(np.cov(then.T)))
            assert found.drift_by_class[i - 1, c] == pytest.approx(moved, rel=1e-4)
            cosine = then.mean(axis=0) @ now.mean(axis=0)
            cosine /= np.linalg.norm(then.mean(axis=0)) * np.linalg.norm(now.mean(axis=0))
            assert found.data["drift"]["cosine"][i - 1][c] == pytest.approx(cosine, rel=1e-4)
    np.testing.assert_allclose(
        found.drift[1:], [found.drift_by_class[1, :2].mean(), found.drift_by_class[2, :4].mean()]
    )


def test_neighbours_are_those_of_the_features(finished: clframe.Run, copied: clframe.Run, by_hand: list[Any]) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    found = report(copied, probe="knn")
    for i, values in enumerate(by_hand, 1):
        model = KNeighborsClassifier(20, metric="cosine").fit(values["train"], values["train_labels"])
        right = (model.predict(values["test"]) == values["test_labels"]).reshape(3, 40).mean(axis=1)
        np.testing.assert_allclose(found.probe_matrix[i], right, atol=1 / 40 + 1e-9)  # votes may tie
    np.testing.assert_allclose(found.drift, report(finished).drift)


# -- laws ----------------------------------------------------------------------------------------------------------------


def test_an_extractor_that_never_changes_is_reported_as_the_same(tmp_path: Path) -> None:
    run = train(tmp_path / "run", backbone={"name": "mlp", "hidden": []})
    found = report(run)
    assert (found.probe_matrix[1:] == found.probe_matrix[1]).all()
    assert found.gain == 0
    assert found.layers == ["features"]
    np.testing.assert_allclose(found.cka_to_first["seen"]["features"], 1)
    np.testing.assert_array_equal(found.drift[1:], 0)
    np.testing.assert_allclose(found.drift_cosine[1:], 1)
    np.testing.assert_array_equal(found.plasticity[1:], 0)


def test_frozen_branches_do_not_drift_though_branches_are_added(tmp_path: Path) -> None:
    found = report(train(tmp_path / "run", strategy={"name": "der", "memory_size": 12}))
    assert found.layers == ["stage1", "stage2", "stage3", "features"]
    np.testing.assert_allclose(found.drift[1:], 0, atol=1e-5)
    assert (found.cka_to_first["first"]["features"][1:] < 0.999).all()  # of all branches together


def test_making_a_report_changes_nothing_else(copied: clframe.Run) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in copied.path.rglob("*") if p.is_file() and p.name != FILE}

    before, state = content(), torch.get_rng_state()
    report(copied)
    assert content() == before
    assert torch.equal(torch.get_rng_state(), state)


# -- what is kept --------------------------------------------------------------------------------------------------------


def test_a_second_call_only_reads(finished: clframe.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("computed again")

    first = report(finished)
    monkeypatch.setattr("clframe.representation.extract", refuse)
    assert report(finished).data == first.data
    assert report(finished, probe="logistic", cka_samples=2000).data == first.data
    for options, named in (
        ({"probe": "knn"}, "probe logistic, not knn"),
        ({"train_per_class": 3}, "train_per_class None, not 3"),
    ):
        with pytest.raises(ConfigurationError, match=f"was made with {named}: add --again"):
            report(finished, **options)
    with pytest.raises(AssertionError, match="computed again"):
        report(finished, again=True)


def test_again_replaces_it_and_gives_the_same_numbers(finished: clframe.Run, copied: clframe.Run) -> None:
    small = report(copied, train_per_class=5, layers=["features"], cka_samples=30)
    assert small.data["samples"] == {"train": 30, "test": 120, "first": 30, "seen": 30}
    assert small.layers == ["features"]
    assert report(copied, again=True).data == report(finished).data


def test_the_file_is_whole_json_of_the_documented_parts(finished: clframe.Run) -> None:
    data = json.loads((finished.path / FILE).read_text(encoding="utf-8"))
    parts = {"schema", "settings", "recipe", "samples", "tasks", "probe", "classifier", "derived", "cka", "drift"}
    assert set(data) == parts
    documented = clframe.report.representation.__doc__
    for part in parts:
        assert f"\n    {part}" in documented, part
    for part, inner in data.items():
        names = inner if isinstance(inner, dict) and part != "recipe" else ()
        assert all(name in documented for name in names), part
    assert data["tasks"] == {"sizes": [40, 40, 40], "taught": [1, 2, 3]}
    assert data["drift"]["taught"] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "probe": {}}'])
def test_a_damaged_report_is_named(copied: clframe.Run, text: str) -> None:
    (copied.path / FILE).write_text(text)
    with pytest.raises(RunDirectoryError, match=r"representation\.json is damaged"):
        report(copied)


# -- other streams -------------------------------------------------------------------------------------------------------


class Labelled(Finetune):
    """Leaves samples without labels alone, but says that it could use them."""

    tags: ClassVar[Tags] = dataclasses.replace(Finetune.tags, uses_unlabelled=True)


@pytest.mark.parametrize(
    "scenario",
    [
        {"setting": "task"},
        {"setting": "domain", "experiences": [[0, 1], [2, 3], [4, 5]]},
        {"experiences": [[0, 1], [1, 2], [0, 2]]},  # the last one brings no class, and no task
        {"unlabelled_per_class": 5, "train_per_class": 2},
        {"pool_per_class": 4, "query_budget": 2},
        {"valid_per_class": 3, "online": True, "boundaries": False},
    ],
    ids=["task", "domain", "repetition", "unlabelled", "pool", "online"],
)
def test_streams_of_every_kind(tmp_path: Path, scenario: dict[str, Any]) -> None:
    stream = synthetic_stream(**scenario)
    run = train(tmp_path / "run", scenario=stream, strategy=Labelled(epochs=1), backbone={"name": "mlp", "hidden": [8]})
    found = report(run, objects={"scenario": stream, "strategy": Labelled(epochs=1)})
    assert found.probe_matrix.shape == (4, len(stream.tasks))
    for values in (found.probe_matrix[1:], found.drift[1:], found.cka_to_first["seen"]["features"]):
        assert np.isfinite(values).all()
    trained = [torch.cat([e.train, e.unlabelled, e.pool]) for e in stream.experiences]
    assert found.data["samples"]["train"] == len(torch.cat(trained).unique())
    assert len(found.table().rows) == 3


def test_prototypes_are_of_the_samples_that_taught_the_class() -> None:
    """Classes that come back, in other domains or again, are followed by their first samples."""
    again = synthetic_stream(experiences=[[0, 1], [1, 2], [2, 3]], train_per_class=4)
    domains = synthetic_stream(experiences=[[0, 1], [2, 3]], setting="domain", train_per_class=4)
    for stream, first in ((again, {0: 0, 1: 0, 2: 1, 3: 2}), (domains, {0: 0, 1: 0})):
        found = choose_samples(stream, Tasks.from_dict(stream_record(stream)["tasks"]), None, 100)
        chosen = set(found.train[torch.from_numpy(found.prototypes)].tolist())
        labels = stream.train.targets
        expected = {k for c, e in first.items() for k in stream.experiences[e].train.tolist() if labels[k] == c}
        assert chosen == expected
        assert len(chosen) < len(found.train)


def test_drift_in_a_stream_of_domains_is_that_of_the_first_domain(tmp_path: Path) -> None:
    stream = synthetic_stream(setting="domain", experiences=[[0, 1], [2, 3]])
    run = train(tmp_path / "run", scenario=stream, backbone={"name": "mlp", "hidden": [8]})
    found = report(run, objects={"scenario": stream})
    ids = stream.experiences[0].train
    labels = stream.train.targets[ids].numpy()
    then, now = (activations(run, i, stream.train, ids).features.numpy() for i in (1, 2))
    for c in (0, 1):
        old, new = then[labels == c], now[labels == c]
        moved = np.linalg.norm(new.mean(axis=0) - old.mean(axis=0)) / np.sqrt(np.trace(np.cov(old.T)))
        assert found.drift_by_class[1, c] == pytest.approx(moved, rel=1e-4)


def test_a_run_of_objects_asks_for_them(tmp_path: Path) -> None:
    stream = synthetic_stream()
    run = train(tmp_path / "run", scenario=stream, backbone={"name": "mlp", "hidden": [8]})
    with pytest.raises(ConfigurationError, match="was an object in Python: give it again"):
        report(run)
    assert report(run, objects={"scenario": stream}).gain == report(run).gain


def test_runs_that_can_give_no_report(copied: clframe.Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"has kept no models: train it with `keep_models: true`"):
        report(train(tmp_path / "without", keep_models=False))
    regression = {"name": SYNTHETIC, "score": "squared_error", "setting": "domain", "experiences": [[0, 1]] * 2}
    run = train(tmp_path / "regression", scenario=regression, strategy="l2_anchor", backbone="mlp")
    with pytest.raises(ConfigurationError, match=r"needs classes to probe, but .* is scored by squared_error"):
        report(run)
    (copied.directory.checkpoints / "experience-002.pt").unlink()
    with pytest.raises(RunDirectoryError, match=r"experience-002\.pt is not there"):
        report(copied)
    (copied.path / "result.json").unlink()
    with pytest.raises(RunDirectoryError, match="has not finished: `clframe resume"):
        report(copied)
    assert not (copied.path / FILE).exists()


def test_other_data_is_refused(copied: clframe.Run) -> None:
    record = copied.directory.stream
    (copied.path / "stream.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    with pytest.raises(RunDirectoryError, match=r"differs from what .* was run on"):
        report(copied)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["stage4"]},
            r"shows stage1, stage2, stage3, features, received 'stage4'.*did you mean|Did you mean",
        ),
        ({"layers": []}, "received none: leave it out"),
        ({"train_per_class": 0}, "train_per_class"),
        ({"probe": "svm"}, "probe"),
        ({"prob": "knn"}, "probe"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_computed(
    copied: clframe.Run, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("clframe.representation.extract", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigurationError, match=message):
        report(copied, **options)


# -- several seeds -------------------------------------------------------------------------------------------------------


def test_seeds_of_one_setting_are_one_row_with_the_flag(finished: clframe.Run) -> None:
    summary = summary_of(finished.directory)

    def line(*gains: float) -> dict[str, str]:
        runs = [(dataclasses.replace(summary, seed=s), changed(finished, gain=g)) for s, g in enumerate(gains)]
        table = compare_representations(runs)
        assert len(table.rows) == 1
        return dict(zip([c.title for c in table.heads], table.cells()[0], strict=True))

    learnt = line(0.1, 0.2, 0.3)
    assert (learnt["gain"], learnt["n"], learnt["extractor"]) == ("20.00 ± 10.00", "3", "learnt")
    assert learnt["probe"] == "logistic"
    assert line(0.0, 0.09, 0.2)["extractor"] == "did not learn"  # 0.0967 beside 0.1002
    assert line(0.0, 0.1, 0.19)["extractor"] == "learnt"  # 0.0967 beside 0.0950
    assert line(0.3)["extractor"] == "one seed"
    shown = report(finished).scalars()
    assert learnt["drift"] == f"{shown['prototype_drift']:.3f} ± 0.000"
    assert learnt["probe, last"] == f"{100 * shown['probe_accuracy_final']:.2f} ± 0.00"


def test_the_command_prints_a_table_per_run_and_one_of_all(
    finished: clframe.Run, copied: clframe.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["representation", str(finished.path), str(copied.path), "--quiet", "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    for path in (finished.path, copied.path):
        assert f"replay on split_digits, seed 0: {path}\n" in said.out
    assert "Representations" in said.out
    assert said.err == ""
    assert (copied.path / FILE).read_bytes() == (finished.path / FILE).read_bytes()
    assert main([*arguments, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry.pop("directory") for entry in listed] == [str(finished.path), str(copied.path)]
    assert listed == [report(finished).data] * 2
    assert main([*arguments, "--knn"]) == 2
    assert "add --again" in capsys.readouterr().err
    assert (
        main([*arguments[:2], "--knn", "--again", "--train-per-class", "8", "--layers", "features", "--device", "cpu"])
        == 0
    )
    said = capsys.readouterr()
    assert "20 nearest neighbours on 48 training samples (8 of each class)" in said.out
    assert said.err.count("probe") == 3
    assert main([*arguments[:2], "--again", "--quiet", "--format", "latex"]) == 0  # as it was
    assert r"\begin{tabular}" in capsys.readouterr().out


# -- pictures ------------------------------------------------------------------------------------------------------------


def test_pictures_show_the_numbers(finished: clframe.Run) -> None:
    found = report(finished)
    matrix = found.plot_probe_matrix().axes[0]
    assert {t.get_text() for t in matrix.texts} == {f"{v:.2f}" for v in found.probe_matrix[1:].ravel()}
    aligned = found.plot_cka("previous", "seen").axes[0]
    assert [t.get_text() for t in aligned.get_legend().get_texts()] == found.layers
    for line, layer in zip(aligned.lines, found.layers, strict=True):
        np.testing.assert_allclose(line.get_ydata(), found.cka_to_previous["seen"][layer])
    drift = found.plot_drift().axes[0]
    groups = [found.drift_by_class[:, 2 * g : 2 * g + 2].mean(axis=1) for g in (0, 1)]  # the last group is never old
    for line, values in zip(drift.lines, [*groups, found.drift], strict=True):
        np.testing.assert_allclose(line.get_ydata(), values)
    assert drift.get_ylim()[0] == 0
    assert found.plot_drift("cosine").axes[0].get_ylabel().startswith("cosine")
    with pytest.raises(ConfigurationError, match="Expected one of first, previous, received 'last'"):
        found.plot_cka("last")


def test_a_report_shows_itself(finished: clframe.Run) -> None:
    assert "replay on split_digits" in report(finished)._repr_html_()
    cells = report(finished).table().cells()
    assert [row[0] for row in cells] == ["1", "2", "3"]
    assert cells[0][2] == "–"  # no extractor before the first
    assert cells[2][1] == f"{100 * report(finished).probe_accuracy[2]:.2f}"


def test_reading_needs_neither_torch_nor_data(finished: clframe.Run) -> None:
    code = (
        "import sys; from pathlib import Path; from clframe.report.representation import Representation; "
        f"found = Representation.read(Path({str(finished.path / FILE)!r})); found.table().to_text(); "
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
