"""Prompts: where they come from, what names and seeds them, how they are batched, and what is refused."""

import json
import re

import lightning.pytorch as pl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.data.batch import item_seed
from mmpds.data.phantom import Phantom
from mmpds.data.prompt_sets import SETS, STUDY
from mmpds.data.prompts import PromptBatches, PromptData
from mmpds.data.vqa_rad import COLUMNS, RELEASE

SAFE = re.compile(r"[A-Za-z0-9_-]+")


@pytest.fixture
def vqa_rad(tmp_path):
    rows = [
        dict.fromkeys(COLUMNS, "") | {"qid": 7, "question": "How many lesions? ", "answer": 3},
        dict.fromkeys(COLUMNS, "") | {"qid": "12", "question": "Which organs?", "answer": " Heart \tlungs"},
    ]
    (tmp_path / RELEASE).write_text(json.dumps(rows))
    return str(tmp_path)


@pytest.fixture
def lines(tmp_path):
    def write(content):
        path = tmp_path / "prompts.txt"
        path.write_bytes(content)
        return str(path)

    return write


def rows_of(data):
    return [batch["index"].tolist() for batch in data.predict_dataloader()]


def test_the_study_has_six_prompts_and_its_own_comes_first():
    table = PromptData("study").table
    assert table["id"].tolist() == [f"study-{place}" for place in range(6)]
    assert table["prompt"].tolist() == list(STUDY)
    assert STUDY[0] == "What abnormality is visible in the chest X-ray? Pneumonia"


def test_phantom_captions_carry_the_ids_of_their_images():
    table, phantom = PromptData("phantom", count=5).table, Phantom(images=5).table
    assert table["id"].tolist() == phantom["id"].tolist()
    assert table["prompt"].tolist() == phantom["caption"].tolist()


