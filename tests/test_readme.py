"""The README's code runs as it is printed."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names: dict = {}
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), names)
    if "loss" in names:
        assert np.isfinite(names["loss"]) and "perturbed_grad_norm" in capsys.readouterr().out
        assert float(names["optax_sam"].info(names["opt_state"])["gradients"]) == 20


def test_both_commands_have_a_target():
    makefile = (README.parent / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README.read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
