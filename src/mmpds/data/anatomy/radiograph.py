"""Draws a frontal chest radiograph: adds up what each organ attenuates, then exposes the film.

Shapes: N = pixels a side. Whatever varies along one axis only is [N, 1] or [1, N] and broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmpds.data.anatomy.film import ellipse, expose, letters, ramp, strew, texture
from mmpds.data.anatomy.patient import Side, stream
from mmpds.data.anatomy.scene import Lesion, Scene

Array = np.ndarray


@dataclass(frozen=True)
class _Frame:
    """The image's pixels in the patient's coordinates."""

    x: Array  # [1, N] from the midline, to the image's right
    y: Array  # [N, 1]
    a: Array  # [1, N] |x|
    left: Array  # [1, N] 1 on the patient's left
    pixel: float

    @classmethod
    def of(cls, scene: Scene, size: int) -> _Frame:
        at = (np.arange(size, dtype=np.float32) + 0.5) / size
        x = ((at - scene.midline) / scene.zoom).astype(np.float32)[None]
        y = ((at - 0.5 - scene.shift) / scene.zoom + 0.5).astype(np.float32)[:, None]
        return cls(x, y, np.abs(x), (x > 0).astype(np.float32), 1.0 / size)

    def half(self, side: Side) -> Array | float:
        """1 on one side of the midline, 0 on the other."""
        return 1.0 if side == "both" else self.left if side == "left" else 1.0 - self.left


def draw_radiograph(seed: int, scene: Scene, size: int) -> Array:
    """The radiograph of a chest scene, uint8 [size, size]."""
    frame = _Frame.of(scene, size)
    tissue = stream(seed, "tissue", scene.patient.number)
    x, y, a = frame.x, frame.y, frame.a
    soft = max(0.006, 0.75 * frame.pixel)

    inner, outer = (edge.astype(np.float32) for edge in scene.lung(y))
    dome = scene.dome("right") + (scene.dome("left") - scene.dome("right")) * ramp(x, 0.08)
    floor = scene.diaphragm(a, dome).astype(np.float32)
    thorax = ramp(outer - a, soft) * ramp(y - scene.patient.apex, soft)
    above = ramp(floor - y, soft)
    lung = thorax * ramp(a - inner, 1.3 * soft) * above

    body = _body(scene, frame, floor, thorax)
    aerated = lung * (0.78 + 0.22 * ramp(outer - a - 0.05, 0.07) * ramp(a - inner - 0.03, 0.06))
    chest = body * (1 - 0.66 * aerated)
    heart, middle = _mediastinum(scene, frame, above)
    lung = lung * (1 - heart)
    chest += lung * (0.012 * texture(tissue, 24, size)) + (0.02 * body) * texture(tissue, 9, size)
    marks = lung * _vessels(tissue, scene, size)
    for lesion in scene.lesions:
        if lesion.finding == "Pneumothorax":
            chest, marks = _pneumothorax(scene, frame, lesion, chest, marks, lung, outer)
    chest += marks + middle
    chest += _ribs(scene, frame, inner, outer, thorax, floor, texture(tissue, 6, size))
    chest += _shoulders(scene, frame, soft)
    detail = stream(seed, "image", scene.row, 1)
    for lesion in scene.lesions:
        chest += lesion.strength * _opacity(detail, scene, frame, lesion, lung)
    chest *= 1 + scene.slope[0] * x + scene.slope[1] * (y - 0.5)
    chest += 0.02  # scatter
    _stamp(chest, scene, size)
    noise = stream(seed, "noise", scene.row, size)
    return expose(noise, chest, 1.45 * scene.exposure, 1.15 * scene.contrast, 0.007)


def _body(scene: Scene, frame: _Frame, floor: Array, thorax: Array) -> Array:
    """Soft tissue: neck, shoulders, arms, trunk, breasts, and the abdomen below the diaphragm."""
    patient, x, a, y = scene.patient, frame.x, frame.a, frame.y
    wall = patient.chest_width + patient.fat
    slope = np.clip((a - 0.085) / 0.36, 0, 1.3)
    top = 0.03 + 0.095 * slope**0.75 + 4.0 * np.maximum(a - 0.42, 0) ** 2
    skin = np.where(a < 0.085, -1.0, top - 0.12 * np.clip(1 - (a - 0.085) / 0.07, 0, 1) ** 2)
    trunk = wall + 0.11 * np.exp((0.36 - np.maximum(y, 0.30)) / 0.05) + 0.04 * np.clip((y - 0.7) / 0.3, 0, 1)
    arm = wall + 0.085 + 0.22 * (y - 0.36)
    gap = ramp(a - trunk, 0.012) * ramp(arm - a, 0.010) * ramp(y - 0.38, 0.03)
    rim = 0.35 + 0.65 * ramp(trunk - a - 0.015, 0.04)  # tangent to the skin there is little tissue
    depth = ramp(y - skin - 0.03, 0.045) * (1 - gap) * rim
    tissue = 0.52 + 2.0 * (patient.fat - 0.05) + 0.10 * np.clip((y - 0.4) / 0.4, 0, 1)
    low = y - scene.dome("right") - 0.07
    belly = thorax * ramp(y - floor, 0.008) + (1 - thorax) * ramp(low, 0.14)
    organs = 0.37 + 0.10 * ramp(-x, 0.15) + 0.35 * np.clip(y - floor, 0, 0.3)
    body = depth * (tissue + belly * organs)
    if patient.sex == "F":
        shape = ellipse(a - 0.20, y - (patient.dome - 0.03), 0.15, 0.17, 0.115)
        body += 0.10 * ramp(1 - shape, 0.14) * (0.4 + 0.6 * np.clip((y - 0.4) / 0.3, 0, 1)) * depth
    gas = ellipse(x - 0.13, y - scene.dome("left") - 0.05, -0.1, 0.066 * patient.stomach, 0.028 * patient.stomach)
    return np.asarray(body - 0.30 * ramp(1 - gas, 0.6))


def _mediastinum(scene: Scene, frame: _Frame, above: Array) -> tuple[Array, Array]:
    """The heart's shadow in [0, 1], and what heart, great vessels, hila, spine and windpipe attenuate."""
    patient, x, y, a = scene.patient, frame.x, frame.y, frame.a
    heart_x, heart_y, long, short = scene.heart
    inside = 1 - ellipse(x - heart_x, y - heart_y, patient.heart_tilt, long, short)
    heart = ramp(inside, 0.13)
    waist = np.clip((y - patient.clavicle - 0.12) / 0.25, 0, 1)
    width = patient.mediastinum * (0.78 + 0.25 * waist + 0.55 * waist * ramp(x, 0.05))
    trunk = ramp(width - a, 0.032)
    knob_y = patient.clavicle + 0.10
    edge = patient.mediastinum
    knob = ellipse(x - 0.66 * edge, y - knob_y, 0.0, patient.aorta, 1.15 * patient.aorta)
    artery = ellipse(x - 0.80 * edge, y - knob_y - 0.09, 0.3, 0.034, 0.05)
    vena = ellipse(x + 0.62 * edge, y - knob_y - 0.06, 0.0, 0.030, 0.17)
    great = ramp(1 - knob, 0.6) + 0.7 * ramp(1 - artery, 0.9) + 0.5 * ramp(1 - vena, 0.9)
    hilum = ellipse(a - edge - 0.012, y - knob_y - 0.125, 0.9, 0.055, 0.032)
    total = np.maximum(0.40 * trunk, 0.34 * np.minimum(great, 1.0)) + 0.10 * ramp(1 - hilum, 1.0)
    heavy = heart * (0.42 + 0.14 * np.maximum(inside, 0))
    total = (np.maximum(total, heavy) + 0.15 * np.minimum(total, heavy)) * (0.35 + 0.65 * above)
    disc = np.cos(y * np.float32(2 * np.pi / (0.72 * patient.rib_spacing)))
    spine = ramp(0.036 - a, 0.016) * (0.085 + 0.022 * disc)
    pedicles = np.exp(-(((a - 0.026) / 0.008) ** 2)) * 0.04 * ramp(disc, 0.3)
    windpipe = ramp(0.019 - np.abs(x + 0.003), 0.009) * ramp(knob_y + 0.05 - y, 0.02)
    fork = np.abs(a - 0.012 - 0.75 * np.maximum(y - knob_y - 0.045, 0))
    bronchi = ramp(0.013 - fork, 0.008) * ramp(y - knob_y - 0.035, 0.01) * ramp(knob_y + 0.12 - y, 0.03)
    return heart, np.asarray(total + spine + pedicles - 0.17 * windpipe - 0.10 * bronchi)


