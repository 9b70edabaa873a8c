"""What follows from the methods is up to date, and no method lacks one of its files."""

import re
import subprocess
import sys

import pytest

import optax_sam
from docs.derived import parts
from docs.derived.check import problems
from docs.derived.exports import line
from docs.derived.groups import OTHERS, grouped
from docs.derived.methods import Method, all_methods
from docs.derived.missing import missing
from docs.derived.pages import all_papers
from optax_sam import SharpnessAware
from optax_sam.engine.hyperparameters import ScalarOrSchedule


def test_everything_that_is_derived_is_up_to_date_and_no_method_lacks_a_file():
    assert not problems(), "\n" + "\n".join(problems()) + "\nRun make derived, then add what it lists."


def bare(rho: ScalarOrSchedule = 0.05) -> SharpnessAware:
    return optax_sam.sam(rho)


def test_everything_that_a_method_lacks_is_listed_at_once():
    found = missing([Method("bare", "bare", bare)])
    for words in ("docstring", "rho declares no range", "tests/references/bare.py", "FAMILY", "CHANGELOG.md"):
        assert any(line.startswith("bare: ") and words in line for line in found), (words, found)


def test_the_command_exits_with_1_and_names_a_part_that_is_out_of_date(tmp_path):
    page = tmp_path / "page.md"
    part = parts.Part(page, "numbers", "1\n")
    page.write_text("\n".join(["before", *part.marks, "behind", ""]))
    assert not part.is_current()
    part.write()
    assert part.is_current() and page.read_text().startswith("before\n<!--")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="0 parts"):
        part.is_current()
    command = [sys.executable, "-m", "docs.derived", "--check"]
    done = subprocess.run(command, cwd=parts.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1 if problems() else 0,
        "\n".join(problems() + [""] * bool(problems())),
    )


def test_a_method_that_no_group_names_stands_in_the_last_one():
    assert grouped(["sam", "bare"])[OTHERS] == ["bare"]
    assert OTHERS not in grouped(["sam"])


def test_exports_are_as_the_formatter_has_them():
    assert line("optax_sam.methods.sam", "sam") == "from optax_sam.methods.sam import sam as sam\n"
    assert max(map(len, line("optax_sam.methods." + "x" * 40, "y" * 40).splitlines())) <= 110


METHODS = [method for method in all_methods() if method.makes_a_method]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_can_be_cited(method):
    entries = optax_sam.citation(method.function)
    for paper in method.papers:
        assert f"url = {{{paper.url}}}" in entries
        assert re.search(
            rf"^@misc{{[a-z]+\d{{4}}[a-z0-9]+,\n  author = {{.*{paper.authors[0]}", entries, re.M
        )
    assert entries.count("@misc") == len(method.papers) >= 1


def test_one_key_is_one_paper():
    papers = all_papers()
    assert len(papers) > 45
    assert len({p.key for p in papers}) == len({p.url for p in papers}) == len(papers)


@pytest.mark.parametrize("wrong", [optax_sam.sam(), None, "sam"])
def test_what_is_no_method_is_not_cited(wrong):
    with pytest.raises(TypeError, match=r"method=.* is no function: pass the method itself"):
        optax_sam.citation(wrong)
    with pytest.raises(TypeError, match="names no paper .*: pass a method"):
        optax_sam.citation(optax_sam.sharpness_aware)
