"""A run's reliability diagram is that of its kept predictions, and its error is the metric."""

from __future__ import annotations

import pytest

from clframe.errors import ConfigurationError
from clframe.results import predictions_of


@pytest.mark.parametrize("head", ["classifier", "nme"])
def test_the_diagram_belongs_to_the_metric(digits_run, head):
    curve = digits_run.metric("calibration_error", head=head)
    for after in (1, 2, 3):
        diagram = digits_run.reliability(head, after)
        assert diagram.error == pytest.approx(curve[after - 1], abs=1e-12)
        kept = predictions_of(digits_run.directory)[head][after]
        assert diagram.counts.sum() == (kept.target < 2 * after).sum()  # what comes later was scored, and isn't counted
    assert digits_run.metric("final_calibration_error", head=head) == curve[2]
    assert digits_run.reliability(head).error == digits_run.reliability(head, 3).error


def test_the_plot_shows_it(digits_run):
    figure = digits_run.plot_reliability("nme", 2)
    assert figure.axes[0].get_title().replace("\n", " ").endswith("seed 0: nme after experience 2")
    assert [bar.get_height() for bar in figure.axes[1].patches] == [
        n for n in digits_run.reliability("nme", 2).counts if n
    ]
    (legend,) = digits_run.plot_reliability().legends
    assert legend.get_title().get_text() == f"calibration error {100 * digits_run.reliability().error:.2f} %"


def test_what_was_not_evaluated_is_named(digits_run):
    with pytest.raises(ConfigurationError, match="was not evaluated after experience 9; it was after 1, 2, 3"):
        digits_run.reliability(after=9)
    with pytest.raises(ConfigurationError, match="There is no report head 'nm'"):
        digits_run.reliability("nm")
