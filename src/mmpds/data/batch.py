"""The contract between data sets and models: the only module both sides know.

Shapes: B = items in a batch, H = height, W = width, C = findings.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

PADDING = -1
"""The `index` of an item that only fills a rank's last batch: it counts in no loss and in no metric."""


class Batch(TypedDict):
    """What every model receives.

    image: float32 [B, 1, H, W], grey in [0, 1]; 0 is black (air on a radiograph).
    label: float32 [B, C], 1 = finding present, 0 = absent, NaN = not labelled.
    caption: B reports, "" where there is none.
    index: int64 [B], the item's row in its split's table, or `PADDING`.
    """

    image: Tensor
    label: Tensor
    caption: list[str]
    index: Tensor


class AskedBatch(Batch):
    """What a model that answers questions receives: images, each with any number of questions.

    question: B lists of texts.
    answer: B lists of texts, "" where it is not known.
    asked: B lists of int, each question's row in its split's table of questions.
    """

    question: list[list[str]]
    answer: list[list[str]]
    asked: list[list[int]]


class PromptBatch(TypedDict):
    """What a generator receives for prediction.

    prompt: B texts.
    seed: int64 [B], each item's own, in [0, 2**63).
    index: int64 [B], the item's row in the table of prompts.
    """

    prompt: list[str]
    seed: Tensor
    index: Tensor


def real_items(batch: Any) -> dict[str, Any]:
    """A batch without what only pads it; empty where all of it does."""
    real = batch["index"] != PADDING
    kept = real.nonzero()[:, 0].tolist()
    if not kept:
        return {}
    return {
        name: [values[place] for place in kept] if isinstance(values, list) else values[real]
        for name, values in batch.items()
    }


def item_seed(seed: int, item: str) -> int:
    """An item's own seed, in [0, 2**63): the same at any number of ranks, in any batch and any order.

    Args:
        seed: the run's.
        item: the item's id.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{item}".encode()).digest()[:8], "big") >> 1


class Source(Protocol):
    """A set of images with what is known of each; one class a data set, plain arguments, no torch needed.

    table: a row an image, a RangeIndex, and the columns
        `id` (str, unique), `group` (str, the patient: never split), `normal` (bool: no finding at all),
        a float column a finding (1, 0, NaN),
        and, where known: `sex` ("M"/"F"), `age` (years, float), `view` ("PA"/"AP"), `caption` (str),
        `captions` (a list of texts, of which training with augmentation draws one in the place of `caption`),
        `split` ("train"/"val"/"test", the official one), `path` (str, relative to the root).
    findings: the names of the label columns, in the order models see them.

    Where a source knows where findings are, it also has `boxes`: a table of `id`, `finding`, and `x, y, w, h` of left
    edge, top edge, width and height as fractions of the image.

    Where a source knows questions, it also has `questions`: a table of `image_name` (an id), `qid` (int, unique),
    `question`, `answer`, `answer_type` ("CLOSED" or "OPEN"), `question_type`, `image_organ`, and, where there is an
    official split of questions, `split` ("train" or "test").
    """

    table: pd.DataFrame
    findings: tuple[str, ...]

    def image(self, row: int, size: int) -> np.ndarray:
        """Image of table row `row` as uint8 [size, size] grey.

        Raises:
            BadImage: the file cannot be read; its text is the reason.
        """
        ...

    def digest(self, row: int) -> str:
        """A hash that is equal for byte-identical images and for nothing else.

        Raises:
            BadImage: the file is not there or cannot be opened.
        """
        ...
