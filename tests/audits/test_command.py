"""`clframe audit` in this process: what it prints, in every form, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import clframe
from clframe.cli import main


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> tuple[int, str, str]:
        code = main(["audit", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_tables_in_every_form_and_json_are_what_python_gives(audit, digits_run):
    code, text, _ = audit("open-set", digits_run.path, "--foreign", "split_digits", "--tail", 10)
    found = clframe.audit("open-set", digits_run, foreign="split_digits", tail=10)
    assert (code, text) == (0, str(found))
    assert "FPR@95" in text
    code, answer, _ = audit("open-set", digits_run.path, "--foreign", "split_digits", "--tail", 10, "--json")
    assert json.loads(answer) == [{"directory": str(digits_run.path), **found.data[0]}]
    for form, mark in (("markdown", "|---"), ("latex", "\\toprule"), ("csv", ","), ("html", "<table>")):
        code, text, _ = audit("open-set", digits_run.path, "--format", form)
        assert code == 0
        assert mark in text
    assert clframe.audit("open-set", digits_run)._repr_html_().count("<table>") == 2


def test_references_and_options_reach_the_audit(audit, unlearned):
    runs = [unlearned(seed=s, what="samples") for s in (0, 1)]
    others = [unlearned(seed=s, what="samples", retrain=True) for s in (0, 1)]
    paths = [[r.path for r in side] for side in (runs, others)]
    code, text, _ = audit("unlearning", *paths[0], "--reference", *paths[1], "--relearn-limit", 3)
    assert code == 0
    assert "retrained (n = 2)" in text
    assert json.loads((paths[0][1] / "unlearning.json").read_text())["relearn"]["limit"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["openset"], 2, "There is no audit 'openset'. Did you mean 'open-set'?"),
        (["zzz"], 2, "There is no audit 'zzz'. There are: open-set, compatibility, unlearning."),
        (["compatibility"], 2, "is on split_digits: run the scenario compatibility."),
        (["unlearning"], 2, "is on split_digits, which doesn't: run the scenario unlearning."),
        (
            ["open-set", "--forein", "x"],
            2,
            "audit open-set.forein is not an option of OpenSet. Did you mean 'foreign'?",
        ),
        (["open-set", "--final-only", "true"], 2, "give --foreign NAME, or train with --keep-models true."),
        (["open-set", "--format", "tex"], 2, "invalid choice"),
    ],
)
def test_bad_input_is_one_sentence(audit, digits_run, arguments, code, sentence):
    kind, *options = arguments
    found, out, err = audit(kind, digits_run.path, *options)
    assert (found, out) == (code, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_what_is_no_finished_run(audit, tmp_path):
    assert audit("open-set", tmp_path)[::2] == (
        4, f"clframe: Expected a run directory at {tmp_path}, found no config.yaml there.\n",
    )  # fmt: skip


def test_an_unfinished_run_says_how_to_go_on(audit, tmp_path):
    import clframe
    from clframe.training.trainer import Stopped

    with pytest.raises(Stopped):
        clframe.run(run_dir=tmp_path / "run", epochs=1, stop_after=3, progress=False, keep_models=True)
    code, _, err = audit("open-set", tmp_path / "run")
    assert code == 4
    assert "has not finished: `clframe resume" in err
