"""Who a phantom shows, and the vocabulary of what it can show.

Every length is a fraction of the image's width; x grows to the right, y downwards. On a chest radiograph
`a` is the distance from the midline, the same on both sides, and the patient's right lies on the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["right", "left", "both", ""]
View = Literal["PA", "AP", "axial"]

FINDINGS = ("Pneumonia", "Infiltration", "Effusion", "Cardiomegaly", "Nodule", "Pneumothorax")
FOCAL = ("Pneumonia", "Effusion", "Nodule", "Pneumothorax")
OPACITIES = ("Pneumonia", "Infiltration", "Effusion", "Nodule")
ORGANS = {"chest": "CHEST", "head": "HEAD", "abdomen": "ABD"}

Stream = Literal["image", "patient", "tissue", "noise"]
_STREAMS: dict[Stream, int] = {"image": 0, "patient": 1, "tissue": 2, "noise": 3}


def stream(seed: int, kind: Stream, *numbers: int) -> np.random.Generator:
    """The random numbers of one image or one patient: they depend on nothing but these arguments."""
    return np.random.default_rng(np.random.SeedSequence([seed, _STREAMS[kind], *numbers]))


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """One uniform draw; several times faster than `rng.uniform` for a scalar."""
    return low + (high - low) * rng.random()


@dataclass(frozen=True)
class Patient:
    """A person and the anatomy that stays the same over the person's images."""

    number: int
    images: int
    organ: str
    sex: Literal["M", "F"]
    age: float
    chest_width: float  # from the midline to the inside of the widest ribs
    apex: float  # y of the lungs' tops
    dome: float  # y of the right diaphragm
    mediastinum: float  # half its width above the heart
    heart_ratio: float  # the heart's width over the thorax's, PA
    heart_tilt: float  # radians
    rib_spacing: float
    rib_drop: float  # how far a rib falls on its way to the chest wall
    clavicle: float  # y where the clavicles meet the sternum
    fat: float  # thickness of the chest wall
    aorta: float  # radius of the aortic knob
    stomach: float  # size of its bubble of air, usually about 1

    @classmethod
    def draw(cls, seed: int, number: int, organs: tuple[str, ...]) -> Patient:
        """Patient `number` of a data set."""
        rng = stream(seed, "patient", number)
        male = rng.random() < 0.55
        age = float(round(min(max(rng.normal(54, 17), 18), 92)))
        return cls(
            number=number,
            images=1 + int(4 * rng.random() ** 1.6),
            organ=organs[int(len(organs) * rng.random())],
            sex="M" if male else "F",
            age=age,
            chest_width=between(rng, 0.35, 0.39) - (0 if male else 0.01),
            apex=between(rng, 0.10, 0.145),
            dome=between(rng, 0.65, 0.72),
            mediastinum=between(rng, 0.058, 0.074),
            heart_ratio=between(rng, 0.39, 0.46),
            heart_tilt=between(rng, 0.45, 0.7),
            rib_spacing=between(rng, 0.070, 0.084),
            rib_drop=between(rng, 0.10, 0.16),
            clavicle=between(rng, 0.19, 0.23),
            fat=between(rng, 0.03, 0.07),
            aorta=0.034 + 0.012 * age / 90 + between(rng, -0.003, 0.003),
            stomach=between(rng, 0.5, 1.25),
        )
