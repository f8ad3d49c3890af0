"""Comparisons: what is grouped, what is ranked, and what is said when a number can't be trusted."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.report import Comparison, Estimate, compare, html_card
from tests.report.summaries import full, run, runs


def column(comparison, title):
    table = comparison.table if isinstance(comparison, Comparison) else comparison
    place = [c.title for c in table.heads].index(title)
    return [row[place] for row in table.rows]


def test_groups_mean_and_sample_deviation():
    found = compare(runs("ewc", [0.2, 0.3, 0.4]) + runs("replay", [0.7, 0.8, 0.9]))
    assert column(found, "strategy") == ["replay", "ewc"]
    assert column(found, "rank") == [1, 2]
    assert column(found, "n") == [3, 3]
    best = column(found, "final_accuracy")[0]
    assert (best.mean, best.std) == pytest.approx((0.8, 0.1))
    assert "80.00 ± 10.00" in found.render()
    assert not any("not supported" in note for note in found.notes)


def test_pairing_supports_what_spread_alone_would_hide():
    """Seeds differ by 0.3, the strategies by 0.05 in each seed."""
    a, b = [0.2, 0.5, 0.8, 0.35], [0.25, 0.551, 0.849, 0.40]
    assert column(compare(runs("a", a) + runs("b", b)), "rank") == [1, 2]
    apart = [run("b", seed + 10, value) for seed, value in enumerate(b)]
    found = compare(runs("a", a) + apart)
    assert column(found, "rank") == [1, 1]
    assert "The seeds support no difference in final_accuracy between b and a." in found.notes
    (note,) = [n for n in found.notes if "no seed in common" in n]
    assert note.startswith("b and a have no seed in common, so their difference can't be taken seed by seed")
    assert note.endswith("run them on equal seeds.")


def test_unsupported_difference_shares_the_rank_and_is_said():
    found = compare(
        runs("ewc", [0.2, 0.21, 0.19]) + runs("finetune", [0.2, 0.19, 0.2]) + runs("joint", [0.9, 0.91, 0.92])
    )
    assert dict(zip(column(found, "strategy"), column(found, "rank"), strict=True)) == {
        "joint": 1,
        "ewc": 2,
        "finetune": 2,
    }
    assert "The seeds support no difference in final_accuracy between ewc and finetune." in found.notes
    rows = {(row[0], row[1]): row for row in found.pairwise().rows}
    assert rows["ewc", "finetune"][-1] == "no"
    assert rows["joint", "ewc"][-1] == rows["joint", "finetune"][-1] == "yes"


def test_too_few_seeds_never_rank_apart():
    found = compare(runs("a", [0.1, 0.1]) + runs("b", [0.9, 0.9]))
    assert column(found, "rank") == [None, None]
    assert column(found.pairwise(), "supported") == ["no: 2 seeds"]
    assert sum("no difference to it is supported" in note for note in found.notes) == 2


def test_smaller_is_better_where_the_catalogue_says_so():
    found = compare(runs("a", [0.1, 0.12, 0.11]) + runs("b", [0.9, 0.91, 0.92]), metrics=["forgetting_max"])
    assert column(found, "strategy") == ["b", "a"]
    assert column(found, "rank") == [1, 2]


def test_scores_of_which_smaller_is_better():
    def error(strategy, values):
        made = []
        for seed, value in enumerate(values):
            metrics = {"h": {"global": {"final_mse": value}}}
            made.append(run(strategy, seed, 0, metrics=metrics, score="mse", higher_is_better=False))
        return made

    found = compare(error("a", [3.0, 3.1, 3.2]) + error("b", [1.0, 1.1, 1.2]), metrics=["final_accuracy"])
    assert column(found, "strategy") == ["b", "a"]
    assert found.table.heads[4].shown == "final_mse"


def test_unlike_scenarios_are_not_ranked_against_each_other():
    other = {"scenario_hash": "def", "settings": {"strategy": {}, "epochs": 1, "scenario": {"experiences": 2}}}
    first = {"settings": {"strategy": {}, "epochs": 1, "scenario": {"experiences": 5}}}
    found = compare(runs("a", [0.1, 0.12, 0.11], **first) + runs("b", [0.9, 0.91, 0.92], **other))
    assert column(found, "rank") == [None, None]
    assert column(found, "scenario") == ["split_digits (abc)", "split_digits (def)"]
    assert "aren't ranked against each other; they differ in scenario.experiences: 5, 2." in found.notes[0]


def test_unlike_scenarios_with_the_same_settings_are_still_unlike():
    found = compare(runs("a", [0.1, 0.12, 0.11]) + runs("b", [0.9, 0.91, 0.92], scenario_hash="def"))
    assert column(found, "rank") == [None, None]
    assert "no setting that was kept" in found.notes[0]


def test_settings_make_groups_and_names():
    small = runs("replay", [0.5, 0.51, 0.52], settings={"strategy": {"memory_size": 200}, "epochs": 1})
    large = runs("replay", [0.7, 0.71, 0.72], settings={"strategy": {"memory_size": 500}, "epochs": 1})
    found = compare(small + large)
    assert column(found, "strategy") == ["replay (memory_size=500)", "replay (memory_size=200)"]
    longer = runs("ewc", [0.1, 0.11, 0.12], settings={"strategy": {}, "epochs": 9})
    assert "Rows of split_digits differ in epochs (1: replay; 9: ewc)." in compare(small + longer).notes


def test_unfinished_runs_are_shown_and_not_averaged():
    half = run("ewc", 7, 0.0, finished=False, progress="2 of 5 experiences")
    found = compare([*runs("ewc", [0.2, 0.3, 0.4]), half, run("lwf", 0, 0.5, finished=False)])
    assert column(found, "n") == [3, 0]
    assert column(found, "state") == ["unfinished (seed 7: 2 of 5 experiences)", "unfinished (seed 0)"]
    assert column(found, "final_accuracy")[0].mean == pytest.approx(0.3)
    assert column(found, "final_accuracy")[1] is None
    assert column(found, "rank") == [None, None]


def test_a_missing_value_is_not_averaged_away():
    gone = run("ewc", 3, 0.5, metrics={"classifier": {"global": {}}})
    found = compare([*runs("ewc", [0.2, 0.3, 0.4]), gone, *runs("b", [0.7, 0.8, 0.9])])
    cells = dict(zip(column(found, "strategy"), found.table.cells(), strict=True))
    assert cells["ewc"][4] == "–"
    assert isinstance(column(found, "final_accuracy")[0], Estimate)


def test_seed_twice_is_said():
    found = compare([run("a", 0, 0.1), run("a", 0, 0.1, directory="elsewhere"), run("a", 1, 0.2)])
    assert column(found, "n") == [2]
    assert any("more than once, with equal results" in note for note in found.notes)
    found = compare([run("a", 0, 0.1), run("a", 0, 0.3, directory="elsewhere")])
    assert any("different results" in note for note in found.notes)


def test_different_heads_are_said():
    values = {"final_accuracy": 0.9}
    nme = [
        run("icarl", s, 0.9, metrics={"nme": {"global": values}, "classifier": {"global": values}}) for s in range(3)
    ]
    found = compare(nme + runs("ewc", [0.1, 0.2, 0.3]))
    assert any("different heads (classifier, nme)" in note for note in found.notes)
    found = compare(nme + runs("ewc", [0.1, 0.2, 0.3]), head="classifier")
    assert not any("different heads" in note for note in found.notes)


def test_restriction_is_said():
    values = {"local": {"final_accuracy": 0.9}, "global": {"final_accuracy": 0.1}}
    found = compare(
        [run("a", s, 0, metrics={"h": values}) for s in range(3)], restriction="local", metrics=["final_accuracy"]
    )
    assert column(found, "final_accuracy")[0].mean == pytest.approx(0.9)
    assert any("use the task of the sample" in note for note in found.notes)


def test_nothing_to_compare():
    with pytest.raises(ConfigurationError, match="0 runs"):
        compare([])


def test_card_is_escaped():
    evil = "<img src=x onerror=alert(1)>&\"'"
    made = run(evil, 0, 0.5, directory=evil, scenario=evil, backbone=evil, progress=evil, finished=False, label=evil)
    card = html_card(made, png=b"\x89PNG")
    assert "<img src=x" not in card
    assert card.count("&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#x27;") == 5
    assert "50.00 %" in card
    assert 'src="data:image/png;base64,iVBORw=="' in card


def test_each_run_is_shown_by_its_primary_restriction():
    """A task-incremental run is judged among the classes of the sample's task, unless another restriction is asked for."""
    both = {"classifier": {"global": {"final_accuracy": 0.2}, "local": {"final_accuracy": 0.9}}}
    given = [run("lwf", seed, 0.0, metrics=both, restriction="local") for seed in range(3)]
    found = compare(given, metrics=["final_accuracy"])
    assert column(found, "final_accuracy")[0].mean == pytest.approx(0.9)
    assert any("restricted (local)" in note for note in found.notes)
    asked = compare(given, metrics=["final_accuracy"], restriction="global")
    assert column(asked, "final_accuracy")[0].mean == pytest.approx(0.2)


