"""Tables, comparisons, figures and pages of finished runs; they only read."""

from __future__ import annotations

from clframe.report.compare import Comparison, compare
from clframe.report.jupyter import html_card
from clframe.report.plots import plot_curve, plot_matrices, plot_matrix
from clframe.report.points import pareto_front, plot_differences, plot_points
from clframe.report.reliability import plot_reliability
from clframe.report.style import to_png
from clframe.report.summary import RunSummary
from clframe.report.tables import Cell, Column, Estimate, Table

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Estimate",
    "RunSummary",
    "Table",
    "compare",
    "html_card",
    "pareto_front",
    "plot_curve",
    "plot_differences",
    "plot_matrices",
    "plot_matrix",
    "plot_points",
    "plot_reliability",
    "to_png",
]
