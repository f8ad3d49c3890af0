"""A user's file is part of what a run is: editing it makes another run, and never a silently different one."""

from __future__ import annotations

from pathlib import Path

import pytest

import clframe
from clframe.errors import ConfigurationError
from clframe.training.trainer import Stopped

TEXT = '''
from clframe import Strategy, field


class Shrink(Strategy):
    """Pulls weights to zero."""

    strength: float = field(default={strength}, ge=0, help="Weight of the penalty.")

    def extra_losses(self, batch, output):
        return {{"shrink": self.strength * sum(p.square().sum() for p in self.network.parameters())}}
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shrink.py"
    path.write_text(TEXT.format(strength=0.01))
    return path


def start(file: Path, **options: object) -> clframe.Run:
    return clframe.run(strategy=f"{file}:Shrink", epochs=1, progress=False, **options)


def edit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the file, as between two starts of Python."""
    import sys

    file.write_text(TEXT.format(strength=0.02))
    for name in [n for n in sys.modules if n.startswith("clframe_user_")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_source_is_kept_and_the_same_run_is_not_repeated(file: Path) -> None:
    first = start(file)
    assert (first.path / "source" / "shrink.py").read_text() == file.read_text()
    stamp = (first.path / "result.json").stat().st_mtime_ns
    again = start(file)
    assert again.path == first.path
    assert (again.path / "result.json").stat().st_mtime_ns == stamp


def test_an_edited_file_is_another_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(file)
    edit(file, monkeypatch)
    assert start(file).path != first.path


def test_an_edited_file_does_not_continue_the_old_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        start(file, run_dir=tmp_path / "run", stop_after=7)
    kept = file.read_text()
    edit(file, monkeypatch)
    with pytest.raises(ConfigurationError, match=r"shrink\.py changed since the run was made"):
        clframe.resume(tmp_path / "run", progress=False)
    edit(file, monkeypatch)
    file.write_text(kept)
    assert clframe.resume(tmp_path / "run", progress=False).finished


def test_load_needs_neither_data_nor_training(file: Path, tmp_path: Path) -> None:
    import torch

    run = start(file, run_dir=tmp_path / "run")
    loaded = clframe.load(tmp_path / "run")
    images = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    assert loaded.predict(images) == clframe.load(run.path).predict(images)
    assert loaded.metrics == run.metrics
    assert loaded.matrix().shape == (6, 5)
