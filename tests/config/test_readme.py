"""The README says what is so: its tables come from kept results, its overrides compose."""

import re
import subprocess
import sys

import pytest

from mmpds import check
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    {
        tuple(
            text.strip("'")
            for text in code.split()
            if re.fullmatch(r"'?[a-z_.]+=[^\s\"]+", text) and not text.endswith(("=NAME", "=value"))
        )
        for code in re.findall(r"`([^`\n]+)`", TEXT)
    }
    - {()}
)


def test_tables_are_those_of_the_kept_results():
    done = subprocess.run(
        [sys.executable, "experiments/publish.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_no_block_is_empty():
    for path in [ROOT / "README.md", *ROOT.glob("experiments/*/README.md")]:
        assert not re.findall(r"<!-- begin \w+ \w+ -->\n<!-- end -->", path.read_text()), path


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_overrides_that_it_names_compose(overrides):
    assert check.argument_problems(list(overrides), ROOT / "conf") == []


def test_it_names_overrides():
    assert {"trainer=cpu_seq", "resume=last", "data.rebalance=equal_normal", "callbacks=ema"} <= {
        text for overrides in COMMANDS for text in overrides
    }
