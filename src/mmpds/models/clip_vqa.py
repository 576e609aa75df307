"""CLIP that answers questions: of candidate answers the one whose sentences are nearest to the image.

Shapes: B = batch of images, H = W = pixels a side, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from mmpds.data.batch import real_items
from mmpds.metrics.hallucination import TERMS, named
from mmpds.models.clip import Clip

MOST = 50
"""Candidates of a question: the answers that training gives most often to questions of its kind."""
KIND = ["answer_type", "question_type"]


class ClipVqa(Clip):
    """A trained CLIP asked as a model that writes is asked; it learns nothing here.

    An answer to a question is the sentence "<question> <answer>". Where a question names one finding and a candidate is
    yes or no, it is the sentences that name or deny the finding instead (`zero_shot`), which CLIP knows better.

    Args:
        findings: those that questions may name; those of a checkpoint are its own.
        candidates: answers to choose from; None: those of training to questions of the same kind, at most `MOST`.
        named: the other arguments of `Clip`.
    """

    task = "text"

    def __init__(
        self, findings: Sequence[str] = tuple(TERMS), candidates: Sequence[str] | None = None, **named: Any
    ) -> None:
        super().__init__(findings, **named)
        self.candidates = list(candidates or ())
        self._offered: list[list[str]] = []  # to each question of the split
        self._embedded: dict[str, Tensor] = {}

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: its sentences and the candidates."""
        return {name: settings[name] for name in ("zero_shot", "candidates")}

    def on_test_start(self) -> None:
        """Find each question's candidates among training's answers.

        Raises:
            ValueError: nothing is known of training, and no candidates were given.
        """
        super().on_test_start()
        self._begin("test")

    def on_predict_start(self) -> None:
        """See `on_test_start`."""
        super().on_predict_start()
        self._begin("predict")

    def _begin(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        questions = data.images[split].questions
        self._embedded = {}
        if self.candidates:
            self._offered = [self.candidates] * len(questions)
        elif "train" in data.images:
            self._offered = offered(data.images["train"].questions, questions)
        else:
            raise ValueError("model.candidates: no training answers to choose from here; give some: [yes, no]")

    def answer(self, image: Tensor, questions: Sequence[Sequence[str]], asked: Sequence[Sequence[int]]) -> list[str]:
        """An answer to each question, all questions of the first image first; "" where there is no candidate.

        Args:
            image: float32 [B, 1, H, W] in [0, 1].
            questions: those of each image, B lists of texts.
            asked: each question's row in its split's table of questions.
        """
        told = [
            [self._sentences(question, answer) for answer in self._offered[row]]
            for texts, rows in zip(questions, asked, strict=True)
            for question, row in zip(texts, rows, strict=True)
        ]
        if new := sorted({text for each in told for texts in each for text in texts} - set(self._embedded)):
            self._embedded |= zip(new, self.embed_texts(new), strict=True)
        seen = self.embed_images(image).repeat_interleave(
            torch.tensor([len(texts) for texts in questions], device=image.device), dim=0
        )
        return [
            self._offered[row][int((self._directions_of(each) @ one).argmax())] if each else ""
            for row, each, one in zip([row for rows in asked for row in rows], told, seen, strict=True)
        ]

    def _directions_of(self, told: Sequence[Sequence[str]]) -> Tensor:
        """A unit vector a candidate, float32 [K, D]: the mean of its sentences' (as in `class_embeddings`)."""
        means = [torch.stack([self._embedded[text] for text in texts]).mean(dim=0) for texts in told]
        return F.normalize(torch.stack(means), dim=1)

    def _sentences(self, question: str, answer: str) -> Sequence[str]:
        about = np.flatnonzero(~np.isnan(named(question, self._told)))
        if len(about) == 1 and answer.lower() in ("yes", "no"):
            sides = self.sentences[self._told[about[0]]]
            if sides.negative:
                return sides.positive if answer.lower() == "yes" else sides.negative
        return [f"{question} {answer}"]

    @property
    def _told(self) -> list[str]:
        return [finding for finding in self.findings if finding in TERMS]

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """`text`, an answer to each question, and `row`, the question's own in its split's table of questions."""
        if not (real := real_items(batch)):
            return {"text": [], "row": []}
        rows = [row for rows in real["asked"] for row in rows]
        return {"text": self.answer(real["image"], real["question"], real["asked"]), "row": rows}


def offered(trained: pd.DataFrame, questions: pd.DataFrame) -> list[list[str]]:
    """Each question's candidates: what training answers to questions of its kind, the most frequent first.

    Args:
        trained: `answer`, `answer_type` and `question_type` of the questions of training.
        questions: `answer_type` and `question_type`.
    """
    counts = trained.assign(answer=trained["answer"].str.lower()).groupby([*KIND, "answer"]).size().rename("count")
    ordered = counts.reset_index().sort_values(["count", "answer"], ascending=[False, True])
    of = {kind: rows["answer"].head(MOST).tolist() for kind, rows in ordered.groupby(KIND)}
    return [of.get(kind, []) for kind in questions[KIND].itertuples(index=False, name=None)]
