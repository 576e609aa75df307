"""The callback in a real test stage, and its judgement beside scikit-learn's."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from mmpds.callbacks.predictions import Predictions
from mmpds.callbacks.robustness import BATCH, METRICS, Robustness, judge
from mmpds.data.corruptions import CORRUPTIONS, conditions
from mmpds.data.module import ImageData
from mmpds.metrics.calibration import Calibration
from mmpds.metrics.intervals import evaluate
from mmpds.metrics.thresholds import Threshold

SIZE = 32
FINDINGS = ("Top", "Bright")
ROTATION = {"rotation": [45, 180]}


class Halves:
    """Half of the images are brighter above, `Top`; a third are brighter everywhere, `Bright`, of some unknown."""

    findings = FINDINGS

    def __init__(self, images=200):
        rng = np.random.default_rng(0)
        top, bright = rng.random((2, images)) < [[0.5], [0.3]]
        self.seen = []
        self.table = pd.DataFrame({
            "id": [f"image-{i}" for i in range(images)], "group": [f"patient-{i // 2}" for i in range(images)],
            "normal": ~(top | bright), "Top": top.astype(float),
            "Bright": np.where(np.arange(images) % 7, bright.astype(float), np.nan),
        })  # fmt: skip
        self.grey = (
            np.where(bright, 130, 70) + rng.normal(0, 25, images),
            np.where(top, 25, 5) + rng.normal(0, 5, images),
        )

    def image(self, row, size):
        self.seen.append(size)
        pixels = np.full((size, size), self.grey[0][row])
        pixels[: size // 2] += self.grey[1][row]
        return pixels.clip(0, 255).astype(np.uint8)

    def digest(self, row):
        return str(row)


class HalvesDetector(pl.LightningModule):
    """Looks at how much brighter the upper half is, and at how bright all is; it is calibrated."""

    findings = FINDINGS

    def __init__(self):
        super().__init__()
        self.threshold = Threshold(FINDINGS, rule="fixed", fixed=0.4)
        self.calibration = Calibration(FINDINGS, "temperature")
        self.calibration.temperature.copy_(torch.tensor([0.5, 3.0]))  # as a validation would leave it

    def probabilities(self, image):
        upper, lower = image.flatten(1).chunk(2, dim=1)
        logit = torch.stack([upper.mean(1) - lower.mean(1) - 0.06, (image.mean((1, 2, 3)) - 0.4) / 2], dim=1) * 20
        return logit.sigmoid()

    def test_step(self, batch, batch_idx):
        return {"prob": self.calibration.calibrate(self.probabilities(batch["image"])), "index": batch["index"]}


def stage(folder, **options):
    data = ImageData(Halves, size=SIZE, batch_size=8, fractions=(0.2, 0.2, 0.6))
    settings = {"images": None, "corruptions": ROTATION, "replicates": 50} | options
    callback, predictions = Robustness(str(folder / "robustness.csv"), **settings), Predictions()
    trainer = pl.Trainer(
        callbacks=[predictions, callback], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(HalvesDetector(), data, verbose=False)
    return callback.summary(), data.images["test"], predictions.prob


def test_the_undisturbed_level_is_the_test_itself_and_a_turn_harms_what_it_should(tmp_path):
    found, images, prob = stage(tmp_path)
    usual = evaluate(
        prob, images.label.numpy(), np.full(2, 0.4), FINDINGS, group=images.table["group"], replicates=50, seed=0
    )
    metrics, intervals = found["metrics"], found["intervals"]
    assert metrics["robustness/rotation/0/auroc/macro"] == pytest.approx(usual.metrics["auroc/macro"], abs=1e-12)
    assert intervals["robustness/rotation/0/auroc/macro"] == pytest.approx(usual.intervals["auroc/macro"], abs=1e-6)
    balanced = [(usual.metrics[f"recall/{f}"] + usual.metrics[f"specificity/{f}"]) / 2 for f in FINDINGS]
    assert metrics["robustness/rotation/0/balanced_accuracy/macro"] == pytest.approx(np.mean(balanced), abs=1e-12)

    table = pd.read_csv(tmp_path / "robustness.csv", dtype={"level": str}).set_index(["level", "finding"])
    assert (table.corruption == "rotation").all()
    assert (table.unit == "degrees").all()
    assert table.index.tolist() == [(level, f) for level in ("0", "45", "180") for f in (*FINDINGS, "macro")]
    top, bright = table.xs("Top", level="finding"), table.xs("Bright", level="finding")
    assert top.auroc["180"] < 0.1 < 0.9 < top.auroc["0"]  # upside down, the lower half is the brighter one
    assert bright.auroc["180"] == pytest.approx(bright.auroc["0"], abs=0.01)
    assert top.auroc_drop["180"] == pytest.approx(top.auroc["0"] - top.auroc["180"])
    assert top.auroc_drop_low["180"] > 0.5
    assert np.isnan(top.auroc_drop["0"])
    macro = table.xs("macro", level="finding")
    for metric in METRICS:
        for level in ("0", "45", "180"):
            name = f"robustness/rotation/{level}/{metric}"
            assert macro.loc[level, metric] == pytest.approx(metrics[f"{name}/macro"])
            assert macro.loc[level, metric] == pytest.approx((top.loc[level, metric] + bright.loc[level, metric]) / 2)
            assert (f"{name}_drop/macro" in metrics) == (level != "0")
    assert found["counts"] == {"robustness/images": 120, "robustness/groups": images.table["group"].nunique()}
    assert found["warnings"] == []


def test_every_corruption_is_predicted_at_every_level(tmp_path):
    found, images, _ = stage(tmp_path, corruptions=None, images=40, replicates=0)
    names = {f"robustness/{each.name}/auroc/macro" for each in conditions(None, SIZE)}
    assert names <= found["metrics"].keys()
    assert found["intervals"] == {}
    assert len(pd.read_csv(tmp_path / "robustness.csv")) == 3 * len(names)
    assert {1024, 512, 256, 128, 64} <= set(images.source.seen)
    values = {name: found["metrics"][name] for name in names}
    assert values["robustness/flip/up_down/auroc/macro"] < values["robustness/flip/none/auroc/macro"] - 0.3
    assert values["robustness/flip/left_right/auroc/macro"] == values["robustness/flip/none/auroc/macro"]
    assert len({values[f"robustness/{name}/auroc/macro"] for name in ("noise/0", "flip/none", "jpeg/none")}) == 1


def test_a_sample_is_the_same_each_time_and_another_for_another_seed(tmp_path):
    found = [stage(tmp_path, images=30, seed=seed)[0] for seed in (0, 0, 1)]
    assert found[0]["counts"]["robustness/images"] == 30
    assert found[0] == found[1]
    assert found[0]["metrics"] != found[2]["metrics"]


def test_calibration_and_thresholds_are_applied_batch_by_batch(tmp_path):
    assert BATCH < 120  # else there is one batch alone
    found, images, prob = stage(tmp_path, replicates=0)
    label = images.label.numpy()
    right = [np.mean((prob[:, c] >= 0.4)[known] == label[known, c]) for c, known in enumerate(~np.isnan(label).T)]
    assert found["metrics"]["robustness/rotation/0/accuracy/macro"] == pytest.approx(np.mean(right), abs=1e-12)


# the judgement alone


def sample(items=300, seed=0, rare=0.3):
    rng = np.random.default_rng(seed)
    label = (rng.random((items, 2)) < rare).astype(float)
    label[:20, 1] = np.nan
    prob = np.clip(0.3 * np.nan_to_num(label) + rng.random((3, items, 2)) * 0.7, 0, 1).astype(np.float32)
    return prob, label, np.array([f"p{i // 3}" for i in range(items)])


ASKED = conditions({"noise": [0.1, 0.2]}, SIZE)


def test_figures_are_scikit_learns():
    prob, label, group = sample()
    threshold = np.array([0.5, 0.3], np.float32)
    _, table = judge(prob, label, threshold, FINDINGS, ASKED, group, replicates=0)
    for k, level in enumerate(("0", "0.1", "0.2")):
        for c, finding in enumerate(FINDINGS):
            (row,) = table[(table.level == level) & (table.finding == finding)].to_dict("records")
            known = ~np.isnan(label[:, c])
            truth, score = label[known, c], prob[k, known, c]
            assert row["auroc"] == pytest.approx(roc_auc_score(truth, score))
            assert row["accuracy"] == pytest.approx(accuracy_score(truth, score >= threshold[c]))
            assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, score >= threshold[c]))
            assert row["undisturbed"] == (k == 0)


def test_drops_are_paired():
    prob, label, group = sample()
    prob[1] = prob[0]
    prob[2] = prob[0] - 0.02 * (np.arange(len(label)) % 2)[:, np.newaxis]  # hardly another
    found, _ = judge(prob.clip(0, 1), label, np.full(2, 0.5), FINDINGS, ASKED, group, replicates=200)
    for metric in METRICS:
        assert found.metrics[f"robustness/noise/0.1/{metric}_drop/macro"] == 0
        assert found.intervals[f"robustness/noise/0.1/{metric}_drop/macro"] == (0, 0)
    low, high = found.intervals["robustness/noise/0.2/auroc_drop/macro"]
    alone = found.intervals["robustness/noise/0.2/auroc/macro"]
    assert 0 < high - low < (alone[1] - alone[0]) / 2


def test_a_silenced_detector_keeps_its_accuracy_but_not_its_balanced_accuracy():
    prob, label, group = sample(rare=0.05)
    prob[1] = 0
    found, _ = judge(prob, label, np.full(2, 0.5), FINDINGS, ASKED, group, replicates=0)
    assert found.metrics["robustness/noise/0.1/accuracy/macro"] > 0.9
    assert found.metrics["robustness/noise/0.1/accuracy_drop/macro"] < 0
    assert found.metrics["robustness/noise/0.1/balanced_accuracy/macro"] == 0.5


def test_intervals_keep_to_the_patients():
    prob, label, group = sample()
    wide, narrow = (
        judge(prob, label, np.full(2, 0.5), FINDINGS, ASKED, each, replicates=300)[0].intervals
        for each in (np.array([f"p{i // 100}" for i in range(300)]), group)
    )
    name = "robustness/noise/0/auroc/macro"
    assert wide.keys() == narrow.keys()
    assert wide[name] != narrow[name]


def test_what_cannot_be_judged_is_left_out_and_said():
    prob, label, group = sample()
    label[:, 1] = np.where(np.isnan(label[:, 1]), np.nan, 0)
    found, table = judge(prob, label, np.full(2, 0.5), FINDINGS, ASKED, group, replicates=50)
    assert set(table.finding) == {"Top", "macro"}
    assert found.warnings == ["robustness: Bright is left out: none of 300 images is known to be with it"]
    found, table = judge(prob, np.ones_like(label), np.full(2, 0.5), FINDINGS, ASKED, group)
    assert (found.metrics, found.intervals, len(table)) == ({}, {}, 0)
    assert [text.rpartition("to be ")[2] for text in found.warnings] == ["without it", "without it"]


def test_too_few_images_for_intervals_are_said():
    prob, label, group = sample()
    found, _ = judge(prob, label, np.full(2, 0.5), FINDINGS, ASKED, np.full(300, "one"), replicates=50)
    assert found.intervals == {}
    assert found.warnings == ["robustness: no intervals: all images are of one patient"]
    label[:, 0] = np.arange(300) == 7
    found, table = judge(prob, label, np.full(2, 0.5), FINDINGS, ASKED, group, replicates=100)
    assert len(found.warnings) == 1
    assert "give more by callbacks.robustness.images" in found.warnings[0]
    assert "robustness/noise/0/auroc/macro" not in found.intervals
    assert "robustness/noise/0/accuracy/macro" in found.intervals  # which needs no image of either kind
    assert table[table.finding == "Bright"].auroc_low.notna().all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"corruptions": {"blur": None}}, "corruptions.blur=None: no such corruption"),
        ({"corruptions": {"jpeg": [0], "noise": [9]}}, "; corruptions.noise=9: give"),
        ({"images": 0}, "images=0: give a number above zero"),
    ],
)
def test_wrong_arguments_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        Robustness("robustness.csv", **options)


def test_all_corruptions_have_a_unit_or_names():
    for name, known in CORRUPTIONS.items():
        assert bool(known.unit) != all(isinstance(level, str) for level in known.levels), name