# -- support ---------------------------------------------------------------------------------------------------------------


def test_pairs_are_those_of_scipy_with_holms_correction():
    rng = np.random.default_rng(3)
    values = {name: np.round(rng.normal(level, 0.03, 4), 4) for name, level in (("a", 0.8), ("b", 0.7), ("c", 0.69))}
    found = compare([r for name, v in values.items() for r in runs(name, v)])
    rows = {(row[0], row[1]): row for row in found.pairwise().rows}
    assert set(map(frozenset, rows)) == {frozenset("ab"), frozenset("ac"), frozenset("bc")}
    assert all(np.mean(values[one]) >= np.mean(values[other]) for one, other in rows)
    tests = {pair: stats.ttest_rel(values[pair[0]], values[pair[1]]) for pair in rows}
    order = sorted(tests, key=lambda pair: tests[pair].pvalue)
    adjusted = np.maximum.accumulate([min(1, (3 - k) * tests[pair].pvalue) for k, pair in enumerate(order)])
    for pair, holm in zip(order, adjusted, strict=True):
        interval = tests[pair].confidence_interval(0.95)
        _, _, mean, low, high, p, p_holm, n, supported = rows[pair]
        assert mean == pytest.approx(np.mean(values[pair[0]] - values[pair[1]]))
        assert (low, high) == pytest.approx((interval.low, interval.high))
        assert (p, p_holm) == pytest.approx((tests[pair].pvalue, holm), abs=1e-9)
        assert n == 4
        assert supported.startswith("yes" if holm < 0.05 else "no")


