"""Pictures: what is drawn is what was given, and nothing global is touched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from clframe.errors import ConfigurationError
from clframe.metrics import reliability
from clframe.report import plot_curve, plot_matrix, plot_reliability, to_png


def test_matrix_writes_known_cells_and_leaves_others_blank():
    matrix = np.array([[np.nan, np.nan], [0.91, np.nan], [0.42, 0.73]])
    figure = plot_matrix(matrix, title="cost $5, a_b")
    axes = figure.axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "0.91"),
        ((0, 1), "0.42"),
        ((1, 1), "0.73"),
    }
    shown = axes.collections[0].get_array()
    np.testing.assert_array_equal(shown.mask, [[False, True], [False, False]])
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("task", "after experience")
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_matrix_with_a_row_before_training_and_many_tasks():
    axes = plot_matrix(np.full((3, 2), 0.5)).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["none", "1", "2"]
    large = plot_matrix(np.random.default_rng(0).random((101, 100))).axes[0]
    assert len(large.texts) == 0
    assert len(large.get_xticks()) <= 20
    with pytest.raises(ConfigurationError, match="shape"):
        plot_matrix(np.zeros(3))


def test_unlimited_colours_of_other_scores():
    image = plot_matrix([[np.nan, np.nan], [7.0, 9.0]], limits=None).axes[0].collections[0]
    assert image.get_clim() == (7.0, 9.0)
    assert to_png(plot_matrix([[np.nan], [np.nan]], limits=None)).startswith(b"\x89PNG")


def test_curve_draws_mean_and_band():
    figure = plot_curve({"replay": [[0.8, 0.6], [0.6, 0.4]], "_$x$": [[0.5, None]]})
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.7, 0.5])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.5, np.nan])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.5 - np.sqrt(0.02), 0.7 + np.sqrt(0.02)))
    (legend,) = figure.legends
    assert [t.get_text().strip() for t in legend.get_texts()] == ["replay (n = 2)", r"_\$x\$ (n = 1)"]
    assert legend.get_title().get_text() == "mean ± standard deviation over n seeds"
    assert axes.get_xlabel() == "after experience"
    assert to_png(figure).startswith(b"\x89PNG")


def test_curves_are_refused_in_words():
    with pytest.raises(ConfigurationError, match="at least one curve"):
        plot_curve({})
    with pytest.raises(ConfigurationError, match="same length"):
        plot_curve({"a": [[0.1], [0.1, 0.2]]})


def test_reliability_draws_filled_bins_their_confidence_and_the_samples():
    diagram = reliability([0.7, 0.8, 0.9, 0.95, 1.0], [1, 0, 1, 0, 1], bins=5)
    figure = plot_reliability(diagram, title="cost $5")
    upper, lower = figure.axes
    bars = [(b.get_x(), b.get_width(), b.get_height()) for b in upper.patches]
    np.testing.assert_allclose(bars, [(0.6, 0.2, 0.5), (0.8, 0.2, 2 / 3)])
    (lines,) = upper.collections
    np.testing.assert_allclose(lines.get_segments(), [[(0.6, 0.75), (0.8, 0.75)], [(0.8, 0.95), (1.0, 0.95)]])
    assert [b.get_height() for b in lower.patches] == [2, 3]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == f"calibration error {100 * diagram.error:.2f} %"
    assert [text.get_text() for text in legend.get_texts()] == ["accuracy", "mean confidence", "calibrated"]
    assert to_png(figure).startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="needs samples"):
        plot_reliability(reliability([], []))


def test_no_pyplot_and_no_early_matplotlib():
    code = (
        "import sys, clframe.report as r; assert 'matplotlib' not in sys.modules; assert 'torch' not in sys.modules;"
        "r.to_png(r.plot_matrix([[0.1], [0.5]])); r.to_png(r.plot_curve({'a': [[0.1, 0.2]]}));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
