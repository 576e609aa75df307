"""`python -m mmpds.report RUN_DIR` writes RUN_DIR/report.html."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmpds.console import say, say_out
from mmpds.report import FORMATS, write


def main(arguments: list[str] | None = None) -> int:
    """Write a report and print its path; returns 0, or 2 after one line about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mmpds.report", description="Write the report of a run.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a run: it holds results.json")
    parser.add_argument("--format", choices=FORMATS, default="html", help="html (one file, the default), md or csv")
    given = parser.parse_args(arguments)
    try:
        written = write(given.run_dir, given.format)
    except (ValueError, OSError) as error:
        say(f"mmpds.report: {' '.join(str(error).split())}")
        return 2
    for path in written:
        say_out(str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
