"""Pen and film: smooth shapes, smooth noise, letters and the exposure; nothing here knows anatomy.

Shapes: N = pixels a side. Whatever varies along one axis only is [N, 1] or [1, N] and broadcasts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray


def ramp(distance: Array, soft: float) -> Array:
    """0 below, 1 above a border at distance 0, smooth over ± `soft`."""
    t = np.clip(distance * (0.5 / soft) + 0.5, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def ellipse(x: Array, y: Array, angle: float, long: float, short: float) -> Array:
    """Squared radius in units of the ellipse's half-axes, 1 on its rim; x and y from its centre."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.asarray(((cos * x + sin * y) / long) ** 2 + ((cos * y - sin * x) / short) ** 2)


@lru_cache(maxsize=64)
def _weights(points: int, size: int) -> Array:
    """Cubic B-spline weights [size, points] that stretch a line of random values over an image's side."""
    at = (np.arange(size) + 0.5) / size * (points - 3) + 1
    d = np.abs(at[:, None] - np.arange(points))
    cubic = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)
    return np.asarray(1.6 * cubic, dtype=np.float32)  # restores a spread of about 1


def texture(rng: np.random.Generator, points: int, size: int) -> Array:
    """Smooth noise [size, size] of mean 0 and spread about 1, the same picture at every size."""
    lattice = rng.standard_normal((points, points), dtype=np.float32)
    weights = _weights(points, size)
    return np.asarray(weights @ lattice @ weights.T)


def expose(rng: np.random.Generator, attenuation: Array, gain: float, contrast: float, mottle: float) -> Array:
    """Film of an attenuation map: saturating response, blur, mottle that grows with attenuation; uint8."""
    film = 1.0 - np.exp(-gain * np.maximum(attenuation, 0.0))
    size = film.shape[0]
    grain = rng.standard_normal((size + 1, size + 1), dtype=np.float32)
    grain = grain[1:, 1:] + 0.5 * (grain[:-1, 1:] + grain[1:, :-1])  # neighbours share light in a detector
    film = film**contrast + mottle * (size / 64) ** 0.2 * (0.3 + film) * grain
    return np.asarray(np.clip(film * 255.0 + 0.5, 0, 255), dtype=np.uint8)


@lru_cache(maxsize=32)
def letters(text: str, size: int) -> Array:
    """Bright letters for a picture of `size` pixels, float32 [height, width]."""
    font = ImageFont.load_default(max(6.0, 0.055 * size))
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), text, fill=255, font=font)
    return np.asarray(picture, dtype=np.float32) / 255.0


def strew(x: Array, y: Array, mass: Array, size: int) -> Array:
    """Shares each point's mass among its four nearest pixels; mass per area, float32 [size, size]."""
    x, y = (np.clip(at * size - 0.5, 0, size - 1.001) for at in (x, y))
    column, line = x.astype(np.int64), y.astype(np.int64)
    right, down = x - column, y - line
    cell = line * size + column
    share = np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]) * mass
    cells = np.stack([cell, cell + 1, cell + size, cell + size + 1])
    total = np.bincount(cells.ravel(), share.ravel(), minlength=size * size)
    return (total.reshape(size, size) * size**2).astype(np.float32)
