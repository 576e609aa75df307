"""Ways in which a test image can be worse than those a model learnt from, each with its levels.

The levels are from mild to strong, in either direction where there are two. Nothing is random but the noise, which an
item's own seed decides; a stronger level is the same noise, louder. The idea of measuring a model against graded
corruptions is of Hendrycks & Dietterich (ICLR 2019).

Shapes: H = height, W = width. numpy is imported where pixels are made: `CORRUPTIONS` is read while a configuration
is checked, which must come before threads are capped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

if TYPE_CHECKING:
    import numpy as np

Level = float | str
UNDISTURBED = "none"
FLIPS = {"left_right": ImageOps.mirror, "up_down": ImageOps.flip}
PIXELS = (16, 4096)
"""Fewest and most pixels a side of an image that is asked of a source."""


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turn counter-clockwise about the centre, bilinear, black where nothing was: uint8 [H, W] to the same."""
    return _array(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR))


def flip(pixels: np.ndarray, axis: str) -> np.ndarray:
    """Mirror `left_right` or `up_down`; `none` leaves all as it is: uint8 [H, W] to the same."""
    image = Image.fromarray(pixels)
    return _array(image if axis == UNDISTURBED else FLIPS[axis](image))


def expose(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply each grey value and clip it at white, as too long or too short an exposure: uint8 [H, W] to the same."""
    return _mapped(pixels, lambda value: value * factor)


def window(pixels: np.ndarray, width: float) -> np.ndarray:
    """Spread a window about mid-grey over the whole range, what lies beyond being clipped: uint8 [H, W] to the same.

    Args:
        pixels: the image.
        width: of the window, in shares of the range: below 1 contrast rises, above 1 it falls.
    """
    return _mapped(pixels, lambda value: (value - 127.5) / width + 127.5)


def noise(pixels: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Add Gaussian noise, clipped at black and white: uint8 [H, W] to the same.

    Args:
        pixels: the image.
        sigma: standard deviation, in shares of the range.
        seed: decides the noise, which `sigma` only scales.
    """
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal(pixels.shape)
    return (pixels + 255 * sigma * drawn).round().clip(0, 255).astype(np.uint8)


def compress(pixels: np.ndarray, quality: Level) -> np.ndarray:
    """Write as JPEG of libjpeg's `quality`, 1 to 100, and read again; `none` does neither: uint8 [H, W] to the same."""
    image = Image.fromarray(pixels)
    if quality == UNDISTURBED:
        return _array(image)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=int(quality))
    return _array(Image.open(file))


@dataclass(frozen=True)
class Item:
    """One image to be corrupted.

    read: gives it at so many pixels a side, uint8 [n, n].
    size: pixels a side that the model sees.
    seed: its own.
    """

    read: Callable[[int], np.ndarray]
    size: int
    seed: int

    @cached_property
    def pixels(self) -> np.ndarray:
        """The image as the model usually sees it, uint8 [size, size]."""
        return self.read(self.size)

    def at_resolution(self, side: int) -> np.ndarray:
        """What a detector of `side` pixels a side saw of it, resized for the model: uint8 [size, size].

        Above the model's own size this asks whether images of a finer detector are judged as those of training. A
        file that has fewer pixels than asked for is enlarged, which adds nothing.
        """
        from mmpds.data.images import resize

        return resize(self.read(int(side)), self.size)


class Corruption(NamedTuple):
    """A way to spoil an image.

    unit: of its levels, for an axis; "" where they are names.
    levels: that are looked at unless others are asked for.
    undisturbed: the level that leaves an image as it is; None: the model's own size.
    apply: makes uint8 [size, size] of an item at a level.
    valid: whether a level can be applied.
    cure: which can.
    """

    unit: str
    levels: tuple[Level, ...]
    undisturbed: Level | None
    apply: Callable[[Item, Any], np.ndarray]
    valid: Callable[[Any], bool]
    cure: str


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int, most: int) -> bool:
    return _number(value) and value == int(value) and least <= value <= most


