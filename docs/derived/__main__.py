"""Writes what follows from the methods: exports, tables, reference, citations.

python -m docs.derived           # write them, and list what only a person can add
python -m docs.derived --check   # write nothing; list what is out of date or missing, all at once
"""

import argparse
import sys

from docs.derived.check import parts, problems


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m docs.derived", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, list what is out of date")
    if not parser.parse_args().check:
        for part in parts():
            part.write()
    if found := problems():
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
