"""The table of `docs/methods.md`, and the citations."""

import ast
import json
from collections.abc import Iterator

from docs.derived.groups import grouped
from docs.derived.methods import Method
from docs.derived.parts import ROOT, Part
from optax_sam.citation import Paper, papers

MEASURED = ROOT / "docs/measured.json"
HEAD = "| call | gradients | buffers | needs | digits % | time |"


def pages(methods: list[Method]) -> list[Part]:
    """Every derived part of the documentation."""
    by_paper = dict(by_method())
    of_methods = {p.url for _, found in by_paper.items() for p in found}
    return [
        Part(ROOT / "docs/methods.md", "table of methods", table(methods)),
        Part(ROOT / "docs/citations.md", "entry of each method", keys(by_paper)),
        Part(ROOT / "docs/citations.md", "papers of methods", entries(all_papers(), of_methods)),
        Part(ROOT / "docs/citations.md", "papers of measurements", entries(all_papers(), of_methods, False)),
    ]


def table(methods: list[Method]) -> str:
    """The table of all methods; what was not measured is left empty."""
    measured = json.loads(MEASURED.read_text())
    rows = {method.name: row(method, measured) for method in methods if method.makes_a_method}
    lines = [HEAD, "| " + "--- | " * 6]
    for number, (heading, names) in enumerate(grouped(list(rows)).items()):
        lines += [f"| **{heading}** |" + " |" * 5] if number else []
        lines += [rows[name] for name in names]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def row(method: Method, measured: dict[str, dict[str, str]]) -> str:
    """One line of the table."""
    numbers = measured.get(method.name, {})
    call = f"[`{method.call}`](api/method/{method.name}.md)"
    cells = [call, *method.cost, method.needs, numbers.get("digits", ""), numbers.get("time", "")]
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def docstrings() -> Iterator[tuple[str, str]]:
    """The path in the repository and the name, and the docstring, of every public function."""
    for folder in ("optax_sam", "experiments/step_functions"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield f"{file.relative_to(ROOT)}:{node.name}", ast.get_docstring(node) or ""


def all_papers() -> list[Paper]:
    """Every paper of a docstring, once."""
    return sorted({p for _, text in docstrings() for p in papers(text)}, key=lambda p: (p.year, p.key))


def by_method() -> Iterator[tuple[str, tuple[Paper, ...]]]:
    """The papers of methods, wrappers and step functions; of a step function the module is named."""
    for place, text in docstrings():
        file, name = place.split(":")
        if (found := papers(text)) and "sharpness/" not in file:
            yield (file[:-3].replace("/", ".") if file.startswith("experiments") else name), found


def keys(by_paper: dict[str, tuple[Paper, ...]]) -> str:
    """Which entries to cite for which method."""
    by_keys: dict[str, list[str]] = {}
    for name, found in sorted(by_paper.items()):
        by_keys.setdefault(", ".join(f"`{p.key}`" for p in found), []).append(f"`{name}`")
    rows = sorted(f"| {', '.join(names)} | {found} |" for found, names in by_keys.items())
    return "\n".join(["| method | entry |", "| --- | --- |", *rows]) + "\n"


def entries(found: list[Paper], of_methods: set[str], wanted: bool = True) -> str:
    """The BibTeX of the papers that methods name, or of the others."""
    chosen = [paper.bibtex() for paper in found if (paper.url in of_methods) == wanted]
    return "```bibtex\n" + "\n\n".join(chosen) + "\n```\n"