def test_correction_for_many_pairs_takes_ranks_away():
    """t = 6 of three seeds is p = 0.027: enough for two methods, too much for three."""
    gap = 0.01 * np.array([6 - math.sqrt(3), 6, 6 + math.sqrt(3)])
    base = np.array([0.1, 0.4, 0.2])
    two = runs("a", base) + runs("b", base + gap)
    assert column(compare(two), "rank") == [1, 2]
    three = compare([*two, *runs("c", base + gap[::-1] + 0.001)])
    assert column(three, "rank") == [1, 1, 1]
    assert "no: one of 3 pairs" in column(three.pairwise(), "supported")


def test_the_order_of_the_runs_changes_nothing():
    given = runs("a", [0.1, 0.12, 0.11]) + runs("b", [0.9, 0.91, 0.92]) + runs("c", [0.5, 0.4, 0.6])
    shuffled = list(given)
    random.Random(0).shuffle(shuffled)
    first, second = compare(given), compare(shuffled)
    assert first.table.rows == second.table.rows
    assert first.pairwise().rows == second.pairwise().rows


def test_pairs_of_another_metric_are_asked_for_by_its_name():
    found = compare(runs("a", [0.1, 0.12, 0.11]) + runs("b", [0.9, 0.91, 0.92]))
    (row,) = found.pairwise("forgetting_max").rows
    assert row[:2] == ("b", "a")
    assert row[2] == pytest.approx(-0.8)
    with pytest.raises(ConfigurationError, match="Did you mean 'forgetting_max'"):
        found.pairwise("forgeting_max")


def test_scenarios_are_corrected_apart():
    """Each scenario is a family of its own: its pairs are what its ranks are made of."""
    one = runs("a", [0.1, 0.12, 0.11]) + runs("b", [0.9, 0.91, 0.92])
    other = [dataclasses.replace(r, scenario_hash="def") for r in one]
    found = compare(one + other)
    assert {p.difference.comparisons for s in found.scenarios for p in s.pairs} == {1}
    assert [row[0] for row in found.pairwise().rows] == ["split_digits (abc)", "split_digits (def)"]


# -- what is said ----------------------------------------------------------------------------------------------------------


def test_a_missing_number_comes_with_its_reason():
    reason = "It needs the score on task 1 after experience 1, which was not evaluated."
    values = {"classifier": {"global": {"final_accuracy": 0.9}}}
    joint = [run("joint", s, 0, metrics=values, absent={"forgetting_max": reason}) for s in range(3)]
    found = compare(joint, metrics=["final_accuracy", "forgetting_max"])
    assert f"joint has no forgetting_max: {reason}" in found.notes


def test_damaged_runs_are_shown_and_count_nowhere():
    found = compare(runs("a", [0.1, 0.2, 0.3]), damaged={"runs/a-3": "runs/a-3/result.json is damaged (cut)."})
    assert found.notes[0] == "runs/a-3 counts nowhere: runs/a-3/result.json is damaged (cut)."
    assert column(found, "n") == [3]
    last = found.runs().rows[-1]
    assert last[0] == "runs/a-3"
    assert "damaged: runs/a-3/result.json is damaged (cut)." in last
    assert found.to_dict()["damaged"] == found.damaged


def test_different_environments_are_said():
    def on(torch):
        return {"packages": {"torch": torch}, "device": "cpu", "data": torch}

    given = [run("a", seed, 0.5, environment=on(v)) for seed, v in enumerate(["2.13.0", "2.14.1", "2.14.1"])]
    found = compare(given)
    assert "The runs were made in different environments (packages.torch: 2.13.0, 2.14.1)." in found.notes
    assert found.environments().rows[0] == ("packages.torch", "2.13.0; 2.14.1", "yes")
    assert not any("environments" in note for note in compare(given[1:]).notes)


