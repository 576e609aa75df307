"""Made-up runs of a generator: one that made images, one that was tested."""

import json

import numpy as np
import pandas as pd

from mmpds.data.contact_sheet import draw_sheet
from mmpds.metrics.prompt_fidelity import prompt_fidelity

FINDINGS = ("Pneumonia", "Effusion", "Nodule")
RUN = {
    "schema": 1, "experiment": "generate", "run_id": "20260101-120000-0001", "status": "finished", "error": None,
    "command": "python train.py experiment=generate", "started": 1767268800.0, "seed": 1, "warnings": [],
    "world_size": 2, "threads_per_rank": 1, "timing": {"startup_s": 4.1, "predict_s": 71.0,
    "throughput_items_per_s": 0.0412}, "energy": {"joules": 604.0, "joules_per_item": 5.0, "method": "estimate"},
    "memory": {"peak_rss_bytes": 2**31}, "hardware": {"cpu": "A processor", "cores": 2, "gpu": []},
}  # fmt: skip


def run_of_images(folder, images=12, side=64, columns=6):
    """A finished run of `images` prompts, of which the last failed, with its sheet; the pixels are noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    prompts = [f"Chest radiograph {n}: {FINDINGS[n % 3].lower()}" for n in range(images)]
    tiles = list(rng.integers(0, 255, (images - 1, side, side), dtype=np.uint8))
    table = pd.DataFrame({
        "id": [f"study-{n}" for n in range(images)], "prompt": prompts,
        "seed": rng.integers(2**62, 2**63 - 1, images), "file": [f"study-{n}.png" for n in range(images)],
        "width": side, "height": side, "model": "e2d308fd88a6ddff", "status": ["made"] * (images - 1) + ["failed"],
        "rank": 0, "seconds": 0.5, "retried": 0,
    })  # fmt: skip
    table.to_csv(folder / "images" / "manifest.csv", index=False)
    sheet = draw_sheet(tiles[:64], prompts[: len(tiles)][:64], columns, "Synthetic, of no patient")
    sheet.save(folder / "contact_sheet.png")
    counts = {"images": images - 1, "already_made": 3, "retried": 0, "failed": 1}
    result = {"metrics": {}, "intervals": {}, "counts": {f"predict/{name}": n for name, n in counts.items()}}
    return _write(folder, RUN | result)


def run_of_a_test(folder, items=200, classifier=True):
    """A finished test; without a classifier it has no FID, KID and fidelity."""
    metrics = {"ms_ssim/generated": 0.31, "ms_ssim/real": 0.27, "near_duplicates/pixels": 0.015}
    intervals = {name: (value - 0.01, value + 0.02) for name, value in metrics.items()}
    counts = {"items": items, "failed": 0}
    if classifier:
        metrics |= {
            "fid": 4.237,
            "fid_real": 1.25,
            "kid": 0.0123,
            "kid_real": -0.0004,
            "near_duplicates/features": 0.02,
        }
        intervals |= {"fid": (3.9, 4.6), "kid": (0.01, 0.015), "kid_real": (-0.003, 0.002)}
        for finding, distance in zip((*FINDINGS, "macro"), (6.0, 7.0, 8.0, 7.0), strict=True):
            metrics |= {
                f"class_fid{of}/{finding}": distance + more for of, more in (("", 0), ("_shuffled", 2), ("_real", -3))
            }
        rng = np.random.default_rng(0)
        asked = (rng.random((items, 3)) < 0.4).astype(float)
        prob, real = (np.clip(0.25 + by * asked + rng.normal(size=asked.shape) * 0.2, 0, 1) for by in (0.3, 0.5))
        found = prompt_fidelity(prob, asked, [0.5] * 3, FINDINGS, real_prob=real, replicates=50)
        metrics, intervals, counts = metrics | found.metrics, intervals | found.intervals, counts | found.counts
    sections = {"metrics": metrics, "intervals": intervals, "counts": counts}
    result = {name: {f"test/{key}": value for key, value in part.items()} for name, part in sections.items()}
    extractor = "densenet121 features of detector/best.ckpt" if classifier else None
    folder.mkdir(parents=True)
    return _write(folder, RUN | result | {"extractor": extractor})


def _write(folder, result):
    (folder / "config.yaml").write_text("name: generate\n")
    (folder / "results.json").write_text(json.dumps(result))
    return folder
