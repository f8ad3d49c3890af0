"""Comparisons: what is grouped, what is ranked, and what is said when a number can't be trusted."""

from __future__ import annotations

import dataclasses

import pytest

from clframe.errors import ConfigurationError
from clframe.report import Comparison, Estimate, RunSummary, compare, html_card


def run(strategy, seed, value, **changes):
    given = {"final_accuracy": value, "average_incremental_accuracy": value, "forgetting_max": 1 - value}
    base = RunSummary(directory=f"runs/{strategy}-{seed}", scenario="split_digits", scenario_hash="abc", strategy=strategy,
                      backbone="mlp", seed=seed, metrics={"classifier": {"global": given}},
                      settings={"strategy": {}, "epochs": 1})  # fmt: skip
    return dataclasses.replace(base, **changes)


def runs(strategy, values, **changes):
    return [run(strategy, seed, value, **changes) for seed, value in enumerate(values)]


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
