"""The pages of the Python API: every public name with its signature and what its docstring says, a page per room."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

ROOMS = {
    "clframe": "runs, comparisons, and what a strategy or scenario of your own is made of",
    "clframe.losses": "losses and distillation, as pure functions",
    "clframe.models": "backbones, heads, the network",
    "clframe.data": "where images come from",
    "clframe.metrics": "metrics of kept predictions, and statistics over seeds",
    "clframe.report": "tables, figures and pages of finished runs",
    "clframe.testing": "the checks that a strategy or scenario keeps the contract",
    "clframe.interop.avalanche": "Avalanche, both ways",
    "clframe.errors": "what clframe raises",
}
"""The rooms whose names users import, and what each is for."""
FIRST = "clframe"
"""The room on the first page, which lists the others."""
WIDTH = 100
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")
_MARK = "<!-- Written by docs/generate.py from the docstrings: change those, then run `make docs`. -->\n"
HEAD = f"""\
# The Python API

{_MARK}
What is imported by name. A signature is as it stands in the code; a default that stands for something else is explained
under the argument. Methods that a class has from another class on these pages are shown there.

"""


def pages() -> dict[str, Callable[[], str]]:
    """Return what makes each page, by its name under `docs/`."""
    return {file_of(room): functools.partial(page, room) for room in ROOMS}


def file_of(room: str) -> str:
    """Return the name of a room's page under `docs/`."""
    return "api.md" if room == FIRST else f"api/{room.rpartition('.')[2]}.md"


def page(room: str) -> str:
    """Return the page of a room."""
    module = importlib.import_module(room)
    names = [name for name in public(module) if name != "__version__"]
    head = HEAD + _rooms() if room == FIRST else f"# {room}\n\n{_MARK}\n{_plain(_paragraph(module))}\n"
    links = zip(names, _anchors([f"{room}.{name}" for name in names]), strict=True)
    table = "".join(f"| [`{n}`](#{anchor}) | {_cell(_summary(getattr(module, n)))} |\n" for n, anchor in links)
    parts = [head, f"\n## The names of {room}\n\n| name | what |\n|---|---|\n{table}"]
    parts += [entry(f"{room}.{name}", getattr(module, name)) for name in names]
    return "".join(parts)


def public(module: ModuleType) -> list[str]:
    """Return the public names of a module: functions and small words first, then classes, each alphabetical."""
    return sorted(module.__all__, key=lambda name: (inspect.isclass(getattr(module, name)), name))


def _rooms() -> str:
    links = {room: "#the-names-of-clframe" if room == FIRST else file_of(room) for room in ROOMS}
    rows = (f"| [`{room}`]({links[room]}) | {what} |\n" for room, what in ROOMS.items())
    return "| room | what for |\n|---|---|\n" + "".join(rows)


def entry(full: str, thing: Any) -> str:
    """Return the section of one public name."""
    name = full.rpartition(".")[2]
    if not callable(thing) or not hasattr(thing, "__module__") or _is_alias(thing):
        return f"\n### {full}\n\n{_of_constant(thing)}\n"
    parts = [f"\n### {full}\n\n{_code(signature(name, thing))}\n{described(inspect.getdoc(thing) or '')}"]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        parts += [_member(name, member, value) for member, value in members(thing)]
    return "".join(parts)


def _is_alias(thing: Any) -> bool:
    return not inspect.isclass(thing) and not inspect.isroutine(thing)


