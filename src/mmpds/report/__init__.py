"""A finished run told to people: one self-contained page, Markdown, or tables for a spreadsheet. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmpds import results

Format = Literal["html", "md", "csv"]
FORMATS: tuple[Format, ...] = ("html", "md", "csv")


def write(run_dir: str | Path, format: Format = "html") -> list[Path]:
    """Write the report of a run into its directory, from results.json and what else the run left there.

    Args:
        run_dir: the directory of a run, also of a failed or interrupted one.
        format: `html`: report.html, one file that needs no network. `md`: report.md. `csv`: metrics.csv, every
            metric with its 95 % interval, and, where there are predictions, pneumonia_infiltration_results.csv,
            each image's probabilities, dominant label and ground truth.

    Returns:
        The files written.

    Raises:
        ValueError: `run_dir` holds no run, or one of its files is damaged, or it has nothing for a `csv`; one sentence.
        OSError: a file cannot be written.
    """
    from mmpds.report import page, text
    from mmpds.report.stored import StoredRun

    run = StoredRun.read(Path(run_dir))
    if format == "html":
        texts = {"report.html": page.html(run)}
    elif format == "md":
        texts = {"report.md": text.markdown_report(run)}
    elif format == "csv":
        texts = {"metrics.csv": text.metrics_csv(run), "pneumonia_infiltration_results.csv": text.images_csv(run)}
        if not any(texts.values()):
            listed = "; its images are in images/manifest.csv" if run.generator else ""
            raise ValueError(f"{run_dir}: neither metrics nor predictions for a csv{listed}")
    else:
        raise ValueError(f"format={format}: choose from {', '.join(FORMATS)}")
    written = []
    for name, content in texts.items():
        if content:
            results.write_text(run.path / name, content)
            written.append(run.path / name)
    return written
