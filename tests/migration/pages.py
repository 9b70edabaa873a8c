"""The pairs of calls in the tables of the pages on migrating, and the problem that they are trained on."""

import re
from pathlib import Path

from tests.references.network import make_problem

DOCS = Path(__file__).parents[2] / "docs"
PROBLEM = make_problem(0, sizes=(3, 3, 2))


def pairs(page: str, heading: str) -> dict[str, str]:
    """The rows of the table below a heading: the old call and the new one."""
    sections = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    (text,) = [text for text in sections if text.startswith(heading + "\n")]
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
