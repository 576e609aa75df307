"""What one image shows: its findings, where they lie, and the borders of the organs around them.

Coordinates as in `patient`: fractions of the image's width, `a` the distance from the midline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mmpds.data.anatomy.patient import FINDINGS, FOCAL, Patient, Side, View, between, stream

Box = tuple[float, float, float, float]

NORMAL_SHARE = 0.45
SECOND_FINDING_SHARE = 0.35


@dataclass(frozen=True)
class Lesion:
    """One finding in one image; `x` is `a` (chest) or x (head) of its centre, severity lies in [0, 1].

    What an opacity adds to the attenuation is multiplied by `strength`.
    """

    finding: str
    side: Side
    severity: float
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    phases: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of an irregular outline
    strength: float = 1.0

    def outline(self, angle: np.ndarray) -> np.ndarray:
        """Distance of the rim from the centre at each angle (radians)."""
        p, q, r = self.phases
        lobes = 0.20 * np.cos(2 * angle + p) + 0.13 * np.cos(3 * angle + q) + 0.07 * np.cos(5 * angle + r)
        return self.radius * (1 + lobes)


@dataclass(frozen=True)
class Scene:
    """All that one image shows, without its texture and noise."""

    patient: Patient
    row: int
    view: View
    lesions: tuple[Lesion, ...]
    midline: float  # x of the spine
    shift: float  # how far the picture lies below its usual place
    zoom: float
    heart_ratio: float
    lift: float  # how much higher the diaphragm stands than in a deep breath
    exposure: float
    contrast: float
    slope: tuple[float, float]  # uneven exposure across and down the picture
    phrasing: int  # which wording its caption takes

    @classmethod
    def draw(cls, seed: int, row: int, patient: Patient) -> Scene:
        """The image of table row `row`."""
        rng = stream(seed, "image", row)
        chest = patient.organ == "chest"
        ap = rng.random() < 0.4
        findings = _findings(rng) if chest else ()
        heart_ratio = patient.heart_ratio + (0.04 if ap else 0.0) + between(rng, -0.01, 0.01)
        if "Cardiomegaly" in findings:
            heart_ratio = between(rng, 0.56, 0.68)
        bare = cls(
            patient=patient,
            row=row,
            view="axial" if not chest else "AP" if ap else "PA",
            lesions=(),
            midline=0.5 + between(rng, -0.02, 0.02),
            shift=between(rng, -0.015, 0.02),
            zoom=between(rng, 0.96, 1.04) * (1.02 if ap else 1.0),
            heart_ratio=heart_ratio,
            lift=between(rng, 0.0, 0.025) + (0.03 if ap else 0.0),
            exposure=between(rng, 0.88, 1.12) * (1.06 if ap else 1.0),
            contrast=between(rng, 0.88, 1.12) * (0.93 if ap else 1.0),
            slope=(between(rng, -0.06, 0.06), between(rng, -0.06, 0.06)),
            phrasing=int(1000 * rng.random()),
        )
        if chest:
            lesions = _chest_lesions(rng, findings, bare)
        else:
            lesions = _head_lesions(rng) if patient.organ == "head" else ()
        return replace(bare, lesions=lesions)

    @cached_property
    def heart(self) -> tuple[float, float, float, float]:
        """The heart's ellipse: centre (signed distance from the midline, y), long and short half-axes."""
        half = self.heart_ratio * self.patient.chest_width
        cos, sin = np.cos(self.patient.heart_tilt), np.sin(self.patient.heart_tilt)
        long = half / float(np.hypot(cos, 0.68 * sin))
        height = long * float(np.hypot(sin, 0.68 * cos))
        return 0.36 * half, self.dome("left") + 0.05 - height, long, 0.68 * long

    def dome(self, side: Side) -> float:
        """Y of the top of the diaphragm; the liver holds the right one higher."""
        return self.patient.dome - self.lift + (0.022 if side == "left" else 0.0)

    def diaphragm(self, a: np.ndarray, dome: np.ndarray | float) -> np.ndarray:
        """Y of the diaphragm at distance `a` from the midline: it falls steeply to the costophrenic angle."""
        top = 0.47 * self.patient.chest_width
        outer = np.maximum(a - top, 0.0) / (self.patient.chest_width - top)
        inner = np.maximum(top - a, 0.0) / top
        return np.asarray(dome + 0.115 * outer**2.2 + 0.025 * inner**2)

    def lung(self, y: np.ndarray, collapse: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Distances `a` of a lung's inner and outer border at height `y`.

        Args:
            y: heights.
            collapse: severity of a pneumothorax; the borders are then those of the collapsed lung.
        """
        width, apex = self.patient.chest_width, self.patient.apex
        base = self.patient.dome + 0.08
        t = np.clip((base - y) / (base - apex), 0.0, 1.0)
        center = 0.44 * width
        outer = center + (width - center) * np.sqrt(1 - t**2.8)
        inner = center - (center - self.patient.mediastinum + 0.01) * np.sqrt(1 - t**5)
        if collapse:
            fall = 0.04 + 0.12 * collapse
            s = np.clip((base - y) / (base - apex - fall), 0.0, 1.0)
            gap = (0.03 + 0.11 * collapse) * np.clip(1.25 * t - 0.1, 0.0, 1.0) ** 0.8
            outer = np.minimum(center + (width - center) * np.sqrt(1 - s**2.8) - gap, outer)
        return inner, outer

    def meniscus(self, lesion: Lesion) -> tuple[float, float]:
        """Y of an effusion's surface at the chest wall, and how far it falls towards the midline."""
        height = 0.05 + 0.26 * lesion.severity
        return self.dome(lesion.side) + 0.10 - height, 0.045 + 0.10 * lesion.severity

    def box(self, lesion: Lesion) -> Box | None:
        """The lesion's bounding box (x, y, width, height) in the image, None for what has no place."""
        extent = self._extent(lesion)
        if extent is None:
            return None
        left, top, right, bottom = extent
        xs = np.clip(self.to_image_x(np.array([left, right])), 0.0, 1.0)
        ys = np.clip(self.to_image_y(np.array([top, bottom])), 0.0, 1.0)
        return float(xs[0]), float(ys[0]), float(xs[1] - xs[0]), float(ys[1] - ys[0])

    def to_image_x(self, x: np.ndarray) -> np.ndarray:
        """Signed distance from the midline to x in the image."""
        return x * self.zoom + self.midline

    def to_image_y(self, y: np.ndarray) -> np.ndarray:
        """The patient's y to y in the image."""
        return (y - 0.5) * self.zoom + 0.5 + self.shift

    def _extent(self, lesion: Lesion) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom in the patient's own coordinates, left and right from the midline."""
        if lesion.finding == "Cardiomegaly":
            x, y, long, short = self.heart
            cos, sin = np.cos(self.patient.heart_tilt), np.sin(self.patient.heart_tilt)
            half, height = np.hypot(long * cos, short * sin), np.hypot(long * sin, short * cos)
            return x - half, y - height, x + half, y + height
        if lesion.finding not in FOCAL:
            return None
        near, far, top, bottom = self._focal_extent(lesion)
        return (near, top, far, bottom) if lesion.side == "left" else (-far, top, -near, bottom)

    def _focal_extent(self, lesion: Lesion) -> tuple[float, float, float, float]:
        """Nearest and farthest `a`, top and bottom."""
        if lesion.finding == "Effusion":
            wall, fall = self.meniscus(lesion)
            a = np.linspace(0.0, self.patient.chest_width, 257)
            surface = wall + fall * (1 - (a / self.patient.chest_width) ** 3)
            floor = self.diaphragm(a, self.dome(lesion.side))
            wet = (surface < floor) & (a > self.patient.mediastinum)
            return a[wet].min(), a[-1], surface[wet].min(), floor[wet].max()
        if lesion.finding == "Pneumothorax":
            y = np.linspace(self.patient.apex, self.dome(lesion.side) + 0.115, 257)
            inner, outer = self.lung(y)
            pleura = np.maximum(self.lung(y, lesion.severity)[1], inner)
            air = (outer - pleura > 0.004) & (y < self.diaphragm(outer, self.dome(lesion.side)))
            return pleura[air].min(), outer[air].max(), y[air].min(), y[air].max()
        angle = np.linspace(0.0, 2 * np.pi, 256)
        rim = lesion.outline(angle) if lesion.finding == "Pneumonia" else np.full(256, lesion.radius)
        a, y = lesion.x + rim * np.cos(angle), lesion.y + rim * np.sin(angle)
        y = np.clip(y, self.patient.apex, None)
        inner, outer = self.lung(y)
        a = np.clip(a, inner, outer)
        y = np.minimum(y, self.diaphragm(a, self.dome(lesion.side)))
        return a.min(), a.max(), y.min(), y.max()


def _findings(rng: np.random.Generator) -> tuple[str, ...]:
    """No, one or two findings, independent of sex, age and view."""
    first, second = int(6 * rng.random()), int(5 * rng.random())
    if rng.random() < NORMAL_SHARE:
        return ()
    if rng.random() >= SECOND_FINDING_SHARE:
        return (FINDINGS[first],)
    return (FINDINGS[first], FINDINGS[(first + 1 + second) % 6])


def _chest_lesions(rng: np.random.Generator, findings: tuple[str, ...], scene: Scene) -> tuple[Lesion, ...]:
    sides: list[Side] = ["right", "left"]
    if rng.random() < 0.5:
        sides.reverse()
    lesions = []
    for finding in findings:
        side: Side = ""
        if finding == "Infiltration":
            side = "both" if rng.random() < 0.5 else sides[0]
        elif finding in FOCAL:
            side = sides.pop(0)  # two focal findings never hide each other
        severity = rng.random()
        lesions.append(_place(rng, scene, finding, side, severity))
    return tuple(lesions)


def _place(rng: np.random.Generator, scene: Scene, finding: str, side: Side, severity: float) -> Lesion:
    if finding == "Pneumonia":
        radius = 0.055 + 0.055 * rng.random()
    elif finding == "Nodule":
        radius = between(rng, 0.015, 0.042)  # 1 to 3 cm across in a picture 36 cm wide
    else:
        return Lesion(finding, side, severity)
    y = between(rng, scene.patient.apex + 0.12, scene.dome(side) - 0.03 - 0.5 * radius)
    (inner,), (outer,) = scene.lung(np.array([y]))
    if side == "left":  # clear of the heart, which reaches further out on this side
        x, heart_y, long, _ = scene.heart
        reach = max(0.0, 1 - ((y - heart_y) / (0.9 * long)) ** 2) ** 0.5
        inner = max(inner, (x + scene.heart_ratio * scene.patient.chest_width) * reach)
    low, high = inner + radius + 0.015, outer - 0.9 * radius - 0.01
    a = between(rng, min(low, high), high)
    phases = (6.28 * rng.random(), 6.28 * rng.random(), 6.28 * rng.random())
    return Lesion(finding, side, severity, float(a), y, radius, phases)


def _head_lesions(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Two of five head slices show a haemorrhage or a mass."""
    kind, right, severity = rng.random(), rng.random() < 0.5, rng.random()
    if kind < 0.6:
        return ()
    finding = "Haemorrhage" if kind < 0.8 else "Mass"
    side: Side = "right" if right else "left"
    phases = (6.28 * rng.random(), 6.28 * rng.random(), 6.28 * rng.random())
    y = between(rng, 0.36, 0.62)
    return (Lesion(finding, side, severity, between(rng, 0.12, 0.17), y, between(rng, 0.04, 0.07), phases),)
