"""What the documentation says is tested, is."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import optax_sam
from optax_sam import flax
from optax_sam.pieces import bases
from optax_sam.sharpness import plots
from tests.fast_part import FIRST_CASES

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("file", FIRST_CASES)
def test_every_test_that_is_cut_short_exists(file):
    assert set(FIRST_CASES[file]) <= names_in(f"tests/{file}")


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
        assert re.search(rf"^\| \[`{name}\(", page, flags=re.MULTILINE), name
        assert (ROOT / f"docs/api/method/{name}.md").exists(), name


def test_every_file_of_the_package_stands_in_the_architecture():
    page = (ROOT / "docs/architecture.md").read_text()
    parts = ("", "engine", "arithmetic", "pieces", "sharpness")
    files = {file.name for part in parts for file in (ROOT / "optax_sam" / part).glob("[!_]*.py")}
    assert {name for name in files if f"`{name}`" not in page} == set()
    named = set(re.findall(r"`(\w+\.py)`", page.split("## The experiments")[0]))
    assert named - files <= {"conf.py", "__init__.py", "with_base.py"}


def test_every_page_stands_in_the_table_of_contents():
    listed = [page for index in ("contents", "gallery", "api/methods") for page in toctree(index)]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(listed) == sorted(
        page.relative_to(ROOT).with_suffix("").as_posix()
        for page in pages
        if page.name not in ("README.md", "contents.md")
    )


def toctree(page):
    """The pages that a page has in its tables of contents, from the root."""
    file = ROOT / f"docs/{page}.md"
    trees = re.findall(r"^```{toctree}\n(.*?)^```", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"^(/?[\w./]+)$", "\n".join(trees), flags=re.MULTILINE)
    whole = [ROOT / name[1:] if name[0] == "/" else file.parent / name for name in names]
    return [name.resolve().relative_to(ROOT).as_posix() for name in whole]


def test_the_contents_begin_with_a_start_and_which_method_is_second():
    captions = re.findall(r":caption: (.*)", (ROOT / "docs/contents.md").read_text())
    assert captions == ["Start", "How-to", "Concepts", "Reference", "Evidence"]
    assert toctree("contents")[1] == "docs/choosing"


def test_every_public_name_stands_in_the_reference():
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs/api").rglob("*.md")))
    documented = re.findall(r"^\.\. auto(?!method)\w+:: (optax_sam[\w.]*)$", pages, flags=re.MULTILINE)
    assert len(documented) == len(set(documented))
    modules = (
        optax_sam,
        optax_sam.lora,
        optax_sam.per_example,
        optax_sam.schedules,
        optax_sam.sharpness,
        flax,
        plots,
    )
    names = {f"{module.__name__}.{name}" for module in modules for name in public(module)}
    spaces = [
        name for name, part in vars(optax_sam).items() if inspect.ismodule(part) and ".pieces." in str(part)
    ]
    assert len(spaces) == 8
    names |= {f"optax_sam.{space}.{name}" for space in spaces for name in getattr(optax_sam, space).__all__}
    records = {f"optax_sam.pieces.bases.{name}" for name in ("Began", "Step", "transformation")}
    records |= {f"optax_sam.pieces.geometries.{name}" for name in ("Geometry", "Steepest")}
    records |= {"optax_sam.engine.step_oracle.StepOracle", "optax_sam.engine.objective.Evaluation"}
    kinds = {f"optax_sam.pieces.bases.{kind.__name__}" for kind in (bases.Piece, *subclasses(bases.Piece))}
    assert set(documented) == names | records | kinds


def subclasses(kind):
    """The bases that inherit from one, and those that inherit from them."""
    here = [sub for sub in kind.__subclasses__() if sub.__module__ == bases.__name__]
    return [*here, *(further for sub in here for further in subclasses(sub))]


def public(module):
    """Functions and classes that a module exports, or defines where it exports nothing."""
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    if Path(module.__file__).name == "__init__.py":
        return names
    return [name for name in names if getattr(module, name).__module__ == module.__name__]


def test_every_paper_of_a_docstring_can_be_cited():
    citations = (ROOT / "docs/citations.md").read_text()
    files = [*(ROOT / "optax_sam").rglob("*.py"), *(ROOT / "experiments/step_functions").glob("*.py")]
    papers = re.findall(r"<(https?://(?:arxiv|openreview)[^>\s]+)>", "".join(map(Path.read_text, files)))
    assert len(set(papers)) > 40
    for paper in set(papers):
        assert f"url = {{{paper}}}" in citations, paper


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda page: page.name
)
def test_files_that_a_page_links_to_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
