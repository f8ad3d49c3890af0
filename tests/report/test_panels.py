"""What a comparison draws: the right numbers of the right runs, and a reason for whatever is left out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.report import compare, extractor_panels, panels, to_png
from tests.report.summaries import full, run, runs


def scenario(*groups):
    (found,) = compare([r for group in groups for r in group]).scenarios
    return found


def example():
    return scenario(full("ewc", [0.2, 0.3, 0.4]), full("replay", [0.7, 0.8, 0.9], cost=3))


EVERY = {
    "curves": panels.curves,
    "matrices": panels.matrices,
    "confusion": panels.confusion,
    "tradeoff": panels.tradeoff,
    "cost": panels.cost,
    "differences": panels.differences,
    **{name: lambda s, name=name: panels.plasticity(s, name) for name in panels.PLASTICITY},
    **extractor_panels.REPRESENTATION,
}


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_every_panel_is_drawn_where_runs_have_what_it_needs(make):
    panel = make(example())
    assert panel.missing == ""
    assert panel.caption
    assert all(picture.alt for picture in panel.pictures)
    assert to_png(panel.draw()).startswith(b"\x89PNG")
    for picture in panel.pictures:
        assert to_png(picture.draw()).startswith(b"\x89PNG")


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_every_panel_says_why_it_is_left_out(make):
    for bare in (runs("ewc", [0.1, 0.2]), [run("ewc", 0, 0.0, metrics={}, finished=False)]):
        panel = make(scenario(bare))
        assert panel.draw is None
        assert panel.pictures == ()
        assert panel.missing.endswith(".")


@pytest.mark.parametrize(
    "make", [EVERY[n] for n in ("curves", "matrices", "tradeoff", "cost", "effective_rank", "drift")]
)
def test_groups_that_lack_it_are_named(make):
    bare = [dataclasses.replace(r, metrics={"c": {"global": {}}}) for r in runs("lwf", [0.1, 0.2, 0.3])]
    panel = make(scenario(full("ewc", [0.2, 0.3, 0.4]), bare))
    assert panel.draw is not None
    assert panel.missing.startswith("lwf: no ")


def lines(figure):
    (legend,) = figure.legends
    return dict(zip([t.get_text() for t in legend.get_texts()], figure.axes[0].lines, strict=True))


def test_curves_are_means_over_finished_seeds():
    drawn = lines(panels.curves(example()).draw())
    np.testing.assert_allclose(drawn["ewc"].get_ydata(), [1.0, 0.3])
    np.testing.assert_allclose(drawn["replay"].get_ydata(), [1.0, 0.8])


def test_names_have_one_colour_in_every_figure():
    found = scenario(full("ewc", [0.2, 0.3, 0.4]), full("joint", [0.9, 0.9, 0.95], measured={}))
    assert found.labels == ["joint", "ewc"]
    curve = lines(panels.curves(found).draw())["ewc"].get_color()
    assert lines(panels.plasticity(found, "effective_rank").draw())["ewc"].get_color() == curve


def test_matrices_are_means_and_a_damaged_one_is_left_out_with_its_reason():
    found, why = panels.matrices_of(example())
    np.testing.assert_allclose(found["ewc"], [[np.nan, np.nan], [1, np.nan], [0.3, 0.5]])
    assert why == {}

    def broken(head, restriction):
        raise RunDirectoryError("0002-classifier.npz is damaged: bring it back.")

    other = scenario(full("ewc", [0.2, 0.3, 0.4]), full("lwf", [0.1, 0.2], read_matrix=broken))
    found, why = panels.matrices_of(other)
    assert list(found) == ["ewc"]
    assert why == {"lwf": "0002-classifier.npz is damaged: bring it back"}


def test_confusion_is_the_share_of_every_tasks_samples():
    figure = panels.confusion(example()).pictures[0].draw()
    shown = np.asarray(figure.axes[0].collections[0].get_array()).reshape(2, 2)
    np.testing.assert_allclose(shown, [[0.8, 0.2], [0.5, 0.5]])


def test_tradeoff_is_forgetting_over_learning_accuracy():
    figure = panels.tradeoff(example()).draw()
    points = [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in figure.axes[0].containers]
    assert points == [pytest.approx((0.9, 0.2)), pytest.approx((0.9, 0.7))]


# -- cost ------------------------------------------------------------------------------------------------------------------


def points_of(figure):
    return [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in figure.axes[0].containers]


def test_cost_counts_operations_of_all_experiences():
    figure = panels.cost(example()).draw()
    assert figure.axes[0].get_xlabel() == "operations of training [GFLOP]"
    assert points_of(figure) == [pytest.approx((9.0, 0.8)), pytest.approx((3.0, 0.3))]
    (path,) = [line for line in figure.axes[0].lines if line.get_xydata().shape == (2, 2) and line.get_xdata()[1] == 9.0
               and line.get_linestyle() == "-"]  # fmt: skip
    np.testing.assert_allclose(path.get_xydata(), [(3, 1.0), (9, 0.8)])  # cost so far, and the score on all seen


def test_cost_falls_back_on_seconds_where_a_run_did_not_count():
    silent = full("lwf", [0.5, 0.5, 0.6], measured={"train_flops": [1e9, None]})
    panel = panels.cost(scenario(full("ewc", [0.2, 0.3, 0.4], cost=2), silent))
    figure = panel.draw()
    assert figure.axes[0].get_xlabel() == "time of training [s]"
    assert points_of(figure) == [pytest.approx((10.0, 0.5 + 0.1 / 3)), pytest.approx((20.0, 0.3))]
    assert "wall-clock" in panel.caption
    assert "Pareto front: lwf)" in panel.caption


def test_measures_per_layer_are_drawn_as_their_mean():
    drawn = lines(panels.plasticity(example(), "dormant_units").draw())
    np.testing.assert_allclose(drawn["ewc"].get_ydata(), [0.05, 0.3])
    assert panels.layer_mean({"a": [0.5, None], "b": [0.7, 0.1]}) == [pytest.approx(0.6), None]


# -- representation ----------------------------------------------------------------------------------------------------------


def test_drift_is_the_mean_over_old_classes():
    drawn = lines(extractor_panels.drift(example()).draw())
    np.testing.assert_allclose(drawn["ewc"].get_ydata(), [np.nan, 0.3])


def test_layers_are_rows_in_their_order():
    figure = extractor_panels.layers(example()).pictures[0].draw()
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["stage1", "features"]
    shown = np.asarray(axes.collections[0].get_array()).reshape(2, 2)
    np.testing.assert_allclose(shown, [[1.0, 0.9], [1.0, 0.5]])


def test_a_report_of_another_version_is_no_error():
    old = full("ewc", [0.2, 0.3], representation={"schema": 0})
    for make in extractor_panels.REPRESENTATION.values():
        assert make(scenario(old)).draw is None


# -- asking for a figure -----------------------------------------------------------------------------------------------------


def test_a_figure_that_can_not_be_drawn_says_why():
    found = compare(runs("ewc", [0.1, 0.2]))
    with pytest.raises(ConfigurationError, match="No finished run has effective_rank"):
        found.plot_plasticity("effective_rank")
    with pytest.raises(ConfigurationError, match="needs two methods"):
        found.plot_differences()
    with pytest.raises(ConfigurationError, match="Did you mean 'drift'"):
        found.plot_representation("drfit")


def test_figures_are_as_wide_as_a_column_or_a_page():
    found = compare(full("ewc", [0.2, 0.3, 0.4]) + full("replay", [0.7, 0.8, 0.9]))
    for figure in (found.plot_curves(), found.plot_tradeoff(), found.plot_cost(), found.plot_differences()):
        assert figure.get_figwidth() == pytest.approx(3.4)
    for figure in (found.plot_matrices(), found.plot_confusion(), found.plot_representation("layers")):
        assert figure.get_figwidth() == pytest.approx(7.0)
