"""Images with the questions asked of them: an image is read, and encoded, once for all its questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import default_collate

from mmpds.data.batch import AskedBatch, Source
from mmpds.data.module import SPLITS, ImageData, Images
from mmpds.data.sampling import Draw
from mmpds.data.splits import split_by_group

COLUMNS = ("qid", "question", "answer", "answer_type", "question_type", "image_organ")
ASKED = ("question", "answer", "asked")


class AskedImages(Images):
    """The images of one split that are asked something, each with its questions.

    questions: a row a question, a RangeIndex: `COLUMNS`, `row` (of its image in `table`), `share` (of the epochs in
        which training asks it).

    Args:
        source: of the images.
        rows: of the source's table, int [N].
        findings: label columns.
        size: pixels a side.
        questions: of these images: `COLUMNS`, `share` and `image_name`.
    """

    def __init__(
        self, source: Source, rows: np.ndarray, findings: Sequence[str], size: int, questions: pd.DataFrame
    ) -> None:
        super().__init__(source, rows, findings, size)
        place = pd.Series(self.table.index, index=self.table["id"])
        table = questions.assign(row=questions["image_name"].map(place)).sort_values(["row", "qid"])
        self.questions = table[[*COLUMNS, "row", "share"]].reset_index(drop=True)
        groups: dict[Any, Any] = self.questions.groupby("row").indices
        self._asked: list[np.ndarray] = [groups.get(row, np.empty(0, dtype=np.int64)) for row in range(len(self.table))]
        self._text = {name: self.questions[name].tolist() for name in ("question", "answer")}
        self._share = self.questions["share"].to_numpy()

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The item with its questions; a draw with a seed asks each as often as its share says."""
        asked = self._asked[draw.row]
        if draw.seed is not None:
            drawn = np.random.default_rng(draw.seed).random(len(asked)) < self._share[asked]
            asked = asked[drawn] if drawn.any() else asked
        texts = {name: [text[row] for row in asked] for name, text in self._text.items()}
        return super().__getitem__(draw) | texts | {"asked": asked.tolist()}

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> AskedBatch:
        """A batch; what is asked stays in lists, for each image has its own number of questions."""
        kept: Any = {name: [item.pop(name) for item in items] for name in ASKED}
        batch: AskedBatch = default_collate(items) | kept
        return batch