def _ribs(scene: Scene, frame: _Frame, inner: Array, outer: Array, thorax: Array, floor: Array, warp: Array) -> Array:
    """Posterior ribs run out and down from the spine, anterior ones in and down from the chest wall."""
    patient, a, y = scene.patient, frame.a, frame.y
    u = np.clip((a - 0.03) / np.maximum(outer - 0.03, 0.03), 0.0, 1.2)
    cage = thorax * ramp(floor + 0.10 - y, 0.06)
    steep = patient.rib_drop * (0.75 + 0.5 * np.clip(y, 0, 1))
    posterior = (y - steep * (u**2.4 - 0.30 * u) - patient.apex) / patient.rib_spacing
    anterior = (y + 1.6 * steep * (u - 0.45) + 0.03 * u**4 - patient.apex) / patient.rib_spacing
    blur = min(0.45, max(0.10, 1.1 * frame.pixel / patient.rib_spacing))

    def bone(phase: Array, thick: float) -> Array:
        off = np.abs(phase + 0.05 * warp - np.round(phase + 0.05 * warp))
        cortex = np.exp(-(((off - thick + 0.05) / max(0.07, blur)) ** 2))
        return np.asarray(ramp(thick - off, blur) + 0.55 * cortex * (off < 0.45))

    front = ramp(u - 0.38, 0.15) * ramp(y - patient.apex - 0.10, 0.08)
    wall = np.exp(-(((outer - a) / 0.012) ** 2)) * (a <= outer)
    age = 1.1 - 0.003 * patient.age
    return np.asarray(
        age * cage * (0.072 * bone(posterior, 0.25) * (0.55 + 0.45 * u) + 0.045 * bone(anterior, 0.23) * front)
        + 0.09 * wall * cage
    )


