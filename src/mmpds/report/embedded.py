"""What a CLIP's embeddings are worth beside zero-shot detection: the tables of a report."""

from __future__ import annotations

import re

from mmpds.report.stored import StoredRun
from mmpds.report.tables import Cell, Table, metric

WAYS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}


def compared(run: StoredRun) -> list[Table]:
    """All tables of this page that the run has something for."""
    return [table for table in (learners(run), retrieval(run), exclusive(run)) if table]


def learners(run: StoredRun) -> Table | None:
    """AUROC of each finding: by sentences alone, from a few labelled images, from all."""
    names = [name.split("/")[1] for name in run.section("metrics") if re.match("test/(few_shot_|linear_probe/)", name)]
    kinds = sorted(dict.fromkeys(names), key=lambda name: int(re.sub(r"\D", "", name) or 10**9))
    if not kinds:
        return None
    heads = {
        kind: re.sub("few_shot_(.*)", r"\1 + \1 images", kind).replace("linear_probe", "All images") for kind in kinds
    }
    rows = [
        [Cell("Mean (macro)" if finding == "macro" else finding), metric(run, f"auroc/{finding}")]
        + [metric(run, f"{kind}/auroc/{finding}") for kind in kinds]
        for finding in (*run.findings, "macro")
    ]  # fmt: skip
    caption = "AUROC by sentences alone, and of logistic regression on the embeddings of labelled training images"
    return Table(caption, ["Finding", "Zero-shot", *heads.values()], rows)


def retrieval(run: StoredRun) -> Table | None:
    """Recall@k of images and captions, beside chance."""
    found = {int(name.rpartition("@")[2]) for name in run.section("metrics") if "/recall@" in name}
    rows = [
        [Cell(text), *(metric(run, f"{way}/{name}@{k}") for k in sorted(found) for name in ("recall", "recall_chance"))]
        for way, text in WAYS.items()
    ]
    heads = ["Asked", *(head for k in sorted(found) for head in (f"Recall@{k}", "by chance"))]
    caption = "How often a right answer is among the first k; equal captions are right for one another"
    return Table(caption, heads, rows) if found else None


def exclusive(run: StoredRun) -> Table | None:
    """How often the most probable of classes that exclude one another is the right one."""
    names = [name.removeprefix("test/") for name in run.section("metrics") if name.startswith("test/top1_")]
    rows = [
        [Cell(name.removeprefix("top1_").replace("_", " ").replace("/", " of ")), metric(run, name)] for name in names
    ]
    return Table("The most probable class of each image", ["Measure", "Value"], rows) if rows else None
