"""Tables, comparisons, pictures and notebook cards of finished runs; they only read."""

from __future__ import annotations

from clframe.report.compare import RunSummary, compare
from clframe.report.jupyter import html_card
from clframe.report.plots import plot_curve, plot_matrix, plot_reliability, to_png
from clframe.report.tables import Cell, Column, Estimate, Table

__all__ = [
    "Cell",
    "Column",
    "Estimate",
    "RunSummary",
    "Table",
    "compare",
    "html_card",
    "plot_curve",
    "plot_matrix",
    "plot_reliability",
    "to_png",
]
