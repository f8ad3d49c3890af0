"""The page: complete, self-contained, readable on a telephone, and safe from the names of others."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clframe.report import compare
from tests.report.chromium import Browser, chromium, find_chromium
from tests.report.summaries import full, run

EVIL = '<script>window.hit = 1</script><img src=x onerror="window.hit=1">\'&{{ 7 * 7 }}</style></svg>'
VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


class Reader(HTMLParser):
    """Tags in order, their attributes, and whether every one is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.texts = [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, name):
        return [given[name] for _, given in self.attributes if given.get(name) is not None]


def example():
    made = full("ewc", [0.2, 0.3, 0.4]) + full("replay", [0.7, 0.8, 0.9], cost=3)
    half = run("lwf", 0, 0.0, finished=False, metrics={}, progress="2 of 5 experiences")
    return compare([*made, half], damaged={"runs/broken": "runs/broken/result.json is damaged (cut)."})


def evil():
    names = {"label": EVIL, "scenario": EVIL, "backbone": EVIL, "directory": EVIL, "settings": {EVIL: EVIL}}
    environment = {"python": EVIL, "packages": {EVIL: EVIL}}
    metrics = {EVIL: full("x", [0.5])[0].metrics["classifier"]}
    one = full("a", [0.2, 0.3, 0.4], **names, environment=environment, metrics=metrics, absent={"forgetting_max": EVIL})
    other = full("b", [0.3, 0.4, 0.6], **{**names, "label": EVIL + "2"})
    return compare([*one, *other], damaged={EVIL: EVIL})


@pytest.fixture(scope="module")
def page() -> str:
    return example().render("html")


# -- what it holds ---------------------------------------------------------------------------------------------------------


def test_it_is_well_formed_and_has_every_part(page: str):
    reader = Reader(page)
    assert reader.open == []
    ids = reader.all("id")
    assert len(ids) == len(set(ids))
    linked = [href[1:] for tag, given in reader.attributes if tag == "a" and (href := given["href"])]
    assert set(linked) <= set(ids)
    assert len(linked) == 13
    heads = "".join("".join(reader.texts[level]) for level in ("h1", "h2", "h3", "h4"))
    for part in ("Leaderboard", "Accuracy curves", "Forgetting against plasticity", "final_accuracy against cost",
                 "Differences between methods", "Accuracy matrices", "Confusion by task", "Plasticity", "Probe matrices",
                 "Drift of prototypes", "CKA", "Settings that differ", "Runs", "Environments", "How to read"):  # fmt: skip
        assert part in heads, part
    text = "".join(itertools.chain(*reader.texts.values()))
    assert "unfinished (seed 0: 2 of 5 experiences)" in text
    assert "damaged: runs/broken/result.json is damaged (cut)." in text
    assert "80.00 ± 10.00" in text


