"""The recipes for public data sets, end to end on the data itself, at a size that takes seconds."""

from contextlib import chdir

import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mmpds.results import read
from tests.conftest import TINY
from tests.distributed.test_stages import run

SMALL = (
    *(argument for argument in TINY if not argument.startswith(("data.source", "data.batch_size"))),
    "data.size=64", "trainer.max_epochs=1", "trainer.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


def splits(place, name):
    """The tables of a finished run's splits, made anew from the configuration that it saved."""
    cfg = OmegaConf.load(place / name / "config.yaml")
    with chdir(place):
        data = instantiate(cfg.data, _convert_="all")
        data.setup("fit")
    return {split: images.table for split, images in data.images.items()}


def check(place, name, findings):
    """What holds of every finished run; returns its splits and its predictions."""
    result, tables = read(place / name), splits(place, name)
    every = pd.read_csv(place / name / "predictions.csv", dtype={"group": str})
    validated = every[every["split"] == "val"]
    assert validated["id"].tolist() in (tables["val"]["id"].tolist(), []), "of whole validations"
    rows = every[every["split"] == "test"]
    assert result["status"] == "finished"
    assert tables.keys() == {"train", "val", "test"}
    groups = [group for table in tables.values() for group in table["group"].unique()]
    assert len(groups) == len(set(groups)), "a patient is in two splits"
    assert rows["id"].tolist() == tables["test"]["id"].tolist()
    assert rows["group"].tolist() == tables["test"]["group"].tolist()
    assert result["counts"]["test/items"] == len(rows)
    assert result["counts"]["test/groups"] == rows["group"].nunique()
    for finding in findings:
        assert rows[f"{finding} probability"].between(0, 1).all()
        assert rows[f"{finding} label"].tolist() == tables["test"][finding].tolist()
        assert result["counts"][f"test/positives/{finding}"] == rows[f"{finding} label"].sum()
        assert f"test/auroc/{finding}" in result["metrics"]
    return tables, rows


NIH = ("Pneumonia", "Infiltration")


@pytest.mark.parametrize("split", ["own", "official"])
def test_nih_pneumonia_and_infiltration(place, real_data, split):
    root = (f"data.root={real_data / 'nih_chest_xray14'}", "data.source.images=images_256")
    run(place, *SMALL, "experiment=nih_pneumonia_infiltration", *root, f"data.split={split}", f"run_dir={split}")
    tables, rows = check(place, split, NIH)
    assert set(pd.read_csv(place / split / "predictions.csv")["split"]) == {"val", "test"}
    every = pd.concat(tables.values())
    assert len(every) == every["id"].nunique() == 621
    assert (every["id"].str[:8].astype(int) == every["group"].astype(int)).all(), "the file's name says the patient"
    assert [every[finding].sum() for finding in NIH] == [32, 123]
    assert {name: table["Pneumonia"].sum() >= 1 for name, table in tables.items()} == dict.fromkeys(tables, True)
    official = set((real_data / "nih_chest_xray14" / "test_list.txt").read_text().split())
    if split == "official":
        assert set(rows["id"]) == official & set(every["id"])
    else:
        assert len(rows) == pytest.approx(0.15 * 621, abs=3)


def test_kermanys_pneumonia(place, real_data):
    limits = ("+trainer.limit_train_batches=4", "+trainer.limit_val_batches=8")
    run(place, *SMALL, "experiment=chest_xray", f"data.root={real_data / 'chest_xray'}", *limits, "run_dir=kermany")
    tables, rows = check(place, "kermany", ["Pneumonia"])
    assert sum(map(len, tables.values())) == 5216
    assert len(rows) == pytest.approx(0.15 * 5216, abs=5)
    named = rows["id"].str.contains("/PNEUMONIA/")
    assert (rows["Pneumonia label"] == named).all()
    assert rows.loc[named, "group"].str.fullmatch(r"person\d+").all()


def test_vqa_rad_s_questions(place, real_data):
    small = ("model.width=24", "model.vision.num_hidden_layers=1", "model.text.num_hidden_layers=1", "model.longest=4")
    once = ("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "+trainer.limit_train_batches=2")
    root = f"data.root={real_data / 'vqa_rad'}"
    run(place, "experiment=blip_vqa_rad", root, *small, *once, "bootstrap=20", "report=false", "run_dir=vqa_rad")
    result, texts = read(place / "vqa_rad"), pd.read_csv(place / "vqa_rad" / "texts.csv", keep_default_na=False)
    assert (len(texts), texts["answer_type"].eq("CLOSED").sum()) == (451, 272)
    assert result["counts"]["test/questions/closed"] == 272
    assert {"test/accuracy/closed", "test/accuracy/open", "test/omission/all"} <= result["metrics"].keys()
    assert any("test images were seen in training" in text for text in result["warnings"])
