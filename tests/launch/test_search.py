"""Searches: on the first experiences, by validation samples, the same for the same seed, resumed, and paid for."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.api import sweep
from clframe.config import resolve
from clframe.errors import ConfigurationError
from clframe.launch.executors import Update, Work, local
from clframe.launch.executors.local import Local
from clframe.launch.proposals import proposer
from clframe.launch.sweep import Sweep, SweepRun
from clframe.results import metrics_of, predictions_of
from clframe.tracking.rundir import RunDirectory

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 6, "experiences": 3, "train_per_class": 20},
    "backbone": {"name": "mlp", "hidden": [8]},
    "epochs": 2,
}
GRID = {"optimizer.lr": [0.001, 0.1], "strategy.strength": [1.0, 1000.0]}
SEARCH: dict[str, Any] = {"method": "grid", "experiences": 2, "valid_per_class": 5, "space": GRID}
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs optuna: pip install 'clframe[search]'"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do runs in this process, which is quicker; returns the names of what was done, in order."""
    names: list[str] = []

    def run(self: Local, work: Work) -> Any:
        for one in work.runs:
            names.append(one.name)
            try:
                clframe.run(run_dir=one.directory, progress=False, **one.record)
                yield Update(one, "finished")
            except clframe.ClframeError as error:
                one.keep_log(f"clframe: {error}", error.exit_code)
                yield Update(one, "failed", str(error))

    monkeypatch.setattr(Local, "run", run)
    return names


def plan(**search: Any) -> dict[str, Any]:
    return {
        "out": "out",
        "base": BASE,
        "strategies": ["finetune", "ewc"],
        "seeds": [0, 1],
        "search": {**SEARCH, **search},
    }


def record_of(strategy: str) -> dict[str, Any]:
    (file,) = Path("out/search").glob(f"split_digits-{strategy}-search-*.json")
    return dict(json.loads(file.read_text()))


def test_the_best_on_validation_samples_of_the_first_experiences_goes_into_the_runs(done: list[str]) -> None:
    made = sweep(plan())
    assert len(done) == 2 + 4 + 4, "an option of ewc isn't searched for finetune"
    for strategy, count in (("finetune", 2), ("ewc", 4)):
        kept = record_of(strategy)
        assert len(kept["trials"]) == count
        scores = {}
        for trial in kept["trials"]:
            run = clframe.load(Path("out/search") / trial["run"])
            assert (run.config["first_experiences"], run.config["scored_on"]) == (2, "valid")
            assert run.config["scenario"]["valid_per_class"] == 5
            # The score by hand: mean over the two evaluations of the accuracy on the validation samples seen.
            predictions = predictions_of(run.directory, "valid")["classifier"]
            by_hand = sum(float((p.predicted == p.target).mean()) for p in predictions.values()) / 2
            assert [len(p.target) for p in predictions.values()] == [10, 20]
            assert math.isclose(by_hand, trial["score"])
            assert not (run.path / "predictions" / "test").exists()
            scores[tuple(trial["values"].values())] = by_hand
        best = next(v for v, s in scores.items() if s == max(scores.values()))
        assert tuple(kept["chosen"].values()) == best
        runs = [r for r in made.runs if r.record["strategy"]["name"] == strategy]
        assert [r.record["seed"] for r in runs] == [0, 1]
        chosen = {
            "optimizer": {"lr": best[0]},
            "strategy": {"name": strategy, **({"strength": best[1]} if count == 4 else {})},
        }
        expected = [resolve({**BASE, **chosen, "seed": seed}).record for seed in (0, 1)]
        assert [r.record for r in runs] == expected, "the runs train on all samples and are scored on the test set"
        assert all(r.state == "finished" for r in runs)


def test_validation_samples_are_held_out_of_a_trials_training(done: list[str]) -> None:
    sweep(plan())
    run = clframe.load(next(Path("out/search").glob("split_digits-ewc-0-*")))
    assert [(e["train"], e["valid"]) for e in run.directory.stream["experiences"]] == [(30, 10), (30, 10)]


