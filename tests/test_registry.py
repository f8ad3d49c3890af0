"""Names are found wherever they may come from, and what can't be found is named with what to do."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.strategy import Strategy

MINE = '''
from clframe import Strategy, field

class Mine(Strategy):
    """A method of one's own."""
    strength: float = field(default=1.0, ge=0, help="How much.")

def maker():
    return None
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "c++" / "mine.py"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


@pytest.fixture
def _forget_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.mark.parametrize("kind", ["strategy", "scenario", "backbone"])
def test_every_registered_name_loads_and_is_named_back(kind: registry.Kind) -> None:
    names = registry.available(kind)
    assert names == sorted(names)
    assert names
    for name in names:
        assert registry.name_of(kind, registry.load(kind, name)) == name


def test_a_class_in_a_users_file_is_one_class_however_often_it_is_loaded(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = registry.load("strategy", f"{mine}:Mine")
    monkeypatch.chdir(mine.parent)
    assert registry.load("strategy", "mine.py:Mine") is cls
    assert registry.name_of("strategy", cls) == f"{mine}:Mine"
    assert registry.source_file(cls) == mine
    assert "mine" not in sys.modules, "a user's file must not hide an installed module"


def test_a_dotted_path_loads() -> None:
    assert registry.load("strategy", "clframe.strategy:Strategy") is Strategy
    assert registry.source_file(Strategy) is None


@pytest.mark.usefixtures("_forget_registrations")
def test_registered_in_this_process() -> None:
    class Own(Strategy):
        pass

    registry.register("strategy", "own", Own)
    registry.register("strategy", "own", Own)
    assert registry.load("strategy", "own") is Own
    assert "own" in registry.available("strategy")
    assert registry.name_of("strategy", Own) == "own"
    with pytest.raises(ConfigurationError, match="taken already"):
        registry.register("strategy", "own", Strategy)
    with pytest.raises(ConfigurationError, match="taken already"):
        registry.register("strategy", "replay", Own)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("replai", "There is no strategy named 'replai'. Did you mean 'replay'?"),
        ("zzz", "There is no strategy named 'zzz'. Known: agem, batchnorm_tuning,"),
        ("mine.py", "Expected the class in mine.py to be named too: give mine.py:ClassName."),
        ("nowhere/mine.py:Mine", "There is no file nowhere/mine.py; give the path of a Python file"),
        ("no_such_package:Mine", "The module 'no_such_package' could not be imported (ModuleNotFoundError"),
        ("clframe.strategy:Stratgy", "clframe.strategy has nothing named 'Stratgy'. Did you mean 'Strategy'?"),
        (
            "clframe.losses:cross_entropy",
            "Expected a strategy class at 'clframe.losses:cross_entropy', received function.",
        ),
    ],
)
def test_what_is_not_there_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        registry.load("strategy", name)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import nothing_such", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_tried_again_once_corrected(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"Importing .*broken\.py failed \({said}"):
        registry.load_object(f"{file}:Mine")
    file.write_text(MINE)
    assert registry.load_object(f"{file}:Mine").__name__ == "Mine"


def test_a_broken_plugin_is_named_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    points = dict(registry._entry_points("strategy"))
    points["broken"] = EntryPoint("broken", "no_such_package:Mine", "clframe.strategies")
    points["notaclass"] = EntryPoint("notaclass", "clframe.losses:cross_entropy", "clframe.strategies")
    monkeypatch.setattr(registry, "_entry_points", lambda kind: points)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = registry.load_all("strategy")
    said = "\n".join(str(w.message) for w in caught)
    assert "'broken' of an unknown package could not be imported" in said
    assert "'notaclass' is registered as clframe.losses:cross_entropy, which is not a class" in said
    assert "replay" in found
    assert "broken" not in found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("replay", ["replay"]),
        ("replay+ewc+lwf", ["replay", "ewc", "lwf"]),
        ("/home/c++/my.py:Mine+ewc", ["/home/c++/my.py:Mine", "ewc"]),
        ("ewc+../c+d/my.py:Mine", ["ewc", "../c+d/my.py:Mine"]),
    ],
)
def test_compositions_are_split_outside_of_paths(name: str, parts: list[str]) -> None:
    assert registry.split_names(name) == parts


def test_paths_are_made_absolute_and_other_names_left(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert registry.absolute("mine.py:Mine") == f"{mine}:Mine"
    for name in ("replay", "package.module:Class", "split_folder", "mine.py"):
        assert registry.absolute(name) == name
