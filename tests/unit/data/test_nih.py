"""The tables of ChestX-ray14, with their traps, on a small copy of its layout."""

import gzip

import numpy as np
import pytest
from PIL import Image

from mmpds.data.images import BadImage
from mmpds.data.nih import Nih

ENTRIES = """\
Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]
00000001_000.png,Pneumonia|Infiltration,0,1,57,M,PA,2682,2749,0.143,0.143
00000001_001.png,No Finding,1,1,058Y,M,AP,2894,2729,0.143,0.143
00000002_000.png,Infiltration,0,2,018M,F,PA,2500,2048,0.168,0.168
00000003_000.png,Pleural_Thickening,0,3,413,F,PA,2500,2048,0.168,0.168
00000004_000.png,Hernia,0,4,81,F,PA,2500,2048,0.168,0.168
../secret.png,Hernia,0,5,81,F,PA,2500,2048,0.168,0.168
"""
BOXES = """\
Image Index,Finding Label,Bbox [x,y,w,h],,,
00000001_000.png,Infiltrate,512.0,256.0,102.4,51.2
00000001_000.png,Pneumonia,0.0,0.0,1024.0,1024.0
00000004_000.png,Hernia,10,10,10,10
"""


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10), 99, np.uint8)).save(root / path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "nih"
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png"]
    put(root, *(f"images_256/{name}" for name in names))
    put(tmp_path, "secret.png")
    (root / "Data_Entry_2017_v2020.csv").write_text(ENTRIES)
    (root / "BBox_List_2017.csv").write_text(BOXES)
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000003_000.png\n")
    (root / "test_list.txt").write_text("00000002_000.png\n00000004_000.png\n")
    return root


def test_rows_are_the_images_on_disk(root):
    source = Nih(root, findings=("Infiltration", "Pneumonia"))
    table = source.table.set_index("id")
    assert source.findings == ("Infiltration", "Pneumonia")
    assert source.missing == 2  # one has no file, the other no file below the root
    assert table["group"].tolist() == ["1", "1", "2", "3"]
    assert table["sex"].tolist() == ["M", "M", "F", "F"]
    assert table["view"].tolist() == ["PA", "AP", "PA", "PA"]
    np.testing.assert_array_equal(table["age"], [57, 58, 1.5, np.nan])
    assert table["normal"].tolist() == [False, True, False, False]
    assert table["Infiltration"].tolist() == [1, 0, 1, 0]
    assert table["Pneumonia"].tolist() == [1, 0, 0, 0]
    assert table["split"].tolist() == ["train", "train", "test", "train"]
    assert source.table.index.tolist() == [0, 1, 2, 3]
    assert source.image(3, 8).shape == (8, 8)


def test_boxes_are_fractions_of_the_image(root):
    boxes = Nih(root).boxes
    assert boxes["id"].tolist() == ["00000001_000.png"] * 2
    assert boxes["finding"].tolist() == ["Infiltration", "Pneumonia"]
    np.testing.assert_allclose(boxes[["x", "y", "w", "h"]], [[0.5, 0.25, 0.1, 0.05], [0, 0, 1, 1]])


def test_gzipped_tables_read_the_same_and_lists_may_be_missing(root):
    plain = Nih(root)
    for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        (root / f"{name}.gz").write_bytes(gzip.compress((root / name).read_bytes()))
        (root / name).unlink()
    packed = Nih(root)
    assert packed.table.equals(plain.table)
    assert packed.boxes.equals(plain.boxes)
    for name in ("train_val_list.txt", "test_list.txt", "BBox_List_2017.csv.gz"):
        (root / name).unlink()
    bare = Nih(root)
    assert "split" not in bare.table
    assert bare.boxes.columns.tolist() == plain.boxes.columns.tolist()
    assert bare.boxes.empty


def test_the_full_releases_folders_are_searched(root):
    for part, name in (("images_001", "00000001_000.png"), ("images_002", "00000004_000.png")):
        (root / part / "images").mkdir(parents=True)
        (root / "images_256" / "00000003_000.png").rename(root / part / "images" / name)
        put(root, "images_256/00000003_000.png")
    (root / "images_256" / "00000001_000.png").unlink()
    source = Nih(root, images=".")
    assert source.missing == 1
    assert source.table["path"].tolist() == [
        "images_001/images/00000001_000.png", "images_256/00000001_001.png", "images_256/00000002_000.png",
        "images_256/00000003_000.png", "images_002/images/00000004_000.png",
    ]  # fmt: skip


def test_the_same_image_in_two_sizes_is_refused(root):
    put(root, "images_1024/00000001_000.png")
    with pytest.raises(
        ValueError,
        match=r"images: both images_256/.* and images_1024/.* are there; name one of these folders",
    ):
        Nih(root, images=".")


def test_a_folder_outside_the_root_gives_no_image(root, tmp_path):
    put(tmp_path, "elsewhere/00000001_000.png")
    with pytest.raises(BadImage, match="path leaves the data root"):
        Nih(root, images="../elsewhere").image(0, 8)


def test_unknown_findings_are_refused_with_the_nearest_names(root):
    with pytest.raises(ValueError, match="'Infiltrate' is not labelled in NIH; did you mean Infiltration"):
        Nih(root, findings=("Infiltrate",))
    with pytest.raises(ValueError, match=r"'Zzz' is not labelled.*Atelectasis or .*Pneumothorax"):
        Nih(root, findings=("Zzz",))


def test_what_is_not_such_a_folder_is_refused_with_the_cure(root, tmp_path):
    with pytest.raises(ValueError, match=r"found no Data_Entry_2017\*.csv\[.gz\]; give the folder"):
        Nih(tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder .*images_512"):
        Nih(root, images="images_512")
    put(root, "other/x.png")
    with pytest.raises(ValueError, match=r"no file in .*other is named in the table of labels; set images"):
        Nih(root, images="other")
    (root / "Data_Entry_2017_v2020.csv").write_text("Image Index,Patient ID\na.png,1\n")
    with pytest.raises(ValueError, match=r"'Finding Labels'.* are missing"):
        Nih(root)
