"""Image files to grey pixels: every common format, and a short reason for whatever cannot be read.

Shapes: H = height, W = width.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp"}
MAX_PIXELS = 89_478_485
"""Pillow's own warning level, 256 MiB of RGB; radiographs have up to some 20 million pixels."""


class BadImage(ValueError):  # noqa: N818
    """An image that cannot be used; its text is the reason, short and without the file's name."""


def read_grey(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read the first frame of an image file as grey.

    Any mode that Pillow converts to grey: colours by ITU-R 601-2 luma, 16-bit grey from 0..65535 to 0..255,
    transparent pixels over black, turned as the EXIF orientation says.

    Args:
        path: the file.
        max_pixels: images with more are refused from their header, before anything is decoded.

    Returns:
        uint8 [H, W], 0 is black.

    Raises:
        BadImage: the file cannot be opened, is no image, is damaged or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error below
            image = Image.open(path)
        with image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise BadImage(f"{size} is over the limit of {_count(max_pixels)}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_grey(image)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes, decoders raise almost anything
        raise BadImage(_reason(error, path, max_pixels)) from error


def _to_grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # I;16 and its byte orders; I is 16-bit grey too, in 32 bits
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return ((deep + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, (0, 0, 0, 255)), colours)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")  # some modes, CMYK among them, have no direct way to grey
    return np.array(image.convert("L"))


def _count(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} million" if pixels >= 1_000_000 else f"{pixels:,}"


def _reason(error: Exception, path: str | Path, max_pixels: int) -> str:
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not from a decoder
        return (error.strerror or type(error).__name__).lower()
    if isinstance(error, Image.DecompressionBombError):  # Pillow refuses twice its own limit by itself
        return f"its size is over the limit of {_count(max_pixels)} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if os.path.getsize(path) else "empty file"  # noqa: PTH202
    if "truncated" in str(error).lower():
        return "truncated"
    return f"damaged ({' '.join(str(error).split()) or type(error).__name__})"


def resize(grey: np.ndarray, size: int) -> np.ndarray:
    """Stretch to a square by antialiased bilinear interpolation.

    Stretched, not cropped: findings at the rim stay in view, and it is what the public 224 x 224 releases
    and torchvision's `Resize((size, size))` do, on which published weights were trained.

    Args:
        grey: uint8 [H, W].
        size: pixels a side.

    Returns:
        uint8 [size, size].
    """
    return np.array(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR))


def find_images(root: Path, below: str = ".") -> list[str]:
    """Image files in `root / below` and its folders, told by their suffix, in natural order (2 before 10).

    Hidden files and folders and macOS's `__MACOSX` are left out; links to folders are not followed.

    Returns:
        Paths relative to `root`, with forward slashes.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    top = root / below
    if not top.is_dir():
        raise ValueError(f"root={root}: there is no folder {top}; give the folder that holds the images")
    found = []
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        place = Path(os.path.relpath(folder, root)).as_posix()
        prefix = "" if place == "." else f"{place}/"
        found += [prefix + name for name in names if _is_image(name)]
    if not found:
        listed = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"root={root}: no images in {top}; give a folder that holds files of {listed}")
    return sorted(found, key=lambda path: (_natural(path), path))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _natural(path: str) -> list[str | int]:
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path))]


class ImageFiles:
    """A source (see `mmpds.data.batch.Source`) whose images are files; data sets derive from it.

    Args:
        root: the folder that holds the data set.
        table: its rows, with a column `path`: the file relative to `root`.
        findings: the label columns of `table`.
    """

    findings: tuple[str, ...] = ()

    def __init__(self, root: str | Path, table: pd.DataFrame, findings: Sequence[str]) -> None:
        self.root = Path(root)
        self.table = table
        self.findings = tuple(findings)
        self._real_root = os.path.realpath(self.root)

    def path(self, row: int) -> Path:
        """The file of a row.

        Raises:
            BadImage: the path or a link leads out of the root.
        """
        path = os.path.realpath(self.root / str(self.table["path"].iat[row]))
        if os.path.commonpath([path, self._real_root]) != self._real_root:
            raise BadImage("path leaves the data root")
        return Path(path)

    def image(self, row: int, size: int) -> np.ndarray:
        """Image of table row `row` as uint8 [size, size] grey.

        Raises:
            BadImage: the file cannot be read.
        """
        return resize(read_grey(self.path(row)), size)

    def digest(self, row: int) -> str:
        """SHA-256 of the file, as 64 hexadecimal digits.

        Raises:
            BadImage: the file cannot be opened.
        """
        path = self.path(row)
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadImage((error.strerror or type(error).__name__).lower()) from error
