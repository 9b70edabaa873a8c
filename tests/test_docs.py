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


def test_every_method_has_its_row():
    page = (ROOT / "docs/methods.md").read_text()
    files = (ROOT / "optax_sam/methods").glob("*.py")
    exported = (ROOT / "optax_sam/__init__.py").read_text()
    names = re.findall(r"from optax_sam\.methods\.\w+ import (\w+)", exported)
    assert len(names) > 35 and len(list(files)) > 25
    for name in set(names) - {"is_normalization", "scale_by_adasam"}:
        assert re.search(rf"^\| `{name}\(", page, flags=re.MULTILINE), name


def test_every_public_piece_stands_in_the_architecture():
    page = (ROOT / "docs/architecture.md").read_text()
    exported = (ROOT / "optax_sam/__init__.py").read_text()
    for file, name in re.findall(r"from optax_sam\.(\w+) import (\w+)", exported):
        if file in (
            "starts",
            "directions",
            "gates",
            "ascents",
            "masks",
            "geometry",
            "selections",
            "combinations",
        ):
            assert f"`{name}" in page, name
