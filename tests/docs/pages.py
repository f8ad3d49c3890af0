"""Reads the fenced blocks of the Markdown pages and runs them as a reader would.

A block may follow an HTML comment that says more about it:

    <!-- file: NAME -->      the block is the content of a file of the reader's, written before the next blocks run
    <!-- needs: cifar100; with: --scenario.train-per-class 2 -->
                             the block needs data from outside; what stands behind `with` makes the test shorter
    <!-- output varies -->   what the page shows is an example; only the command is tried
"""

from __future__ import annotations

import re
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clframe.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    note: str

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def needs(self) -> tuple[str, list[str]] | None:
        """What data the block needs, and the options that shorten it."""
        if not self.note.startswith("needs: "):
            return None
        what, _, options = self.note.removeprefix("needs: ").partition("; with: ")
        return what, shlex.split(options)

    @property
    def runs(self) -> bool:
        return self.language in ("python", "console") and self.file is None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("text")), m["language"], m["text"], m["note"] or "")
        for m in _FENCE.finditer(text)
    ]


def play(
    block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str], more: list[str] | None = None
) -> None:
    """Run a block in the current folder; Python blocks of a page share their names."""
    if block.language == "python":
        lines = "\n" * block.line + block.text
        exec(compile(lines, str(block.page), "exec"), names)
        capsys.readouterr()
        return
    for command, shown in commands(block):
        arguments = shlex.split(command)
        assert arguments[0] == "clframe", (
            f"{block.where}: {command!r} is no clframe command; use a block of `sh` for it"
        )
        expanded = [b for a in arguments[1:] for b in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
        with warnings.catch_warnings():
            if more or "check" in arguments:  # a memory that suits the whole data set is too large for a part of it
                warnings.simplefilter("ignore", UserWarning)
            status = main([*expanded, *(more or [])])
        output = capsys.readouterr()
        assert status == 0, f"{block.where}: {command} ended with {status}: {output.err}"
        if shown and not more and block.note != "output varies":
            assert masked(shown) == masked(output.out), f"{block.where}: {command} prints something else:\n{output.out}"


def commands(block: Block) -> list[tuple[str, str]]:
    """Return every command of a console block with the output that the page shows beneath it."""
    joined = block.text.replace("\\\n", " ")
    found = [part.partition("\n") for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, _, shown in found]


def masked(text: str) -> str:
    """Reduce a text to what must be the same on every machine: no numbers, hashes, rules or widths of columns."""
    text = re.sub(r"-[0-9a-f]{8}\b", "-HASH", text)
    text = re.sub(r"[-+]?\d+(\.\d+)?", "#", text)
    return " ".join(re.sub(r"─+", "", text).split())
