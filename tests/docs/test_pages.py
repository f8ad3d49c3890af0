"""Everything that a page tells its reader to type works, and prints what the page shows."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from clframe import registry
from clframe.metrics import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pages = _load("clframe_tests_docs_pages", Path(__file__).with_name("pages.py"))
generate = _load("clframe_docs_generate", ROOT / "docs" / "generate.py")
BLOCKS = [b for page in pages.PAGES for b in pages.blocks_of(page)]
NEEDY = [b for b in BLOCKS if b.needs]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's own folder, with nothing of the checkout in sight and data found only where a system has it.

    What a page registers is forgotten after it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(CATALOGUE, "_joined", {})
    monkeypatch.delenv("CLFRAME_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.name)
def test_page(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in pages.blocks_of(page):
        if block.file:
            path = reader / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.runs and not block.needs:
            pages.play(block, names, capsys)


@pytest.mark.parametrize("block", NEEDY, ids=lambda b: b.where)
def test_block_that_needs_data(
    block: Any,
    reader: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what, more = block.needs
    if what in ("cifar100", "tiny_imagenet"):
        monkeypatch.setenv("CLFRAME_DATA", str(request.getfixturevalue("shared_data")))
    elif what == "fashion_mnist":
        if not Path("/usr/share/datasets/fashion-mnist").is_dir():
            pytest.skip("needs Fashion-MNIST: install Debian's package dataset-fashion-mnist")
    else:
        pytest.fail(f"{block.where} needs {what!r}, which the tests don't know")
    pages.play(block, {"__name__": "__main__"}, capsys, more)


def test_files_shown_are_the_files_in_the_repository() -> None:
    shown = {b.file: b.text for b in BLOCKS if b.file and (ROOT / b.file).is_file()}
    assert "examples/l2_anchor.py" in shown
    for name, text in shown.items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), name


def test_examples_are_shown() -> None:
    examples = {str(p.relative_to(ROOT)) for p in (ROOT / "examples").glob("*.py")}
    assert examples <= {b.file for b in BLOCKS}


def test_a_new_strategy_takes_about_ten_lines() -> None:
    module = _load("clframe_examples_l2_anchor", ROOT / "examples" / "l2_anchor.py")
    lines = [line for line in inspect.getsource(module.L2Anchor).split("\n") if line.strip()]
    assert len(lines) <= 12


def test_the_shown_strategy_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["check", str(ROOT / "examples" / "l2_anchor.py") + ":L2Anchor"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for page in pages.PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == generate.PAGES[name](), f"docs/{name} is stale: run `make docs`"