def test_the_same_search_again_does_nothing_and_a_stopped_one_only_what_is_missing(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sweep(plan())
    first, chosen = list(done), [record_of(s)["chosen"] for s in ("finetune", "ewc")]
    assert sweep(plan()).runs[0].record == made.runs[0].record
    assert done == first
    record = next(Path("out/search").glob("*ewc-search-*.json"))
    lost = json.loads(record.read_text())["trials"][2]["run"]
    record.unlink()
    (Path("out/search") / lost / "result.json").rename("kept.json")

    def give_back(self: Local, work: Work) -> Any:
        (run,) = work.runs
        Path("kept.json").rename(run.directory / "result.json")
        yield Update(run, "finished")

    monkeypatch.setattr(Local, "run", give_back)
    again = Sweep.from_plan(plan())
    assert [r.record["strategy"]["name"] for r in again.runs] == ["finetune", "finetune"], "ewc waits for its search"
    assert [row[5] for row in again.table().rows][2:] == ["waits for its search"] * 2
    assert again.run() == 0
    assert [record_of(s)["chosen"] for s in ("finetune", "ewc")] == chosen


def test_what_the_trials_took_is_counted_and_shown(done: list[str]) -> None:
    made = sweep(plan())
    for strategy, count in (("finetune", 2), ("ewc", 4)):
        kept = record_of(strategy)
        # 30 samples are one step: two epochs in two experiences.
        assert [t["steps"] for t in kept["trials"]] == [4] * count
        assert kept["cost"]["steps"] == 4 * count
        assert kept["cost"]["trials"] == count
        assert kept["cost"]["seconds"] == pytest.approx(sum(t["seconds"] for t in kept["trials"]))
        assert all(t["seconds"] > 0 for t in kept["trials"])
    table = made.search_table()
    assert table is not None
    assert [row[0] for row in table.rows] == ["finetune on split_digits", "ewc on split_digits"]
    assert [row[4:6] for row in table.rows] == [(2, 8), (4, 16)]
    assert table.rows[1][2] == ", ".join(f"{n}={v:.4g}" for n, v in record_of("ewc")["chosen"].items())
    assert "belong to the cost of the method" in table.notes[-1]
    assert table.render("markdown").strip() in Path("out/comparison.md").read_text()
    before = Sweep.from_plan(plan(space={"optimizer.lr": [0.2]})).search_table()
    assert before is not None
    assert [row[3:6] for row in before.rows] == [(None, 0, 0)] * 2, "nothing has been tried"


def test_a_trial_that_diverges_is_no_failure_and_not_tried_again(done: list[str]) -> None:
    given = plan(space={"optimizer.lr": [1e30, 0.1]})
    given["strategies"] = ["finetune"]
    made = sweep(given)
    assert record_of("finetune")["chosen"] == {"optimizer.lr": 0.1}
    assert [t["state"] for t in record_of("finetune")["trials"]] == ["diverged", "finished"]
    assert all(r.state == "finished" for r in made.runs)
    count = len(done)
    next(Path("out/search").glob("*.json")).unlink()
    assert Sweep.from_plan(given).run() == 0
    assert len(done) == count
    given["search"]["space"] = {"optimizer.lr": [1e30, 1e29]}
    hopeless = Sweep.from_plan(given)
    assert hopeless.run() == 1
    assert hopeless.runs == ()
    table = hopeless.search_table()
    assert table is not None
    assert table.rows[0][2] == "no trial could be scored"


def test_a_trial_that_was_killed_waits_for_the_next_start_and_the_other_searches_go_on(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Local.run
    victim = Sweep.from_plan(plan()).searches[0].advance()[1].name

    def with_a_death(self: Local, work: Work) -> Any:
        for run in work.runs:
            if run.name == victim:
                run.keep_log("", ended="ended by signal SIGKILL")
                yield Update(run, "failed", "ended by signal SIGKILL")
            else:
                yield from whole(self, Work([run], work.folder))

    monkeypatch.setattr(Local, "run", with_a_death)
    made = Sweep.from_plan(plan())
    assert made.run() == 1
    assert [r.record["strategy"]["name"] for r in made.runs] == ["ewc", "ewc"]
    assert all(r.state == "finished" for r in made.runs)
    table = made.search_table()
    assert table is not None
    assert f"finetune on split_digits: trial {victim}: ended by signal SIGKILL" in table.notes[0]
    before = list(done)
    monkeypatch.setattr(Local, "run", whole)
    (Path("out/search") / f"{victim}.log").unlink()
    assert Sweep.from_plan(plan()).run() == 0
    assert done[len(before)] == victim
    assert len(done) == len(before) + 3, "the trial and the two runs of finetune"


# -- drawing --------------------------------------------------------------------------------------------------------------------


def score_of(values: dict[str, Any]) -> float | None:
    """Best at lr 0.01 and size 7; nothing for one of the words."""
    if values["strategy.kind"] == "bad":
        return None
    return -((math.log10(values["optimizer.lr"]) + 2) ** 2) - (values["batch_size"] - 7) ** 2 / 10


SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True, "step": None},
    "batch_size": {"low": 1, "high": 9, "log": False, "step": 2},
    "strategy.kind": ["good", "bad", [1, 2]],
}


