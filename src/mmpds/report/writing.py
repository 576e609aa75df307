"""How good written texts are: the tables of a report and of the terminal for answers and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpds.report.tables import Cell, Table, number

ANSWERS = {
    "Accuracy": "accuracy",
    "Majority answer": "accuracy_majority",
    "Blank image": "accuracy_blank",
    "Another's image": "accuracy_shuffled",
    "Above blank": "accuracy_above_blank",
    "Token recall": "token_recall",
}
SIMILARITY = {
    "BLEU-1": "bleu/1", "BLEU-2": "bleu/2", "BLEU-3": "bleu/3", "BLEU-4": "bleu/4", "ROUGE-L": "rouge_l",
    "BERTScore": "bert_score",
}  # fmt: skip
NAMED = {"Named": "named", "Of these absent": "hallucination", "Present": "present", "Of these not named": "omission"}
SHOWN = "test/accuracy/"


def written(result: Mapping[str, Any]) -> list[Table]:
    """All tables of this page that the result has something for."""
    return [table for table in (answers(result), similarity(result), findings(result)) if table]


def answers(result: Mapping[str, Any]) -> Table | None:
    """Exact matches of each kind of question, beside what guessing scores."""
    metrics, counts = result.get("metrics") or {}, result.get("counts") or {}
    slices = [name.removeprefix(SHOWN) for name in metrics if name.startswith(SHOWN)]
    if not slices:
        return None
    columns = {head: name for head, name in ANSWERS.items() if any(f"test/{name}/{one}" in metrics for one in slices)}
    rows = [
        [Cell(one.replace("/", " "), f"{counts.get(f'test/questions/{one}', 0):,}")]
        + [_measure(result, f"{name}/{one}") for name in columns.values()]
        for one in slices
    ]
    items = f"{counts.get('test/questions', 0):,} questions about {counts.get('test/items', 0):,} images"
    caption = f"Answers to {items}: exact matches after normalisation; token recall of open ones"
    return Table(caption, ["Questions", *columns], rows)


def similarity(result: Mapping[str, Any]) -> Table | None:
    """BLEU, ROUGE-L and BERTScore, of captions or of open answers."""
    metrics = result.get("metrics") or {}
    rows = [[Cell(head), _measure(result, name)] for head, name in SIMILARITY.items() if f"test/{name}" in metrics]
    of = "open answers" if "test/accuracy/all" in metrics else "captions"
    return Table(f"Similarity of {of} and their references", ["Measure", "Value"], rows) if rows else None


def findings(result: Mapping[str, Any]) -> Table | None:
    """Findings that texts name and that are absent, or that are present and not named."""
    counts = result.get("counts") or {}
    names = [name.removeprefix("test/present/") for name in counts if name.startswith("test/present/")]
    rows = []
    for one in names:
        cells = {name: _measure(result, f"{name}/{one}") for name in ("hallucination", "omission")}
        cells |= {name: Cell(f"{counts[f'test/{name}/{one}']:,}") for name in ("named", "present")}
        rows.append([Cell(one), *(cells[name] for name in NAMED.values())])
    return Table("Findings in the texts: hallucinated and omitted", ["Finding", *NAMED], rows) if rows else None


def _measure(result: Mapping[str, Any], name: str) -> Cell:
    metrics, intervals = (result.get(section) or {} for section in ("metrics", "intervals"))
    return number(metrics.get(f"test/{name}"), intervals.get(f"test/{name}"))
