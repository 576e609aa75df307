"""What a generator made and how good it is: the sentences and tables of its report and of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmpds.report.tables import MACRO, Cell, Table, number
from mmpds.results import as_written

SYNTHETIC = "All images of this run are synthetic: a model made them, and they show no patient."
HEADLINE = {
    "FID": ("fid", "fid_real"),
    "KID": ("kid", "kid_real"),
    "Detected as asked": ("fidelity/macro", "fidelity_real/macro"),
    "AUROC as asked": ("fidelity_auroc/macro", "fidelity_auroc_real/macro"),
    "MS-SSIM": ("ms_ssim/generated", "ms_ssim/real"),
    "Near duplicates": ("near_duplicates/pixels", ""),
}
"""What stands large above the tables: a name, and the metric's of generated and of real images."""
COLUMNS = {"id": "Image", "prompt": "Prompt", "seed": "Seed", "model": "Model", "status": "Status"}
"""Columns of manifest.csv that a report shows."""
ROWS = 200
"""Images that the table of a report lists."""
MEASURES = {
    "FID": ("fid", "fid_real"),
    "KID": ("kid", "kid_real"),
    "MS-SSIM of two images of one class": ("ms_ssim/generated", "ms_ssim/real"),
    "Near duplicates of training images, by pixels": ("near_duplicates/pixels", ""),
    "Near duplicates of training images, by features": ("near_duplicates/features", ""),
    "Distance to the nearest training image, pixels": ("neighbour_distance/pixels", "neighbour_distance_real/pixels"),
    "Distance to the nearest training image, features": (
        "neighbour_distance/features",
        "neighbour_distance_real/features",
    ),
}
"""A measure and its names in results.json, of the generated images and of real ones."""
DISTANCES = ("fid", "kid", "class_fid", "class_kid")
DEFINED = Cell("0.010", "by definition")
"""Near duplicates among real images: the threshold is the 1 % quantile of theirs."""
FIDELITY = {
    "Detected": "fidelity",
    "By chance": "fidelity_chance",
    "AUROC": "fidelity_auroc",
    "Real: detected": "fidelity_real",
    "Real: by chance": "fidelity_chance_real",
    "Real: AUROC": "fidelity_auroc_real",
}


CLASSES = {
    f"{name.upper()}: {kind or 'generated'}": f"class_{name}{'_' * bool(kind)}{kind}"
    for name in ("fid", "kid")
    for kind in ("", "shuffled", "real")
}


def counted(counts: Mapping[str, Any]) -> str:
    """How many images were made, and how many of them in an unusual way; "" where none was to be."""
    if "predict/images" not in counts:
        return ""
    words = {"already_made": "made before", "retried": "in float32", "failed": "failed"}
    told = [f"{counts[f'predict/{name}']:,} {text}" for name, text in words.items() if counts.get(f"predict/{name}")]
    images = counts["predict/images"]
    return f"{images:,} image{'s' * (images != 1)}" + (f" ({', '.join(told)})" if told else "")


def sentence(result: Mapping[str, Any]) -> str:
    """What a run of a generator says, for readers who stop here."""
    metrics, counts = result.get("metrics") or {}, result.get("counts") or {}
    told = [f"This run has {text} that a model made from prompts." for text in [counted(counts)] if text]
    if items := counts.get("test/items"):
        told.append(f"{items:,} images were made from the captions of the test split.")
        if "test/fidelity/macro" in metrics and "test/fidelity_chance/macro" in metrics:
            made, real = (_shares(metrics, of) for of in ("", "_real"))
            told.append(
                f"Where a caption asks for a finding, a classifier detects it in {made[0]} of them, elsewhere in"
            )
            told[-1] += f" {made[1]}" + (f"; in real images in {real[0]} and {real[1]}." if all(real) else ".")
        if (fid := metrics.get("test/fid")) is not None:
            told.append(f"Their FID is {fid:{_form(fid)}}")
            level = metrics.get("test/fid_real")
            told[-1] += f", where that of real images is {level:{_form(level)}}." if level is not None else "."
    else:
        told.append("Nothing here says how good the model is: a run with stages=[test] does.")
    return " ".join(told)


