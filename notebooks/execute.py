"""Executes notebooks, and writes their outputs into them: `python notebooks/execute.py notebooks/*.ipynb`."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def executed(file: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run from top to bottom, in an empty folder.

    Raises:
      CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(file, as_version=4)
    surroundings = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=300,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=surroundings)
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
