"""The hits as one HTML file that loads nothing from anywhere, their images found again where they were."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from PIL import Image

from mmpds.data.images import BadImage, ImageFiles, read_grey, resize
from mmpds.search.archive import Archive

TILE = 224
"""Pixels a side of an image on the sheet."""


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    place: from 1.
    score: cosine with the query.
    source: the folder that it is in.
    id: its path below that.
    """

    place: int
    score: float
    source: str
    id: str


@dataclass(frozen=True)
class Query:
    """What was asked for: its title, its image's file where it is one, and what was found."""

    title: str
    image: Path | None
    hits: Sequence[Hit]


def html(archive: Archive, queries: Sequence[Query], how: str) -> str:
    """The whole page; texts are escaped, and no script may run.

    Args:
        archive: that was searched.
        queries: with their hits.
        how: it was searched, in words.
    """
    sections = [
        {
            "title": query.title,
            "image": _uri(resize(read_grey(query.image), TILE)) if query.image else None,
            "hits": [_tile(hit) for hit in query.hits],
        }
        for query in queries
    ]
    environment = Environment(
        loader=PackageLoader("mmpds.search", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style = (Path(__file__).parents[1] / "report" / "style.css").read_text()
    text: str = environment.get_template("sheet.html").render(
        archive=archive.folder.resolve().name, count=len(archive), model=archive.model, how=how, queries=sections,
        style=style,
    )  # fmt: skip
    return text


def _tile(hit: Hit) -> dict[str, Any]:
    """What the template shows of a hit; the reason in the image's place where that cannot be read any more."""
    shown = {"place": hit.place, "score": hit.score, "id": hit.id}
    try:
        # the manifest may be another's: a path may not lead out of the folder
        files = ImageFiles(hit.source, pd.DataFrame({"path": [hit.id]}), ())
        return shown | {"image": _uri(files.image(0, TILE))}
    except BadImage as error:
        return shown | {"image": None, "reason": f"no image: {error}"}


def _uri(grey: np.ndarray) -> str:
    """Grey pixels, uint8 [H, W], as a data URI."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
