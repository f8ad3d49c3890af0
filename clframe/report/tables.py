"""Tables that render as terminal text, Markdown, LaTeX, CSV and HTML; text from users never becomes markup."""

from __future__ import annotations

import csv
import html
import io
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from clframe.errors import ConfigurationError, did_you_mean
from clframe.metrics.aggregate import summarise

__all__ = ["Cell", "Column", "Estimate", "Table"]

NOTHING = "–"
"""What an empty cell shows."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its sample standard deviation; NaN deviation for one seed.

    Attributes:
        mean: The mean.
        std: The sample standard deviation.
    """

    mean: float
    std: float = math.nan

    @classmethod
    def over(cls, values: Mapping[int, float | None]) -> Self:
        """The estimate of `{seed: value}`; NaN where a seed has none."""
        summary = summarise(values)
        return cls(summary.mean, summary.std)


Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    Attributes:
        title: Head of the column.
        unit: Unit of the shown numbers, as `%`; CSV, which doesn't scale, leaves it out.
        scale: Factor of shown numbers, 100 for percent; CSV has the unscaled numbers.
        digits: Decimals of shown numbers that aren't whole.
        right: Whether the column is aligned to the right.
        signed: Whether positive numbers show their sign.
        show: Writes a number that isn't whole in another way than by scale and digits.
    """

    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    right: bool = False
    signed: bool = False
    show: Callable[[float], str] | None = None

    @property
    def shown(self) -> str:
        """The title with the unit, as plain text."""
        return _clean(f"{self.title} [{self.unit}]" if self.unit else self.title)

    def text(self, cell: Cell) -> str:
        """A cell as plain text."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return NOTHING
        if isinstance(cell, Estimate):
            if math.isnan(cell.mean):
                return NOTHING
            mean = self._number(cell.mean)
            return mean if math.isnan(cell.std) else f"{mean} ± {self.scale * cell.std:.{self.digits}f}"
        return self._number(cell) if isinstance(cell, float) else _clean(str(cell))

    def _number(self, value: float) -> str:
        if self.show is not None:
            return self.show(value)
        return f"{self.scale * value:{'+' if self.signed else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns, with notes below.

    Attributes:
        columns: The columns; a string stands for a column of text.
        rows: The rows, as long as `columns`.
        title: Shown above; empty for none.
        notes: Sentences shown below.

    Raises:
        ConfigurationError: A row has another length than the columns.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(Column(c) if isinstance(c, str) else c for c in self.columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        object.__setattr__(self, "notes", tuple(self.notes))
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigurationError(
                    f"Each row of the table needs {len(self.columns)} cells, but one has {len(row)}; complete it."
                )

    @property
    def heads(self) -> tuple[Column, ...]:
        """The columns as `Column`."""
        return tuple(c for c in self.columns if isinstance(c, Column))

    def cells(self) -> list[list[str]]:
        """The rows as plain text."""
        return [[column.text(cell) for column, cell in zip(self.heads, row, strict=True)] for row in self.rows]

    def render(self, form: str = "text") -> str:
        """The table in one of the forms `text`, `markdown`, `latex`, `csv` and `html`.

        Raises:
            ConfigurationError: There is no such form.
        """
        forms: dict[str, Callable[[], str]] = {
            "text": self.to_text,
            "markdown": self.to_markdown,
            "latex": self.to_latex,
            "csv": self.to_csv,
            "html": self.to_html,
        }
        if form not in forms:
            raise ConfigurationError(
                f"A table's form is one of {sorted(forms)}, but received {form!r}; choose one.{did_you_mean(form, forms)}"
            )
        return forms[form]()

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_text(self) -> str:
        """Aligned text for a terminal; control characters of names are replaced."""
        heads = [column.shown for column in self.heads]
        rows = self.cells()
        widths = [max(map(_width, column), default=0) for column in zip(heads, *rows, strict=True)]
        sides = [column.right for column in self.heads]

        def line(cells: Sequence[str]) -> str:
            return "  ".join(map(_pad, cells, widths, sides)).rstrip()

        rule = "  ".join("─" * width for width in widths)
        title = [_clean(self.title), ""] if self.title else []
        notes = ["", *(_clean(note) for note in self.notes)] if self.notes else []
        return "\n".join([*title, line(heads), rule, *map(line, rows), *notes]) + "\n"

    def to_markdown(self) -> str:
        """A Markdown table."""
        heads = [_markdown(column.shown) for column in self.heads]
        lines = [f"**{_markdown(_clean(self.title))}**\n"] if self.title else []
        lines.append("| " + " | ".join(heads) + " |")
        lines.append("|" + "|".join("---:" if column.right else "---" for column in self.heads) + "|")
        lines += ["| " + " | ".join(map(_markdown, row)) + " |" for row in self.cells()]
        lines += ["", *(f"- {_markdown(_clean(note))}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        r"""A LaTeX `tabular` between rules of the package `booktabs`; notes and title as comments-free text around it."""
        sides = "".join("r" if column.right else "l" for column in self.heads)
        lines = [rf"\textbf{{{_latex(_clean(self.title))}}}\par"] if self.title else []
        lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
        lines.append(" & ".join(_latex(column.shown) for column in self.heads) + r" \\")
        lines.append(r"\midrule")
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in self.cells()]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par {{\footnotesize {_latex(_clean(note))}}}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Comma-separated values, unscaled and unrounded; an estimate takes two columns, the second ending in ` std`."""
        double = [any(isinstance(row[k], Estimate) for row in self.rows) for k in range(len(self.heads))]
        heads: list[str] = []
        for column, wide in zip(self.heads, double, strict=True):
            titles = [column.title, f"{column.title} std"] if wide else [column.title]
            heads += [_clean(title) for title in titles]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(heads)
        for row in self.rows:
            line: list[str] = []
            for cell, wide in zip(row, double, strict=True):
                line.append(_raw(cell.mean if isinstance(cell, Estimate) else cell))
                line += [_raw(cell.std) if isinstance(cell, Estimate) else ""] if wide else []
            writer.writerow(line)
        return out.getvalue()

    def to_html(self) -> str:
        """An HTML table; every text is escaped."""
        sides = [' style="text-align:right"' if column.right else ' style="text-align:left"' for column in self.heads]

        def line(tag: str, cells: Sequence[str]) -> str:
            inside = "".join(f"<{tag}{side}>{html.escape(c)}</{tag}>" for side, c in zip(sides, cells, strict=True))
            return f"<tr>{inside}</tr>"

        caption = f"<caption>{html.escape(_clean(self.title))}</caption>" if self.title else ""
        head = line("th", [column.shown for column in self.heads])
        body = "\n".join(line("td", row) for row in self.cells())
        notes = "".join(f"<li>{html.escape(_clean(note))}</li>" for note in self.notes)
        below = f"\n<ul>{notes}</ul>" if notes else ""
        return f"<table>{caption}<thead>{head}</thead><tbody>\n{body}\n</tbody></table>{below}\n"


def _raw(cell: Cell) -> str:
    return "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else _clean(str(cell))


def _clean(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or break a row."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    """Columns that a terminal uses for a text."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\|`*\[\]<>&#~$])", r"\\\1", text)
    # An underscore between letters is no emphasis; leaving it keeps names readable in the source.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    **{c: "\\" + c for c in "{}$&#_%"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