def _of_constant(thing: Any) -> str:
    if not isinstance(thing, Mapping):
        return f"`{thing!r}`"
    return f"By name: {', '.join(f'`{key}`' for key in thing)}."


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that have a docstring, but those of other documented classes."""
    seen = {name for base in documented() & set(cls.__mro__[1:]) for name in dir(base)}
    for base in cls.__mro__:
        for name, value in vars(base).items() if base.__module__.startswith("clframe") else ():
            function = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
            if not name.startswith("_") and name not in seen and inspect.isfunction(function) and function.__doc__:
                seen.add(name)
                yield name, value


@functools.cache
def documented() -> frozenset[type]:
    """Every class that has an entry of its own."""
    modules = [importlib.import_module(room) for room in ROOMS]
    return frozenset(c for m in modules for n in m.__all__ if inspect.isclass(c := getattr(m, n)))


def _member(owner: str, name: str, value: Any) -> str:
    getter = getattr(value, "fget", getattr(value, "func", None))
    if getter is not None:
        returned = inspect.get_annotations(getter).get("return", "")
        shown = f"{owner}.{name}: {returned}" if returned else f"{owner}.{name}"
        return f"\n#### {owner}.{name}\n\n{_code(shown)}\n{described(inspect.getdoc(getter) or '')}"
    function = getattr(value, "__func__", value)
    bound = not isinstance(value, staticmethod)
    shown = signature(f"{owner}.{name}", function, skip=int(bound))
    return f"\n#### {owner}.{name}\n\n{_code(shown)}\n{described(inspect.getdoc(function) or '')}"


# -- signatures --------------------------------------------------------------------------------------------------------------


def signature(name: str, thing: Any, skip: int = 0) -> str:
    """Return a signature as it stands in the code, over several lines where one is too long.

    Args:
        name: What is called.
        thing: A function, or a class, whose constructor is meant.
        skip: Leading parameters that the caller doesn't give.
    """
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return name
    given = list(_parameters(list(found.parameters.values())[skip:]))
    after = (
        ""
        if found.return_annotation in (inspect.Signature.empty, None, "None")
        else f" -> {_text(found.return_annotation)}"
    )
    line = f"{name}({', '.join(given)}){after}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {p},\n" for p in given) + f"){after}"


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    star = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    places = [i for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_ONLY]
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        noted = "" if parameter.annotation is parameter.empty else f": {_text(parameter.annotation)}"
        default = (
            "" if parameter.default is parameter.empty else f"{' = ' if noted else '='}{_default(parameter.default)}"
        )
        yield f"{prefix}{parameter.name}{noted}{default}"
        if places and i == places[-1]:
            yield "/"


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    if isinstance(value, set | frozenset) and value:  # whose order changes from process to process
        return f"{type(value).__name__}({{{', '.join(sorted(map(repr, value)))}}})"
    if type(value).__repr__ is object.__repr__ or dataclasses.is_dataclass(value) or " at 0x" in repr(value):
        return "…"
    return "…" if repr(value) == "<factory>" or value is dataclasses.MISSING else repr(value)


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


# -- docstrings --------------------------------------------------------------------------------------------------------------


def described(doc: str) -> str:
    """Return a Google-style docstring as Markdown: its text, and a list for each section of arguments and the like."""
    parts: list[str] = []
    for title, lines in _sections(doc.split("\n")):
        if title == "":
            parts.append(_prose(lines))
        elif title in ("Returns", "Yields"):
            parts.append(f"**{title}:** {_plain(' '.join(' '.join(lines).split()))}\n")
        else:
            items = "".join(f"- {_item(*item)}\n" for item in _items(lines))
            parts.append(f"**{title}:**\n\n{items}")
    return "\n".join(part for part in parts if part.strip())


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    title, held = "", list[str]()
    for line in lines:
        found = _SECTION.match(line)
        if found:
            yield title, held
            title, held = found[1], []
        elif title and line and not line.startswith(" "):  # the text goes on behind a section
            yield title, held
            title, held = "", [line]
        else:
            held.append(line)
    yield title, held


def _items(lines: list[str]) -> Iterator[tuple[str, str]]:
    """The `name: text` of a section, whose continued lines are indented further."""
    name, text = "", ""
    for line in inspect.cleandoc("\n".join(["", *lines])).split("\n"):
        head, colon, rest = line.partition(": ")
        if line and not line.startswith(" ") and colon:
            if name:
                yield name, text
            name, text = head, rest
        else:
            text += f" {line.strip()}"
    if name:
        yield name, text


def _item(name: str, text: str) -> str:
    return f"`{name}`: {_plain(' '.join(text.split()))}"


def _prose(lines: list[str]) -> str:
    """Paragraphs as they are; what is set off by indentation, examples and lists of the code stay in a block of code."""
    shown: list[str] = []
    for block in re.split(r"\n{2,}", "\n".join(lines).strip("\n")):
        if re.search(r"^(\s{2,}\S|>>>)", block, re.MULTILINE):
            shown.append(f"```text\n{block}\n```")
        else:
            shown.append(block if block.startswith("|") else _plain(block))
    return "\n\n".join(shown) + "\n"


def _plain(text: str) -> str:
    """Keep what isn't in backticks from being read as HTML, emphasis or a link."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", p) for p in parts)


def _paragraph(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0]


def _summary(thing: Any) -> str:
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return "By name." if isinstance(thing, Mapping) else f"`{thing!r}`"
    first = " ".join(_paragraph(thing).split())
    return re.match(r".*?\.(?=\s|$)|.*", first)[0]  # type: ignore[index]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _anchors(headings: list[str]) -> list[str]:
    """Where each heading is found, as GitHub names it: a second one of the same letters has a number."""
    plain = [re.sub(r"[^\w-]", "", heading.lower()) for heading in headings]
    counts = [plain[:i].count(anchor) for i, anchor in enumerate(plain)]
    return [f"{anchor}-{count}" if count else anchor for anchor, count in zip(plain, counts, strict=True)]
