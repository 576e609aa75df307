"""Draws axial CT-like slices of head and abdomen, each organ an ellipse with a grey value of a usual window.

As in every axial CT picture the patient's right lies on the left and the front on top.
"""

from __future__ import annotations

import numpy as np

from mmpds.data.anatomy.film import ellipse, ramp, texture
from mmpds.data.anatomy.patient import between, stream
from mmpds.data.anatomy.scene import Scene

Array = np.ndarray


def draw_axial(seed: int, scene: Scene, size: int) -> Array:
    """The slice of a head or abdomen scene, uint8 [size, size]."""
    tissue = stream(seed, "tissue", scene.patient.number)
    detail = stream(seed, "image", scene.row, 1)
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = ((at - scene.midline) / scene.zoom)[None]
    y = ((at - 0.5 - scene.shift) / scene.zoom + 0.5)[:, None]
    head = scene.patient.organ == "head"
    picture = _head(tissue, detail, scene, x, y) if head else _abdomen(tissue, detail, x, y)
    noise = stream(seed, "noise", scene.row, size).standard_normal((size, size), dtype=np.float32)
    noise[1:] += 0.5 * noise[:-1]  # reconstruction ties neighbouring pixels
    picture = scene.exposure**0.5 * picture + 0.014 * noise * (picture > 0.05)
    return np.asarray(np.clip(picture * 255.0 + 0.5, 0, 255), dtype=np.uint8)


