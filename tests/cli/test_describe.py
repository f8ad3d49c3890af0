"""`list` and `describe` say what there is, truly: what they show is what the command line takes."""

from __future__ import annotations

import re
import shlex
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import clframe
from clframe import registry
from clframe.cli import main, parse_overrides
from clframe.config import resolve
from clframe.errors import ConfigurationError
from clframe.metrics import CATALOGUE
from clframe.report.describe import describe, listing, scenario_example
from clframe.scenario import settings_of
from clframe.spec import fields_of


def options_in(text: str) -> list[str]:
    """The options that a description lists."""
    return re.findall(r"^  --([\w.-]+) ", text, re.MULTILINE)


def test_everything_is_listed_with_a_line_about_it() -> None:
    rows = listing()
    named = {(r["kind"], r["name"]) for r in rows}
    for kind in ("strategy", "scenario", "backbone"):
        assert {n for k, n in named if k == kind} == set(registry.available(kind))
    assert {n for k, n in named if k == "metric"} == set(CATALOGUE)
    assert [r for r in rows if not r["what"] or r["what"] == "(no description)" or "\n" in r["what"]] == []


@pytest.mark.parametrize("kind", ["strategies", "strategy", "metrics"])
def test_one_kind(kind: str) -> None:
    assert {r["kind"] for r in listing(kind)} == {"metric" if kind == "metrics" else "strategy"}


def test_a_broken_plugin_warns_and_the_rest_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        **registry._entry_points("strategy"),
        "broken": EntryPoint("broken", "no_such_package:X", "clframe.strategies"),
    }
    monkeypatch.setattr(registry, "_entry_points", lambda kind: points)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = listing("strategy")
    assert "'broken'" in str(caught[0].message)
    assert {r["name"] for r in rows} == set(points) - {"broken"}


def _all() -> list[tuple[str, str]]:
    return [(kind, name) for kind in ("strategy", "scenario", "backbone") for name in registry.available(kind)]


@pytest.mark.parametrize(("kind", "name"), _all())
def test_every_option_of_everything_is_described_as_it_is_typed(kind: registry.Kind, name: str) -> None:
    text = describe(kind, name)
    cls = registry.load(kind, name)
    assert options_in(text) == [f"{kind}.{f.name}".replace("_", "-") for f in fields_of(cls)]
    for info in fields_of(cls):
        assert info.accepts in text
    assert (cls.__doc__ or "").strip().splitlines()[0] in text


@pytest.mark.parametrize(("kind", "name"), _all())
def test_the_example_can_be_run(kind: str, name: str) -> None:
    example = describe(kind, name).rsplit("Example:\n", 1)[1]
    values = parse_overrides(shlex.split(example)[2:])
    resolve(values)
    if kind == "scenario":  # on data that everybody has: the stream is cut, and what a run would do is planned
        assert clframe.plan(**values).phases


@pytest.mark.parametrize("name", registry.available("scenario"))
def test_a_scenario_says_what_its_streams_may_be(name: str) -> None:
    cls = registry.load("scenario", name)
    found = settings_of(cls)
    text = describe("scenario", name)
    assert f"\nSettings: {found[0]}-incremental" in text
    assert text.count("1: first version.") == 1
    assert all(s in text.split("Settings: ")[1].split("\n")[0] for s in found)
    values = parse_overrides(shlex.split(scenario_example(name))[2:])
    for setting in found:
        section, chosen = dict(values["scenario"]), {"setting": setting} if len(found) > 1 else {}
        if "scenario" in cls.sections:  # the setting is that of the scenario inside
            section["scenario"] = {"name": section["scenario"], **chosen}
        else:
            section.update(chosen)
        assert clframe.open_scenario(section).setting == setting


def test_a_strategy_says_what_it_needs_and_its_version() -> None:
    text = describe("strategy", "ewc")
    assert "For class-incremental or domain-incremental or task-incremental streams, scored by accuracy." in text
    assert "Needs to be told where tasks end." in text
    assert "Version 1\n  1: first version." in text
    assert "float ≥ 0 and ≤ 1, default 1.0" in text
    assert "It keeps exemplars" in describe("replay")
    assert "no other kind of classifier, it takes head.name linear, head.bias false." in describe("strategy", "wa")
    assert "kind of classifier" not in text


