"""The package as a project: its version, what an import takes along, files that name each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import optax_sam

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OPTIONAL = ("equinox", "flax", "matplotlib", "rich", "sklearn", "tensorflow_datasets")


def test_version_is_written_once():
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "optax_sam/__init__.py"
    version = re.escape(optax_sam.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## \[?{version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_import_takes_no_optional_package_along():
    program = f"import sys, optax_sam; sys.exit(sorted(set(sys.modules) & set({OPTIONAL})) or 0)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_oldest_versions_are_those_that_are_permitted():
    wanted = {
        line.replace("==", ">=")
        for line in (ROOT / "tests/oldest.txt").read_text().split("\n")
        if "==" in line
    }
    assert wanted | {"numpy"} == set(PROJECT["project"]["dependencies"])  # NumPy is any that JAX takes
