"""Settings of the documentation site: `make docs` builds it, and takes warnings for errors.

The repository itself is the source folder, so that a link between pages works alike in the repository and on
the site: the README is the first page, `docs/contents.md` its table of contents.
"""

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.derived import equations  # noqa: E402

project = "optax_sam"
author = "The optax_sam authors"
release = importlib.metadata.version("optax_sam")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.md", "docs/api/method/*.md", "notebooks/*.ipynb"]
exclude_patterns = ["docs/contents.md", ".venv", ".git", "runs"]

html_theme = "furo"
html_math_renderer = "mathml"  # which browsers show without a script from elsewhere
html_title = "optax_sam"
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_style = "default"
pygments_dark_style = "monokai"

# The notebooks are executed by `make notebooks`, with their outputs kept.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath", "tasklist"]
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Cost", "notes_style"),
    ("Guarantees", "notes_style"),
    ("Limits", "notes_style"),
    ("Deviations", "notes_style"),
]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """The contents stand on the site's first page, but not in the repository's README; equations are math."""
    app.add_html_math_renderer("mathml", (math_in_line, None), (math_block, None))
    app.connect("source-read", add_contents)
    app.connect("build-finished", first_page)
    app.connect("autodoc-process-docstring", render_equations, priority=400)  # before Napoleon reads sections


def render_equations(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """The equations of the methods become math."""
    if what == "function" and getattr(of, "__module__", "").startswith("optax_sam.methods."):
        lines[:] = equations.rendered(lines)


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Appends the table of contents to the first page."""
    if name == root_doc:
        app.env.note_dependency(str(ROOT / "docs/contents.md"))
        source[0] += "\n" + (ROOT / "docs/contents.md").read_text()


def first_page(app: Sphinx, error: Exception | None) -> None:
    """Web servers look for index.html."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def math_in_line(writer: Any, node: nodes.math) -> None:
    """MathML in the text."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def math_block(writer: Any, node: nodes.math_block) -> None:
    """MathML in lines of its own."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode
