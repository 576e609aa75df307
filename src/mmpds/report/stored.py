"""A run as its directory holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpds import results

GALLERY = ("file", "id", "finding", "label", "probability", "decision", "outcome")
MANIFEST = ("id", "prompt", "seed", "model", "status")
SECTIONS = ("metrics", "intervals", "counts", "timing", "energy", "memory", "hardware", "versions", "fairness")


class Judged(NamedTuple):
    """A finding's labelled test images: `prob` float32 [K] in [0, 1], `positive` and `flagged` bool [K]."""

    prob: NDArray[np.float32]
    positive: NDArray[np.bool_]
    flagged: NDArray[np.bool_]

    @property
    def positives(self) -> int:
        """How many images have the finding."""
        return int(np.count_nonzero(self.positive))

    @property
    def negatives(self) -> int:
        """How many do not."""
        return len(self.positive) - self.positives

    @property
    def hits(self) -> int:
        """True positives at the operating point."""
        return int(np.count_nonzero(self.flagged & self.positive))

    @property
    def false(self) -> int:
        """False positives at the operating point."""
        return int(np.count_nonzero(self.flagged & ~self.positive))


@dataclass(frozen=True)
class StoredRun:
    """What the files of a run directory say.

    path: the directory.
    result: the content of results.json.
    table: the rows of predictions.csv; empty where there is none.
    gallery: the rows of gradcam/gallery.csv; empty where there is none.
    manifest: the rows of images/manifest.csv, the images that a generator made; empty where there is none.
    config: the text of config.yaml.
    """

    path: Path
    result: Mapping[str, Any]
    table: pd.DataFrame
    gallery: pd.DataFrame
    manifest: pd.DataFrame
    config: str

    @classmethod
    def read(cls, path: Path) -> StoredRun:
        """Read a run directory.

        Raises:
            ValueError: there is no run, or a file of it is damaged; the text names it.
        """
        if not (path / results.FILE).is_file():
            raise ValueError(f"{path}: no {results.FILE} there; give the directory of a run")
        try:
            result = json.loads((path / results.FILE).read_text())
        except ValueError as error:
            raise ValueError(f"{path / results.FILE} is damaged: {error}") from error
        if not isinstance(result, Mapping):
            raise ValueError(f"{path / results.FILE} is damaged: it holds no object")
        if wrong := [name for name in SECTIONS if not isinstance(result.get(name) or {}, Mapping)]:
            raise ValueError(f"{path / results.FILE} is damaged: {', '.join(wrong)} must be objects")
        table, gallery = _csv(path / "predictions.csv"), _csv(path / "gradcam" / "gallery.csv")
        run = cls(path, result, table, gallery, _csv(path / "images" / "manifest.csv"), _text(path / results.CONFIG))
        run._check()
        return run

    def section(self, name: str) -> dict[str, Any]:
        """A mapping of results.json, such as `metrics`; {} where it is missing or null."""
        return dict(self.result.get(name) or {})

    @property
    def generator(self) -> bool:
        """Whether the run made images, or tested a model that does."""
        made = len(self.manifest) > 0 or "predict/images" in self.section("counts")
        return made or "extractor" in self.result

    @property
    def sheet(self) -> Path:
        """Where the contact sheet of a generator's images is, if there is one."""
        return self.path / "contact_sheet.png"

    @cached_property
    def findings(self) -> list[str]:
        """The findings that were predicted, or, without predictions, those that were judged."""
        ending = " probability"
        names = [str(column).removesuffix(ending) for column in self.table if str(column).endswith(ending)]
        judged = [name.removeprefix("test/labelled/") for name in self.section("counts") if "test/labelled/" in name]
        return [results.as_written(name) for name in names] or judged

    @cached_property
    def tested(self) -> pd.DataFrame:
        """The rows of the test split: the only ones that are judged."""
        return self.table[self.table["split"] == "test"] if len(self.table) else self.table

    @cached_property
    def predicted(self) -> pd.DataFrame:
        """The rows of images without a known answer."""
        return self.table[self.table["split"] == "predict"] if len(self.table) else self.table

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """Each finding's labelled test images; findings without any are left out."""
        found = {}
        for finding in self.findings if len(self.tested) else ():
            prob, label, decision = (
                column(self.tested, finding, what).to_numpy(np.float64) for what in ("probability", "label", "decision")
            )
            known = ~np.isnan(label)
            if known.any():
                found[finding] = Judged(prob[known].astype(np.float32), label[known] == 1, decision[known] == 1)
        return found

    def _check(self) -> None:
        problems, scored = [], any(str(name).endswith(" probability") for name in self.table)
        if len(self.table.columns):  # else there is no file
            problems = [f"no column {name}" for name in ("split", "id") if name not in self.table]
            problems += [] if scored else ["no column of a finding's probability"]
        for finding in self.findings if scored and len(self.table) else ():
            for what in ("label", "probability", "decision"):
                try:
                    values = column(self.table, finding, what).to_numpy(np.float64)
                except (KeyError, ValueError):
                    problems.append(f"no numbers in a column {finding} {what}")
                    continue
                inside = (values >= 0) & (values <= 1)
                if not (inside | (np.isnan(values) & (what == "label"))).all():
                    problems.append(f"{finding} {what} outside 0 to 1")
        if problems:
            cure = "delete it for a report without predictions"
            raise ValueError(f"{self.path / 'predictions.csv'} is damaged: {'; '.join(problems)}; {cure}")
        for table, names, file in (
            (self.gallery, GALLERY, "gradcam/gallery.csv"), (self.manifest, MANIFEST, "images/manifest.csv"),
        ):  # fmt: skip
            if missing := [name for name in names if len(table.columns) and name not in table]:
                raise ValueError(f"{self.path / file} is damaged: no column {', '.join(missing)}")


def column(table: pd.DataFrame, finding: str, what: str) -> pd.Series[Any]:
    """A finding's `label`, `probability` or `decision`."""
    return table[f"{results.inert(finding)} {what}"]


def _csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    texts = dict.fromkeys(("split", "id", "group", "sex", "view", *GALLERY[:3], "outcome", *MANIFEST), str)
    try:  # an id may read "NA": only an empty cell is missing
        return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
