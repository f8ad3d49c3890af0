"""The pages of the Python API have every public name, with its signature as it stands and every argument explained."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs"
ROOMS = (
    "clframe",
    "clframe.losses",
    "clframe.models",
    "clframe.data",
    "clframe.metrics",
    "clframe.report",
    "clframe.testing",
    "clframe.interop.avalanche",
    "clframe.errors",
)


@pytest.fixture(scope="module")
def made() -> ModuleType:
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("api_page")
    finally:
        sys.path[:] = before


def section(text: str, name: str) -> str:
    return text.split(f"\n### {name}\n", 1)[1].split("\n### ", 1)[0]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_section_with_what_its_docstring_says(made: ModuleType, room: str) -> None:
    module, text = importlib.import_module(room), (FOLDER / made.file_of(room)).read_text(encoding="utf-8")
    for name in set(module.__all__) - {"__version__"}:
        thing, shown = getattr(module, name), section(text, f"{room}.{name}")
        assert text.count(f"\n### {room}.{name}\n") == 1
        assert f"| [`{name}`](#" in text
        if inspect.isclass(thing) or inspect.isfunction(thing):
            first = (inspect.getdoc(thing) or "").split("\n")[0]
            bare = re.sub(r"[\\`]", "", shown)
            assert first.replace("`", "").replace("\\", "") in bare
        if inspect.isfunction(thing):
            for parameter in inspect.signature(thing).parameters.values():
                assert re.search(rf"^    \**{parameter.name}\b|[(,] ?\**{parameter.name}\b", shown, re.MULTILINE)


def test_every_argument_of_clframes_own_functions_is_explained(made: ModuleType) -> None:
    import clframe

    text = (FOLDER / "api.md").read_text(encoding="utf-8")
    for name in clframe.__all__:
        thing = getattr(clframe, name)
        if inspect.isfunction(thing):
            shown = section(text, f"clframe.{name}")
            for parameter in inspect.signature(thing).parameters.values():
                assert re.search(rf"^- `\**{parameter.name}`: \S", shown, re.MULTILINE), f"{name}({parameter.name})"


def test_every_room_has_a_page_that_the_first_one_links_to(made: ModuleType) -> None:
    assert tuple(made.ROOMS) == ROOMS
    first = (FOLDER / "api.md").read_text(encoding="utf-8")
    for room in ROOMS[1:]:
        assert f"[`{room}`]({made.file_of(room)})" in first
    assert {f"api/{p.name}" for p in (FOLDER / "api").iterdir()} == {made.file_of(r) for r in ROOMS[1:]}


def test_links_within_a_page_lead_to_its_headings(made: ModuleType) -> None:
    for room in ROOMS:
        text = (FOLDER / made.file_of(room)).read_text(encoding="utf-8")
        counts: dict[str, int] = {}
        anchors = set()
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
            plain = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            counts[plain] = counts.get(plain, -1) + 1
            anchors.add(f"{plain}-{counts[plain]}" if counts[plain] else plain)
        assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors, room


def test_a_docstring_becomes_markdown(made: ModuleType) -> None:
    doc = """Do a thing, of a[i, j] and `x_y`.

    More: what < is.

        f(x) = 2 * x

    Args:
        size: How many,
            on two lines.
        **more: The rest.

    Returns:
        A number.

    Raises:
        ValueError: Never.

    >>> 1 + 1
    2
    """
    assert made.described(inspect.cleandoc(doc)) == (
        "Do a thing, of a\\[i, j\\] and `x_y`.\n\nMore: what \\< is.\n\n```text\n    f(x) = 2 * x\n```\n\n"
        "**Args:**\n\n- `size`: How many, on two lines.\n- `**more`: The rest.\n\n**Returns:** A number.\n\n"
        "**Raises:**\n\n- `ValueError`: Never.\n\n```text\n>>> 1 + 1\n2\n```\n"
    )


def test_signatures_are_as_in_the_code(made: ModuleType) -> None:
    def short(a: int, *rest: str, b: float | None = None) -> dict[str, int]:
        return {}

    def long(
        first_argument_of_some_length: int, /, second_argument: str = "x", *, third_of_them: bool, **others: float
    ) -> None:
        pass

    assert made.signature("short", short) == "short(a: int, *rest: str, b: float | None = None) -> dict[str, int]"
    assert made.signature("long", long) == (
        "long(\n    first_argument_of_some_length: int,\n    /,\n    second_argument: str = 'x',\n    *,\n    third_of_them: bool,\n"
        "    **others: float,\n)"
    )


def test_the_order_of_a_set_is_always_the_same(made: ModuleType) -> None:
    def call(kinds: frozenset[str] = frozenset("cab"), none: frozenset[str] = frozenset()) -> None:
        pass

    assert made.signature("call", call) == (
        "call(kinds: frozenset[str] = frozenset({'a', 'b', 'c'}), none: frozenset[str] = frozenset())"
    )


def test_what_another_class_documents_is_not_repeated(made: ModuleType) -> None:
    text = (FOLDER / "api.md").read_text(encoding="utf-8")
    assert "#### Strategy.loss_terms\n" in text
    assert "#### Composite.loss_terms\n" not in text
    assert "#### Composite.share_fields\n" in text
    assert "#### Run.plot_matrix\n" in text
    assert "_private" not in text
