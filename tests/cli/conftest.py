"""The command line in this process, in an empty folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from clframe.cli import main

MINI = ("--scenario.classes", "4", "--scenario.experiences", "2", "--epochs", "1", "--backbone.hidden", "8")


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The sentences on standard error."""
        return self.err.removeprefix("clframe: ").rstrip("\n").split("\n")


Cli = Callable[..., Said]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Said:
        code = main(list(arguments))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert (
        main(
            [
                "run",
                "--run-dir",
                str(directory),
                "--strategy",
                "replay",
                "--strategy.memory-size",
                "8",
                "--quiet",
                *MINI,
            ]
        )
        == 0
    )
    return directory


@pytest.fixture(scope="session")
def mini() -> tuple[str, ...]:
    """Options of a run that takes a moment."""
    return MINI


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """Everything below a folder with its content, hidden files too."""
    return _tree


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
