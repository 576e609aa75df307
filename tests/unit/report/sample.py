"""Made-up runs with every section that a run can leave."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from mmpds.metrics.intervals import evaluate
from mmpds.results import inert

NIH = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
OUTCOMES = ("true positive", "false positive", "false negative", "true negative")


def sample_run(folder, findings=NIH, items=600, replicates=50, ids=None, extras=True):
    """A finished run of `items` test images, and 20 rows of other splits that must not be judged."""
    rng = np.random.default_rng(0)
    width = len(findings)
    logit = rng.normal(size=(items + 20, width)) - 1.5
    label = (rng.random(logit.shape) < 1 / (1 + np.exp(-1.6 * logit))).astype(float)
    prob = (1 / (1 + np.exp(-logit - rng.normal(size=logit.shape) * 0.7))).astype(np.float32)
    label[: items // 20, 0] = np.nan
    threshold = np.full(width, 0.35, np.float32)
    group = np.array([f"patient-{number}" for number in rng.integers(0, items // 2, len(label))])
    test = np.arange(len(label)) < items
    normal = np.nansum(label, axis=1) == 0
    judged = evaluate(
        prob[test], label[test], threshold, findings, group=group[test], normal=normal[test], replicates=replicates
    )
    table = {
        "split": np.where(test, "test", "val"),
        "id": ids if ids is not None else [f"image-{n}" for n in range(len(label))],
        "group": group,
        "normal": normal.astype(int),
    }
    for c, finding in enumerate(findings):
        table[f"{inert(finding)} label"] = label[:, c]
        table[f"{inert(finding)} probability"] = prob[:, c]
        table[f"{inert(finding)} decision"] = (prob[:, c] >= threshold[c]).astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False, float_format="%.7g")
    (folder / "config.yaml").write_text("name: sample\ntrainer:\n  max_epochs: 4\n")
    result = {
        "schema": 1, "experiment": "sample", "run_id": "20260101-120000-0001", "status": "finished", "error": None,
        "command": "python train.py experiment=sample", "started": 1767268800.0, "git_commit": "0123456789ab",
        "seed": 1, "versions": {"python": "3.11.7", "torch": "2.14.1"}, "world_size": 2, "threads_per_rank": 1,
        "metrics": {f"test/{name}": value for name, value in judged.metrics.items()},
        "intervals": {f"test/{name}": list(value) for name, value in judged.intervals.items()},
        "counts": {f"test/{name}": value for name, value in judged.counts.items()},
        "warnings": judged.warnings, "diagnosis": [],
        "timing": {"startup_s": 4.1, "build_s": 1.2, "fit_s": 71.0, "test_s": 2.2, "throughput_items_per_s": 91.0,
                   "data_wait_fraction": 0.02, "step_ms": {"p50": 210.0, "p95": 230.0}},
        "energy": {"joules": 604.0, "joules_per_item": 0.3, "method": "estimate"},
        "memory": {"peak_rss_bytes": 2**31, "peak_device_bytes": 0},
        "hardware": {"cpu": "A processor", "cores": 2, "gpu": [], "memory_bytes": 2**34}, "precision": "32-true",
    }  # fmt: skip
    if extras:
        result |= _extras(findings)
        for finding in findings[:4]:
            for name, value in (("pointing_game", 0.71), ("box_iou", 0.28), ("box_energy", 0.44)):
                result["metrics"] |= {f"test/{name}/{finding}": value, f"test/{name}_chance/{finding}": value / 3}
                result["intervals"][f"test/{name}/{finding}"] = [value - 0.08, value + 0.07]
        _gallery(folder / "gradcam", findings)
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def _extras(findings):
    causes = [{
        "name": "double_sigmoid", "finding": findings[0], "cure": "give the loss logits, or drop the model's sigmoid",
        "evidence": "all 600 scores lie between 0.50 and 0.73, the range of a sigmoid of a sigmoid",
    }]  # fmt: skip
    points = [
        {"rule": rule, "finding": finding, "threshold": None if finding == "macro" else 0.2 + at / 10,
         "precision": 0.4 + at / 20, "precision_interval": [0.35 + at / 20, 0.45 + at / 20],
         "recall": 0.8 - at / 20, "recall_interval": [0.7 - at / 20, 0.9 - at / 20], "f1": 0.5, "specificity": 0.8}
        for at, rule in enumerate(("f1", "youden", "fixed", "sensitivity@specificity"))
        for finding in ("macro", *findings)
    ]  # fmt: skip
    groups = []
    for attribute, names in (("sex", ("F", "M")), ("age", ("0–17", "18–64", "65+")), ("view", ("AP", "PA"))):
        for at, name in enumerate(names):
            for finding in findings:
                judged = name != "0–17"
                row = {
                    "attribute": attribute,
                    "group": name,
                    "finding": finding,
                    "items": 250,
                    "patients": 120,
                    "positives": 31 if judged else 4,
                    "judged": judged,
                    "why": None if judged else "4 positives",
                }
                for metric, value in (("auroc", 0.84), ("tpr", 0.6), ("fpr", 0.12), ("calibration_gap", 0.03)):
                    value += 0.03 * at - 0.002 * len(finding)
                    row |= {metric: value if judged else None}
                    row |= {f"{metric}_interval": [value - 0.05, value + 0.04] if judged else None}
                groups.append(row)  # fmt: skip
    gaps = [
        {"attribute": "sex", "finding": findings[0], "metric": "tpr", "worst_group": "F", "best_group": "M",
         "gap": 0.12, "interval": [0.04, 0.2], "found": True},
        {"attribute": "view", "finding": findings[1], "metric": "auroc", "worst_group": "AP", "best_group": "PA",
         "gap": 0.03, "interval": [-0.01, 0.07], "found": False},
    ]  # fmt: skip
    return {
        "diagnosis": causes, "operating_points": points, "calibration": {"method": "temperature"},
        "threshold": {"rule": "f1", "values": dict.fromkeys(findings, 0.35)},
        "fairness": {"groups": groups, "gaps": gaps, "notes": ["Ages are those of the first visit."]},
    }  # fmt: skip


def _gallery(folder, findings):
    folder.mkdir()
    rows = []
    for at in range(8):
        x, y = np.mgrid[-1:1:112j, -1:1:112j]
        heat = np.exp(-((x - 0.4 + at / 10) ** 2 + (y - 0.3) ** 2) * 6)
        body = np.exp(-(x**2 + y**2) * 1.5)
        image = np.stack([body * 150 + heat * 105, body * 150, body * 150 - heat * 60 + 60 * (heat > 0.5)], axis=2)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"case-{at}.png")
        rows.append({
            "file": f"case-{at}.png", "id": f"image-{at}", "finding": findings[at % len(findings)], "label": at % 2,
            "probability": 0.1 * at, "decision": at % 2, "outcome": OUTCOMES[at % 4],
        })  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "gallery.csv", index=False)