class QuestionData(ImageData):
    """`ImageData` whose items are images with their questions.

    With `split=own` the questions of a patient's images stay together. An official split is one of questions: the
    same image may be asked other questions in training and in the test, which `notes` then say; for validation, some
    of the images that training asks of are set apart.

    Args:
        balance: whether of each closed question as many are asked with each of its answers (as VQA v2.0: Goyal et al.,
            CVPR 2017), so that nothing is won by guessing; training draws anew each epoch among the more frequent.
        ask: questions for every image of `predict_root`.
        arguments: see `ImageData`.

    Raises:
        ValueError: an argument's value cannot work; the text names it and the cure.
    """

    def __init__(self, *arguments: Any, balance: bool = False, ask: Sequence[str] | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.balance, self.ask = balance, tuple(ask or ())
        if self.predict_root and not self.ask:
            raise ValueError("data.ask: give the questions for each image of predict_root: 'data.ask=[Is it normal?]'")
        for source in (self.source, self.test_source):
            if source is not None and not hasattr(source, "questions"):
                raise ValueError("data: no questions are known of these images; use data=phantom or data=vqa_rad")

    def _split_source(self) -> None:
        if self.split == "own" or self.source is None:
            super()._split_source()
            return
        source, digests = self._open(self.source)
        questions = self.source.questions  # type: ignore[attr-defined]
        names = _official(source.table, questions, source.findings, self.fractions, self.split_seed, digests)
        for name in SPLITS:
            if name != "test" or self.test_source is None:
                self.images[name] = self._asked(name, source, np.arange(len(source.table)), questions[names == name])
        trained, tested = (set(questions["image_name"][names == name]) for name in ("train", "test"))
        if shared := len(trained & tested):
            self.leaked.append(
                f"{shared} of {len(tested)} test images were seen in training, with other questions: the official "
                "split leaks images; data.split=own is by image"
            )

    def _images(self, name: str, source: Source, rows: np.ndarray) -> Images:
        known: pd.DataFrame | None = getattr(source, "questions", None)
        return self._asked(name, source, rows, _to_all(source.table["id"], self.ask) if known is None else known)

    def _asked(self, name: str, source: Source, rows: np.ndarray, questions: pd.DataFrame) -> Images:
        """Of these rows those that are asked one of these questions, with all that they are asked."""
        questions = questions[questions["image_name"].isin(source.table["id"].iloc[rows])]
        share = balanced(questions) if self.balance and name != "predict" else pd.Series(1.0, index=questions.index)
        if name != "train" or not self.augment:  # asked once, the same in every run and epoch
            questions = _drawn(questions, share)
            share = pd.Series(1.0, index=questions.index)
        questions, share = questions[share > 0], share[share > 0]
        rows = rows[source.table["id"].iloc[rows].isin(questions["image_name"]).to_numpy()]
        if not len(rows):
            raise ValueError(f"data: nothing is asked in {name}; give more images or other data.fractions")
        return AskedImages(source, rows, self.findings, self.size, questions.assign(share=share))


def balanced(questions: pd.DataFrame) -> pd.Series:
    """The share of each question that is kept for its wording's answers to be equally frequent; 1 of open ones."""
    closed = questions["answer_type"] == "CLOSED"
    counts = questions[closed].groupby(["question", "answer"])["qid"].transform("size")
    fewest = counts.groupby(questions["question"][closed]).transform("min")
    several = questions[closed].groupby("question")["answer"].transform("nunique") > 1
    # a wording that has one answer only tells nothing
    return (fewest / counts).where(several, 0.0).reindex(questions.index).fillna(1.0)


def _drawn(questions: pd.DataFrame, share: pd.Series) -> pd.DataFrame:
    """The share of each wording and answer, chosen by a hash of the question's id."""
    order = [hashlib.sha256(str(qid).encode()).hexdigest() for qid in questions["qid"]]
    shuffled = questions.assign(order=order, share=share).sort_values("order")
    group = shuffled.groupby(["question", "answer"])
    kept = group.cumcount() < (shuffled["share"] * group["qid"].transform("size")).round()
    return shuffled[kept].drop(columns=["order", "share"]).sort_index()


def _official(
    table: pd.DataFrame, questions: pd.DataFrame, findings: Sequence[str], fractions: Sequence[float], seed: int,
    digests: Sequence[str],
) -> pd.Series:  # fmt: skip
    """The split of each question: the official one, with some of the images of training set apart for validation.

    Raises:
        ValueError: the source has no official split.
    """
    if "split" not in questions:
        raise ValueError("data.split=official: this data set has no official split of questions; use data.split=own")
    names = questions["split"].copy()
    asked = table["id"].isin(questions["image_name"][names == "train"]).to_numpy()
    images = table[asked].reset_index(drop=True)
    share = fractions[1] / (fractions[0] + fractions[1])
    kept = [digest for digest, inside in zip(digests, asked, strict=True) if inside]
    parts = split_by_group(images, findings, (1 - share, share, 0.0), seed, kept)
    apart = set(images["id"][parts.to_numpy() == "val"])
    names[(names == "train") & questions["image_name"].isin(apart)] = "val"
    return names


def _to_all(ids: pd.Series, ask: Sequence[str]) -> pd.DataFrame:
    """The same questions for each image, their answers unknown."""
    rows = [(name, question) for name in ids for question in ask]
    asked = pd.DataFrame(rows, columns=["image_name", "question"])
    return asked.assign(qid=range(len(asked)), answer="", answer_type="", question_type="", image_organ="")
