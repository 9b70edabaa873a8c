"""The methods that `import optax_sam` gives: static lines, for type checkers."""

from docs.derived.parts import Part


def exports(root, names: dict[str, list[str]]) -> Part:
    """One import for each public function of each file."""
    lines = [
        line(f"optax_sam.methods.{file}", name) for file, functions in names.items() for name in functions
    ]
    return Part(root / "optax_sam/__init__.py", "methods", "".join(lines))


def line(module: str, name: str) -> str:
    """As `ruff format` has it."""
    short = f"from {module} import {name} as {name}\n"
    if len(short) <= 111:
        return short
    return f"from {module} import (\n    {name} as {name},\n)\n"
