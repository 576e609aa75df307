"""Class folders become labels, split folders the official split, file names patients."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from mmpds.data.chest_xray import ChestXray, patient
from mmpds.data.module import ImageData


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10), len(path), np.uint8)).save(root / path)
    return root


def test_kermanys_layout(tmp_path):
    put(
        tmp_path,
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/PNEUMONIA/person10_virus_35.jpeg",
        "train/PNEUMONIA/person9_bacteria_38.jpeg",
        "val/NORMAL/NORMAL2-IM-1018-0001-0002.jpeg",
        "test/PNEUMONIA/person9_bacteria_39.jpeg",
    )
    source = ChestXray(tmp_path)
    table = source.table
    assert source.findings == ("Pneumonia",)
    assert table["id"].tolist() == table["path"].tolist()
    assert table["id"].is_unique
    rows = table.set_index("id")
    assert rows.loc["val/NORMAL/NORMAL2-IM-1018-0001-0002.jpeg"].to_dict() == {
        "group": "NORMAL2-IM-1018", "normal": True, "path": "val/NORMAL/NORMAL2-IM-1018-0001-0002.jpeg",
        "split": "val", "Pneumonia": 0.0,
    }  # fmt: skip
    sick = rows.loc["test/PNEUMONIA/person9_bacteria_39.jpeg"]
    assert (sick["group"], sick["normal"], sick["split"], sick["Pneumonia"]) == (
        "person9",
        False,
        "test",
        1.0,
    )
    assert rows.groupby("split").size().to_dict() == {"train": 3, "val": 1, "test": 1}
    assert source.image(0, 8).shape == (8, 8)
    assert source.notes == []


def test_class_folders_without_splits(tmp_path):
    put(tmp_path, "No_Finding/a.png", "healthy/a.png", "TB/b.png", "Pleural_Thickening/c.png", "readme.png")
    source = ChestXray(tmp_path)
    assert source.findings == ("Pleural_Thickening", "Tb")
    assert "split" not in source.table
    assert source.table.set_index("id")[["normal", "Pleural_Thickening", "Tb"]].T.to_dict("list") == {
        "No_Finding/a.png": [True, 0.0, 0.0],
        "Pleural_Thickening/c.png": [False, 1.0, 0.0],
        "TB/b.png": [False, 0.0, 1.0],
        "healthy/a.png": [True, 0.0, 0.0],
    }


def test_files_that_do_not_tell_their_patients_are_warned_of(tmp_path):
    put(tmp_path, "NORMAL/IM-0115-0001.jpeg", "PNEUMONIA/a.png", "PNEUMONIA/b.png")
    data = ImageData(ChestXray, root=str(tmp_path), size=32)
    assert data.notes == ChestXray(tmp_path).notes
    assert "2 images count as a patient each" in data.notes[0]


def test_findings_can_be_chosen_and_ordered(tmp_path):
    put(tmp_path, "normal/a.png", "tb/b.png", "PNEUMONIA/c.png")
    assert ChestXray(tmp_path, findings=("Tb", "Pneumonia")).findings == ("Tb", "Pneumonia")
    assert ChestXray(tmp_path, findings=["Tb"]).table["Tb"].sum() == 1
    with pytest.raises(ValueError, match=r"findings=\['Edema'\].*only for \['Pneumonia', 'Tb'\]; name these"):
        ChestXray(tmp_path, findings=("Tb", "Edema"))


def test_a_set_of_normal_images_alone_needs_its_findings_named(tmp_path):
    put(tmp_path, "NORMAL/a.png")
    with pytest.raises(ValueError, match="one of them a finding; give the folder that holds NORMAL and PNEUMONIA"):
        ChestXray(tmp_path)
    assert ChestXray(tmp_path, findings=("Pneumonia",)).table["Pneumonia"].tolist() == [0.0]


def test_what_is_not_such_a_folder_is_refused_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*give the folder that holds the images"):
        ChestXray(tmp_path / "absent")
    with pytest.raises(ValueError, match="no images in"):
        ChestXray(tmp_path)
    put(tmp_path, "a.png", "train/b.png")
    with pytest.raises(ValueError, match="found no class folders with images"):
        ChestXray(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person1000_bacteria_2931.jpeg", "person1000"),
        ("person447_virus_921_1.jpeg", "person447"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0431-0001-0002.jpeg", "IM-0431"),
        ("NORMAL2-IM-1018-0001.jpeg", "NORMAL2-IM-1018"),
        ("scan7.png", "train/NORMAL/scan7"),
        ("personal.png", "train/NORMAL/personal"),
    ],
)
def test_patients_are_told_by_file_names(name, expected):
    assert patient(PurePosixPath("train/NORMAL") / name) == expected


@pytest.mark.parametrize("stray", ["valid/PNEUMONIA/b.png", "chest_xray/train/PNEUMONIA/b.png", "NORMAL/b.png"])
def test_images_beside_the_folders_of_splits_are_refused(tmp_path, stray):
    put(tmp_path, "train/NORMAL/a.png", "test/PNEUMONIA/a.png", stray)
    with pytest.raises(ValueError, match=rf"{stray.split('/')[0]} beside test, train"):
        ChestXray(tmp_path)
