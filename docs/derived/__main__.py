"""Writes what follows from the methods: exports, tables, reference, citations.

python -m docs.derived           # write them, and list what only a person can add
python -m docs.derived --check   # write nothing; list what is out of date or missing, all at once
"""

import argparse
import sys

from docs.derived.exports import exports
from docs.derived.parts import COMMAND


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m docs.derived", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, list what is out of date")
    check = parser.parse_args().check
    first = exports()
    if not check:
        first.write()
    try:
        from docs.derived.check import parts, problems
    except ImportError as error:  # a method that is gone, exported still
        if first.is_current():
            raise
        sys.exit(f"{error}: optax_sam/__init__.py is out of date: run {COMMAND}")
    for part in [] if check else parts():
        part.write()
    if found := problems():
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
