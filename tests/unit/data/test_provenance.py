"""A generated image says so in its own file, to people and to machines; damage is noticed."""

import io
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpds.data.provenance import SOURCE_TYPE, SYNTHETIC, Item, made, read_png, to_png

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
MARKS = {"prompt": "Pneumonia?", "seed": str(2**63 - 1), "model": "abc"}
TABLE = pd.DataFrame({"id": ["a", "b", "c", "d", "e"], "prompt": ["P", "=Q", "R", "S", "T"], "seed": range(5)})


def marks(row, **changed):
    return {"prompt": TABLE["prompt"][row], "seed": str(TABLE["seed"][row]), "model": "abc"} | changed


@pytest.mark.parametrize("pixels", [PIXELS, np.stack([PIXELS, PIXELS + 1, PIXELS + 2], -1)])
@pytest.mark.parametrize("prompt", ["What abnormality?", "Größe 漢字\nof the “heart”\r\n", "ÿ", "=1+1", " "])
def test_what_is_written_is_read(tmp_path, pixels, prompt):
    (tmp_path / "a.png").write_bytes(to_png(pixels, MARKS | {"prompt": prompt}))
    png = read_png(tmp_path / "a.png")
    np.testing.assert_array_equal(png.pixels, pixels)
    texts = png.texts
    assert {key: texts[key] for key in MARKS} == MARKS | {"prompt": prompt}
    assert texts["Synthetic"] == SYNTHETIC
    assert texts["software"].startswith("mmpds ")


def test_machines_read_iptcs_source_type():
    with Image.open(io.BytesIO(to_png(PIXELS, MARKS))) as image:
        packet = image.info["xmp"]
    (found,) = ET.fromstring(packet).iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert found.text == SOURCE_TYPE


def test_equal_pixels_and_marks_are_equal_bytes():
    assert to_png(PIXELS, MARKS) == to_png(PIXELS.copy(), dict(MARKS))
    assert to_png(PIXELS, MARKS) != to_png(PIXELS, MARKS | {"seed": "0"})


def test_any_missing_end_and_any_changed_byte_is_noticed(tmp_path):
    content, path = to_png(PIXELS, MARKS), tmp_path / "a.png"
    for length in [*range(0, len(content), 7), *range(len(content) - 20, len(content))]:
        path.write_bytes(content[:length])
        assert read_png(path) is None, length
    for place in range(0, len(content), 2):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        assert read_png(path) is None, place


def test_whole_images_of_these_prompts_count_as_made(tmp_path):
    for row in (0, 1, 3):
        (tmp_path / f"{TABLE['id'][row]}.png").write_bytes(to_png(PIXELS + row, marks(row)))
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-20])
    (tmp_path / "e.png").write_bytes(to_png(np.full((4, 6, 3), 9, np.uint8), marks(4, retried="float32")))
    (tmp_path / ".c.png.part").write_bytes(b"half")
    (tmp_path / "other.png").write_bytes(to_png(PIXELS, {"prompt": "of no row"}))
    assert made(tmp_path, TABLE, "abc") == [
        Item(0, made=True, height=8, width=8),
        Item(3, made=True, height=8, width=8),
        Item(4, made=True, height=4, width=6, constant=True, retried=True),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "d.png", "e.png", "other.png"]


def test_no_folder_holds_nothing(tmp_path):
    assert made(tmp_path / "images", TABLE, "abc") == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"prompt": "Nodule"}, r"a\.png \(prompt 'Nodule', now 'P'\)"),
        ({"seed": "7"}, r"a\.png \(seed '7', now '0'\)"),
        ({"model": "old"}, r"a\.png \(model 'old', now 'abc'\)"),
    ],
)  # fmt: skip
def test_another_runs_image_is_refused(tmp_path, changed, named):
    (tmp_path / "a.png").write_bytes(to_png(PIXELS, marks(0, **changed)))
    with pytest.raises(ValueError, match=named) as raised:
        made(tmp_path, TABLE, "abc")
    assert "give another run_dir, or delete the folder" in str(raised.value)


def test_a_picture_without_marks_is_refused_and_many_are_counted(tmp_path):
    for name in TABLE["id"]:
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"a\.png \(prompt unknown.*b\.png.*c\.png.* and 2 more") as raised:
        made(tmp_path, TABLE, "abc")
    assert "d.png" not in str(raised.value)
