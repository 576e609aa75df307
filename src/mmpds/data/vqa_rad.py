"""VQA-RAD, as it is released: radiological images with clinicians' questions and answers (Lau et al. 2018)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mmpds.data.images import ImageFiles, find_images

RELEASE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
ORGANS = {"HEAD": "Head", "CHEST": "Chest", "ABD": "Abdomen"}
COLUMNS = ("image_name", "qid", "question", "answer", "answer_type", "question_type", "image_organ", "phrase_type")


def read_questions(root: str | Path) -> list[dict[str, Any]]:
    """The release's rows, cleaned: integer answers as texts, stray blanks and tabs gone, `CLOSED ` as `CLOSED`.

    Returns:
        A dictionary a row with `COLUMNS`, texts but for `qid`, an int; and `split`, the official one (train or test).

    Raises:
        ValueError: the file cannot be read, or is not as released.
    """
    path = Path(root) / RELEASE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [{name: " ".join(str(row[name]).split()) for name in COLUMNS} for row in rows]
        for row in found:
            row["qid"] = int(row["qid"])  # type: ignore[assignment]
            row["split"] = "test" if row["phrase_type"].startswith("test") else "train"
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise ValueError(f"data.root={root}: {RELEASE}: {why}; give the folder that holds it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data.root={root}: {RELEASE} is not as released ({error}); get it anew") from error
    if (kinds := len({row["qid"] for row in found})) < len(found) or not found:
        raise ValueError(f"data.root={root}: {RELEASE} has {len(found)} rows of {kinds} qid; get it anew")
    return found


class VqaRad(ImageFiles):
    """A row an image; what it is asked and what is answered make its captions. A `Source`.

    Findings are the organs Head, Chest and Abdomen, of which an image shows exactly one; an image without a question
    has none labelled. They come from the column `image_organ`, which no caption quotes. The official split is one of
    questions and shares nearly all images between its parts, so that there is no `split` column: images are split by
    `data.split=own`.

    Besides the contract's columns: `organ` ("HEAD", "CHEST", "ABD" or None) and `captions`, the pairs of an image
    ("Is the heart enlarged? Yes") of which training draws one; `caption` is all of them.

    Args:
        root: the folder that holds the public JSON and the folder of images.
        findings: label columns, out of the three organs; None: all.

    Raises:
        ValueError: the release cannot be read, or an organ is unknown.
    """

    def __init__(self, root: str | Path, findings: Sequence[str] | None = None) -> None:
        chosen = tuple(ORGANS.values()) if findings is None else tuple(findings)
        if unknown := set(chosen) - set(ORGANS.values()):
            raise ValueError(f"findings={sorted(unknown)}: VQA-RAD labels {', '.join(ORGANS.values())}")
        self._rows = read_questions(root)
        paths = find_images(Path(root), IMAGES)
        pairs: dict[str, list[str]] = {Path(path).name: [] for path in paths}
        organ: dict[str, str] = {}
        for row in self._rows:
            pairs.setdefault(row["image_name"], []).append(f"{row['question']} {row['answer']}")
            organ[row["image_name"]] = row["image_organ"]
        if missing := sorted(set(pairs) - {Path(path).name for path in paths}):
            raise ValueError(
                f"root={root}: {len(missing)} images are not in {IMAGES}: {', '.join(missing[:3])}; get it anew"
            )
        names = [Path(path).name for path in paths]
        table = pd.DataFrame({
            "id": names, "group": names, "normal": False, "path": paths, "organ": [organ.get(name) for name in names],
            "caption": [" ".join(pairs[name]) for name in names], "captions": [pairs[name] for name in names],
        })  # fmt: skip
        labels = {
            name: (table["organ"] == code).astype(float).where(table["organ"].notna()) for code, name in ORGANS.items()
        }
        super().__init__(root, table.assign(**{name: labels[name] for name in chosen}), chosen)

    @cached_property
    def questions(self) -> pd.DataFrame:
        """The cleaned rows: `COLUMNS` and the official `split`."""
        return pd.DataFrame(self._rows)
