"""The stages of a model that writes: captions or answers, judged against references, baselines and what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mmpds.callbacks.predictions import rejected_table, write_table
from mmpds.evaluation import Sections
from mmpds.metrics.hallucination import TERMS, answered, hallucination, named
from mmpds.metrics.intervals import Evaluation
from mmpds.metrics.text import bert_score, judge_answers, majority, similarity
from mmpds.results import inert

if TYPE_CHECKING:
    from mmpds.stages import Run

ASKED = ("row", "qid", "question", "answer", "answer_type", "question_type", "image_organ")


class Task:
    """See `mmpds.tasks.Task`; the model writes a text of each image, or of each question to one.

    Args:
        run: whose data, model and callbacks these are.
    """

    inference_precision = "bf16-true"  # autocast would turn the weights to bfloat16 anew in each step
    artifacts = {"texts": "texts.csv", "rejected": "rejected.csv"}

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tables: list[pd.DataFrame] = []

    def needs_validation(self) -> bool:
        """There is nothing to fit."""
        return False

    def validated(self) -> None:
        """The loss has been logged."""

    def tested(self, found: Sections) -> None:
        """Judge the texts of the test split, on rank 0."""
        table = self._written("test")
        self.tables.append(table)
        if self.run.world.rank:
            return
        callback, data = self.run.callbacks["texts"], self.run.data
        label = data.images["test"].label.numpy()[: len(table)]
        judged = judge(table, label, data.findings, callback.replicates, callback.seed)
        if callback.bert_score:
            texts = table[table["answer"] != ""]
            pair = texts["prediction"].tolist(), texts["answer"].tolist()
            judged.metrics["bert_score"] = bert_score(*pair, callback.bert_score)
        for section in ("metrics", "intervals", "counts"):
            found[section] |= {f"test/{name}": value for name, value in vars(judged)[section].items()}
        found["warnings"] += [*judged.warnings, *data.leaked]

    def predicted(self, found: Sections) -> None:
        """Keep the texts of a folder of images."""
        self.tables.append(self._written("predict"))
        found["counts"]["predict/texts"] = len(self.tables[-1])

    def keep(self, found: Sections) -> None:
        """Write texts.csv and rejected.csv."""
        run, data = self.run, self.run.data
        if self.tables:
            write_table(run.run_dir / "texts.csv", pd.concat(self.tables).map(inert))
        if count := len(data.rejected):
            write_table(run.run_dir / "rejected.csv", rejected_table(data.rejected))
            found["counts"]["rejected"] = count
            found["warnings"].append(f"{count} unreadable images left out: rejected.csv")

    def _written(self, split: str) -> Any:
        """Rows of texts.csv: split, id and group of the image, what it was asked, answer (or caption), prediction."""
        images, written = self.run.data.images[split], self.run.callbacks["texts"].written
        questions = getattr(images, "questions", None)
        if questions is None:
            table = images.table[["id", "group"]].assign(answer=images.caption)
        else:
            table = images.table.loc[questions["row"], ["id", "group"]].reset_index(drop=True)
            table = table.assign(**{name: questions[name] for name in ASKED})
            if split == "test" and "train" in self.run.data.images:
                table["majority"] = majority(self.run.data.images["train"].questions, questions)
        table.insert(0, "split", split)
        # fewer where trainer.limit_test_batches ends a test early
        return table.head(len(written["prediction"])).assign(**written)


def judge(table: pd.DataFrame, label: np.ndarray, findings: Sequence[str], replicates: int, seed: int) -> Evaluation:
    """All figures of texts: against their references, and of what they name that is not there.

    Args:
        table: rows of texts.csv: N captions, or N questions.
        label: of the images of captions, float [N, C]: 1, 0 or NaN.
        findings: C names; those that `TERMS` lacks are left out.
        replicates: of the bootstrap by patient; 0 for no intervals.
        seed: of the bootstrap.
    """
    group, asked, given = table["group"].to_numpy(), "question" in table, table["answer"] != ""
    items, groups = table["id"].nunique(), table["group"].nunique()
    parts = []
    if asked:
        parts.append(judge_answers(table, group, replicates, seed))
    elif given.any():
        texts = table[given]
        parts.append(similarity(texts["prediction"].tolist(), texts["answer"].tolist(), group[given], replicates, seed))
    if asked:  # the answer is the truth of the finding that its question names
        table = table[(table["question_type"] == "PRES") & (table["answer_type"] == "CLOSED")]
        names = list(TERMS)
        said, truth = (
            np.array([answered(*pair, names) for pair in zip(table["question"], table[of], strict=True)])
            .reshape(-1, len(names))
            for of in ("prediction", "answer")
        )  # fmt: skip
    else:
        told = [place for place, finding in enumerate(findings) if finding in TERMS]
        names = [findings[place] for place in told]
        said, truth = np.array([named(text, names) for text in table["prediction"]]), label[:, told]
    if (known := ~np.isnan(truth).all(axis=0)).any():
        names = [name for name, of in zip(names, known, strict=True) if of]
        group = table["group"].to_numpy()
        parts.append(hallucination(said[:, known], truth[:, known], names, group, replicates, seed))
    counts = {"items": items, "groups": groups}
    return Evaluation(
        {name: value for part in parts for name, value in part.metrics.items()},
        {name: span for part in parts for name, span in part.intervals.items()},
        counts | {name: value for part in parts for name, value in part.counts.items()},
        [text for part in parts for text in part.warnings],
    )
