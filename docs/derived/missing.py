"""What a method lacks, of the three files and the one line that it is made of."""

import inspect
import re
from collections.abc import Iterator

from docs.derived.methods import Method
from docs.derived.parts import ROOT
from optax_sam.engine.hyperparameters import Scalar, ScalarOrSchedule
from tests import registry
from tests.references.by_name import functions

SECTIONS = ("Args", "Returns", "Cost", "Guarantees", "Example", "References", "Deviations")
BARE = (Scalar, ScalarOrSchedule, ScalarOrSchedule | None, int, float, str)


def missing(methods: list[Method]) -> list[str]:
    """Everything that is missing, of all methods at once."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    return [
        f"{method.name}: {lack}"
        for method in methods
        if method.makes_a_method
        for lack in (*of_docstring(method), *of_signature(method), *of_files(method, changes))
    ]


def of_docstring(method: Method) -> Iterator[str]:
    """Sections, in their order, and what the pages read in them."""
    file, found = f"optax_sam/methods/{method.file}.py", method.sections
    lacking = [name for name in SECTIONS if name not in found]
    if lacking:
        yield f"its docstring in {file} has no {', '.join(lacking)}"
    if [name for name in found if name in SECTIONS] != [name for name in SECTIONS if name in found]:
        yield f"the sections of its docstring in {file} are not in the order {', '.join(SECTIONS)}"
    if not re.match(r"[^:.]{1,40}: \S", found[""]):
        yield f'its docstring in {file} does not begin with "Name: what it does."'
    if "References" in found and not method.papers:
        yield f"its References in {file} are not written `` Authors, `Title <https://...>`_, 2024. ``"
    if "Cost" in found and not (re.search("gradient", found["Cost"]) and all(method.cost)):
        yield f'its Cost in {file} is not written "2 gradients per step; no parameter-sized buffer."'
    for name in inspect.signature(method.function).parameters:
        if "Args" in found and not re.search(rf"(^|[ .]){name}: ", found["Args"]):
            yield f"its Args in {file} do not name {name}"
    row = registry.ROWS.get(method.name)
    if row and row.needs_oracle and not method.needs:
        yield f'its Returns in {file} do not say "It needs an oracle."'


def of_signature(method: Method) -> Iterator[str]:
    """Numbers whose range nobody has said."""
    for name, parameter in inspect.signature(method.function).parameters.items():
        if parameter.annotation in (*BARE, inspect.Parameter.empty) and name not in ("order", "pattern"):
            yield (
                f"{name} declares no range: annotate it with an alias of "
                "optax_sam/engine/hyperparameters.py, such as Radius, or with a Literal"
            )


def of_files(method: Method, changes: str) -> Iterator[str]:
    """The reference, the row, and the line of the changelog."""
    if method.name not in functions():
        yield f"no reference: write tests/references/{method.name}.py with the function {method.name}"
    if method.name not in registry.ROWS:
        yield f'no row: add "{method.name}": Case(optax_sam.{method.name}) to FAMILY in tests/registry.py'
    if f"`{method.name}`" not in changes and f"`{method.name}(" not in changes:
        yield f"CHANGELOG.md does not name `{method.name}`"
