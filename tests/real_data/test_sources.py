"""The facts and traps of the public data sets, on the data itself."""

import numpy as np
import pandas as pd
import pytest

from mmpds.data.cache import open_source
from mmpds.data.chest_xray import ChestXray
from mmpds.data.folder import Folder
from mmpds.data.images import read_grey
from mmpds.data.nih import Nih
from mmpds.data.splits import SPLITS, leaks, split_by_group


@pytest.fixture(scope="module")
def kermany(real_data):
    return ChestXray(real_data / "chest_xray")


@pytest.fixture(scope="module")
def nih(real_data):
    return Nih(real_data / "nih_chest_xray14", images="images_256")


def test_kermanys_classes_and_patients(kermany):
    table = kermany.table
    assert kermany.findings == ("Pneumonia",)
    assert len(table) == 5216
    assert table["normal"].sum() == 1341
    assert table["Pneumonia"].sum() == 3875
    assert (table["split"] == "train").all()
    assert table["id"].is_unique
    ill = table[~table["normal"]]
    assert ill["group"].str.fullmatch(r"person\d+").all()
    assert ill["group"].nunique() == 1635
    well = table[table["normal"]]
    assert well["group"].str.fullmatch(r"(NORMAL2-)?IM-\d+").all()
    assert well["group"].nunique() == 1211


def test_kermanys_identical_files_stay_in_one_split(kermany):
    table = kermany.table
    digests = [kermany.digest(row) for row in range(len(table))]
    copies = pd.Series(digests).value_counts()
    assert (copies > 1).sum() == 24
    assert copies[copies > 1].sum() == 50
    split = split_by_group(table, kermany.findings, digests=digests)
    assert leaks(split, table["group"], digests) == []
    for name, fraction in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        part = table[split == name]
        assert len(part) == pytest.approx(fraction * 5216, abs=5)
        assert part["Pneumonia"].mean() == pytest.approx(3875 / 5216, abs=0.005)
    by_file = pd.Series(np.random.default_rng(0).choice(SPLITS, len(table)))
    assert any("patient person" in leak for leak in leaks(by_file, table["group"]))


def test_nih_rows_on_disk(nih):
    table = nih.table
    assert len(table) == 621
    assert nih.missing == 112_120 - 621
    assert table["group"].is_unique
    assert table["normal"].sum() == 100
    assert table["Pneumonia"].sum() == 32
    assert table["Infiltration"].sum() == 123
    assert ((table["Pneumonia"] == 1) & (table["Infiltration"] == 1)).sum() == 7
    assert not table.loc[table["normal"], ["Pneumonia", "Infiltration"]].any(axis=None)
    assert set(table["sex"]) == {"M", "F"}
    assert set(table["view"]) == {"PA", "AP"}
    assert table["age"].between(1, 95).all()


def test_nih_official_split_is_patient_clean(nih):
    table = nih.table
    assert set(table["split"]) == {"train", "test"}
    assert leaks(table["split"], table["group"], [nih.digest(row) for row in range(len(table))]) == []
    split = split_by_group(table, nih.findings)
    assert min(table[split == name]["Pneumonia"].sum() for name in SPLITS) >= 4


def test_nih_boxes_lie_in_the_images_whose_findings_they_show(nih, real_data):
    boxes = nih.boxes
    assert len(boxes) == 12
    assert boxes["id"].isin(nih.table["id"]).all()
    assert boxes[["x", "y", "w", "h"]].to_numpy().min() > 0
    assert (boxes["x"] + boxes["w"]).max() <= 1
    assert (boxes["y"] + boxes["h"]).max() <= 1
    every = Nih(real_data / "nih_chest_xray14", findings=sorted(set(boxes["finding"])), images="images_256")
    for box in boxes.itertuples():
        assert every.table.set_index("id").loc[box.id, box.finding] == 1


def test_nih_originals_are_the_same_images_with_or_without_alpha(nih, real_data):
    large = Nih(real_data / "nih_chest_xray14", images="images_1024")
    assert len(large.table) == 13
    for row, name in enumerate(large.table["id"]):
        assert read_grey(large.path(row)).shape == (1024, 1024)
        small = nih.image(int(nih.table.index[nih.table["id"] == name][0]), 256)
        assert np.abs(large.image(row, 256).astype(int) - small).mean() < 2
    with pytest.raises(ValueError, match="name one of these folders"):
        Nih(real_data / "nih_chest_xray14", images=".")


def test_every_nih_image_can_be_read_and_is_read_once(nih, tmp_path):
    opened = open_source(nih, 64, tmp_path)
    assert opened.rejected.empty
    assert len(set(opened.digests)) == 621
    np.testing.assert_array_equal(opened.source.image(7, 64), nih.image(7, 64))


def test_every_vqa_rad_image_can_be_read(real_data, tmp_path):
    opened = open_source(Folder(real_data / "vqa_rad"), 32, None)
    assert opened.rejected.empty
    assert len(opened.digests) == 315
