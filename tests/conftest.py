"""Fixtures shared by every suite."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: MMPDS_DATA, else shared/data beside the checkout."""
    root = Path(os.environ.get("MMPDS_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        message = f"no real data at {root}: set MMPDS_DATA to the folder that holds chest_xray, vqa_rad, …"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return root
