"""Turn results into the tables of the READMEs: every figure a reader sees comes from a results.json kept here.

    python experiments/publish.py STUDY RUN_DIR    keep a run's results in experiments/STUDY, renew all READMEs
    python experiments/publish.py                  renew all READMEs from what is kept
    python experiments/publish.py --check          say which README is out of date; exit status 1 if any is

A README holds blocks `<!-- begin STUDY VIEW -->` … `<!-- end -->`; the views are the functions of this file.
"""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

from mmpds.console import SHOWN, figure, place, print_results, spent
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- begin (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def console(record):
    """The command and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_results(record, Path("runs") / record["experiment"] / record["run_id"])
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "```text\n$ " + record["command"] + "\n" + "\n".join(lines) + "\n```\n"


def table(record):
    """The test metrics of each finding with their intervals, and what they cost, as Markdown."""
    names = [name.rsplit("/", 1)[1] for name in record["metrics"] if name.startswith("test/auroc/")]
    shown = {**SHOWN, "ece": "ECE", "threshold": "threshold"}
    rows = [[name, *(figure(record, f"test/{metric}/{name}", "<br>", 4) for metric in shown)] for name in names]
    counts, hardware = record["counts"], record["hardware"]
    gpu = f", {len(hardware['gpu'])} × {hardware['gpu'][0]}" if hardware["gpu"] else ""
    facts = [
        f"{counts['test/items']:,} test images of {counts['test/groups']:,} patients; below each value its 95 % "
        "interval (bootstrap by patient).",
        f"Normal images flagged: {figure(record, 'test/false_positive_rate/No Finding', ', ', 4)}.",
        f"{place(record)} of {hardware['cores']} cores, {hardware['cpu']}{gpu}, {record['precision']}: "
        + ", ".join(spent(record)) + ".",
        *(f"Note: {warning}" for warning in record["warnings"]),
    ]  # fmt: skip
    return markdown(["finding", *shown.values()], rows) + "\n" + "\n\n".join(facts) + "\n"


def command(record):
    """The command that made the results."""
    return f"```sh\n{record['command']}\n```\n"


def rates(record):
    """A benchmark's rates and ratios."""
    return record["markdown"]


VIEWS = {"console": console, "table": table, "command": command, "rates": rates}


def renewed(text):
    """`text` with every block made anew; a block whose results are not there yet stays."""

    def block(match):
        path = HERE / match[2] / "results.json"
        if not path.exists():
            return match[0]
        return match[1] + VIEWS[match[3]](json.loads(path.read_text())) + match[4]

    return BLOCK.sub(block, text)


def main(arguments):
    """Keep results if told to, then renew or check the READMEs."""
    if len(arguments) == 2:
        study, run_dir = HERE / arguments[0], Path(arguments[1])
        study.mkdir(exist_ok=True)
        shutil.copy(run_dir / "results.json", study / "results.json")
    stale = []
    for path in [HERE.parent / "README.md", *sorted(HERE.glob("*/README.md"))]:
        text = path.read_text()
        if (new := renewed(text)) != text:
            stale.append(str(path.relative_to(HERE.parent)))
            if arguments != ["--check"]:
                path.write_text(new)
    if arguments == ["--check"] and stale:
        print("out of date: " + ", ".join(stale))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
