"""BLIP that answers questions about images (Li et al., ICML 2022).

Shapes: B = batch of images, Q = questions, H = W = pixels a side, L = tokens, S = patches and one, D = width of a
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import BlipForQuestionAnswering

from mmpds.data.batch import AskedBatch, Batch, real_items
from mmpds.metrics.text import correct
from mmpds.models.blip import TEXTS, Blip


class BlipVqa(Blip):
    """Answers questions: an encoder reads the question beside the image, and the decoder attends to what it read.

    An image is seen once for all its questions. Arguments as for `Blip`.
    """

    network = BlipForQuestionAnswering

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.val_accuracy = MeanMetric()

    def texts(self, images: Any) -> list[str]:
        """All questions and answers of a split."""
        return sorted(set(images.questions["question"]) | set(images.questions["answer"]))

    def read(self, image: Tensor, questions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """States of questions, float [Q, L, D], and whether they are there, int64 [Q, L].

        Args:
            image: states of images, float [B, S, D].
            questions: those of each image, B lists with Q texts in all.
        """
        tokens, there = self._tokens([text for texts in questions for text in texts])
        counts = torch.tensor([len(texts) for texts in questions], device=self.device)
        states: Tensor = self.blip.text_encoder(
            input_ids=tokens, attention_mask=there, encoder_hidden_states=image.repeat_interleave(counts, dim=0)
        ).last_hidden_state
        return states, there

    def answer(self, image: Tensor, questions: Sequence[Sequence[str]]) -> list[str]:
        """An answer to each question, in lower case, all questions of the first image first.

        Questions are taken by length, so that little of a batch is padding.

        Args:
            image: float32 [B, 1, H, W] in [0, 1].
            questions: those of each image, B lists of texts.
        """
        seen = self.see(image)
        asked = [(place, text) for place, texts in enumerate(questions) for text in texts]
        order = sorted(range(len(asked)), key=lambda place: (len(self.tokenizer.tokenize(asked[place][1])), place))
        answers = [""] * len(asked)
        for start in range(0, len(order), TEXTS):
            part = order[start : start + TEXTS]
            states, there = self.read(seen[[asked[place][0] for place in part]], [[asked[place][1]] for place in part])
            for place, text in zip(part, self.write(states, there), strict=True):
                answers[place] = text
        return answers

    def batch_losses(self, batch: AskedBatch) -> tuple[Tensor, Tensor]:
        """`losses` of the answers to a batch's questions."""
        states, there = self.read(self.see(batch["image"]), batch["question"])
        return self.losses([text for texts in batch["answer"] for text in texts], states, there)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss, and how often the answer is right."""
        super().validation_step(batch, batch_idx)
        if real := real_items(batch):
            written = self.answer(real["image"], real["question"])
            known = [text for texts in real["answer"] for text in texts]
            self.val_accuracy.update(torch.tensor(correct(written, known), dtype=torch.float32))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and `val/accuracy` over the questions of all ranks."""
        super().on_validation_epoch_end()
        self.log("val/accuracy", self.val_accuracy.compute(), prog_bar=True)
        self.val_accuracy.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """`text`, an answer to each question, and `row`, the question's own in its split's table of questions."""
        if not (real := real_items(batch)):
            return {"text": [], "row": []}
        rows = [row for rows in real["asked"] for row in rows]
        return {"text": self.answer(real["image"], real["question"]), "row": rows}