CORRUPTIONS = {
    "resolution": Corruption(
        "pixels a side", (1024, 512, 256, 128, 64, 32), None, Item.at_resolution,
        lambda side: _whole(side, *PIXELS),
        f"give whole numbers of pixels from {PIXELS[0]} to {PIXELS[1]}",
    ),
    "rotation": Corruption(
        "degrees", (5, 10, 15, 30, 45, 90), 0, lambda item, degrees: rotate(item.pixels, degrees),
        lambda degrees: _number(degrees) and abs(degrees) <= 180,
        "give degrees from -180 to 180, counter-clockwise",
    ),
    "flip": Corruption(
        "", tuple(FLIPS), UNDISTURBED, lambda item, axis: flip(item.pixels, axis),
        lambda axis: axis in (UNDISTURBED, *FLIPS), f"choose from {', '.join(FLIPS)}",
    ),
    "brightness": Corruption(
        "factor", (1.25, 0.75, 1.5, 0.5, 2, 0.25), 1, lambda item, factor: expose(item.pixels, factor),
        lambda factor: _number(factor) and factor > 0, "give factors above 0; 1 changes nothing",
    ),
    "window": Corruption(
        "width / range", (1.5, 0.75, 2, 0.5, 3, 0.25), 1, lambda item, width: window(item.pixels, width),
        lambda width: _number(width) and width > 0, "give widths above 0, in shares of the range; 1 changes nothing",
    ),
    "noise": Corruption(
        "standard deviation / range", (0.01, 0.02, 0.05, 0.1, 0.2), 0,
        lambda item, sigma: noise(item.pixels, sigma, item.seed),
        lambda sigma: _number(sigma) and 0 <= sigma <= 1,
        "give standard deviations from 0 to 1, in shares of the range",
    ),
    "jpeg": Corruption(
        "quality", (90, 75, 50, 25, 10, 5), UNDISTURBED, lambda item, quality: compress(item.pixels, quality),
        lambda quality: quality == UNDISTURBED or _whole(quality, 1, 100),
        "give whole numbers from 1 to 100",
    ),
}  # fmt: skip


class Condition(NamedTuple):
    """One corruption at one level; `undisturbed` where that level leaves images as they are."""

    corruption: str
    level: Level
    undisturbed: bool

    @property
    def name(self) -> str:
        """Such as `rotation/10`."""
        return f"{self.corruption}/{self.level if isinstance(self.level, str) else f'{self.level:g}'}"


def conditions(chosen: Mapping[str, Sequence[Level] | None] | None, size: int) -> list[Condition]:
    """What images are to be judged under: every corruption's levels, ascending, the undisturbed one among them.

    Names of levels come after numbers, in the order of `CORRUPTIONS`: a JPEG quality of `none` after the best.

    Args:
        chosen: corruption -> levels, or None for its own; None for all of both.
        size: pixels a side that the model sees.
    """
    found = []
    for name in CORRUPTIONS if chosen is None else chosen:
        known = CORRUPTIONS[name]
        usual: Level = size if known.undisturbed is None else known.undisturbed
        named = (usual, *known.levels)
        asked = (None if chosen is None else chosen[name]) or known.levels
        ordered = sorted({usual, *asked}, key=lambda at: (1, named.index(at)) if isinstance(at, str) else (0, at))
        found += [Condition(name, level, level == usual) for level in ordered]
    return found


def wrong_levels(chosen: Any) -> list[tuple[str, Any, str]]:
    """What is wrong with a choice of corruptions and levels, each as name, value and cure; see `conditions`."""
    if chosen is None:
        return []
    if not hasattr(chosen, "items") or not chosen:
        return [("", chosen, "give corruptions and their levels, such as {rotation: [5, 10], noise: null}; null: all")]
    found = []
    for name, levels in chosen.items():
        if name not in CORRUPTIONS:
            found.append((str(name), levels, f"no such corruption; choose from {', '.join(CORRUPTIONS)}"))
        elif levels is not None and (isinstance(levels, str) or not hasattr(levels, "__iter__") or not len(levels)):
            found.append((name, levels, "give a list of levels, or null for its own"))
        else:
            known = CORRUPTIONS[name]
            found += [(name, level, known.cure) for level in levels or () if not known.valid(level)]
    return found


def _mapped(pixels: np.ndarray, change: Callable[[int], float]) -> np.ndarray:
    values = [min(255, max(0, round(change(value)))) for value in range(256)]
    return _array(Image.fromarray(pixels).point(values))


def _array(image: Image.Image) -> np.ndarray:
    import numpy as np

    return np.array(image)
