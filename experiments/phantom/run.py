"""What the phantom looks like and how fast it is drawn.

    python experiments/phantom/run.py

Writes contact_sheet.png and results.json beside this file and renews the READMEs.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mmpds import results
from mmpds.data.contact_sheet import contact_sheet
from mmpds.data.phantom import Phantom
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
IMAGES = {64: 300, 128: 200, 224: 60}


def examples(phantom):
    """Two rows that show nothing else for each finding, and two normal ones."""
    table, rows = phantom.table, []
    alone = table[list(phantom.findings)].sum(axis=1) == 1
    for finding in phantom.findings:
        rows += table.index[alone & (table[finding] == 1)][:2].tolist()
    rows += table.index[table["normal"]][:2].tolist()
    return rows[0::2] + rows[1::2]  # a finding a column


def speed(phantom, size, images):
    """Images a second on this one thread: median of five turns."""
    rates = []
    for turn in range(5):
        began = time.perf_counter()
        for row in range(turn * images, (turn + 1) * images):
            phantom.image(row, size)
        rates.append(images / (time.perf_counter() - began))
    return statistics.median(rates)


def main():
    """Draw, measure, keep."""
    phantom = Phantom(images=2000)
    sheet = contact_sheet(phantom, examples(phantom), size=224, columns=len(phantom.findings) + 1)
    sheet.save(HERE / "contact_sheet.png", optimize=True)
    rates = {size: speed(phantom, size, images) for size, images in IMAGES.items()}
    text = markdown(["pixels", "images/s, one thread"], [[str(size), f"{rate:.0f}"] for size, rate in rates.items()])
    record = {"images_per_s": rates, "hardware": results.hardware([], 1), "markdown": text}
    results.write_text(HERE / "results.json", json.dumps(record, indent=2) + "\n")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)


if __name__ == "__main__":
    main()
