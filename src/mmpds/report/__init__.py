"""A finished run told to people: one self-contained page, Markdown, or tables for a spreadsheet. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmpds import results

Format = Literal["html", "md", "csv"]
FORMATS: tuple[Format, ...] = ("html", "md", "csv")


def write(run_dir: str | Path, format: Format = "html") -> list[Path]:
    """Write the report of a run into its directory, from results.json, predictions.csv, config.yaml and gradcam/.

    Args:
        run_dir: the directory of a run, also of a failed or interrupted one.
        format: `html`: report.html, one file that needs no network. `md`: report.md. `csv`: metrics.csv, every
            metric with its 95 % interval, and, where there are predictions, pneumonia_infiltration_results.csv,
            each image's probabilities, dominant label and ground truth.

    Returns:
        The files written.

    Raises:
        ValueError: `run_dir` holds no run, or one of its files is damaged; one sentence.
        OSError: a file cannot be written.
    """
    from mmpds.report import page, tables
    from mmpds.report.stored import StoredRun

    run = StoredRun.read(Path(run_dir))
    if format == "html":
        texts = {"report.html": page.html(run)}
    elif format == "md":
        texts = {"report.md": tables.markdown_report(run)}
    elif format == "csv":
        texts = {"metrics.csv": tables.metrics_csv(run), "pneumonia_infiltration_results.csv": tables.images_csv(run)}
    else:
        raise ValueError(f"format={format}: choose from {', '.join(FORMATS)}")
    written = []
    for name, text in texts.items():
        if text:
            results.write_text(run.path / name, text)
            written.append(run.path / name)
    return written
