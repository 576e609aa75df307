"""A checkpoint put to use: tested and predicted with elsewhere, at other thresholds, trained on from."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import train as entry
from mmpds.data.phantom import Phantom
from mmpds.results import read
from tests.conftest import ROOT, TINY

SMALL = (
    *(argument for argument in TINY if "source" not in argument),
    "trainer.max_epochs=1",
    "trainer.threads=1",
)
DEMO = (*SMALL, "experiment=demo", "data.source.images=60")
FINDINGS = Phantom(images=1).findings


def run(folder, *arguments, check=0):
    """The command within this process, which has imported torch already; returns what it wrote."""
    out = io.StringIO()
    with (
        patch.dict(os.environ), patch.object(sys, "argv", ["train.py"]), chdir(folder),
        redirect_stdout(out), redirect_stderr(out),
    ):  # fmt: skip
        status = entry.main(list(arguments))
    assert status == check, out.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run, class folders, and a plain folder of the same files with a damaged one."""
    folder = tmp_path_factory.mktemp("stages")
    phantom = Phantom(images=9, seed=3)
    for row in range(9):
        image = Image.fromarray(phantom.image(row, 48))
        name = f"person{row // 2}_virus_{row}.png"
        for below in ("classes/" + ("PNEUMONIA" if row % 3 else "NORMAL"), "plain"):
            (folder / below).mkdir(parents=True, exist_ok=True)
            image.save(folder / below / name)
    shutil.copytree(folder / "classes", folder / "damaged")
    for below in ("damaged/NORMAL", "plain"):
        (folder / below / "broken.png").write_bytes(b"no image")
    run(folder, *DEMO, "run_dir=trained")
    return folder


CHECKPOINT = "checkpoint=trained/checkpoints/best.ckpt"
FOLDER = (*SMALL, "data=chest_xray", CHECKPOINT)
ELSEWHERE = (*FOLDER, "data.test_root=classes")


def table(folder, name):
    return pd.read_csv(folder / name / "predictions.csv")


def probabilities(rows):
    return rows[[f"{finding} probability" for finding in FINDINGS]].to_numpy()


@pytest.fixture(scope="module")
def tested(place):
    run(place, "stages=[test]", *ELSEWHERE, "run_dir=tested")
    return place