def drawn(method: str, trials: int = 30, batch: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    made = proposer(method, SPACE, trials, seed)
    found: list[dict[str, Any]] = []
    while values := made.ask(batch):
        for one in values:
            made.tell(one, score_of(one))
        found += values
    return found


@needs_optuna
@pytest.mark.parametrize("method", ["tpe", "random"])
def test_drawing_is_the_same_for_the_same_seed_and_stays_in_the_space(method: str) -> None:
    first = drawn(method)
    assert first == drawn(method)
    assert first != drawn(method, seed=1)
    assert len(first) == 30
    assert len(drawn(method, trials=7)) == 7
    for values in first:
        assert list(values) == list(SPACE)
        assert 1e-4 <= values["optimizer.lr"] <= 1.0
        assert float(f"{values['optimizer.lr']:.4g}") == values["optimizer.lr"], "as many digits as are meant"
        assert values["batch_size"] in (1, 3, 5, 7, 9)
        assert values["strategy.kind"] in ("good", "bad", [1, 2])
    logs = [math.log10(v["optimizer.lr"]) for v in first]
    assert min(logs) < -3
    assert max(logs) > -1


@needs_optuna
def test_tpe_learns_from_the_scores() -> None:
    def mean(method: str, seed: int) -> float:
        late = [score_of(v) for v in drawn(method, trials=60, seed=seed)[40:]]
        return sum(-20.0 if s is None else s for s in late) / len(late)

    better = [mean("tpe", seed) > mean("random", seed) for seed in range(5)]
    assert sum(better) >= 4


@needs_optuna
def test_a_drawn_search_doesnt_depend_on_what_was_stopped(done: list[str]) -> None:
    given = plan(method="tpe", trials=5, batch=2, space={"optimizer.lr": {"low": 0.001, "high": 0.5, "log": True}})
    given["strategies"], given["seeds"] = ["finetune"], [0]
    sweep(given)
    kept = record_of("finetune")
    assert len(done) == 6
    next(Path("out/search").glob("*.json")).unlink()
    for trial in kept["trials"][3:]:  # as if it had been stopped after three
        (Path("out/search") / trial["run"]).rename(f"old-{trial['run']}")
    sweep(given)
    again = record_of("finetune")
    assert done[6:] == [t["run"] for t in kept["trials"][3:]]
    assert [t["values"] for t in again["trials"]] == [t["values"] for t in kept["trials"]]
    assert again["chosen"] == kept["chosen"]


def test_a_grid_is_every_combination_once() -> None:
    made = proposer("grid", {"a": [1, 2], "b": ["x", "y", "z"]}, 20, 0)
    assert made.ask(1) == [{"a": a, "b": b} for a, b in itertools.product([1, 2], "xyz")]
    assert made.ask(1) == []


# -- bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"metrik": "x"}, ["search.metrik is not an option of SearchOptions. Did you mean 'metric'?"]),
        ({"metric": "final_acuracy"}, ["search.metric: there is no metric 'final_acuracy'. Did you mean 'final_accuracy'?"]),
        ({"metric": "seen_accuracy"}, ["search.metric: expected one number that can be better or worse, but seen_accuracy is none."]),
        ({"space": {}}, ["search.space: expected options with their values, received none."]),
        ({"space": {"scenario.classes": [2, 4], "seed": [1], "optimizer.lr": 0.1}}, [
            "search.space.scenario.classes: a search can't choose what is learnt and how it is scored.",
            "search.space.seed: a search can't choose what is learnt and how it is scored.",
            "search.space.optimizer.lr: expected a list of values, or {low: …, high: …}, received 0.1."]),
        ({"space": {"optimizer.lr": {"low": 0.1, "high": 1}}}, [
            "search.space.optimizer.lr: a grid needs a list of values, received {'low': 0.1, 'high': 1}."]),
        ({"method": "random", "space": {"optimizer.lr": {"low": 1, "high": 0.1}, "epochs": {"low": 0, "high": 4, "log": True}}}, [
            "search.space.optimizer.lr: expected low < high, received 1 and 0.1.",
            "search.space.epochs: expected low > 0 and no step with log: true, received {'low': 0, 'high': 4, 'log': True}."]),
        ({"trials": 3}, ["search.trials: a grid has as many trials as combinations: leave it out."]),
        ({"space": {"optimizer.lrr": [1, 2]}}, ["optimizer.lrr is not an option of Recipe. Did you mean 'lr'?"]),
        ({"space": {"strategy.strenght": [1, 2]}}, [
            "search.space: strategy.strenght is not an option of Finetune. It has: epochs, first_epochs, loss_over."]),
        ({"space": {"optimizer.lr": [0.1, -1]}}, ["optimizer.lr: expected float > 0, received -1."]),
        ({"experiences": 0}, ["search.experiences: expected int ≥ 1 experiences, received 0."]),
    ],
)  # fmt: skip
def test_all_problems_of_a_search_at_once(bad: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Sweep.from_plan(plan(**bad))
    assert str(caught.value).split("\n") == said


def test_what_only_the_stream_shows_is_found_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_start", lambda *_: pytest.fail("a trial was started"))
    for bad, said in (
        ({"experiences": 3}, "search.experiences: expected fewer than the 3 experiences of the scenario 'split_digits', "
                             "received 3: a search that sees the whole stream chooses by what counts."),
        ({"valid_per_class": None}, "scored_on: expected a scenario with validation samples for valid"),
        ({"valid_per_class": 20}, "scenario.valid_per_class: expected fewer than the 20 training samples"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError) as caught:
            sweep(plan(**bad))
        assert str(caught.value).startswith(said), str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_combination_that_stands_twice_is_searched_once() -> None:
    made = Sweep.from_plan({**plan(), "strategies": ["ewc", {"name": "ewc"}]})
    assert len(made.searches) == 1
    assert [row[1:6] for row in made.table().rows] == [
        ("ewc", "split_digits", "mlp", seed, "waits for its search") for seed in (0, 1)
    ]


def test_an_option_in_grid_and_search_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^optimizer\.lr stands in grid and in search\.space: leave it in one"
    ):
        Sweep.from_plan({**plan(), "grid": {"optimizer.lr": [1]}})
    with pytest.raises(ConfigurationError, match=r"^search: expected a mapping, received 3"):
        Sweep.from_plan({**plan(), "search": 3})


def test_without_optuna_a_drawing_search_says_so_and_a_grid_goes(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError) as caught:
        sweep(plan(method="tpe"))
    assert str(caught.value) == (
        "search.method: tpe needs Optuna, which isn't installed: run `pip install 'clframe[search]'`, or choose method: grid."
    )
    assert list(tmp_path.iterdir()) == []
    assert sweep(plan()).runs[0].state == "finished"


def test_an_executor_that_only_writes_cant_search_but_can_do_the_rest(
    done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="A search reads the scores of its trials as they come"):
        sweep(plan(), executor="print")
    assert done == []
    made = sweep(plan())
    (made.runs[0].directory / "result.json").unlink()
    capsys.readouterr()
    sweep(plan(), executor="print")
    assert capsys.readouterr().out.count("clframe.launch.worker") == 1


def test_another_metric_and_a_smaller_one_that_is_better(done: list[str]) -> None:
    given = plan(metric="forgetting_max", space={"optimizer.lr": [0.001, 0.1, 0.5]})
    given["strategies"], given["seeds"] = ["finetune"], [0]
    sweep(given)
    kept = record_of("finetune")
    scores = {t["values"]["optimizer.lr"]: t["score"] for t in kept["trials"]}
    assert len(set(scores.values())) > 1
    assert scores[kept["chosen"]["optimizer.lr"]] == min(scores.values())
    one = RunDirectory.open(Path("out/search") / kept["trials"][1]["run"])
    assert metrics_of(one).values["classifier"]["global"]["forgetting_max"] == kept["trials"][1]["score"]


def test_runs_know_what_they_took_over_several_starts(tmp_path: Path) -> None:
    events = [
        {"event": "run", "time": 100.0}, {"event": "epoch", "steps": 3, "time": 101.0},
        {"event": "run", "time": 500.0}, {"event": "epoch", "steps": 4, "time": 502.5}, {"event": "finished", "time": 503.0},
    ]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert SweepRun({}, tmp_path).cost() == {"steps": 7, "seconds": 4.0}
    assert SweepRun({}, tmp_path / "none").cost() == {"steps": 0, "seconds": 0.0}
