"""The methods that `import optax_sam` gives: static lines, for type checkers."""

import ast

from docs.derived.parts import ROOT, Part


def exports() -> Part:
    """One import for each public function of each file, found without importing the package."""
    lines = [
        line(f"optax_sam.methods.{file}", name) for file, names in public_names().items() for name in names
    ]
    return Part(ROOT / "optax_sam/__init__.py", "methods", "".join(lines))


def public_names() -> dict[str, list[str]]:
    """The public functions of every file of `optax_sam/methods`, without running any."""
    found = {}
    for file in sorted((ROOT / "optax_sam/methods").glob("[!_]*.py")):
        names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        found[file.stem] = sorted(name for name in names if not name.startswith("_"))
    return found


def line(module: str, name: str) -> str:
    """As `ruff format` has it."""
    short = f"from {module} import {name} as {name}\n"
    if len(short) <= 111:
        return short
    return f"from {module} import (\n    {name} as {name},\n)\n"
