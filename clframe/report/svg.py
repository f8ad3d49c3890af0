"""A figure as SVG inside a page: its own ids, text as text, the page's colour of text, and words for who can't see it."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from clframe.report.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

_DRAWING = ("d", "x", "y", "width", "height", "transform", "style", "points", "clip-path")
_SERIES = re.compile(r"series-(\d+)")
_TARGET = re.compile(r"url\(#([^)]*)\)")


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return an `<svg>` element to put into a page.

    Args:
        figure: The figure.
        prefix: Of every id in it, so that no two figures of a page share one.
        alt: What it shows, in words.
    """
    root = ElementTree.fromstring(_drawn(figure))
    for element in root.iter():
        _without_namespaces(element)
        for child in [c for c in element if c.tag.endswith(("metadata", "}style"))]:
            element.remove(child)
        _adapt(element, prefix)
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    root.attrib |= {"role": "img", "aria-label": alt, "class": "figure"}
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(figure: Figure) -> bytes:
    """What Matplotlib writes, without the time, and with ids that follow from the figure alone."""
    import matplotlib  # here, since it is heavy

    out = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "clframe"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # a browser has it
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()


def _without_namespaces(element: ElementTree.Element) -> None:
    """Name an element and its attributes as HTML does."""
    element.tag = element.tag.rpartition("}")[2]
    for name in [n for n in element.attrib if n.startswith("{")]:
        element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _adapt(element: ElementTree.Element, prefix: str) -> None:
    """Give ids the prefix, ink the page's colour of text, text the page's font, and numbers no more digits than one sees.

    The parts of one series, which Matplotlib gives the same id, are marked by `data-series` instead.
    """
    series = _SERIES.fullmatch(element.get("id", ""))
    if series:
        element.set("data-series", series[1])
        del element.attrib["id"]
    for name, value in list(element.attrib.items()):
        changed = value
        if name == "id":
            changed = f"{prefix}-{value}"
        elif name == "href":
            changed = f"#{prefix}-{value[1:]}" if value.startswith("#") else value
        elif name in _DRAWING:
            changed = _TARGET.sub(rf"url(#{prefix}-\1)", re.sub(r"(\.\d\d)\d+", r"\1", value))
            changed = re.sub(r"font-family: [^;]*;?", "", changed).replace(INK, "currentColor")
        element.set(name, changed)
    if element.text and not element.text.strip():
        element.text = None
    element.tail = None
