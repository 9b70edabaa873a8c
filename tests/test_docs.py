"""What the documentation says is tested, is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/what_happens.md").read_text()
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)))
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]


def names_in(file):
    found = ast.parse((ROOT / file).read_text()).body
    return {
        node.name for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file):
    assert {test for other, test in NAMED if other == file} <= names_in(file)


def test_every_row_says_what_is_done_what_happens_and_which_test_shows_it():
    assert len(ROWS) > 50
    for row in ROWS:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 3 and all(cell.strip() for cell in cells), row
        if cells[0].strip() != "what you do":
            names = cells[2].strip().split(", ")
            assert all(re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", name) for name in names), row