def quality(result: Mapping[str, Any]) -> Table | None:
    """Each measure of the generated images beside that of real ones."""
    metrics = result.get("metrics") or {}
    rows = [
        [Cell(title), measure(result, made), measure(result, real) if real else DEFINED]
        for title, (made, real) in MEASURES.items()
        if f"test/{made}" in metrics
    ]
    items = (result.get("counts") or {}).get("test/items", 0)
    caption = _caption(f"{items:,} images of test captions beside the real images of these captions", result)
    return Table(caption, ["Measure", "Generated", "Real"], rows) if rows else None


def fidelity(result: Mapping[str, Any]) -> Table | None:
    """How often what was asked for is detected in generated images and in real ones, by finding."""
    return _by_finding(result, "What prompts ask for, as a classifier detects it in their images", FIDELITY)


def classes(result: Mapping[str, Any]) -> Table | None:
    """Distances between the images of a finding and real ones of it, beside what chance and perfection give."""
    return _by_finding(result, "Distance from real images of the same finding", CLASSES)


def gallery(manifest: pd.DataFrame) -> Table | None:
    """The first images of a manifest: id, prompt, seed, model and status."""
    if not len(manifest):
        return None
    shown, total = manifest.head(ROWS), len(manifest)
    rows = [[Cell(as_written(text)) for text in row] for row in shown[list(COLUMNS)].fillna("").to_numpy().tolist()]
    first = f"The first {ROWS} of {total:,} images" if total > ROWS else f"{total:,} image{'s' * (total > 1)}"
    return Table(f"{first}, from images/manifest.csv", list(COLUMNS.values()), rows)


def _by_finding(result: Mapping[str, Any], caption: str, columns: Mapping[str, str]) -> Table | None:
    metrics, counts = result.get("metrics") or {}, result.get("counts") or {}
    columns = {head: name for head, name in columns.items() if any(f"test/{name}/" in key for key in metrics)}
    rows = []
    for finding in [*asked(result), "macro"]:
        if any(f"test/{name}/{finding}" in metrics for name in columns.values()):
            names = [MACRO, ""] if finding == "macro" else [finding, f"{counts[f'test/asked/{finding}']:,}"]
            rows.append([*map(Cell, names), *(measure(result, f"{name}/{finding}") for name in columns.values())])
    return Table(_caption(caption, result), ["Finding", "Asked", *columns], rows) if rows else None


def asked(result: Mapping[str, Any]) -> list[str]:
    """The findings that prompts were judged by."""
    start = "test/asked/"
    return [name.removeprefix(start) for name in result.get("counts") or {} if name.startswith(start)]


def measure(result: Mapping[str, Any], name: str) -> Cell:
    """A metric of the test with its interval."""
    value = (result.get("metrics") or {}).get(f"test/{name}")
    distance = name.split("/")[0].removesuffix("_real").removesuffix("_shuffled") in DISTANCES
    form = _form(value) if distance and value is not None else ".3f"
    return number(value, (result.get("intervals") or {}).get(f"test/{name}"), form)


def _form(value: float) -> str:
    """Distances between features know no scale: three digits, wherever the point is."""
    return "#.3g" if abs(value) < 1000 else ",.0f"


def _shares(metrics: Mapping[str, Any], of: str) -> list[str]:
    values = [metrics.get(f"test/{name}{of}/macro") for name in ("fidelity", "fidelity_chance")]
    return ["" if value is None else f"{100 * value:.0f} %" for value in values]


def _caption(text: str, result: Mapping[str, Any]) -> str:
    return f"{text}; below each value its 95 % interval" if result.get("intervals") else text