def test_names_tell_backbones_and_settings_apart():
    wide = runs("ewc", [0.5, 0.6, 0.7], backbone="resnet8")
    assert set(column(compare(runs("ewc", [0.1, 0.2, 0.3]) + wide), "strategy")) == {"ewc (mlp)", "ewc (resnet8)"}
    two = [
        runs("ewc", [0.1, 0.2], settings={"optimizer": {"lr": lr}, "first_optimizer": {"lr": 1 - lr}})
        for lr in (0.1, 0.2)
    ]
    assert column(compare(two[0] + two[1]), "strategy")[0] == "ewc (first_optimizer.lr=0.9, optimizer.lr=0.1)"


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("final_acuracy", "Did you mean 'final_accuracy'"),
        ("seen_accuracy", "needs one number per run, but 'seen_accuracy' has several"),
    ],
)
def test_metrics_that_make_no_column(metric, said):
    with pytest.raises(ConfigurationError, match=said):
        compare(full("a", [0.1, 0.2, 0.3]), metrics=[metric])


# -- every output ----------------------------------------------------------------------------------------------------------


def example():
    return compare(full("ewc", [0.2, 0.3, 0.4]) + full("replay", [0.7, 0.8, 0.9], cost=3))


def test_text_markdown_and_latex_hold_both_tables():
    found = example()
    for form in ("text", "markdown", "latex"):
        text = found.render(form)
        assert text == f"{found.table.render(form)}\n{found.pairwise().render(form)}"
        assert "replay" in text
    assert str(found) == found.render()
    assert found._repr_html_().count("<table>") == 2
    with pytest.raises(ConfigurationError, match="Did you mean 'markdown'"):
        found.render("markdwn")


def test_csv_is_one_table():
    rows = list(csv.reader(io.StringIO(example().render("csv"))))
    assert len({len(row) for row in rows}) == 1
    assert [row[1] for row in rows[1:]] == ["replay", "ewc"]
    assert float(rows[1][rows[0].index("final_accuracy")]) == pytest.approx(0.8)
    pairs = list(csv.reader(io.StringIO(example().render("csv", "pairwise"))))
    assert float(pairs[1][pairs[0].index("difference")]) == pytest.approx(0.5)


def test_every_table_by_its_name():
    found = example()
    assert found.render("text", "leaderboard") == found.table.render()
    assert [row[0] for row in found.runs().rows] == [f"runs/{m}-{s}" for m in ("replay", "ewc") for s in range(3)]
    assert found.render("markdown", "environments").startswith("| environment |")
    assert found.settings().rows == ()
    with pytest.raises(ConfigurationError, match="Did you mean 'pairwise'"):
        found.render("text", "pairwis")


def test_settings_that_differ_are_a_table():
    small = runs("replay", [0.5, 0.6], settings={"strategy": {"memory_size": 200}, "epochs": 1})
    found = compare(small + runs("ewc", [0.1, 0.2], settings={"strategy": {"strength": 2.0}, "epochs": 1}))
    assert [c.title for c in found.settings().heads] == ["setting", "replay", "ewc"]
    assert found.settings().rows == (
        ("strategy.memory_size", "200", None),
        ("strategy.strength", None, "2.0"),
    )


def test_one_scenario_at_a_time_where_there_are_several():
    given = full("a", [0.1, 0.2, 0.3]) + full("b", [0.1, 0.2, 0.3], scenario_hash="def")
    found = compare(given)
    with pytest.raises(ConfigurationError, match=r"Expected one scenario, received None, which fits 2 of"):
        found.plot_curves()
    assert [t.get_text() for t in found.plot_curves(scenario="def").legends[0].get_texts()] == ["b"]


def test_json_has_no_nan_and_unscaled_numbers():
    data = example().to_dict()
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    assert data["rows"][0][4] == {"mean": pytest.approx(0.8), "std": pytest.approx(0.1)}
    assert data["curves"]["split_digits"]["ewc"][1] == [1.0, 0.3]


def test_saving_goes_by_the_ending(tmp_path: Path):
    found = example()
    for ending, form in ((".md", "markdown"), (".tex", "latex"), (".csv", "csv"), (".txt", "text"), ("", "text")):
        written = found.save(tmp_path / "new" / f"table{ending}")
        assert written.read_text(encoding="utf-8") == found.render(form)
    assert found.save(tmp_path / "x.csv", "markdown").read_text(encoding="utf-8").startswith("| scenario")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="can't be written"):
        found.save(tmp_path / "file" / "table.md")
