"""What do the figures of the study that this project generalises say, when all that can be is computed again?

    python experiments/paper_audit/run.py [--root FOLDER]

Computes, trains a DenseNet-121 for a minute, and starts 24 MPI ranks. Writes results.json beside this file and renews
the READMEs. FOLDER holds the real data sets (default MMPDS_DATA, else ../shared/data); without it two rows say so.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import arithmetic
import network
import ranks
import scores
import yaml
from rows import NOT_RECOMPUTABLE, VERDICTS, Row

from mmpds import results
from mmpds.sweep import markdown
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("MMPDS_DATA") or HERE.parents[2] / "shared" / "data")
ALIKE = "Why every score is the same: a hypothesis"


def claims():
    """What is claimed, from claims.yaml."""
    return yaml.safe_load((HERE / "claims.yaml").read_text())


def language_rows(said):
    """What would need models that are not here."""
    why = "It needs BLIP's weights and a GPU."
    qualitative = "It is said in words, without figures."
    return [
        Row("BLIP's captions on a GPU against a CPU", f"more than {said['language']['blip_gpu_speedup']} times faster",
            "–", NOT_RECOMPUTABLE, why),
        Row("CLIP against BLIP", "faster; interpretability moderate against high", "–", NOT_RECOMPUTABLE, qualitative),
    ]  # fmt: skip


def page(sections, said, found):
    """The README's text: a table a section, and below it the reasons."""
    heads = ["claim", "what is said", "measured here", "verdict"]
    rows = [row for section in sections.values() for row in section]
    counts = ", ".join(f"{sum(row.verdict == name for row in rows)} {name}" for name in VERDICTS)
    parts = [f"{len(rows)} claims: {counts}.", markdown(["verdict", "meaning"], [*map(list, VERDICTS.items())])]
    for title, section in sections.items():
        cells = [[row.claim, row.says, row.measured, f"**{row.verdict}**"] for row in section]
        parts += [f"### {title}", markdown(heads, cells)]
        if title == ALIKE:
            parts.append(network.table(said, found))
        parts.append("\n".join(f"- {row.claim}: {row.why}" for row in section if row.why))
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def main():
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=DATA, help="the folder of real data sets")
    root = parser.parse_args().root
    if root != DATA and not root.is_dir():
        parser.error(f"--root {root}: no such folder; give that which holds {scores.PREDICTIONS}")
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    said = claims()
    sections = arithmetic.rows_of(said)
    modes = said["generation"]["modes"]
    generated = ranks.generated(next(mode["workers"] for mode in modes if mode["mode"] == "MPI"))
    sections["Runtime of image generation"] += ranks.rows_of(said, generated)
    sections["DenseNet-121"] = scores.rows_of(said, root)
    found = network.measured()
    sections[ALIKE] = scores.constant_rows(said) + network.rows_of(found)
    sections["CLIP and BLIP"] = language_rows(said)
    text = page(sections, said, found)
    print(text)
    record = {"hardware": results.hardware([], cores()), "versions": results.versions(), "ranks": generated}
    record["rows"] = {title: [asdict(row) for row in rows] for title, rows in sections.items()}
    record |= {"network": found, "markdown": text}
    results.write_text(HERE / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)


if __name__ == "__main__":
    main()