def _shoulders(scene: Scene, frame: _Frame, soft: float) -> Array:
    """Clavicles, shoulder blades and the heads of the upper arms."""
    patient, a, y = scene.patient, frame.a, frame.y
    raised = 0.035 if scene.view == "AP" else 0.0
    s = np.clip((a - 0.035) / 0.34, 0.0, 1.15)
    line = patient.clavicle - raised - 0.085 * s - 0.018 * np.sin(2 * np.pi * s)
    off = np.abs(y - line)
    thick = 0.0115 + 0.004 * np.abs(s - 0.5)
    shaft = ramp(thick - off, soft) + 0.5 * np.exp(-(((off - thick) / max(0.004, frame.pixel)) ** 2))
    clavicle = shaft * ramp(a - 0.035, 0.012) * ramp(0.40 - a, 0.02)
    head = ramp(1 - ellipse(a - 0.455, y - patient.clavicle + 0.0, 0.0, 0.052, 0.06), 0.35)
    arm = ramp(0.03 - np.abs(a - 0.475 - 0.12 * (y - patient.clavicle)), 0.012)
    arm = arm * ramp(y - patient.clavicle - 0.03, 0.03)
    blade_a = (0.345 if scene.view == "AP" else 0.385) - 0.25 * (y - 0.30) * (y > 0.30)
    blade = ramp(a - blade_a, 0.012) * ramp(patient.clavicle + 0.21 - y - 0.5 * (a - blade_a), 0.04)
    blade = blade * ramp(y - patient.clavicle + 0.01, 0.03) * ramp(0.45 - a, 0.04)
    return np.asarray(0.13 * clavicle + 0.15 * np.maximum(head, arm) + 0.10 * blade)


def _vessels(rng: np.random.Generator, scene: Scene, size: int) -> Array:
    """Two branching trees of lung vessels, as thickness [size, size].

    Points are strewn along the vessels and counted a pixel, which projects cylinders exactly.
    """
    roots = 9  # a lung
    outward = np.tile([-1.0, 1.0], roots)
    heading = np.repeat(np.linspace(-1.35, 1.35, roots), 2) + rng.uniform(-0.15, 0.15, 2 * roots)
    x = outward * (scene.patient.mediastinum + 0.012 * np.cos(heading) + rng.uniform(-0.012, 0.012, 2 * roots))
    y = scene.patient.clavicle + 0.225 + 0.06 * np.sin(heading) + rng.uniform(-0.015, 0.015, 2 * roots)
    length, radius = 0.085 * rng.uniform(0.6, 1.3, 2 * roots), rng.uniform(0.0045, 0.0075, 2 * roots)
    points = []
    for _ in range(5):
        steps = int(np.ceil(1.3 * length.max() * size))
        t = (np.arange(steps) + 0.5) / steps
        bend = rng.uniform(-0.35, 0.35, len(heading))
        angle = heading[:, None] + bend[:, None] * t
        cos, sin = np.cos(angle) * outward[:, None], np.sin(angle)
        along = length[:, None] * t
        px, py = x[:, None] + along * cos, y[:, None] + along * sin
        mass = np.broadcast_to((length * radius**2 / steps)[:, None], px.shape)
        x, y = np.repeat(px[:, -1], 2), np.repeat(py[:, -1], 2)
        wide = radius.mean() * size > 0.6  # wider than a pixel: a cylinder, not a line
        for offset in (-0.6, 0.0, 0.6) if wide else (0.0,):
            shift = offset * radius[:, None]
            share = mass * (0.36 - 0.08 * abs(offset)) if wide else mass
            points.append(np.stack([px - shift * sin, py + shift * cos, share]).reshape(3, -1))
        fork = np.tile([-1.0, 1.0], len(heading)) * rng.uniform(0.15, 0.5, 2 * len(heading))
        heading, outward = np.repeat(heading + bend, 2) + fork, np.repeat(outward, 2)
        length, radius = np.repeat(0.78 * length, 2), np.repeat(0.74 * radius, 2)
    px, py, mass = np.concatenate(points, axis=1)
    return strew(scene.to_image_x(px), scene.to_image_y(py), mass * 24.0, size)


