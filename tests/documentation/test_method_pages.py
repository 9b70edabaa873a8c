"""The page of each method, and how the site shows equations."""

import inspect
import re

import pytest

from docs.derived import equations, method_pages
from docs.derived.methods import all_methods
from docs.links import broken

METHODS = [method for method in all_methods() if method.makes_a_method]


@pytest.mark.parametrize(
    "written, shown",
    [
        ("e = rho g / ||g||", r"e = \frac{\rho g}{\lVert g \rVert}"),
        ("g' = grad L(w + e)", r"g' = \nabla L(w + e)"),
        ("e_{k+1} = e_k", r"e_{k + 1} = e_{k}"),
        ("<g', v> / ||g'||^2", r"\frac{\langle g' , v \rangle}{\lVert g' \rVert^{2}}"),
        ("(1 - theta) d", r"(1 - \theta) d"),
        ("(a - b) / (c - d) h", r"\frac{a - b}{c - d} h"),
        ("max_rho V^T", r"\mathrm{max\_rho} \, V^{\top}"),
        ("z ~ N(0, I)", r"z \sim \mathcal{N}(0 , I)"),
        ("g- <- b1 sqrt(|w| / 2)", r"g^{-} \leftarrow b_{1} \sqrt{\frac{\lvert w \rvert}{2}}"),
    ],
)
def test_an_equation_becomes_math(written, shown):
    assert equations.latex(written) == r"\displaystyle " + shown


@pytest.mark.parametrize("wrong", ["a ? b", "(a", "||g|"])
def test_what_is_no_equation_is_refused(wrong):
    with pytest.raises(ValueError):
        equations.latex(wrong)


def test_clauses_are_items_and_sections_stay_as_they_are():
    text = "T: x.\n\nIdea.\n\n`a = b`; `slices` of `c` (one; two). Then `d`.\n\nArgs:\n  x: `y = z`."
    shown = "\n".join(equations.rendered(text.splitlines()))
    assert shown == (
        "T: x.\n\nIdea.\n\n* :math:`\\displaystyle a = b`\n"
        "* `slices` of :math:`\\displaystyle c` (one; two)\n* Then :math:`\\displaystyle d`\n\n"
        "Args:\n  x: `y = z`."
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_shows_its_equation(method):
    lines = equations.rendered((inspect.getdoc(method.function) or "").splitlines())
    found = re.findall(r":math:`([^`]*)`", "\n".join(lines))
    assert found
    for each in found:
        assert each.count("{") == each.count("}") and len(re.findall(r"\\left\b", each)) == each.count(
            r"\right"
        )


def test_a_page_has_cost_evidence_and_citation():
    method = next(method for method in METHODS if method.name == "momentum_sam")
    text = method_pages.page(method, [], {"momentum_sam": False})
    assert text.startswith("# Momentum SAM\n\nOne gradient")
    assert "| Gradients per step | 1 |" in text and "| First gradient at `params` | no |" in text
    (row,) = re.findall(r"^\| MNIST-1D, dense.*$", text, flags=re.MULTILINE)
    assert "(n = 20)" in row and row.count("|") == 7
    assert "@misc{becker2024momentumsam" in text and ".. autofunction:: optax_sam.momentum_sam" in text


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "one.html").write_text('<a id="here" href="two.html#there">x</a><a href="#here">y</a>')
    (tmp_path / "two.html").write_text('<p id="there"></p><a href="https://example.org">z</a>')
    assert broken(tmp_path) == []
    (tmp_path / "two.html").write_text('<a href="one.html#gone"></a><img src="none.png">')
    assert broken(tmp_path) == ["one.html: two.html#there", "two.html: one.html#gone", "two.html: none.png"]
