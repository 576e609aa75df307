"""Texts against references: answers to questions, beside what guessing scores, and captions.

Shapes: N = questions or captions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import Evaluation, ratios

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
ARTICLES = {"a", "an", "the"}
TYPES = {"ATRIB": "ATTRIB", "PRSE": "PRES"}
"""Question types that VQA-RAD's release misspells."""
CONTROLS = ("majority", "blank", "shuffled")
"""What is scored beside the predictions: the answer that is most frequent in training for a question of its type; the
model's own for a blank image; the model's own for another patient's."""
ORDERS = (1, 2, 3, 4)


def normalized(answer: str) -> str:
    """An answer as it is compared: after the VQA evaluation code of Antol et al. (ICCV 2015).

    Lower case; commas between digits, full stops that no digit follows, and articles left out; other punctuation a
    blank; number words to ten as digits, "none" as 0. Contractions stay as they are written.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower())
    text = re.sub(r"\.(?!\d)", "", text)
    words = re.sub(r"[;/\[\]\"{}()=+\\_\->@<`,?!:]", " ", text).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def correct(written: Sequence[str], known: Sequence[str]) -> list[bool]:
    """Whether each answer equals its reference once both are `normalized`."""
    return [normalized(one) == normalized(other) for one, other in zip(written, known, strict=True)]


def token_recall(written: str, known: str) -> float:
    """The share of the reference's distinct words that the answer has, both `normalized`; 1 where it has none."""
    words = set(normalized(known).split())
    return len(words & set(normalized(written).split())) / len(words) if words else 1.0


def majority(trained: pd.DataFrame, questions: pd.DataFrame) -> list[str]:
    """For each question the most frequent answer that training has to those of its type.

    Types are both whether it is closed and what it is of; where training has none of both, whether it is closed
    decides. Of equally frequent answers the alphabet's first is taken.

    Args:
        trained: `answer`, `answer_type`, `question_type`, and `share`, which weighs a row.
        questions: `answer_type` and `question_type`.
    """
    weighed = trained.assign(answer=[normalized(text) for text in trained["answer"]])

    def most(by: list[str]) -> dict[tuple[str, ...], str]:
        summed = weighed.groupby([*by, "answer"])["share"].sum().round(6).reset_index()
        first = summed.sort_values("share", ascending=False, kind="stable").drop_duplicates(by)
        return {tuple(row[:-1]): row[-1] for row in first[[*by, "answer"]].itertuples(index=False, name=None)}

    both, closed = most(["answer_type", "question_type"]), most(["answer_type"])
    pairs = zip(questions["answer_type"], questions["question_type"], strict=True)
    return [both.get((kind, of), closed.get((kind,), "")) for kind, of in pairs]