def _pneumothorax(
    scene: Scene, frame: _Frame, lesion: Lesion, chest: Array, marks: Array, lung: Array, outer: Array
) -> tuple[Array, Array]:
    """Air around the collapsed lung: darker, without vessels, bounded by the thin line of the pleura."""
    pleura = scene.lung(frame.y, lesion.severity)[1].astype(np.float32)
    there = lung * frame.half(lesion.side)
    air = ramp(frame.a - pleura, max(0.004, 0.5 * frame.pixel)) * there
    width = max(0.004, 0.6 * frame.pixel)
    line = np.exp(-(((frame.a - pleura) / width) ** 2)) * (outer - pleura > 0.012) * there
    collapsed = (there - air) * (0.03 + 0.06 * lesion.severity)
    chest = chest * (1 - 0.30 * air) + 0.10 * line * (0.004 / width) ** 0.5 + collapsed
    return chest, marks * (1 - air)


def _opacity(rng: np.random.Generator, scene: Scene, frame: _Frame, lesion: Lesion, lung: Array) -> Array | float:
    """What a lesion adds to the attenuation."""
    a, y, size = frame.a, frame.y, lung.shape[0]
    side = frame.half(lesion.side)
    if lesion.finding == "Pneumonia":
        dx, dy = a - lesion.x, y - lesion.y
        radius = np.hypot(dx, dy) / lesion.outline(np.arctan2(dy, dx))
        patchy = 0.85 + 0.22 * texture(rng, 16, size)
        return np.asarray((0.20 + 0.28 * lesion.severity) * ramp(1 - radius, 0.5) * patchy * lung * side)
    if lesion.finding == "Infiltration":
        patchy = np.clip(0.55 + 0.6 * texture(rng, 7, size) + 0.45 * texture(rng, 20, size), 0.0, 2.0)
        low = 0.55 + 0.45 * ramp(y - 0.40, 0.2)
        return np.asarray((0.11 + 0.17 * lesion.severity) * patchy * low * lung * side)
    if lesion.finding == "Effusion":
        wall, fall = scene.meniscus(lesion)
        surface = wall + fall * (1 - np.minimum(a / scene.patient.chest_width, 1) ** 3)
        return np.asarray(0.62 * ramp(y - surface, 0.018) * lung * side)
    if lesion.finding == "Nodule":
        squared = ((a - lesion.x) ** 2 + (y - lesion.y) ** 2) / lesion.radius**2
        return np.asarray((0.20 + 0.22 * lesion.severity) * np.sqrt(np.clip(1.1 - squared, 0, 1)) * side)
    return 0.0


def _stamp(chest: Array, scene: Scene, size: int) -> None:
    """Lead letters beside the neck: L on the patient's left, and AP where the beam came from the front."""
    lines = ("AP", "L") if scene.view == "AP" else ("L",) if scene.phrasing % 3 else ("R",)
    top = round(0.03 * size)
    for text in lines:
        mark = letters(text, size)
        height, width = mark.shape
        left = round(0.04 * size) if text == "R" else size - round(0.04 * size) - width
        window = chest[top : top + height, max(left, 0) : left + width]
        np.maximum(window, 1.6 * mark[: window.shape[0], : window.shape[1]], out=window)
        top += height + round(0.015 * size)
