"""Fixtures shared by every suite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: a second worker has all others meanwhile."""
    items.sort(key=lambda item: "slurm/test_training" not in item.nodeid)


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


TINY = (
    "data.size=32", "data.batch_size=6", "data.source.images=60", "data.cache_dir=cache", "bootstrap=20",
    "report=false", "trainer.max_epochs=2",
    "model.growth_rate=4", "model.block_config=[1,1,1,1]", "model.init_features=8", "trainer.precision=32-true",
)  # fmt: skip
"""Overrides that shrink the demo to a second of work."""


@pytest.fixture
def train(tmp_path):
    """Runs the real train.py in an empty folder; returns the finished process."""

    def start(*arguments, timeout=120, before=(), check=None, environ=None):
        environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("OMPI_", "PMIX_")) and not k.endswith("_NUM_THREADS")
        }
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "160"} | (environ or {})
        command = [*before, sys.executable, str(ROOT / "train.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)
        if check is not None:
            assert done.returncode == check, (
                f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    return start


def results_of(folder: Path) -> dict:
    """The one results.json below a folder."""
    (path,) = folder.rglob("results.json")
    return json.loads(path.read_text()) | {"dir": path.parent}


def quiet_trainer(folder: Path, **arguments):
    """Lightning's trainer, in one process on the CPU, that neither logs nor shows how far it is."""
    import lightning.pytorch as pl  # here: most tests need none of it

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    usual = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, "default_root_dir": str(folder)}
    return pl.Trainer(**quiet | usual | arguments)