def test_another_data_set_is_tested_with_the_checkpoints_findings(tested):
    rows, result = table(tested, "tested"), read(tested / "tested")
    assert [column.removesuffix(" label") for column in rows if column.endswith(" label")] == list(FINDINGS)
    assert len(rows) == 9
    assert (rows["Pneumonia label"] == rows["id"].str.startswith("PNEUMONIA")).all()
    assert rows[[f"{finding} label" for finding in FINDINGS if finding != "Pneumonia"]].isna().all(axis=None)
    assert (
        not rows[[f"{finding} {what}" for finding in FINDINGS for what in ("probability", "decision")]]
        .isna()
        .any(axis=None)
    )
    metrics = result["metrics"]
    assert 0 <= metrics["test/auroc/Pneumonia"] <= 1
    assert metrics["test/auroc/macro"] == metrics["test/auroc/Pneumonia"]
    assert result["counts"]["test/groups"] == 5
    for finding in FINDINGS:
        warned = any(warning.startswith(f"{finding}: ") for warning in result["warnings"])
        assert warned == (finding != "Pneumonia") or finding == "Pneumonia"
        assert metrics.get(f"test/auroc/{finding}") is None or finding == "Pneumonia"
    # the thresholds are the checkpoint's
    state = torch.load(tested / "trained" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    used = [metrics[f"test/threshold/{finding}"] for finding in FINDINGS]
    assert used == pytest.approx(state["threshold.value"].tolist())


def test_a_runs_own_predictions_are_judged_again_as_the_run_judged_them(place):
    before, rows = read(place / "trained"), table(place, "trained")
    assert rows["split"].drop_duplicates().tolist() == ["val", "test"]
    run(place, "experiment=evaluate_predictions", "data.predictions=trained/predictions.csv", "bootstrap=20",
        "run_dir=again")  # fmt: skip
    after = read(place / "again")
    assert after["threshold"] == before["threshold"], "fitted on the validation rows, as in the run"
    for section in ("metrics", "intervals", "counts"):
        same = {name: value for name, value in before[section].items() if name.startswith("test/")}
        assert same.keys() == {name for name in after[section] if name.startswith("test/")}
        for name, value in same.items():
            assert after[section][name] == pytest.approx(value, abs=1e-6), name
    names = [f"{finding} {what}" for finding in FINDINGS for what in ("label", "probability", "decision")]
    pd.testing.assert_frame_equal(table(place, "again")[names], rows[names])


def test_only_what_a_run_made_is_in_its_folder(tested):
    assert not (tested / "tested" / "checkpoints").exists()
    assert read(tested / "tested")["timing"]["fit_s"] is None


@pytest.fixture(scope="module")
def predicted(place):
    run(place, "stages=[predict]", *FOLDER, "data.predict_root=plain", "run_dir=predicted")
    return place


def test_a_folder_is_predicted_but_for_what_cannot_be_read(predicted, tested):
    rows = table(predicted, "predicted").set_index("id")
    assert sorted(rows.index) == sorted(path.name for path in (predicted / "plain").glob("person*"))
    rejected = pd.read_csv(predicted / "predicted" / "rejected.csv")
    assert rejected.values.tolist() == [["broken.png", "not an image"]]
    result = read(predicted / "predicted")
    assert result["counts"]["rejected"] == 1
    assert any("rejected.csv" in warning for warning in result["warnings"])
    # the same files give the same probabilities, whichever stage asks
    other = table(tested, "tested")
    other.index = other["id"].str.rpartition("/")[2]
    np.testing.assert_allclose(probabilities(rows.loc[other.index]), probabilities(other), atol=1e-6)


def test_fit_test_and_predict_in_one_go(predicted):
    run(predicted, *DEMO, "stages=[fit,test,predict]", "data.predict_root=plain", "run_dir=all")
    result, rows = read(predicted / "all"), table(predicted, "all")
    assert result["status"] == "finished"
    assert (rows["split"] == "test").sum() == result["counts"]["test/items"]
    assert result["counts"]["rejected"] == 1
    assert all(result["timing"][f"{stage}_s"] > 0 for stage in ("fit", "test", "predict"))
    assert {"best", "last", "predictions", "rejected"} <= result["artifacts"].keys()
    # the same training, so the same as its checkpoint alone predicts
    again, alone = rows[rows["split"] == "predict"], table(predicted, "predicted")
    assert again["id"].tolist() == alone["id"].tolist()
    np.testing.assert_allclose(probabilities(again), probabilities(alone), atol=1e-6)


def test_two_ranks_predict_and_test_as_one(predicted, tested):
    both = ("stages=[test,predict]", *ELSEWHERE, "data.predict_root=plain", "data.on_bad_image=skip")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *both, "trainer=mpi_cpu", "ranks=2", "run_dir=two"],
        cwd=predicted, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=99,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "site-packages" not in done.stderr, "a library's warning about what is right"
    rows = table(predicted, "two")
    for split, name in (("test", "tested"), ("predict", "predicted")):
        two, one = rows[rows["split"] == split], table(predicted, name)
        assert two["id"].tolist() == one["id"].tolist()
        np.testing.assert_allclose(probabilities(two), probabilities(one), atol=1e-6)
    metrics, one = read(predicted / "two")["metrics"], read(tested / "tested")["metrics"]
    assert {name: metrics[name] for name in one} == pytest.approx(one, abs=1e-6, nan_ok=True)


def test_a_bad_image_ends_a_test_and_is_named(place):
    said = run(place, "stages=[test]", *ELSEWHERE, "data.test_root=damaged", "run_dir=bad", check=1)
    assert (
        said.strip()
        .splitlines()[-1]
        .startswith("mmpds: the run failed: 1 unreadable images (NORMAL/broken.png: not an image)")
    )
    assert "data.on_bad_image=skip" in said
    assert read(place / "bad")["status"] == "failed"
    assert not (place / "bad" / "predictions.csv").exists()


