"""Robustness at one, two and three ranks: the same figures, to the last digit."""

import csv

import pytest
import torch

from mmpds.callbacks.robustness import BATCH
from mmpds.models.densenet import DenseNet121
from tests.conftest import results_of

IMAGES = 80
OPTIONS = (
    "experiment=demo", "stages=[test]", "checkpoint=random.ckpt", "data.size=32", "data.batch_size=6",
    "data.source.images=150", "data.fractions=[0.1,0.2,0.7]", "data.findings=[Effusion,Cardiomegaly]",
    "data.cache_dir=cache", "bootstrap=50", "report=false", "trainer.precision=32-true", "trainer.threads=1",
    "callbacks=robustness", f"callbacks.robustness.images={IMAGES}",
    "callbacks.robustness.corruptions={noise: [0.3], rotation: [90], resolution: [16]}",
)  # fmt: skip
CONDITIONS = 6
FINDINGS = ["Effusion", "Cardiomegaly"]


@pytest.fixture
def checkpoint(tmp_path):
    """A detector of random weights, whose scores lie about its thresholds: what a rank did wrong would show."""
    torch.manual_seed(0)
    model = DenseNet121(
        FINDINGS, growth_rate=4, block_config=(1, 1, 1, 1), init_features=8, threshold={"rule": "fixed", "fixed": 0.5}
    )
    kept = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(kept | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "random.ckpt")


def test_figures_at_two_and_three_ranks_are_those_of_one(train, tmp_path, checkpoint):
    assert 2 * BATCH < IMAGES <= 3 * BATCH  # three batches: each of three ranks has one, and one of two ranks has two
    found, tables = {}, {}
    for ranks in (1, 2, 3):
        folder = tmp_path / f"of-{ranks}"
        trainer = ["trainer=cpu_seq"] if ranks == 1 else ["trainer=mpi_cpu", f"ranks={ranks}"]
        train(*OPTIONS, *trainer, f"run_dir={folder}", check=0)
        result = results_of(folder)
        assert result["world_size"] == ranks
        assert result["artifacts"]["robustness"] == "robustness.csv"
        assert result["counts"]["test/robustness/images"] == IMAGES
        found[ranks] = [
            {name: value for name, value in result[section].items() if name.startswith("test/robustness/")}
            for section in ("metrics", "intervals")
        ]
        tables[ranks] = (folder / "robustness.csv").read_text()
    metrics, intervals = found[1]
    assert len(metrics) == 3 * (CONDITIONS + CONDITIONS // 2)  # each condition's figures, and falls of half of them
    assert len(intervals) == len(metrics)
    assert len({value for name, value in metrics.items() if name.endswith("/auroc/macro")}) == 4  # 3 are of one kind
    assert found[2] == found[3] == found[1]
    assert tables[2] == tables[3] == tables[1]
    rows = list(csv.DictReader(tables[1].splitlines()))
    assert len(rows) == CONDITIONS * 3
