"""Holds the model of a step's time against what was measured, and draws it out.

The constants and the measured steps are made by

    python -m benchmarks constants scaling --json FILE
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling import figures, page
from benchmarks.scaling.scenarios import Scenarios

MEASURED = Path(__file__).with_name("measured.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables, or writes them. Gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--constants", type=Path, default=MEASURED, metavar="FILE", help="results (default: those kept beside)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables between the marks of a page")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="write the charts there, as PNG")
    given = parser.parse_args(argv)
    if not given.constants.is_file():
        parser.error(f"--constants: there is no file {given.constants}")
    try:
        found = Scenarios(json.loads(given.constants.read_text(encoding="utf-8")))
    except (KeyError, ValueError) as error:
        parser.error(f"--constants: {given.constants} has no results of the part 'constants' ({error})")
    if given.images:
        figures.draw(found, given.images)
    if given.page:
        page.write(found, given.page)
    if not (given.images or given.page):
        for name, make in page.TABLES.items():
            print(f"{name}\n\n{make(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
