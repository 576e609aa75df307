"""The offline default data set: procedural medical images whose truth is known exactly.

A phantom is a synthetic test object. Its images teach a pipeline, not a doctor: figures measured on them say
that training, evaluation and reporting work, and nothing about patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mmpds.data.anatomy.axial import draw_axial
from mmpds.data.anatomy.patient import FINDINGS, OPACITIES, ORGANS, Patient
from mmpds.data.anatomy.radiograph import draw_radiograph
from mmpds.data.anatomy.scene import Scene
from mmpds.data.anatomy.wording import caption, questions

SMALLEST = 16
"""Pixels a side below which a picture shows nothing."""


class Phantom:
    """Procedural radiographs of the chest and axial CT-like slices of head and abdomen; a `Source`.

    Row i of a seed shows the same whatever the number of images. Patients have one to four images each and
    keep their anatomy over these. Findings are drawn independently of sex, age and view; about 45 % of the
    chest images have none and a third of the others two.

    Besides the contract's columns the table has `organ` ("CHEST", "HEAD", "ABD"); the view of a slice is
    "axial". `normal` and `caption` tell of all that an image shows, also of findings that were not asked for.

    Args:
        images: number of images.
        seed: names the set; any integer from 0 up.
        findings: label columns, a selection of `FINDINGS`. The images do not depend on it.
        organs: what the patients are examined for, out of "chest", "head" and "abdomen"; each equally often.
        faint: a bias to plant, such as `{sex: F, findings: [Pneumonia], strength: 0.4}`: in patients of that sex
            these findings (of `OPACITIES`) are drawn with that share of their contrast, in [0, 1], and everything
            else as it is. A detector then misses more of them there. None for none.

    Raises:
        ValueError: no image, a negative seed, an unknown finding or organ, or a bias that cannot be drawn.
    """

    def __init__(
        self,
        images: int = 2000,
        seed: int = 0,
        findings: Sequence[str] = FINDINGS,
        organs: Sequence[str] = ("chest",),
        faint: Mapping[str, Any] | None = None,
    ) -> None:
        if images < 1:
            raise ValueError(f"images={images}: a phantom needs at least one image")
        if seed < 0:
            raise ValueError(f"seed={seed}: take an integer from 0 up")
        self.findings = _known("findings", findings, FINDINGS)
        self.seed = seed
        self._organs = _known("organs", organs, tuple(ORGANS))
        self._faint = _Faint.of(faint) if faint else None
        self._patient = self._visits(images)
        self.table = self._build_table()

    def image(self, row: int, size: int) -> np.ndarray:
        """Image of table row `row` as uint8 [size, size] grey, 0 is black (air).

        Everything but the noise is the same picture at every size.

        Raises:
            ValueError: `size` is below 16 pixels.
        """
        if size < SMALLEST:
            raise ValueError(f"size={size}: a phantom needs at least {SMALLEST} pixels a side")
        patient = Patient.draw(self.seed, int(self._patient[row]), self._organs)
        draw = draw_radiograph if patient.organ == "chest" else draw_axial
        return draw(self.seed, self._scene(row, patient), size)

    def digest(self, row: int) -> str:
        """A hash that names the image among those of all seeds, rows and organs, without drawing it."""
        name = f"phantom 1/{self.seed}/{row}/{self.table['organ'].iat[row]}"
        if row in self._fainter:
            name += f"/{self._faint}"
        return hashlib.sha256(name.encode()).hexdigest()[:32]

    @cached_property
    def boxes(self) -> pd.DataFrame:
        """Exact bounding boxes: id, finding, and x, y, w, h in fractions of the image in [0, 1].

        A row a Pneumonia, Effusion, Nodule, Pneumothorax or (the heart) Cardiomegaly; x and y name the upper
        left corner. The box of a lesion is cut to the lung.
        """
        rows = [
            (name, lesion.finding, *box)
            for name, scene in zip(self.table["id"], self._scenes(), strict=True)
            for lesion in scene.lesions
            if lesion.finding in self.findings and (box := scene.box(lesion)) is not None
        ]
        return pd.DataFrame(rows, columns=["id", "finding", "x", "y", "w", "h"])

    @cached_property
    def questions(self) -> pd.DataFrame:
        """Question-answer pairs with the columns of VQA-RAD (Lau et al., Sci. Data 2018).

        image_name (the image's id), qid, question, answer, answer_type ("CLOSED" or "OPEN"), question_type
        ("PRES", "ABN", "POS", "MODALITY", "PLANE" or "ORGAN"), image_organ. All that an image can show is
        asked for, also findings that are no label column.
        """
        rows = [
            (name, *pair, ORGANS[scene.patient.organ])
            for name, scene in zip(self.table["id"], self._scenes(), strict=True)
            for pair in questions(scene)
        ]
        columns = ["image_name", "question", "answer", "answer_type", "question_type", "image_organ"]
        table = pd.DataFrame(rows, columns=columns)
        table.insert(1, "qid", np.arange(len(table)))
        return table

    def _visits(self, images: int) -> np.ndarray:
        """The patient's number of each image, int64 [images]."""
        visits: list[int] = []
        number = 0
        while len(visits) < images:
            visits += [number] * Patient.draw(self.seed, number, self._organs).images
            number += 1
        return np.array(visits[:images])

    def _scenes(self) -> Iterator[Scene]:
        """Every image's scene, in the table's order."""
        patient: Patient | None = None
        for row, number in enumerate(self._patient.tolist()):
            if patient is None or patient.number != number:
                patient = Patient.draw(self.seed, number, self._organs)
            yield self._scene(row, patient)

    def _scene(self, row: int, patient: Patient) -> Scene:
        scene = Scene.draw(self.seed, row, patient)
        return self._faint.applied(scene) if self._faint else scene

    @cached_property
    def _fainter(self) -> frozenset[int]:
        """The rows that a planted bias changes."""
        if not self._faint:
            return frozenset()
        return frozenset(scene.row for scene in self._scenes() if any(one.strength != 1 for one in scene.lesions))

    def _build_table(self) -> pd.DataFrame:
        rows = []
        for scene in self._scenes():
            patient = scene.patient
            shown = {lesion.finding for lesion in scene.lesions}
            rows.append(
                (
                    f"phantom-{self.seed}-{scene.row:06d}",
                    f"patient-{self.seed}-{patient.number:05d}",
                    not shown,
                    patient.sex,
                    patient.age,
                    scene.view,
                    ORGANS[patient.organ],
                    caption(scene),
                    *(float(finding in shown) for finding in self.findings),
                )
            )
        columns = ["id", "group", "normal", "sex", "age", "view", "organ", "caption", *self.findings]
        return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class _Faint:
    """A planted bias."""

    sex: str
    findings: tuple[str, ...]
    strength: float

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> _Faint:
        wrong = []
        if set(stated) != {"sex", "findings", "strength"}:
            raise ValueError(f"faint: {sorted(stated)} are not sex, findings and strength; give these three")
        if stated["sex"] not in ("M", "F"):
            wrong.append(f"faint.sex: {stated['sex']!r} is neither M nor F")
        if not isinstance(stated["strength"], int | float) or not 0 <= stated["strength"] <= 1:
            wrong.append(f"faint.strength: {stated['strength']!r} is no share; give a number from 0 to 1")
        try:
            findings = _known("faint.findings", stated["findings"], OPACITIES)
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        return cls(stated["sex"], tuple(sorted(findings)), float(stated["strength"]))

    def applied(self, scene: Scene) -> Scene:
        if scene.patient.sex != self.sex:
            return scene
        dimmed = [
            replace(lesion, strength=self.strength) if lesion.finding in self.findings else lesion
            for lesion in scene.lesions
        ]
        return replace(scene, lesions=tuple(dimmed))


def _known(argument: str, names: Iterable[str], valid: tuple[str, ...]) -> tuple[str, ...]:
    chosen = (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        if name not in valid:
            folded = {option.lower(): option for option in valid}
            near = [folded[match] for match in get_close_matches(str(name).lower(), folded, cutoff=0.5)]
            raise ValueError(f"{argument}: {name!r} is unknown; take {' or '.join(near or valid)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"{argument}={list(chosen)}: name at least one of {', '.join(valid)}, each once")
    return chosen
