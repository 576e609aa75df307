"""The judgement of answers that a file holds: a run's own, or any model's to the questions of VQA-RAD."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mmpds import results
from mmpds.data.vqa_rad import read_questions
from mmpds.metrics.text import majority
from mmpds.results import as_written
from mmpds.tasks.text import judge
from mmpds.world import cores

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate_answers(cfg: DictConfig, started: float) -> dict[str, Any]:
    """All figures of the answers of `data.answers`.

    Args:
        cfg: the composed configuration, of stage `evaluate`.
        started: when the user pressed enter, as time.time().

    Raises:
        ValueError: the files cannot be judged; the text says why, and the cure.
    """
    timing = {"startup_s": time.time() - started}
    began = time.perf_counter()
    table, notes = read_answers(cfg.data.answers, cfg.data.root)
    judged = judge(table, np.empty((0, 0)), (), cfg.bootstrap, cfg.seed)
    timing["evaluate_s"] = time.perf_counter() - began
    found: dict[str, Any] = {
        section: {f"test/{name}": value for name, value in vars(judged)[section].items()}
        for section in ("metrics", "intervals", "counts")
    }
    return found | {
        "warnings": notes + judged.warnings, "timing": timing, "hardware": results.hardware([], cores()),
        "energy": {"joules": None, "joules_per_item": None, "method": "unavailable"},
        "memory": {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
        "artifacts": {"config": results.CONFIG}, "error": None,
    }  # fmt: skip


def read_answers(path: str | Path, root: str | Path | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Answers beside their references, as `judge` takes them, and what a reader must know of them.

    Args:
        path: a run's texts.csv; or, with `root`, a CSV with columns id and answer, or a JSON: a list of objects of
            these, or an object of answers by id. An id is a qid of VQA-RAD.
        root: the folder that holds VQA-RAD, whose official test questions are judged; one without an answer is wrong.

    Raises:
        ValueError: a file cannot be read, lacks what it needs, or answers twice or nothing that is asked.
    """
    raw = _read(Path(path))
    if root is None:
        if missing := {"split", "id", "group", "answer", "prediction", "question"} - set(raw):
            listed = ", ".join(sorted(missing))
            raise ValueError(f"data.answers={path}: no column {listed}; give a run's texts.csv, or data.root=VQA_RAD")
        return raw[raw["split"] == "test"].map(as_written).reset_index(drop=True), []
    if missing := {"id", "answer"} - set(raw):
        raise ValueError(f"data.answers={path}: no {', '.join(sorted(missing))}; give the columns id and answer")
    if twice := raw["id"][raw["id"].duplicated()].tolist():
        raise ValueError(f"data.answers={path}: {len(twice)} ids occur twice, such as {twice[0]}; keep one of each")
    questions = pd.DataFrame(read_questions(root))
    asked = questions[questions["split"] == "test"].reset_index(drop=True)
    ids = asked["qid"].astype(str)
    if not ids.isin(raw["id"]).any():
        raise ValueError(f"data.answers={path}: no id is a qid of a test question, such as {ids[0]}; give these as ids")
    notes = []
    if silent := int((~ids.isin(raw["id"])).sum()):
        notes.append(f"{silent} of {len(ids)} test questions have no answer in the file and count as wrong")
    if other := int((~raw["id"].isin(ids)).sum()):
        notes.append(f"{other} answers are to no test question and are left out")
    given = raw.set_index("id")["answer"]
    trained = questions[questions["split"] == "train"].assign(share=1.0)
    table = asked.assign(
        id=asked["image_name"], group=asked["image_name"], prediction=ids.map(given).fillna(""),
        majority=majority(trained, asked),
    )  # fmt: skip
    return table, notes


def _read(path: Path) -> pd.DataFrame:
    """The file's cells as texts."""
    cure = "give a CSV with the columns id and answer, or a JSON of these"
    try:
        if path.suffix.lower() != ".json":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = [{"id": name, "answer": answer} for name, answer in content.items()]
        return pd.DataFrame(content).astype(str)
    except (OSError, ValueError, TypeError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"data.answers={path}: {cure} ({' '.join(str(error).split())[:200]})") from error
