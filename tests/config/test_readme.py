"""The README says what is so: its tables come from kept results, its overrides compose."""

import re
import subprocess
import sys

import pytest

from mmpds import check
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()
OVERRIDES = sorted(
    {
        text.strip("'")
        for code in re.findall(r"`([^`\n]+)`", TEXT)
        for text in code.split()
        if re.fullmatch(r"'?[a-z_.]+=[^\s\"]+", text)
        and not {"PATH", "FILE.ckpt", "NAME", "value"} & set(re.split(r"[=\[\],']", text))
    }
)


def test_tables_are_those_of_the_kept_results():
    done = subprocess.run(
        [sys.executable, "experiments/publish.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_no_block_is_empty():
    for path in [ROOT / "README.md", *ROOT.glob("experiments/*/README.md")]:
        assert not re.findall(r"<!-- begin \w+ \w+ -->\n<!-- end -->", path.read_text()), path


@pytest.mark.parametrize("override", OVERRIDES)
def test_every_override_it_names_composes(override):
    assert check.argument_problems([override], ROOT / "conf") == []


def test_it_names_overrides():
    assert {"trainer=cpu_seq", "resume=last", "data.rebalance=equal_normal", "callbacks=ema"} <= set(OVERRIDES)
