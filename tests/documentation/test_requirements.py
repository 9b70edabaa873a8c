"""What is imported is required by its name, and does not come by chance with something else."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "haiku": "dm-haiku",
    "mpl_toolkits": "matplotlib",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
OURS = {"optax_sam", "experiments", "benchmarks", "docs", "tests"}
# flax.py is imported by users of Flax alone; the recording of PyTorch's weights runs elsewhere.
ELSEWHERE = {
    "optax_sam/flax.py": {"flax"},
    "tests/migration/record.py": {"torch", "pytorch_optimizer"},
    "benchmarks/peer_in_torch.py": {"torch", "curvlinops"},
}
FOLDERS = {
    "optax_sam": ("sharpness",),
    "experiments": ("experiments", "minilm"),
    "benchmarks": ("experiments",),
    "docs": ("experiments", "notebooks", "docs"),
    "notebooks": ("notebooks", "experiments"),
    "tests": ("experiments", "notebooks", "test"),
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_is_required_by_name(folder):
    required = [*PROJECT["dependencies"], *(line for extra in FOLDERS[folder] for line in EXTRAS[extra])]
    known = {re.match(r"[\w-]+", line)[0] for line in required} | OURS | sys.stdlib_module_names
    for file in sorted((ROOT / folder).rglob("*.py")):
        place = file.relative_to(ROOT).as_posix()
        found = {NAMES.get(name, name) for name in imported(file)} - ELSEWHERE.get(place, set())
        assert found <= known, (place, found - known)
