"""Answers of a file, judged: CSV, JSON, a run's own, and what may be wrong with them."""

import json

import pandas as pd
import pytest

from mmpds.data.vqa_rad import COLUMNS, RELEASE
from mmpds.stored_answers import read_answers


@pytest.fixture
def root(tmp_path):
    rows = [
        dict.fromkeys(COLUMNS, "") | {
            "qid": number, "image_name": f"{number % 2}.jpg", "question": "Is it?", "answer": answer,
            "answer_type": "CLOSED", "question_type": "PRES", "image_organ": "HEAD",
            "phrase_type": "freeform" if number < 3 else "test_freeform",
        }
        for number, answer in enumerate(["Yes", "No", "No", "Yes", "No"])
    ]  # fmt: skip
    (tmp_path / RELEASE).write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize("name", ["a.csv", "a.json", "b.json"])
def test_answers_are_read_beside_their_references(root, name):
    given = {"3": "yes.", "9": "no"}
    rows = [{"id": key, "answer": value} for key, value in given.items()]
    if name == "a.csv":
        pd.DataFrame(rows).to_csv(root / name, index=False)
    else:
        (root / name).write_text(json.dumps(given if name == "b.json" else rows))
    table, notes = read_answers(root / name, root)
    assert table["prediction"].tolist() == ["yes.", ""]
    assert table["majority"].tolist() == ["no", "no"]
    assert [note.split()[0] for note in notes] == ["1", "1"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("id,answer\n3,a\n3,b\n", "ids occur twice"),
        ("id,answer\nx,a\n", "such as 3"),
        ("id,text\n3,a\n", "no answer"),
        ("", r"data\.answers=.*give a CSV"),
    ],
)
def test_what_is_wrong_is_told(root, content, told):
    (root / "w.csv").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_answers(root / "w.csv", root)


def test_a_file_of_other_columns_is_no_runs_own(root):
    (root / "w.csv").write_text("id,answer\n3,a\n")
    with pytest.raises(ValueError, match=r"texts\.csv.*data\.root"):
        read_answers(root / "w.csv")
