"""Every notebook says the same as its script, and runs from top to bottom on the embedded data."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_there_are_notebooks_and_each_has_its_pair() -> None:
    assert SCRIPTS
    assert {p.stem for p in SCRIPTS} == {p.stem for p in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_notebook_and_script_have_the_same_cells(script: Path) -> None:
    """`jupytext --sync notebooks/*.py` brings them together."""
    left = jupytext.read(script)
    right = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in right.cells] == [(c.cell_type, c.source) for c in left.cells]
    assert not any(c.get("outputs") for c in right.cells), "outputs don't belong into the repository"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_notebook_runs(script: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises with the cell's source and the error
    shown = [o for c in notebook.cells for o in c.get("outputs", [])]
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in shown), "something was printed to stderr"
    assert any("image/png" in o.get("data", {}) for o in shown), "no figure was drawn"
