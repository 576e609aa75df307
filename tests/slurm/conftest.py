"""The cluster, and the folder from which its user submits."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, lacking


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running Slurm of two nodes."""
    if why := lacking():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        running.environ["PYTHONPATH"] = str(ROOT)
        yield running


@pytest.fixture(scope="session")
def checkout():
    """Makes a folder look like a checkout to the batch files."""

    def furnish(folder):
        for name in ("train.py", "slurm"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(Path(sys.prefix))
        return folder

    return furnish


@pytest.fixture
def place(tmp_path, checkout):
    """A folder from which jobs are submitted."""
    return checkout(tmp_path)
