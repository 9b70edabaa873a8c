"""Every notebook runs from top to bottom, and is stored with what it has shown."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ONE_AND_THE_SLOW = [NOTEBOOKS[0], *(pytest.param(file, marks=pytest.mark.slow) for file in NOTEBOOKS[1:])]
executed = runpy.run_path(str(ROOT / "notebooks/execute.py"))["executed"]


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("file", ONE_AND_THE_SLOW, ids=lambda file: file.stem)
def test_it_runs_and_leaves_nothing_behind(file):
    before = set(file.parent.iterdir())
    assert len(outputs(executed(file))) >= 3
    assert set(file.parent.iterdir()) == before


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_asks_one_question_and_is_stored_with_its_answer(file):
    notebook = nbformat.read(file, as_version=4)
    heading = notebook.cells[0].source.splitlines()[0]
    assert heading.startswith("# ") and heading.endswith("?")
    assert "## What to try next" in notebook.cells[-1].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for output in outputs(notebook)]
    assert len(kinds) >= 3 and "display_data" in kinds and "error" not in kinds
    assert not re.search(r"at 0x[0-9a-f]+|stderr", str(outputs(notebook)))


def test_there_are_eight():
    assert [file.stem[:2] for file in NOTEBOOKS] == [f"{number}_" for number in range(1, 9)]
