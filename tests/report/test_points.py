"""Points, fronts and intervals: what is drawn is what was given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import ConfigurationError
from clframe.metrics import Difference
from clframe.report import pareto_front, plot_differences, plot_points, to_png

LAW = settings(derandomize=True, deadline=None, max_examples=100)
numbers = st.integers(0, 6).map(float)  # few values, so that ties occur


@LAW
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.booleans())
def test_front_is_what_nothing_beats(points, larger):
    """By the definition: on the front if every other point is dearer, worse, or equal in both."""
    named = {str(k): point for k, point in enumerate(points)}
    front = pareto_front(named, larger_y=larger)
    for name, (x, y) in named.items():
        rivals = [p for p in points if p != (x, y)]
        unbeaten = all(px > x or (py < y if larger else py > y) for px, py in rivals)
        assert (name in front) == unbeaten
    xs = [named[name][0] for name in front]
    assert xs == sorted(xs)


def test_front_by_hand():
    points = {"cheap": (1, 0.2), "waste": (4, 0.5), "good": (3, 0.6), "best": (9, 0.7), "twin": (9, 0.7)}
    assert pareto_front(points) == ["cheap", "good", "best", "twin"]
    assert pareto_front(points, larger_y=False) == ["cheap"]


def by_label(figure):
    """The drawn point of every name of the legend."""
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    return dict(zip(names, figure.axes[0].containers, strict=False))


def test_points_are_means_with_bars_of_one_deviation():
    points = {"a": ({0: 1.0, 1: 3.0}, {0: 0.2, 1: 0.6}), "b": ({0: 5.0}, {0: 0.9})}
    figure = plot_points(points, xlabel="x", ylabel="y")
    assert set(by_label(figure)) == {"a (n = 2)", "b (n = 1)"}
    a = by_label(figure)["a (n = 2)"]
    assert (a[0].get_xdata()[0], a[0].get_ydata()[0]) == pytest.approx((2.0, 0.4))
    (horizontal,), (vertical,) = (bar.get_segments() for bar in a[2])
    np.testing.assert_allclose(horizontal[:, 0], [2 - math.sqrt(2), 2 + math.sqrt(2)])
    np.testing.assert_allclose(vertical[:, 1], [0.4 - math.sqrt(0.08), 0.4 + math.sqrt(0.08)])
    assert len(by_label(figure)["b (n = 1)"][2]) == 0
    assert to_png(figure).startswith(b"\x89PNG")


def test_names_keep_their_colour_where_others_are_left_out():
    points = {name: ({0: 1.0}, {0: 1.0}) for name in ("b", "c")}
    kept = by_label(plot_points(points, xlabel="x", ylabel="y", order=["a", "b", "c"]))
    alone = by_label(plot_points(points, xlabel="x", ylabel="y"))
    assert kept["b"][0].get_color() == alone["c"][0].get_color()
    assert kept["b"][0].get_color() != alone["b"][0].get_color()


def test_front_is_drawn_in_steps_and_others_hollow():
    points = {"cheap": ({0: 1.0}, {0: 0.2}), "waste": ({0: 40.0}, {0: 0.5}), "good": ({0: 30.0}, {0: 0.6})}
    figure = plot_points(points, xlabel="cost", ylabel="accuracy", front=True)
    (axes,) = figure.axes
    drawn = by_label(figure)
    hollow = {name: drawn[name][0].get_markerfacecolor() == "none" for name in points}
    assert hollow == {"cheap": False, "waste": True, "good": False}
    (front,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(front.get_xydata(), [(1, 0.2), (30, 0.6)])
    assert front.get_drawstyle() == "steps-post"
    assert axes.get_xscale() == "log"  # a factor of 40
    near = {"a": ({0: 1.0}, {0: 0.2}), "b": ({0: 2.0}, {0: 0.5})}
    assert plot_points(near, xlabel="cost", ylabel="a", front=True).axes[0].get_xscale() == "linear"
    zero = {"a": ({0: 0.0}, {0: 0.2}), "b": ({0: 2.0}, {0: 0.5})}
    assert plot_points(zero, xlabel="cost", ylabel="a", front=True).axes[0].get_xscale() == "linear"


def test_differences_are_filled_where_supported():
    yes = Difference(0.3, 0.1, 0.5, 3, (0, 1, 2), paired=True, p=0.01, adjusted=0.02)
    no = Difference(-0.1, -0.3, 0.1, 3, (0, 1, 2), paired=True, p=0.3, adjusted=0.6)
    bare = Difference(0.2, math.nan, math.nan, 1, (0,), paired=False)
    figure = plot_differences({"a − b": yes, "a − $c$": no, "b − c": bare}, xlabel="points", scale=100)
    (axes,) = figure.axes
    marks = [c[0] for c in axes.containers]
    assert [m.get_xdata()[0] for m in marks] == pytest.approx([30, -10, 20])
    assert [m.get_markerfacecolor() == "none" for m in marks] == [False, True, True]
    np.testing.assert_allclose(axes.containers[1][2][0].get_segments()[0][:, 0], [-30, 10])
    assert [len(c[2]) for c in axes.containers] == [1, 1, 0]
    assert [t.get_text() for t in axes.texts] == ["a − b", r"a − \$c\$", "b − c"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_nothing_to_draw_is_said():
    with pytest.raises(ConfigurationError, match="at least one point"):
        plot_points({}, xlabel="", ylabel="")
    with pytest.raises(ConfigurationError, match="at least one difference"):
        plot_differences({}, xlabel="")
