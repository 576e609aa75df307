"""CLIP that answers questions: of candidate answers the one whose sentences are nearest to the image.

Shapes: B = batch of images, H = W = pixels a side, D = width of an embedding, K = candidates, N = questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmpds.data.batch import real_items
from mmpds.metrics.hallucination import TERMS, answered, named
from mmpds.models.clip import Clip
from mmpds.models.zero_shot import Sentences, class_embeddings

MOST = 50
"""Candidates of a question: the answers that training gives most often to questions of its kind."""
KIND = ["answer_type", "question_type"]


class ClipVqa(Clip):
    """A trained CLIP asked as a model that writes is asked; it learns nothing here.

    An answer to a question is the sentence "<question> <answer>". Where a question is about one finding and a candidate
    is yes or no, it is the sentences that name or deny the finding instead (`zero_shot`), which CLIP knows better.

    Args:
        findings: those that questions may name; those of a checkpoint are its own.
        candidates: answers to choose from; None: those of training to questions of the same kind, at most `MOST`.
        arguments: the other ones of `Clip`.
    """

    task = "text"

    def __init__(
        self, findings: Sequence[str] = tuple(TERMS), candidates: Sequence[str] | None = None, **arguments: Any
    ) -> None:
        super().__init__(findings, **arguments)
        self.candidates = list(dict.fromkeys(candidates or ()))
        self._told = [finding for finding in findings if finding in TERMS]
        self._choices: list[tuple[list[str], Tensor]] = []  # of each question: its candidates, unit vectors [K, D]

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: its sentences and the candidates."""
        return {name: settings[name] for name in ("zero_shot", "candidates")}

    def on_test_start(self) -> None:
        """Embed the candidates of all questions.

        Raises:
            ValueError: nothing is known of training, and no candidates were given.
        """
        super().on_test_start()
        self._begin("test")

    def on_predict_start(self) -> None:
        """See `on_test_start`; of a folder of images nobody knows what kind its questions are."""
        super().on_predict_start()
        self._begin("predict")

    def _begin(self, split: str) -> None:
        images: Any = self.trainer.datamodule.images  # type: ignore[attr-defined]
        questions = images[split].questions
        if self.candidates:
            self.offer(questions["question"], [self.candidates] * len(questions))
        elif split == "test" and "train" in images:
            self.offer(questions["question"], offered(images["train"].questions, questions))
        else:
            cure = "give some: 'model.candidates=[yes,no]'"
            raise ValueError(f"model.candidates: without training's answers there are none to choose from; {cure}")

    def offer(self, questions: Sequence[str], candidates: Sequence[list[str]]) -> None:
        """Embed the sentences of each question's candidates, all at once: the same whatever batch asks them.

        Args:
            questions: N texts, which `answer` names by their place.
            candidates: N lists of answers.
        """
        told = {
            (question, tuple(answers)): self._sentences(question, answers)
            for question, answers in zip(questions, candidates, strict=True)
        }
        texts = sorted({text for answers in told.values() for each in answers.values() for text in each})
        embedded = dict(zip(texts, self.embed_texts(texts), strict=True))

        def embed(chosen: list[str]) -> Tensor:
            return torch.stack([embedded[text] for text in chosen])

        found = {
            key: class_embeddings({answer: Sentences(list(each), []) for answer, each in answers.items()}, embed)
            for key, answers in told.items()
        }
        self._choices = [
            (answers, found[question, tuple(answers)]) for question, answers in zip(questions, candidates, strict=True)
        ]

    def _sentences(self, question: str, answers: Sequence[str]) -> dict[str, Sequence[str]]:
        """The sentences of each answer to a question."""
        about = np.flatnonzero(~np.isnan(named(question, self._told)))
        sides = self.sentences[self._told[about[0]]] if len(about) == 1 else None
        found: dict[str, Sequence[str]] = {}
        for answer in answers:
            if sides and sides.negative and answer.lower() in ("yes", "no"):
                there = answered(question, answer, self._told)[about[0]] == 1
                found[answer] = sides.positive if there else sides.negative
            else:
                found[answer] = [f"{question} {answer}"]
        return found

    def answer(self, image: Tensor, asked: Sequence[Sequence[int]]) -> list[str]:
        """An answer to each question, all questions of the first image first.

        Args:
            image: float32 [B, 1, H, W] in [0, 1].
            asked: the places of each image's questions among those of `offer`, B lists.
        """
        seen, texts = self.embed_images(image), []
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would tie the scores
            for one, places in zip(seen, asked, strict=True):
                for answers, directions in (self._choices[place] for place in places):
                    texts.append(answers[int((directions @ one).argmax())])
        return texts

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """`text`, an answer to each question, and `row`, the question's own in its split's table of questions."""
        if not (real := real_items(batch)):
            return {"text": [], "row": []}
        rows = [row for rows in real["asked"] for row in rows]
        return {"text": self.answer(real["image"], real["asked"]), "row": rows}


def offered(trained: pd.DataFrame, questions: pd.DataFrame) -> list[list[str]]:
    """Each question's candidates: what training answers to questions of its kind, the most frequent first.

    Where training has none of its kind, those that are closed alike, or open, decide.

    Args:
        trained: `answer`, `answer_type` and `question_type` of the questions of training.
        questions: `answer_type` and `question_type`.
    """
    answers = trained.assign(answer=trained["answer"].str.lower())

    def most(by: list[str]) -> dict[Any, list[str]]:
        counts = answers.groupby([*by, "answer"]).size().rename("count").reset_index()
        ordered = counts.sort_values(["count", "answer"], ascending=[False, True])
        return {tuple(kind): rows["answer"].head(MOST).tolist() for kind, rows in ordered.groupby(by)}

    of, closed = most(KIND), most(KIND[:1])
    kinds = questions[KIND].itertuples(index=False, name=None)
    return [of.get(kind) or closed.get(kind[:1]) or answers["answer"].unique()[:MOST].tolist() for kind in kinds]