def test_stated_thresholds_replace_the_checkpoints(place, tested):
    stated = ",".join(f"{finding}:0.{position + 1}" for position, finding in enumerate(FINDINGS))
    rule = ("model.threshold.rule=class_specific", f"model.threshold.values={{{stated}}}")
    run(place, "stages=[test]", *ELSEWHERE, *rule, "run_dir=stated")
    metrics, rows = read(place / "stated")["metrics"], table(place, "stated")
    np.testing.assert_array_equal(probabilities(rows), probabilities(table(tested, "tested")))
    for position, finding in enumerate(FINDINGS):
        threshold = (position + 1) / 10
        assert metrics[f"test/threshold/{finding}"] == pytest.approx(threshold)
        decided = rows[f"{finding} probability"] >= np.float32(threshold)
        assert (rows[f"{finding} decision"] == decided).all()


def test_another_fitted_rule_on_a_test_alone_is_not_silently_ignored(place, tested):
    # there is nothing to fit it on: the checkpoint's thresholds stay, and the run says so
    run(place, "stages=[test]", *ELSEWHERE, "model.threshold.rule=youden", "run_dir=other")
    result, before = read(place / "other"), read(tested / "tested")
    assert result["metrics"] == pytest.approx(before["metrics"], nan_ok=True)
    assert any("model.threshold.rule=youden" in warning for warning in result["warnings"])
    assert not any("model.threshold.rule" in warning for warning in before["warnings"])


def test_stated_thresholds_that_miss_a_finding_are_named(place):
    rule = ("model.threshold.rule=class_specific", "model.threshold.values={Pneumonia:0.3}")
    said = run(place, "stages=[test]", *ELSEWHERE, *rule, "run_dir=missing", check=1)
    assert "Nodule" in said.strip().splitlines()[-1]


def test_pretrained_weights_are_given_thresholds_before_a_test(place):
    init = "init_from=trained/checkpoints/best.ckpt"
    run(place, *DEMO, "stages=[test]", init, "run_dir=fitted")
    metrics, trained = read(place / "fitted")["metrics"], read(place / "trained")["metrics"]
    # the same weights and validation items fit the same thresholds and score the same test items the same
    same = {name: value for name, value in trained.items() if name.startswith(("test/threshold/", "test/auroc/"))}
    assert {name: metrics[name] for name in same} == pytest.approx(same, abs=1e-6)


def test_pretrained_weights_are_given_thresholds_before_a_prediction(place):
    init = "init_from=trained/checkpoints/best.ckpt"
    run(place, *DEMO, "stages=[predict]", init, "data.predict_root=plain", "run_dir=guessed")
    assert table(place, "guessed")["split"].value_counts()["predict"] == 9


def test_training_starts_from_the_weights_it_is_given(place):
    init = "init_from=trained/checkpoints/best.ckpt"
    run(place, *DEMO, "stages=[fit]", init, "model.learning_rate=0", "run_dir=started")
    before, after = (
        torch.load(place / name / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("trained", "started")
    )
    weights = [name for name in before if name.endswith((".weight", ".bias"))]  # no running statistics
    assert "head.weight" in weights
    assert [name for name in weights if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("arguments", ["stages=[test] checkpoint={}", "resume={}", "init_from={}"])
def test_a_damaged_checkpoint_is_one_clear_line(place, arguments):
    whole = (place / "trained" / "checkpoints" / "best.ckpt").read_bytes()
    (place / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    said = run(place, *DEMO, *arguments.format("cut.ckpt").split(), "run_dir=cut", check=1)
    (line,) = said.strip().splitlines()
    assert line.startswith("mmpds: the run failed: ")
    assert "cut.ckpt" in line, "which file it is"
    assert read(place / "cut")["status"] == "failed"


def test_a_resumed_run_keeps_what_it_logged(place):
    run(place, *DEMO, "stages=[fit]", "run_dir=longer")
    logged = curve(place / "longer")
    assert [epoch for epoch, _ in logged] == [0]
    run(place, *DEMO, "stages=[fit]", "run_dir=longer", "resume=last", "trainer.max_epochs=2")
    assert [epoch for epoch, _ in curve(place / "longer")] == [0, 1]
    assert curve(place / "longer")[0] == logged[0]


def curve(run_dir):
    """Epochs with their validation's ROC-AUC, from all tables that the run left."""
    rows = pd.concat(map(pd.read_csv, (run_dir / "logs").glob("*.csv")))
    rows = rows.dropna(subset=["epoch", "val/auroc/macro"]).sort_values("step")
    return list(zip(rows["epoch"], rows["val/auroc/macro"], strict=True))