def judge_answers(table: pd.DataFrame, group: Array, replicates: int, seed: int) -> Evaluation:
    """How often answers are right, and what of that is owed to the image.

    `accuracy/<slice>` counts exact matches of `normalized` texts; `token_recall/<slice>` is its own figure, for a text
    that holds the answer among other words matches none. Slices: `closed`, `open`, `all`, and of the first two each
    `organ` and question `type`, such as `closed/organ/CHEST`; a question of several types counts in each. Each of
    `CONTROLS` that the table has is scored alike (`accuracy_blank/closed`), and the differences to it with paired
    intervals (`accuracy_above_blank/closed`). `bleu/<n>` (Papineni et al. 2002) and `rouge_l` (Lin 2004) are of open
    answers.

    Args:
        table: a row a question: `answer`, `prediction`, `answer_type`, `question_type`, `image_organ`, and any
            column of `CONTROLS`.
        group: [N], the patient or image of each question, as a whole drawn for the intervals.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
    """
    known = table["answer"].tolist()
    scored = {"": "prediction"} | {f"_{name}": name for name in CONTROLS if name in table}
    hits = {suffix: np.array(correct(table[name].tolist(), known), dtype=float) for suffix, name in scored.items()}
    recalls = {
        suffix: np.array([token_recall(*pair) for pair in zip(table[name], known, strict=True)])
        for suffix, name in scored.items()
    }
    parts: dict[str, tuple[Array, Array]] = {}
    counts = {"questions": len(table), "groups": len(set(group))}
    for name, mask in _slices(table).items():
        counts[f"questions/{name}"] = int(mask.sum())
        for suffix in scored:
            parts[f"accuracy{suffix}/{name}"] = (hits[suffix] * mask, mask)
            if suffix and "/" not in name:
                parts[f"accuracy_above{suffix}/{name}"] = ((hits[""] - hits[suffix]) * mask, mask)
            if not name.startswith("closed"):
                parts[f"token_recall{suffix}/{name}"] = (recalls[suffix] * mask, mask)
    metrics, intervals = ratios(parts, group, replicates, seed)
    loose = (table["answer_type"] == "OPEN").to_numpy()
    if loose.any():
        texts = similarity(
            table["prediction"][loose].tolist(), table["answer"][loose].tolist(), group[loose], replicates, seed
        )
        metrics, intervals = metrics | texts.metrics, intervals | texts.intervals
    return Evaluation(metrics, intervals, counts, [])


def similarity(written: Sequence[str], known: Sequence[str], group: Array, replicates: int, seed: int) -> Evaluation:
    """Corpus BLEU of 1 to 4 words and the mean ROUGE-L, of `normalized` texts; arguments as in `judge_answers`.

    BLEU of more words than any reference has is left out: it would be 0 for the references themselves.
    """
    from torchmetrics.functional.text import bleu_score, rouge_score

    ours, theirs = [normalized(text) for text in written], [normalized(text) for text in known]
    orders = [n for n in ORDERS if n <= max(len(text.split()) for text in theirs)]
    metrics = {f"bleu/{n}": float(bleu_score(ours, [[text] for text in theirs], n_gram=n)) for n in orders}
    pairs = list(zip(ours, theirs, strict=True))
    each = {pair: float(rouge_score(*pair, rouge_keys="rougeL")["rougeL_fmeasure"]) for pair in set(pairs)}
    rouge = np.array([each[pair] for pair in pairs])
    values, intervals = ratios({"rouge_l": (rouge, np.ones(len(rouge)))}, group, replicates, seed)
    return Evaluation(metrics | values, intervals, {}, [])


def bert_score(written: Sequence[str], known: Sequence[str], folder: str) -> float:
    """The mean F1 of BERTScore (Zhang et al., ICLR 2020), not rescaled, in [-1, 1].

    Args:
        written: texts.
        known: their references.
        folder: of transformers, or a hub id: the encoder whose states are compared.

    Raises:
        ValueError: there are no such weights.
    """
    from torchmetrics.functional.text import bert_score as score

    try:
        found = score(list(written), list(known), model_name_or_path=folder)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"callbacks.texts.bert_score={folder}: give a folder of transformers ({reason})") from error
    return float(np.mean(np.asarray(found["f1"])))


def _slices(table: pd.DataFrame) -> Mapping[str, Array]:
    """Masks, bool [N], by name."""
    kinds = {kind: (table["answer_type"] == kind.upper()).to_numpy() for kind in ("closed", "open")}
    found = kinds | {"all": np.ones(len(table), dtype=bool)}
    types = [
        {TYPES.get(one.strip(), one.strip()) for one in text.upper().split(",")} for text in table["question_type"]
    ]
    for kind, mask in kinds.items():
        for organ in sorted(set(table["image_organ"][mask])):
            found[f"{kind}/organ/{organ}"] = mask & (table["image_organ"] == organ).to_numpy()
        for name in sorted(set().union(*(types[place] for place in np.flatnonzero(mask)))):
            found[f"{kind}/type/{name}"] = mask & np.array([name in each for each in types])
    return {name: mask for name, mask in found.items() if mask.any()}
