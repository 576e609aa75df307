"""CLIP that answers questions, on a network of a few thousand weights."""

from functools import partial

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmpds.callbacks.texts import Texts
from mmpds.data.phantom import Phantom
from mmpds.data.questions import QuestionData
from mmpds.models import vocabulary
from mmpds.models.clip import Clip
from mmpds.models.clip_vqa import MOST, ClipVqa, offered
from tests.conftest import quiet_trainer
from tests.unit.models.test_clip import TEXT, TEXTS, VISION, images

ASKED = "Is there evidence of pneumonia?"


def model(**arguments):
    torch.manual_seed(0)
    built = ClipVqa(size=32, vision=VISION, text=TEXT, width=8, **arguments)
    built.tokenizer = vocabulary.learn([*TEXTS, ASKED, "On which side is it? Left Right"], 600, 40)
    return built.eval()


def data(**arguments):
    settings = {"size": 32, "batch_size": 8, "cache_dir": None, "fractions": [0.5, 0.2, 0.3]} | arguments
    return QuestionData(partial(Phantom, images=60), **settings)


def test_candidates_are_training_s_answers_to_questions_of_the_kind():
    rows = [("Left", "OPEN", "POS"), ("left", "OPEN", "POS"), ("Right", "OPEN", "POS"), ("Yes", "CLOSED", "PRES")]
    rows += [(f"number {count}", "OPEN", "COUNT") for count in range(MOST + 1)]
    trained = pd.DataFrame(rows, columns=["answer", "answer_type", "question_type"])
    kinds = [("OPEN", "POS"), ("CLOSED", "PRES"), ("CLOSED", "ABN"), ("OPEN", "COUNT")]
    found = offered(trained, pd.DataFrame(kinds, columns=["answer_type", "question_type"]))
    assert found[:3] == [["left", "right"], ["yes"], ["yes"]]
    assert len(found[3]) == MOST


@pytest.mark.parametrize(
    ("question", "candidates", "told"),
    [
        ("On which side is it?", ["left", "right"], [["On which side is it? left"], ["On which side is it? right"]]),
        (ASKED, ["no", "yes"], [["no pneumonia"], ["pneumonia"]]),
        (ASKED, ["left", "right"], [[f"{ASKED} left"], [f"{ASKED} right"]]),
        ("Are the lungs free of pneumonia?", ["yes", "no"], [["no pneumonia"], ["pneumonia"]]),
        (ASKED, ["left", "left", "right"], [[f"{ASKED} left"], [f"{ASKED} right"]]),
        ("Is this image normal?", ["yes", "no"], [["Is this image normal? yes"], ["Is this image normal? no"]]),
    ],
)
@torch.no_grad()
def test_an_answer_is_the_candidate_whose_sentences_are_nearest(question, candidates, told):
    clip, shown = model(candidates=candidates), images(5)
    candidates = clip.candidates
    clip.offer([question], [candidates])
    answers = clip.answer(shown, [[0]] * 5)
    near = clip.embed_images(shown) @ torch.stack([F.normalize(clip.embed_texts(t).mean(0), dim=0) for t in told]).T
    assert answers == [candidates[place] for place in near.argmax(dim=1)]


def test_a_checkpoint_of_clip_answers_every_question_of_a_test(tmp_path):
    torch.manual_seed(0)
    clip = Clip(["Pneumonia"], size=32, vision=VISION, text=TEXT, width=8)
    clip.tokenizer = vocabulary.learn(TEXTS, 600, 40)
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.strategy.connect(clip)
    run.save_checkpoint(tmp_path / "clip.ckpt", weights_only=True)
    settings = {"zero_shot": {"classes": {"Pneumonia": {"positive": "a"}}}, "candidates": None}
    loaded = ClipVqa.load_from_checkpoint(tmp_path / "clip.ckpt", **ClipVqa.restated(settings))
    assert loaded.sentences["Pneumonia"].positive == ["a"]
    asked, texts = data(), Texts(controls=True, replicates=0)
    quiet_trainer(tmp_path, callbacks=[texts]).test(loaded, asked, verbose=False)
    questions = asked.images["test"].questions
    known = offered(asked.images["train"].questions, questions)
    assert len(texts.written["prediction"]) == len(questions) > 50
    for name in ("prediction", "blank", "shuffled"):
        assert all(text in each for text, each in zip(texts.written[name], known, strict=True))
    blank = questions.assign(text=texts.written["blank"]).groupby("question")["text"]
    assert blank.nunique().max() == 1  # only the question tells


def test_without_training_s_answers_candidates_are_asked_for(tmp_path):
    Image.new("L", (40, 40), 99).save(tmp_path / "one.png")
    folder = {"predict_root": tmp_path, "ask": ["Is it normal?"]}
    with pytest.raises(ValueError, match=r"model.candidates: .*give some"):
        quiet_trainer(tmp_path).predict(model(), data(**folder), return_predictions=False)
    texts = Texts()
    quiet_trainer(tmp_path, callbacks=[texts]).predict(
        model(candidates=["yes", "no"]), data(**folder), return_predictions=False
    )
    assert texts.written["prediction"][0] in ("yes", "no")
