"""The report as one HTML file that loads nothing from anywhere: its content policy forbids it."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image
from plotly.offline import get_plotlyjs

from mmpds.report import embedded, figures, generation, robustness, summary, tables, writing
from mmpds.report.stored import StoredRun

PAIR = ("Pneumonia", "Infiltration")
GALLERY_BYTES = 2 * 2**20
SHEET_BYTES = 2**20
"""Of the contact sheet's copy in the page, where four bytes of text stand for three."""
SHEET_PIXELS = 1920
OUTCOMES = {
    "Wrong": ("false positive", "false negative"),
    "Right": ("true positive", "true negative"),
}


def html(run: StoredRun) -> str:
    """The whole page; names and ids are escaped, and only the page's own two scripts may run."""
    gallery, left_out = _gallery(run)
    return rendered(
        _template(), Plots(), run=run, summary=summary, tables=tables,
        curves=figures.curves(run) if run.judged else {}, figures=figures, pair=_pair(run),
        fairness=figures.fairness(run), confusion=figures.confusion(run), gallery=gallery, left_out=left_out,
        embedded=embedded, generation=generation, robustness=robustness, writing=writing, sheet=_sheet(run),
    )  # fmt: skip


class Plots:
    """Keeps a figure for the page's script; returns the id of the place that it will be drawn in, and its text."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def __call__(self, figure: figures.Figure) -> tuple[str, str]:
        """Keep a figure."""
        place = f"plot-{len(self.kept)}"
        self.kept[place] = {"data": figure["data"], "layout": figure["layout"]}
        return place, figure["alt"]


def rendered(template: Any, plots: Plots, **content: Any) -> str:
    """A template of Jinja with plotly, the page's script and style inside, and the hashes that let only these run."""
    plotly, script = get_plotlyjs(), _asset("report.js")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly, script)]
    text: str = template.render(
        plotly=plotly, script=script, style=_asset("style.css"), plots=plots.kept, plot=plots,
        policy=" ".join(f"'sha256-{value}'" for value in hashes), **content,
    )  # fmt: skip
    return text


def _pair(run: StoredRun) -> figures.Figure | None:
    return figures.pair_histogram(run, PAIR) if run.judged.keys() >= set(PAIR) else None


def _gallery(run: StoredRun) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Wrong and right cases, each with its picture as a data URI, and how many did not fit in 2 MiB."""
    found: dict[str, list[dict[str, Any]]] = {}
    room, left_out = GALLERY_BYTES, 0
    for heading, outcomes in OUTCOMES.items():
        rows = run.gallery[run.gallery["outcome"].isin(outcomes)] if len(run.gallery) else run.gallery
        for row in rows.to_dict("records"):
            path = run.path / "gradcam" / Path(str(row["file"])).name  # nothing outside the run's own folder
            if not path.is_file() or path.stat().st_size > room:
                left_out += 1
                continue
            room -= path.stat().st_size
            image = base64.b64encode(path.read_bytes()).decode()
            case = {str(key): value for key, value in row.items()} | {"image": f"data:image/png;base64,{image}"}
            found.setdefault(heading, []).append(case)
    return found, left_out


def _sheet(run: StoredRun) -> dict[str, Any] | None:
    """The contact sheet as a data URI of at most 4/3 MiB, smaller than its file where need be; None without one.

    Raises:
        ValueError: the file is no picture.
    """
    if not run.sheet.is_file():
        return None
    try:
        with Image.open(run.sheet) as opened:
            picture = opened.convert("L" if opened.mode == "L" else "RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{run.sheet} is damaged: {error}") from error
    content, kind = run.sheet.read_bytes(), "png"
    picture.thumbnail((SHEET_PIXELS, picture.height))
    while len(content) > SHEET_BYTES:
        content, kind = _webp(picture), "webp"
        picture = picture.resize((max(1, picture.width * 4 // 5), max(1, picture.height * 4 // 5)))
    with Image.open(io.BytesIO(content)) as shown:
        width, height = shown.size
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(content).decode()}", "width": width, "height": height}


def _webp(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=85)
    return written.getvalue()


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("mmpds.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html")
