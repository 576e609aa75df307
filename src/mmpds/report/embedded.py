"""What a CLIP's embeddings are worth beside zero-shot detection: the tables of a report."""

from __future__ import annotations

from mmpds.report.stored import StoredRun
from mmpds.report.tables import MACRO, Cell, Table, metric

WAYS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}


def compared(run: StoredRun) -> list[Table]:
    """All tables of this page that the run has something for."""
    return [table for table in (learners(run), retrieval(run), exclusive(run)) if table]


def learners(run: StoredRun) -> Table | None:
    """AUROC of each finding: by sentences alone, from a few labelled images, from all."""
    metrics, few = run.section("metrics"), "test/few_shot_"
    shots = sorted({int(name.removeprefix(few).split("/")[0]) for name in metrics if name.startswith(few)})
    kinds = {f"few_shot_{count}": f"{count} + {count} images" for count in shots}
    if any(name.startswith("test/linear_probe/") for name in metrics):
        kinds["linear_probe"] = "All images"
    if not kinds:
        return None
    rows = [
        [Cell(MACRO if finding == "macro" else finding)]
        + [metric(run, f"{kind}auroc/{finding}") for kind in ("", *(f"{kind}/" for kind in kinds))]
        for finding in (*run.findings, "macro")
    ]
    caption = "AUROC by sentences alone, and of logistic regression on the embeddings of labelled training images"
    return Table(caption, ["Finding", "Zero-shot", *kinds.values()], rows)


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
