"""Tables: every form holds the same numbers, and names from users stay text."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import ConfigurationError
from clframe.report import Column, Estimate, Table

LAW = settings(derandomize=True, deadline=None, max_examples=80)
EVIL = "<script>alert('x')</script> & \"q\" | a_b _c_ *d* `e` [f](g) \\h $i$ #j %k {l} ~m ^n \x1b[31m\r\n±"


def example(name="ewc"):
    columns = ["strategy", Column("final_accuracy", unit="%", scale=100, digits=1, right=True), Column("n", right=True)]
    return Table(columns, [[name, Estimate(0.61234, 0.005), 3], ["long name", Estimate(0.5), 1], ["none", None, 0]],
                 title="Title", notes=["A note."])  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.open = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def read_html(text):
    reader = Reader()
    reader.feed(text)
    return reader


def test_text_is_aligned():
    lines = example().to_text().splitlines()
    assert lines == [
        "Title",
        "",
        "strategy   final_accuracy [%]  n",
        "─────────  ──────────────────  ─",
        "ewc                61.2 ± 0.5  3",
        "long name                50.0  1",
        "none                        –  0",
        "",
        "A note.",
    ]


def test_wide_characters_stay_aligned():
    lines = Table(["a", "b"], [["連続", "x"], ["abcd", "y"]]).to_text().splitlines()
    assert lines[2] == "連続  x"
    assert lines[3] == "abcd  y"


def test_markdown():
    assert example().to_markdown().splitlines()[2:5] == [
        "| strategy | final_accuracy \\[%\\] | n |",
        "|---|---:|---:|",
        "| ewc | 61.2 ± 0.5 | 3 |",
    ]


def test_csv_has_unrounded_numbers():
    rows = list(csv.reader(io.StringIO(example().to_csv())))
    assert rows == [
        ["strategy", "final_accuracy", "final_accuracy std", "n"],
        ["ewc", "0.61234", "0.005", "3"],
        ["long name", "0.5", "", "1"],
        ["none", "", "", "0"],
    ]


def test_html_has_the_same_cells():
    reader = read_html(example().to_html())
    assert reader.rows[1] == ["ewc", "61.2 ± 0.5", "3"]
    assert reader.rows[1:] == example().cells()


def test_evil_names_stay_text():
    table = Table([EVIL], [[EVIL]], title=EVIL, notes=[EVIL])
    reader = read_html(table.to_html())
    assert set(reader.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert "\x1b" not in table.to_text()
    assert len(table.to_text().splitlines()) == 7
    row = table.to_markdown().splitlines()[2]
    assert not re.search(r"(?<!\\)[<>*`\[\]#$]", row)
    assert len(re.findall(r"(?<!\\)\|", row)) == 2
    assert "a_b" in row
    assert r"\_c\_" in row
    latex = table.to_latex().splitlines()[-3]
    bare = latex
    for escape in (
        r"\textbackslash{}",
        r"\textasciicircum{}",
        r"\textasciitilde{}",
        r"\textless{}",
        r"\textgreater{}",
        r"$\pm$",
        r"\{",
        r"\}",
        r"\$",
        r"\&",
        r"\#",
        r"\_",
        r"\%",
    ):
        assert escape in table.to_latex()
    for escape in (r"\{", r"\}", r"\$", r"\&", r"\#", r"\_", r"\%", r"\textless{}", r"$\pm$"):
        bare = bare.replace(escape, "")
    assert not re.search(r"[$&#%_]", bare)


@LAW
@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_text_keeps_the_form(rows):
    table = Table(["a", "b"], rows)
    assert len(table.to_text().split("\n")) == len(rows) + 3
    assert len(table.to_markdown().split("\n")) == len(rows) + 3
    assert [list(r) for r in csv.reader(io.StringIO(table.to_csv(), newline=""))][1:] == table.cells()
    assert read_html(table.to_html()).rows[1:] == table.cells()


def test_forms_by_name():
    table = example()
    assert table.render("latex") == table.to_latex()
    assert table.render() == str(table) == table.to_text()
    assert table._repr_html_() == table.to_html()
    with pytest.raises(ConfigurationError, match="Did you mean 'markdown'"):
        table.render("markdwn")
    with pytest.raises(ConfigurationError, match="needs 2 cells"):
        Table(["a", "b"], [["x"]])
