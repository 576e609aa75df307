"""VQA-RAD on a small release with the traps of the real one."""

import json

import numpy as np
import pytest
from PIL import Image

from mmpds.data.module import ImageData
from mmpds.data.vqa_rad import COLUMNS, IMAGES, RELEASE, VqaRad, read_questions


def row(qid, image, organ, question, answer, kind="OPEN", phrase="freeform"):
    return dict.fromkeys(COLUMNS, "") | {
        "qid": qid, "image_name": image, "image_organ": organ, "question": question, "answer": answer,
        "answer_type": kind, "phrase_type": phrase,
    }  # fmt: skip


@pytest.fixture
def release(tmp_path):
    (tmp_path / IMAGES).mkdir()
    organs = ["HEAD", "CHEST", "ABD"] * 8
    rows = []
    for number, organ in enumerate(organs):
        Image.fromarray(np.full((20, 30), number * 9, np.uint8)).save(tmp_path / IMAGES / f"synpic{number}.jpg")
        rows.append(row(str(2 * number), f"synpic{number}.jpg", organ, "Is it \tlarge? ", "Yes ", "CLOSED "))
        rows.append(row(2 * number + 1, f"synpic{number}.jpg", organ, "How many?", number, phrase="test_freeform"))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / IMAGES / "synpic99.jpg")
    (tmp_path / RELEASE).write_text(json.dumps(rows))
    return tmp_path


def test_cells_are_cleaned(release):
    first, second = read_questions(release)[:2]
    assert (first["question"], first["answer"], first["answer_type"]) == ("Is it large?", "Yes", "CLOSED")
    assert (second["answer"], second["qid"], second["split"]) == ("0", 1, "test")


def test_a_row_is_an_image_with_its_organ(release):
    table = VqaRad(release).table.set_index("id")
    assert len(table) == 25
    assert table.loc["synpic1.jpg", ["Head", "Chest", "Abdomen"]].tolist() == [0, 1, 0]
    assert table.loc["synpic99.jpg", ["Head", "Chest", "Abdomen"]].isna().all()  # nobody asked about it
    assert table.loc["synpic1.jpg", "caption"] == "Is it large? Yes How many? 1"
    assert "organ" not in table.loc["synpic1.jpg", "caption"]
    assert "split" not in table  # the official split is one of questions


def test_training_draws_one_of_an_image_s_pairs_and_evaluation_reads_all(release):
    data = ImageData(VqaRad, str(release), size=32, batch_size=2, cache_dir=None, fractions=(0.5, 0.25, 0.25))
    data.setup("fit")
    seen = set()
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        seen |= {caption for batch in loader for caption in batch["caption"]}
    several = {pair for pairs in data.images["train"].table["captions"] for pair in pairs}
    assert "Is it large? Yes" in seen
    assert len(seen) > 5
    assert seen <= several | {""}
    assert all("How many" in text or not text for batch in data.val_dataloader() for text in batch["caption"])


def test_the_official_split_is_refused_for_images(release):
    data = ImageData(VqaRad, str(release), size=32, batch_size=2, cache_dir=None, split="official")
    with pytest.raises(ValueError, match=r"data\.split=own"):
        data.setup("fit")


def test_what_is_missing_is_named(release):
    (release / IMAGES / "synpic3.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images are not in .*synpic3\.jpg"):
        VqaRad(release)
    with pytest.raises(ValueError, match=r"data\.root=.*no such file"):
        read_questions(release / "nowhere")


def test_an_unknown_organ_is_told():
    with pytest.raises(ValueError, match="Head, Chest, Abdomen"):
        VqaRad("nowhere", findings=["Foot"])
