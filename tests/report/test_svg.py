"""Figures inside a page: ids that don't clash, text that stays text, colours of the page, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import matplotlib
import pytest

from clframe.report import plot_curve, plot_matrix
from clframe.report.style import INK
from clframe.report.svg import inline_svg

EVIL = '<script>alert("x")</script> & </svg> $y$ _a\u9023\u7d9a'


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def curve(label="replay"):
    return plot_curve({label: [[0.8, 0.6], [0.6, 0.4]], "ewc": [[0.5, 0.5], [0.6, 0.7]]}, title=label)


def test_two_figures_share_no_id_and_refer_to_their_own():
    first, second = (read(inline_svg(curve(), prefix, "alt")) for prefix in ("a", "b"))
    ids = [{v for _, n, v in r.attributes if n == "id"} for r in (first, second)]
    assert not ids[0] & ids[1]
    assert len(ids[0]) > 10
    for reader, own in zip((first, second), ids, strict=True):
        targets = {v[1:] for _, n, v in reader.attributes if n == "href"}
        targets |= set(re.findall(r"url\(#([^)]*)\)", " ".join(v or "" for _, _, v in reader.attributes)))
        assert targets
        assert targets <= own


def test_the_same_figure_gives_the_same_text():
    assert inline_svg(curve(), "a", "alt") == inline_svg(curve(), "a", "alt")


def test_names_stay_text():
    text = inline_svg(curve(EVIL), "a", EVIL)
    reader = read(text)
    assert "script" not in reader.tags
    assert reader.tags.count("svg") == 1
    assert "<script" not in text
    assert '<script>alert("x")</script>' in re.sub(r"\s+", "", reader.text).replace("alert(", "alert(")
    assert ("svg", "aria-label", EVIL) in reader.attributes
    assert ("svg", "role", "img") in reader.attributes


def test_text_and_lines_take_the_pages_colour_and_data_keep_theirs():
    text = inline_svg(curve(), "a", "alt")
    assert INK not in text
    assert "currentColor" in text
    assert "#0072b2" in text.lower()
    assert "font-family" not in text


def test_series_are_marked_for_the_page():
    reader = read(inline_svg(curve(), "a", "alt"))
    assert sorted(v for _, n, v in reader.attributes if n == "data-series") == ["0", "0", "1", "1"]  # line and band


def test_nothing_comes_from_elsewhere_and_nothing_global_is_left():
    before = dict(matplotlib.rcParams)
    text = inline_svg(plot_matrix([[0.1, 0.2], [0.3, 0.4]]), "a", "alt")
    assert dict(matplotlib.rcParams) == before
    assert not re.findall(r"https?://", text)
    for _, name, value in read(text).attributes:
        if name == "href":
            assert value.startswith(("#", "data:image/png"))
    assert "metadata" not in text
    assert not re.search(r"\d{4}-\d\d-\d\d", text)


@pytest.mark.parametrize("label", ["a" * 200, "", " ", "\x1b[31m", "a\nb", "\u202e"])
def test_any_name_can_be_drawn(label):
    assert inline_svg(curve(label), "a", "alt").endswith("</svg>")
