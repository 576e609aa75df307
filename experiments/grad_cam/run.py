"""Where a detector looks, scored against exact boxes; and which heat map points best.

    python experiments/grad_cam/run.py             train, then all below
    python experiments/grad_cam/run.py RUN_DIR     the same of a run of experiment=localize_phantom that is there

Compares methods and layers on the validation split, writes contact_sheet.png and results.json beside this file, and
renews the READMEs.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont

from mmpds import results
from mmpds.callbacks.gradcam import BATCH, OUTCOMES, TOLERANCE
from mmpds.callbacks.heat_maps import METHODS, heat_maps
from mmpds.data.transforms import to_image
from mmpds.metrics.localization import METRICS, localize, overlap
from mmpds.models.densenet import DenseNet121
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
LAYERS = {
    "transition 2 and 3": ["transition2.conv", "transition3.conv"],
    "blocks 2 and 3": ["denseblock2", "denseblock3"],
    "block 2": ["denseblock2"],
    "block 3": ["denseblock3"],
    "last": ["norm5"],
}
EACH = 40  # boxed images of each finding
TILE, GAP = 96, 4


def compare(run_dir):
    """Mean scores over the focal findings of each method and layer, on validation images, as Markdown."""
    cfg = OmegaConf.load(run_dir / results.CONFIG)
    data = instantiate(cfg.data, _convert_="all")
    data.setup("fit")
    images = data.images["val"]
    model = DenseNet121.load_from_checkpoint(run_dir / "checkpoints/best.ckpt", map_location="cpu", weights_only=True)
    rows = pd.Series(range(len(images)), index=images.table["id"])
    boxes = images.source.boxes.query("id in @rows.index and finding in @model.findings")
    cases = [
        (rows[image], finding, rows_of[["x", "y", "w", "h"]].to_numpy())
        for finding, of in boxes.groupby("finding")
        for image, rows_of in list(of.groupby("id"))[:EACH]
    ]
    pixels = torch.stack([to_image(images.source.image(int(images.rows[row]), images.size)) for row, _, _ in cases])
    column = [model.findings.index(finding) for _, finding, _ in cases]
    lines = []
    for name, layers in LAYERS.items():
        names = [f"backbone.features.{layer}" for layer in layers]
        for method in METHODS:
            heats = np.concatenate([
                heat_maps(model, pixels[start : start + BATCH], column[start : start + BATCH], method, names)
                for start in range(0, len(cases), BATCH)
            ])  # fmt: skip
            items = pd.DataFrame([
                {"finding": finding, "group": images.table["group"][row], "boxes": box, **overlap(heat, box, TOLERANCE)}
                for (row, finding, box), heat in zip(cases, heats, strict=True)
            ])  # fmt: skip
            found = localize(
                items, images.size, tolerance=TOLERANCE, not_in_macro=cfg.callbacks.gradcam.not_in_macro, replicates=0
            )
            lines.append([name, method, *(f"{found.metrics[f'{metric}/macro']:.3f}" for metric in METRICS)])
            print(*lines[-1], flush=True)
    return markdown(["layers", "method", "pointing game", "box IoU", "box energy"], lines)


def contact_sheet(run_dir):
    """The gallery's first picture of each finding and outcome, a finding a column."""
    gallery = pd.read_csv(run_dir / "gradcam" / "gallery.csv")
    findings = list(dict.fromkeys(gallery["finding"]))
    line = 18
    sheet = Image.new("RGB", (len(findings) * (2 * TILE + GAP) + GAP, len(OUTCOMES) * (TILE + line) + line + GAP))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for x, finding in enumerate(findings):
        left = GAP + x * (2 * TILE + GAP)
        pen.text((left, 2), finding, font=font)
        for y, outcome in enumerate(OUTCOMES):
            top = line + y * (TILE + line)
            found = gallery[(gallery["finding"] == finding) & (gallery["outcome"] == outcome)]
            said = f"{outcome}, {found['probability'].iat[0]:.2f}" if len(found) else f"{outcome}: none"
            pen.text((left, top + 2), said, font=font, fill=(170, 170, 170))
            if len(found):
                with Image.open(run_dir / "gradcam" / found["file"].iat[0]) as picture:
                    small = picture.resize((2 * TILE, TILE), Image.Resampling.LANCZOS)
                sheet.paste(small, (left, top + line))
    return sheet.quantize(256)


def main(arguments):
    """Train unless a run is given; compare, draw, keep."""
    root, own = HERE.parents[1], "runs/localize_phantom/study"
    run_dir = Path(arguments[0]) if arguments else root / own
    if not arguments:
        command = [sys.executable, "train.py", "experiment=localize_phantom", "trainer=cpu", f"run_dir={own}"]
        subprocess.run(command, cwd=root, check=True)
    contact_sheet(run_dir).save(HERE / "contact_sheet.png", optimize=True)
    record = results.read(run_dir) | {"markdown": compare(run_dir)}
    record.pop("fairness", None)  # hundreds of rows that no block shows
    results.write_text(HERE / "results.json", json.dumps(record, indent=2) + "\n")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