class _Canvas:
    """A picture that organs are painted on, later ones over earlier ones."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y
        self.picture = np.zeros((y.shape[0], x.shape[1]), dtype=np.float32)

    def paint(self, where: Array, grey: Array | float) -> None:
        self.picture += where * (grey - self.picture)

    def oval(self, x: float, y: float, long: float, short: float, angle: float = 0.0) -> Array:
        """Coverage [N, N] of an ellipse, its rim about a hundredth of the picture wide."""
        squared = ellipse(self.x - x, self.y - y, angle, long, short)
        return ramp(1.0 - squared, 0.012 / min(long, short))


def _head(tissue: np.random.Generator, detail: np.random.Generator, scene: Scene, x: Array, y: Array) -> Array:
    canvas = _Canvas(x, y)
    height, width = between(tissue, 0.40, 0.44), between(tissue, 0.32, 0.36)
    bone = between(tissue, 0.020, 0.028)
    size = x.shape[1]
    canvas.paint(canvas.oval(0, 0.5, width + 0.02, height + 0.02), 0.30)  # scalp
    canvas.paint(canvas.oval(0, 0.5, width, height), 0.97)
    brain = canvas.oval(0, 0.5, width - bone, height - bone)
    canvas.paint(brain, 0.10)  # fluid around the brain
    folds = texture(tissue, 26, size)
    depth = 1 - ellipse(x, y - 0.5, 0.0, width - bone, height - bone)
    matter = 0.45 + 0.05 * ramp(0.30 - depth + 0.05 * folds, 0.12) + 0.012 * texture(detail, 30, size)
    canvas.paint(brain * ramp(depth - 0.035 - 0.05 * np.maximum(folds, 0), 0.03), matter)
    gap = 0.006 + 0.00008 * scene.patient.age  # the brain shrinks and its fluid spaces widen with age
    far = np.abs(y - 0.5)
    canvas.paint(brain * ramp(gap - np.abs(x), 0.006) * ramp(far - 0.16, 0.02), 0.18)
    spread = between(tissue, 0.8, 1.1) * (0.8 + 0.005 * scene.patient.age)
    for side in (-1, 1):
        canvas.paint(canvas.oval(side * 0.115, 0.47, 0.07, 0.028, side * 1.25), 0.51)  # deep grey matter
        canvas.paint(canvas.oval(side * 0.045 * spread, 0.41, 0.085 * spread, 0.022 * spread, side * 1.9), 0.14)
        canvas.paint(canvas.oval(side * 0.075 * spread, 0.60, 0.095 * spread, 0.020 * spread, side * 1.15), 0.14)
    canvas.paint(canvas.oval(0, 0.51, 0.008, 0.045), 0.15)
    canvas.paint(canvas.oval(0, 0.575, 0.012, 0.010), 0.85)  # calcified pineal gland
    for lesion in scene.lesions:
        sign = 1 if lesion.side == "left" else -1
        dx, dy = x - sign * lesion.x, y - lesion.y
        radius = np.hypot(dx, dy) / lesion.outline(np.arctan2(dy, dx))
        canvas.paint(brain * ramp(1.75 - radius, 0.25), 0.37)  # oedema
        if lesion.finding == "Haemorrhage":
            canvas.paint(brain * ramp(1 - radius, 0.12), 0.74 + 0.1 * lesion.severity)
        else:
            canvas.paint(brain * ramp(1 - radius, 0.15), 0.60)
            canvas.paint(brain * ramp(0.62 - radius, 0.2), 0.42)
    return canvas.picture


def _abdomen(tissue: np.random.Generator, detail: np.random.Generator, x: Array, y: Array) -> Array:
    canvas = _Canvas(x, y)
    size = x.shape[1]
    width, height = between(tissue, 0.43, 0.47), between(tissue, 0.30, 0.35)
    fat = between(tissue, 0.018, 0.05)
    canvas.paint(canvas.oval(0, 0.5, width, height), 0.24)
    inside = canvas.oval(0, 0.5, width - fat, height - fat)
    canvas.paint(inside, 0.50)  # muscle
    cavity = canvas.oval(0, 0.475, width - fat - 0.03, height - fat - 0.03)
    canvas.paint(cavity, 0.22 + 0.02 * texture(tissue, 20, size))
    for side in (-1, 1):  # muscles of the back, ribs
        canvas.paint(inside * canvas.oval(side * 0.10, 0.70, 0.085, 0.055), 0.50)
        for turn in (0.45, 0.95, 2.6, 3.3):
            a, b = (width - fat - 0.02) * np.sin(turn), 0.49 - (height - fat - 0.02) * np.cos(turn)
            canvas.paint(canvas.oval(side * float(a), float(b), 0.030, 0.010, side * (turn - 0.3)), 0.9)
    loops = [(between(detail, -0.02, 0.24), between(detail, 0.32, 0.50), between(detail, 0.03, 0.05)) for _ in range(7)]
    for at, down, radius in loops:
        canvas.paint(cavity * canvas.oval(at, down, radius * 1.2, radius), 0.47)
        if detail.random() < 0.55:
            canvas.paint(cavity * canvas.oval(at, down - 0.2 * radius, radius * 0.9, radius * 0.55), 0.02)
    liver = np.maximum(canvas.oval(-0.215, 0.44, 0.185, 0.165, -0.5), canvas.oval(-0.06, 0.34, 0.15, 0.075, 0.15))
    veins = ramp(np.abs(texture(tissue, 9, size)) * -1 + 0.10, 0.10)
    canvas.paint(cavity * liver, 0.58 + 0.05 * veins + 0.01 * texture(detail, 30, size))
    canvas.paint(cavity * canvas.oval(0.315, 0.50, 0.115, 0.055, 1.25), 0.60)  # spleen
    canvas.paint(cavity * canvas.oval(0.13, 0.35, 0.10, 0.055, 0.6), 0.44)  # stomach
    canvas.paint(cavity * canvas.oval(0.145, 0.315, 0.06, 0.025, 0.2), 0.02)
    for side, down in ((-1, 0.625), (1, 0.605)):
        canvas.paint(canvas.oval(side * 0.185, down, 0.070, 0.050, side * 0.9), 0.70)  # kidney
        canvas.paint(canvas.oval(side * 0.165, down, 0.030, 0.016, side * 0.9), 0.34)
    canvas.paint(canvas.oval(0, 0.635, 0.062, 0.050), 0.86)  # vertebra
    canvas.paint(canvas.oval(0, 0.632, 0.050, 0.038), 0.74)
    canvas.paint(canvas.oval(0, 0.71, 0.030, 0.022), 0.42)
    for side in (-1, 1):
        canvas.paint(canvas.oval(side * 0.055, 0.705, 0.045, 0.010, side * 0.3), 0.86)
    canvas.paint(canvas.oval(0, 0.755, 0.012, 0.035), 0.86)
    canvas.paint(canvas.oval(0.025, 0.555, 0.026, 0.026), 0.74)  # aorta
    canvas.paint(canvas.oval(-0.055, 0.545, 0.028, 0.020), 0.68)  # vena cava
    return canvas.picture