def test_headings_skip_no_level(page: str):
    levels = [int(tag[1]) for tag in Reader(page).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_figures_have_captions_and_words_for_who_can_not_see_them(page: str):
    reader = Reader(page)
    assert reader.tags.count("figure") == reader.tags.count("figcaption") == 12
    drawn = [given for tag, given in reader.attributes if tag == "svg" and given.get("role") == "img"]
    assert len(drawn) == 8 + 2 * 4  # one figure each, and one per method of the four families of heat maps
    assert all(len(given["aria-label"]) > 20 for given in drawn)
    assert all(given.get("scope") for tag, given in reader.attributes if tag == "th")


def test_what_is_not_there_is_said_with_its_reason():
    bare = [run("ewc", s, 0.1 * s) for s in range(3)]
    text = compare(bare).render("html")
    for reason in (
        "No finished run has seen_accuracy.",
        "No finished run has effective_rank.",
        "No row has a representation.json for every seed",
    ):
        assert reason in text
    assert Reader(text).open == []


def test_scenarios_are_kept_apart():
    one, other = full("ewc", [0.2, 0.3, 0.4]), full("ewc", [0.5, 0.6, 0.7], scenario_hash="def")
    text = compare(one + other).render("html")
    reader = Reader(text)
    assert len(reader.all("id")) == len(set(reader.all("id")))
    assert reader.texts["h2"].count("split_digits (abc)") == 1
    assert reader.texts["h2"].count("split_digits (def)") == 1
    assert "aren&#39;t ranked against each other" in text


def test_the_numbers_are_embedded(page: str):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    assert json.loads(data[1]) == json.loads(json.dumps(example().to_dict()))


def test_the_same_runs_give_the_same_page(page: str):
    assert page == example().render("html")


# -- what it must not do -----------------------------------------------------------------------------------------------------


def test_nothing_is_fetched(page: str):
    reader = Reader(page)
    places = [*reader.all("src"), *reader.all("href")]
    assert all(place.startswith(("#", "data:")) for place in places)
    assert not re.search(r"@import|url\((?!#)", page)
    policy = next(v["content"] for t, v in reader.attributes if v.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_names_never_become_markup():
    text = evil().render("html")
    reader = Reader(text)
    assert reader.open == []
    assert reader.tags.count("script") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert not set("<>&") & set(data[1])
    assert "img" not in reader.tags
    assert reader.tags.count("style") == 1
    assert "49" not in re.findall(r"window\.hit=1\S*'&(?:amp;)?(\d+)", text)
    handlers = [name for _, given in reader.attributes for name in given if name.startswith("on")]
    assert handlers == []


def test_six_methods_of_three_seeds_are_no_large_page():
    made = [r for k in range(6) for r in full(f"method{k}", [0.1 * k, 0.1 * k + 0.02, 0.1 * k + 0.05])]
    assert len(compare(made).render("html").encode()) < 3_000_000


# -- in a browser ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = find_chromium()
    if command is None:
        pytest.skip("needs Chromium or Chrome to open the page in")
    with chromium(command, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_complaint_or_request(browser: Browser, file: Path, tmp_path: Path, width: int, dark: bool):
    browser.open(file, width, dark=dark)
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert browser.complaints == []
    assert [r for r in browser.requests if not r.startswith("data:")] == [file.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") == width, (
        "only tables scroll sideways, in their own box"
    )
    light = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark


def test_no_text_of_a_figure_is_cut_or_tiny(browser: Browser, file: Path):
    """At either width every text of a figure lies inside its picture and is at least 8 pixels high."""
    for width in (1280, 400):
        browser.open(file, width)
        cut = browser.value(
            """[...document.querySelectorAll("svg.figure")].flatMap(svg => {
                 const frame = svg.getBoundingClientRect();
                 return [...svg.querySelectorAll("text")].filter(t => {
                   const box = t.getBoundingClientRect();
                   return box.left < frame.left - 2 || box.right > frame.right + 2 || Math.max(box.width, box.height) < 5;
                 }).map(t => t.textContent);
               })"""
        )
        assert cut == []
        assert browser.value('Math.min(...[...document.querySelectorAll("svg.figure")].map(s => s.clientWidth))') >= 250


def rows(browser: Browser, place: int) -> list[str]:
    return browser.value(
        f'[...document.querySelector("table.sortable").tBodies[0].rows].map(r => r.cells[{place}].textContent.trim())'
    )


def test_tables_sort_by_every_head_and_empty_cells_stay_last(browser: Browser, file: Path):
    browser.open(file, 1280)
    heads = browser.value(
        '[...document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells].map(c => c.textContent)'
    )
    place = next(k for k, head in enumerate(heads) if head.strip().startswith("final_accuracy"))
    click = (
        f'document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells[{place}].querySelector("button").click()'
    )
    assert [r.split(" ")[0] for r in rows(browser, place)] == ["80.00", "30.00", "–"]
    browser.value(click)
    assert [r.split(" ")[0] for r in rows(browser, place)] == ["30.00", "80.00", "–"]
    browser.value(click)
    assert [r.split(" ")[0] for r in rows(browser, place)] == ["80.00", "30.00", "–"]
    state = f'document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells[{place}].getAttribute("aria-sort")'
    assert browser.value(state) == "descending"
    browser.value(click.replace(f"cells[{place}]", "cells[1]"))
    assert rows(browser, 1) == ["ewc", "lwf", "replay"]
    assert browser.complaints == []


def test_a_pressed_name_fades_the_others(browser: Browser, file: Path):
    browser.open(file, 1280)
    browser.value('document.querySelector("tr[data-series=\\"1\\"] .chip").click()')
    faded = 'new Set([...document.querySelectorAll("svg .faded")].map(e => e.dataset.series))'
    assert browser.value(f"[...{faded}]") == ["0"]
    browser.value('document.querySelector("tr[data-series=\\"1\\"] .chip").click()')
    assert browser.value(f"[...{faded}]") == []


def test_evil_names_do_nothing_in_a_browser(browser: Browser, tmp_path: Path):
    path = evil().save(tmp_path / "evil.html")
    browser.open(path, 1280)
    assert browser.value("window.hit") is None
    assert browser.complaints == []
    assert [r for r in browser.requests if not r.startswith("data:")] == [path.as_uri()]
    assert browser.value('document.querySelector("h1").textContent').endswith(EVIL)
    assert browser.value("document.querySelectorAll('main script, main img, svg script').length") == 0
