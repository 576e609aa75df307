"""The public release of VQA-RAD as questions: the official split and its leak, and the split by image."""

import json

from mmpds.data.questions import QuestionData
from mmpds.data.vqa_rad import VqaRad, read_questions
from mmpds.stored_answers import read_answers


def test_the_official_split_leaks_and_the_own_one_does_not(real_data):
    settings = {"size": 32, "batch_size": 8, "cache_dir": None, "fractions": (0.8, 0.1, 0.1)}
    official = QuestionData(VqaRad, str(real_data / "vqa_rad"), split="official", **settings)
    official.setup("fit")
    parts = {name: official.images[name].questions for name in ("train", "val", "test")}
    assert len(parts["test"]) == 451
    assert (parts["test"]["answer_type"] == "CLOSED").sum() == 272
    assert len(parts["train"]) + len(parts["val"]) == 1797
    assert "203 test images were seen in training" in official.leaked[0]
    own = QuestionData(VqaRad, str(real_data / "vqa_rad"), split="own", **settings)
    own.setup("fit")
    assert own.leaked == []
    assert sum(len(own.images[name].questions) for name in parts) == 2248


def test_the_references_themselves_are_all_right(real_data, tmp_path):
    rows = [row for row in read_questions(real_data / "vqa_rad") if row["split"] == "test"]
    (tmp_path / "a.json").write_text(json.dumps({row["qid"]: row["answer"] for row in rows}))
    table, notes = read_answers(tmp_path / "a.json", real_data / "vqa_rad")
    assert (len(table), notes) == (451, [])
    assert table["prediction"].tolist() == table["answer"].tolist()
