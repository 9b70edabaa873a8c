"""The code of the README and of the guides runs as it is printed."""

import difflib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.registry import over

ROOT = Path(__file__).parents[2]
LONG = {"compositions.md", "fine_tuning.md", "language_models.md"}  # to compile: slow
ELSEWHERE = {"recipes.md", "recipes_models.md"}  # section by section: tests/frameworks/test_recipes.py
README = ROOT / "README.md"
PAGES = {
    page.name: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for page in [README, *sorted((ROOT / "docs").glob("*.md"))]
}


@pytest.mark.parametrize(
    "name",
    over([name for name, blocks in PAGES.items() if blocks and name not in ELSEWHERE], {*PAGES} - LONG),
)
def test_every_block_of_the_page_runs_after_those_before_it(name, capsys):
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(PAGES[name]):
            exec(compile(block, f"{name}, block {number}", "exec"), names)
            if "loss" in names:
                assert np.isfinite(names["loss"])
    if name == "README.md":
        assert "perturbed_grad_norm" in capsys.readouterr().out
        assert float(names["optax_sam"].info(names["opt_state"])["gradients"]) == 20


def section(page, heading):
    """The text below a heading of the second level."""
    sections = re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    (text,) = [text for text in sections if text.startswith(heading + "\n")]
    return text


@pytest.mark.parametrize("page", ["getting_started.md", "linen.md", "nnx.md", "equinox.md"])
def test_at_most_three_lines_of_a_training_step_change(page):
    """The section shows the step without this library first, then with it."""
    blocks = re.findall(r"```python\n(.*?)```", section(page, "The training step"), flags=re.DOTALL)
    before, after = [block for block in blocks if "def train_step" in block]
    assert "optax_sam" not in before and "optax_sam" in after
    changes = [line[0] for line in difflib.ndiff(before.splitlines(), after.splitlines())]
    assert changes.count("-") == changes.count("+") == 3


def test_two_lines_change_where_a_gradient_function_is_at_hand():
    (diff,) = re.findall(
        r"```diff\n(.*?)```", section("linen.md", "With a gradient function"), flags=re.DOTALL
    )
    changes = [line[0] for line in diff.splitlines() if line]
    assert changes.count("-") == changes.count("+") == 2


def test_both_commands_have_a_target():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README.read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