def test_vqa_rad_makes_a_prompt_of_question_and_answer(vqa_rad):
    table = PromptData("vqa_rad", root=vqa_rad).table
    assert table["id"].tolist() == ["vqa_rad-7", "vqa_rad-12"]
    assert table["prompt"].tolist() == ["How many lesions? 3", "Which organs? Heart lungs"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_text_file_holds_a_prompt_a_line(lines, end):
    path = lines("\ufeffzwei Rundherde, beidseits größer\r\nsame\nsame".encode() + end)
    table = PromptData(path).table
    assert table["id"].tolist() == ["line-00001", "line-00002", "line-00003"]
    assert table["prompt"].tolist() == ["zwei Rundherde, beidseits größer", "same", "same"]


def test_a_list_of_prompts():
    table = PromptData(["one", " two "]).table
    assert table["id"].tolist() == ["prompt-00000", "prompt-00001"]
    assert table["prompt"].tolist() == ["one", "two"]


def test_an_item_has_its_own_seed_whatever_else_is_made():
    table = PromptData("study", seed=3).table
    assert table["seed"].tolist() == [item_seed(3, name) for name in table["id"]]
    assert PromptData("study", seed=3, count=2, batch_size=1).table.equals(table[:2])
    assert not set(PromptData("study", seed=4).table["seed"]) & set(table["seed"])


@pytest.mark.parametrize("prompts", [*SETS, "a list"])
def test_ids_are_unique_and_fit_for_file_names(prompts, vqa_rad):
    given_prompts = ["same", "same"] if prompts == "a list" else prompts
    root = vqa_rad if prompts == "vqa_rad" else None
    for images in (1, 3):
        table = PromptData(given_prompts, root=root, count=2, images_per_prompt=images).table
        assert len(table) == 2 * images
        assert table["id"].is_unique
        assert table["seed"].is_unique
        assert all(SAFE.fullmatch(name) for name in table["id"])


def test_images_of_a_prompt_stand_together():
    table = PromptData(["one", "two"], images_per_prompt=2).table
    assert table["id"].tolist() == ["prompt-00000-0", "prompt-00000-1", "prompt-00001-0", "prompt-00001-1"]
    assert table["prompt"].tolist() == ["one", "one", "two", "two"]


def test_a_batch_holds_the_table_s_rows():
    data = PromptData("study", batch_size=4)
    first, second = data.predict_dataloader()
    assert first["prompt"] == list(STUDY[:4])
    assert second["prompt"] == list(STUDY[4:])
    assert second["index"].tolist() == [4, 5]
    assert second["seed"].tolist() == data.table["seed"][4:].tolist()
    assert (str(first["seed"].dtype), str(first["index"].dtype)) == ("torch.int64", "torch.int64")


def test_only_missing_rows_are_made():
    data = PromptData("study", batch_size=2)
    data.missing = np.array([0, 3, 5])
    assert rows_of(data) == [[0, 3], [5]]
    data.missing = np.array([], dtype=int)
    assert rows_of(data) == []


@given(rows=st.integers(0, 40), size=st.integers(1, 7), ranks=st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_no_rank_gets_as_many_batches_as_the_length_says(rows, size, ranks):
    table = PromptData(["a"]).table
    static = PromptBatches(table, np.arange(rows), size, "static", 0, ranks)
    batches = -(-rows // size)
    assert len(static.batches) == batches
    assert max(len(range(rank, batches, ranks)) for rank in range(ranks)) == len(static) - 1
    assert len(PromptBatches(table, np.arange(rows), size, "dynamic", 0, ranks)) == batches + 1


class Toy(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.seen, self.ended = [], False

    def predict_step(self, batch):
        self.seen += batch["index"].tolist()
        return 0

    def on_predict_end(self):
        self.ended = True


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize("missing", [None, [], [2]])
def test_lightning_predicts_every_item_once_and_ends(tmp_path, schedule, missing):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    data, model = PromptData("study", schedule=schedule), Toy()
    data.missing = missing
    trainer.predict(model, data, return_predictions=False)
    assert model.seen == (list(range(6)) if missing is None else missing)
    assert model.ended
    assert data.notes == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": "studdy"}, "data.prompts=studdy: no such set and no such file; did you mean study?"),
        ({"prompts": "nowhere/list.txt"}, "nowhere/list.txt: no such set and no such file; give study, phantom"),
        ({"prompts": "vqa_rad"}, "data.root: prompts=vqa_rad needs the folder that holds VQA_RAD Dataset Public.json"),
        ({"prompts": "vqa_rad", "root": "nowhere"}, "data.root=nowhere: VQA_RAD Dataset Public.json: no such file"),
        ({"prompts": []}, "data.prompts=[]: there is nothing to generate"),
        ({"prompts": ["one", 2]}, "data.prompts: 1 is 2, no text; put each prompt in quotes"),
        ({"prompts": ["one", " "]}, "data.prompts: prompt 1 (from 0) is empty"),
        ({"count": 0}, "data.count=0: give a whole number from 1 up"),
        ({"count": 7}, "data.count=7: there are 6 prompts; give at most 6"),
        ({"count": "two"}, "data.count=two: give a whole number"),
        ({"images_per_prompt": 0}, "data.images_per_prompt=0: give a whole number from 1 up"),
        ({"batch_size": 0}, "data.batch_size=0: give a whole number from 1 up"),
        ({"schedule": "guided"}, "data.schedule=guided: unknown; take static or dynamic"),
    ],
)
def test_what_cannot_work_is_refused_with_its_cure(arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        PromptData(**arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"one\n\nthree\n \n", "line 2, 4 is empty"),
        ("one\ngröße".encode("latin-1"), "line 2 is not UTF-8"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_refused(lines, content, said):
    with pytest.raises(ValueError, match=said):
        PromptData(lines(content))


def test_a_folder_is_no_text_file(tmp_path):
    with pytest.raises(ValueError, match="is a directory; give a text file"):
        PromptData(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '[{"qid": 1}]', '[{"qid": "../1", "question": "", "answer": ""}]',
        '[{"qid": 1, "question": "a", "answer": "b"}, {"qid": 1, "question": "a", "answer": "c"}]',
    ],
)  # fmt: skip
def test_a_vqa_rad_file_that_is_not_the_release_is_refused(tmp_path, content):
    (tmp_path / RELEASE).write_text(content)
    with pytest.raises(ValueError, match="get it anew"):
        PromptData("vqa_rad", root=str(tmp_path))


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"batch_size=0.*schedule=x.*images_per_prompt=-1.*prompts=studdy"):
        PromptData("studdy", images_per_prompt=-1, batch_size=0, schedule="x")