def test_a_composition_has_every_option_once_and_names_the_owner_of_those_that_two_have() -> None:
    text = describe("strategy", "ewc+lwf")
    typed = options_in(text)
    assert len(typed) == len(set(typed))
    assert typed.count("strategy.epochs") == 1
    both = {f.name for f in fields_of(registry.load("strategy", "ewc"))} & {
        f.name for f in fields_of(registry.load("strategy", "lwf"))
    }
    shared = {"epochs", "first_epochs", "loss_over"}
    for name in both - shared:
        assert {f"strategy.ewc.{name}", f"strategy.lwf.{name}"} <= set(typed)
    assert "Needs to be told where tasks end." in text


def test_metrics_run_optimizer_and_head() -> None:
    for name, metric in CATALOGUE.items():
        text = describe("metric", name)
        assert metric.definition in text
        assert metric.reference in text
    assert "lower" in describe("metric", "forgetting_max")
    assert {"seed", "epochs", "batch-size", "device"} <= set(options_in(describe("run")))
    assert {"optimizer", "optimizer.lr"} <= set(options_in(describe("optimizer")))
    assert {"head", "head.bias"} <= set(options_in(describe("head")))


def test_a_class_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\nfrom clframe import Scenario, Strategy, field\n\n"
        "class Mine(Strategy):\n    '''My own.'''\n    pull: float = field(default=1.0, help='How much.')\n\n"
        "class Cut(Scenario):\n    '''My cut.'''\n    parts: int = 2\n\n"
        "class Net(nn.Module):\n    '''My net.'''\n    def __init__(self, width: int = 3): ...\n"
    )
    for kind, name, option in (
        ("strategy", "Mine", "strategy.pull"),
        ("scenario", "Cut", "scenario.parts"),
        ("backbone", "Net", "backbone.width"),
    ):
        text = describe(kind, f"{file}:{name}")
        assert option in options_in(text)
        assert "My " in text
        assert describe(f"{file}:{name}") == text, "the kind follows from the class"


def test_a_name_in_two_kinds_asks_for_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {("backbone", "ewc"): registry.load("backbone", "mlp")})
    with pytest.raises(
        ConfigurationError,
        match=r"'ewc' is the name of a strategy and of a backbone: say which, as in `clframe describe strategy ewc`",
    ):
        describe("ewc")
    assert "units of each hidden layer" in describe("backbone", "ewc").lower()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (("replai",), "Nothing is called 'replai'. Did you mean 'replay'?"),
        (("zzzz",), "Nothing is called 'zzzz'. `clframe list` names what there is."),
        (("strategy", "replai"), "There is no strategy named 'replai'. Did you mean 'replay'?"),
        (("metric", "final_acuracy"), "There is no metric named 'final_acuracy'. Did you mean 'final_accuracy'?"),
        (
            ("stratgy", "replay"),
            "Expected a kind (strategy, scenario, backbone, tracker, metric), received 'stratgy'. Did you mean 'strategy'?",
        ),
        (("a", "b", "c"), "Expected a kind and a name, as in `describe strategy replay`, received 'a b c'."),
    ],
)
def test_what_cannot_be_described(what: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", *what]) == 2
    assert capsys.readouterr().err == f"clframe: {said}\n"


def test_a_scenario_is_drawn_with_its_options(cli) -> None:
    said = cli("describe", "split_digits", "--plot", "stream.png", "--scenario.experiences", "2")
    assert (said.code, said.out) == (0, "stream.png\n")
    assert Path("stream.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--plot", "stream.txt"), "--plot: expected a .png, .pdf or .svg file, received 'stream.txt'."),
        (("--plot", "s.png", "--epochs", "3"), "describe --plot takes the options of the scenario, received --epochs."),
        (
            ("--scenario.experiences", "2"),
            "describe takes options such as --scenario.experiences only with --plot FILE.",
        ),
        (("--plot", "s.png", "--scenario.experiences", "3"), "10 classes don't divide into 3 experiences"),
    ],
)
def test_what_cannot_be_drawn(cli, arguments: tuple[str, ...], said: str) -> None:
    found = cli("describe", "split_digits", *arguments)
    assert found.code == 2
    assert said in found.err
