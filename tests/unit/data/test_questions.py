"""Images with their questions: official and own splits, balance, ranks, folders."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.data.questions import QuestionData, balanced
from mmpds.data.vqa_rad import COLUMNS, IMAGES, RELEASE, VqaRad


def phantom(**settings):
    data = QuestionData(partial(Phantom, images=200), **{"size": 32, "batch_size": 8, "cache_dir": None} | settings)
    data.setup("fit")
    return data


@pytest.fixture
def release(tmp_path):
    """VQA-RAD in small: each image has two questions of training and one of the test."""
    (tmp_path / IMAGES).mkdir()
    rows = []
    for number in range(24):
        name = f"synpic{number}.jpg"
        Image.fromarray(np.full((20, 30), number * 9, np.uint8)).save(tmp_path / IMAGES / name)
        for place, phrase in enumerate(["freeform", "para", "test_freeform"]):
            rows.append(dict.fromkeys(COLUMNS, "") | {
                "qid": len(rows), "image_name": name, "image_organ": "CHEST", "question": f"Question {place}?",
                "answer": "yes ", "answer_type": "CLOSED ", "phrase_type": phrase,
            })  # fmt: skip
    (tmp_path / RELEASE).write_text(json.dumps(rows))
    return tmp_path


def test_a_batch_holds_images_with_their_questions():
    data = phantom()
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (8, 1, 32, 32)
    table = data.images["val"].questions
    parts = (batch[name] for name in ("index", "question", "answer", "asked"))
    for index, question, answer, asked in zip(*parts, strict=True):
        assert question == table.loc[asked, "question"].tolist()
        assert answer == table.loc[asked, "answer"].tolist()
        assert set(table.loc[asked, "row"]) == {int(index)}


def test_every_question_is_asked_exactly_once_in_a_test():
    data = phantom()
    data.setup("test")
    asked = [row for batch in data.test_dataloader() for rows in batch["asked"] for row in rows]
    assert sorted(asked) == list(range(len(data.images["test"].questions)))


def test_questions_of_a_patient_stay_in_one_split():
    data = phantom()
    patients = [set(data.images[name].table["group"]) for name in ("train", "val", "test")]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]


def test_a_balanced_test_asks_each_wording_with_each_answer_equally_often():
    data = phantom(balance=True)
    table = data.images["test"].questions.query("answer_type == 'CLOSED'")
    counts = table.groupby(["question", "answer"]).size().unstack()
    assert len(counts) > 2
    assert (counts["Yes"] == counts["No"]).all()
    again = phantom(balance=True, seed=5).images["test"].questions
    assert again.equals(data.images["test"].questions)


def test_balanced_training_draws_anew_among_the_more_frequent_answers():
    data = phantom(balance=True)
    loader, seen = data.train_dataloader(), []
    for epoch in range(6):
        loader.batch_sampler.set_epoch(epoch)
        seen.append({row for batch in loader for rows in batch["asked"] for row in rows})
    table = data.images["train"].questions
    share = [(table.loc[sorted(rows)].query("question_type == 'PRES'")["answer"] == "Yes").mean() for rows in seen]
    assert 0.4 < np.mean(share) < 0.6
    negatives = table.index[(table["answer"] == "No") & (table["question_type"] == "PRES")]
    assert len(set.union(*seen) & set(negatives)) > 2 * len(seen[0] & set(negatives))


def test_a_wording_with_one_answer_is_not_asked_when_balanced():
    questions = Phantom(images=40).questions
    questions.loc[questions["question"].str.contains("nodule"), "answer"] = "No"
    share = balanced(questions)
    assert (share[questions["question"] == "Is there evidence of nodule?"] == 0).all()
    assert (share[questions["answer_type"] == "OPEN"] == 1).all()


def test_the_official_split_is_one_of_questions_and_says_what_it_leaks(release):
    data = QuestionData(VqaRad, str(release), size=32, batch_size=2, cache_dir=None, split="official")
    data.setup("fit")
    asked = {name: set(data.images[name].questions["qid"]) for name in ("train", "val", "test")}
    assert asked["test"] == {qid for qid in range(72) if qid % 3 == 2}
    assert asked["train"] | asked["val"] == {qid for qid in range(72) if qid % 3 < 2}
    assert not set(data.images["train"].table["id"]) & set(data.images["val"].table["id"])
    trained = len(data.images["train"].table)
    assert data.leaked == [
        f"{trained} of 24 test images were seen in training, with other questions: the official split leaks images; "
        "data.split=own is by image"
    ]


def test_the_split_by_image_leaks_nothing(release):
    data = QuestionData(VqaRad, str(release), size=32, batch_size=2, cache_dir=None, fractions=(0.5, 0.25, 0.25))
    data.setup("fit")
    names = [set(data.images[name].table["id"]) for name in ("train", "val", "test")]
    assert sum(map(len, names)) == len(set.union(*names)) == 24
    assert data.leaked == []
    assert sum(len(data.images[name].questions) for name in ("train", "val", "test")) == 72


def test_a_source_without_an_official_split_or_questions_is_told(release):
    with pytest.raises(ValueError, match=r"data\.split=own"):
        phantom(split="official")

    class Mute:
        table, findings = Phantom(images=2).table, ("Nodule",)

    with pytest.raises(ValueError, match="data=vqa_rad"):
        QuestionData(Mute)


def test_the_same_questions_are_asked_of_every_image_of_a_folder(release):
    settings = {"size": 32, "batch_size": 5, "cache_dir": None}
    data = QuestionData(VqaRad, predict_root=str(release / IMAGES), ask=["Is it normal?", "Why?"], **settings)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert sum(len(questions) for batch in batches for questions in batch["question"]) == 48
    assert batches[0]["question"][0] == ["Is it normal?", "Why?"]
    with pytest.raises(ValueError, match=r"data\.ask"):
        QuestionData(VqaRad, predict_root=str(release / IMAGES))


def test_a_loader_process_sends_questions_too():
    data = phantom(workers=1)
    batch = next(iter(data.val_dataloader()))
    assert batch["asked"] == next(iter(phantom().val_dataloader()))["asked"]


def test_images_without_questions_are_as_before():
    data = ImageData(partial(Phantom, images=60), size=32, batch_size=8, cache_dir=None)
    data.setup("fit")
    assert "question" not in next(iter(data.val_dataloader()))
