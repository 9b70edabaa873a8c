"""Installs a wheel into an empty environment and looks at it as a user does: `check_wheel.py dist/*.whl`.

The README's first program runs, an import stays quick and takes no optional package along, and type
checkers see the installed package's types.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
OPTIONAL = ("equinox", "flax", "matplotlib", "rich", "sklearn", "tensorflow_datasets")
SECONDS = 1.5

IMPORT = f"""
import jax, optax, sys, time
begin = time.process_time()
import optax_sam
print(time.process_time() - begin)
assert not set(sys.modules) & set({OPTIONAL}), sorted(set(sys.modules) & set({OPTIONAL}))
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; shown too where it fails."""
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{done.stdout}failed: {' '.join(map(str, command))}")
    return done.stdout


def check_types(python: Path, program: Path) -> None:
    """Both type checkers of this environment, on a program that uses the package of the other."""
    strict = ("--strict", "--disable-error-code=import-untyped")  # Optax has no py.typed
    run(sys.executable, "-m", "mypy", *strict, "--python-executable", python, program, cwd=program.parent)
    found = ("--python-interpreter-path", python, "--summary=none")
    run(Path(sys.executable).with_name("pyrefly"), "check", *found, program, cwd=program.parent)


def main(wheel: Path) -> None:
    """Every check; an exception is a failure."""
    assert "optax_sam/py.typed" in zipfile.ZipFile(wheel).namelist(), "py.typed is missing"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env/bin/python"
        run(python, "-m", "pip", "install", "--quiet", wheel.absolute())
        readme = (HERE.parent / "README.md").read_text()
        (folder / "readme.py").write_text(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0])
        print(run(python, "-I", "readme.py", cwd=folder).strip())
        seconds = [float(run(python, "-I", "-c", IMPORT, cwd=folder)) for _ in range(7)]
        median = statistics.median(seconds)
        print(f"import optax_sam: {median:.2f} s of CPU beyond jax and optax, median of {len(seconds)}")
        assert median < SECONDS
        (folder / "program.py").write_text((HERE / "user_program.py").read_text())
        check_types(python, folder / "program.py")
        print(f"{wheel.name}: types are seen by mypy and pyrefly")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
