import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmpds.metrics.classification import Detection, DetectionMetrics, check_arrays
from mmpds.metrics.thresholds import Threshold

FINDINGS = ("Pneumonia", "Infiltration", "Effusion")


def predictions(items, seed=0, unlabelled=0.1):
    """Scores with many ties, labels that they predict a little."""
    rng = np.random.default_rng(seed)
    prob = rng.integers(0, 21, (items, 3)) / 20
    label = (rng.random((items, 3)) < 0.2 + 0.5 * prob).astype(float)
    label[rng.random(label.shape) < unlabelled] = np.nan
    return prob, label


def by_sklearn(prob, label, threshold, weight):
    """Metrics of one finding in scikit-learn's words; both classes must occur."""
    known = ~np.isnan(label)
    prob, label, weight = prob[known], label[known].astype(int), weight[known]
    flagged = (prob >= threshold).astype(int)
    counted = {"sample_weight": weight, "zero_division": np.nan}
    return {
        "auroc": sk.roc_auc_score(label, prob, sample_weight=weight),
        "average_precision": sk.average_precision_score(label, prob, sample_weight=weight),
        "f1": sk.f1_score(label, flagged, **counted),
        "precision": sk.precision_score(label, flagged, **counted),
        "recall": sk.recall_score(label, flagged, **counted),
        "specificity": sk.recall_score(1 - label, 1 - flagged, **counted),
    }


def detect(prob, label, threshold=(0.5, 0.5, 0.5), weight=None, normal=None):
    weight = np.ones(len(prob)) if weight is None else weight
    named = Detection(prob, label, threshold, FINDINGS, normal)(weight[:, np.newaxis])
    return {name: value[0] for name, value in named.items()}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    items=st.integers(20, 60),
    threshold=st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 0.8])] * 3),
    weighting=st.sampled_from(["ones", "multiplicities", "fractions"]),
)
def test_every_metric_equals_scikit_learn_with_ties_and_weights(seed, items, threshold, weighting):
    prob, label = predictions(items, seed)
    label[:4] = [[0] * 3, [1] * 3, [0] * 3, [1] * 3]
    rng = np.random.default_rng(seed + 1)
    weight = {"ones": np.ones(items), "multiplicities": rng.integers(0, 4, items).astype(float)}.get(
        weighting, rng.random(items)
    )
    weight[:4] = 1  # both classes stay
    ours = detect(prob, label, threshold, weight)
    theirs = [by_sklearn(prob[:, c], label[:, c], threshold[c], weight) for c in range(3)]
    for metric in theirs[0]:
        values = [their[metric] for their in theirs]
        assert [ours[f"{metric}/{f}"] for f in FINDINGS] == pytest.approx(values, abs=1e-9, nan_ok=True)
        if metric != "precision":
            assert ours[f"{metric}/macro"] == pytest.approx(np.mean(values), abs=1e-9)


def test_multiplicities_equal_repeated_items_in_float32_too():
    prob, label = predictions(300, seed=3)
    weight = np.random.default_rng(4).integers(0, 5, 300)
    once = detect(prob, label, weight=weight.astype(np.float32))
    repeated = detect(np.repeat(prob, weight, axis=0), np.repeat(label, weight, axis=0))
    assert once == pytest.approx(repeated, abs=1e-6)


def test_columns_of_weights_do_not_mix():
    prob, label = predictions(50)
    weight = np.random.default_rng(0).integers(0, 3, (50, 7)).astype(float)
    detection = Detection(prob, label, [0.5] * 3, FINDINGS)
    together = detection(weight)
    apart = [detection(weight[:, [r]]) for r in range(7)]
    for name, values in together.items():
        np.testing.assert_allclose(values, [one[name][0] for one in apart], atol=1e-12)


def test_calibration_error_by_hand():
    prob = np.array([[0.02], [0.04], [0.95], [1.0], [1 / 15], [0.5]])
    label = np.array([[0.0], [1.0], [1.0], [1.0], [0.0], [np.nan]])
    # two bins of label - probability, [0, 1/15] with 1/15 itself and (14/15, 1], over five labelled items
    expected = (abs(1 - 0.02 - 0.04 - 1 / 15) + abs(2 - 1.95)) / 5
    assert Detection(prob, label, [0.5], ["x"])(np.ones((6, 1)))["ece/x"][0] == pytest.approx(expected)


def test_calibrated_scores_have_no_calibration_error():
    prob = np.repeat([[0.25], [0.75]], 400, axis=0)
    label = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0]).astype(float)[:, np.newaxis]
    named = Detection(prob, label, [0.5], ["x"])(np.ones((800, 1)))
    assert named["ece/x"][0] == pytest.approx(0, abs=1e-12)


def test_undefined_values_are_nan_and_left_out_of_the_macro():
    prob = np.array([[0.9, 0.9, 0.1], [0.2, 0.8, 0.2], [0.6, 0.1, 0.3]])
    label = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=float)
    named = detect(prob, label)
    undefined = {name for name, value in named.items() if np.isnan(value)}
    assert undefined == {
        "auroc/Infiltration",
        "average_precision/Infiltration",
        "f1/Infiltration",
        "recall/Infiltration",
        "precision/Effusion",
    }
    assert named["recall/macro"] == pytest.approx((1 + 0) / 2)
    assert named["f1/Effusion"] == 0  # a positive missed is no undefined F1
    assert named["specificity/macro"] == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_nothing_labelled_is_undefined_throughout():
    named = detect(np.full((4, 3), 0.5), np.full((4, 3), np.nan))
    assert all(np.isnan(value) for value in named.values())


def test_false_positives_on_normal_items():
    prob = np.array([[0.9, 0.1, 0.1], [0.6, 0.7, 0.1], [0.1, 0.1, 0.1], [0.1, 0.9, 0.1], [0.9, 0.9, 0.9]])
    named = detect(prob, np.zeros((5, 3)), normal=np.array([True, True, True, True, False]))
    assert named["false_positive_rate/No Finding"] == 0.75
    assert [named[f"false_positive_rate/No Finding/{f}"] for f in FINDINGS] == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("prob", "label", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\) and label \(3, 2\)"),
        (np.zeros(3), np.zeros(3), r"\[items, findings\]"),
        ([[1.5, np.nan, 0.2]], np.zeros((1, 3)), "2 of 3 values are outside .* 1 of them NaN"),
        ([[0.5, 0.5]], [[-1, 2]], "2 of 2 values are none of 0, 1 and NaN"),
    ],
)
def test_bad_arrays_are_named_and_counted(prob, label, message):
    with pytest.raises(ValueError, match=message):
        check_arrays(prob, label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"findings": ["a", "a", "b"]}, "3 different names"),
        ({"threshold": [0.5]}, "3 numbers"),
        ({"threshold": [0.5, np.nan, 0.5]}, "fit them first"),
        ({"normal": np.zeros(4, dtype=bool)}, r"bool \(5,\)"),
        ({"normal": np.zeros(5)}, "float64"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"threshold": [0.5] * 3, "findings": FINDINGS} | change
    with pytest.raises(ValueError, match=message):
        Detection(np.zeros((5, 3)), np.zeros((5, 3)), **arguments)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (12, 3), elements=st.floats(0, 1, width=32)), st.randoms())
def test_order_of_the_items_does_not_matter(prob, random):
    label = np.tile([[1.0], [0.0], [np.nan]], (4, 3))
    order = list(range(12))
    random.shuffle(order)
    assert detect(prob, label) == pytest.approx(detect(prob[order], label[order]), abs=1e-12, nan_ok=True)


def test_torchmetric_adds_up_batches_and_judges_at_its_threshold():
    prob, label = predictions(40)
    metric = DetectionMetrics(FINDINGS)
    metric.threshold = torch.tensor([0.3, 0.5, 0.7])
    for part in range(0, 40, 7):
        metric.update(torch.tensor(prob[part : part + 7]), torch.tensor(label[part : part + 7]))
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx(detect(prob.astype(np.float32), label, (0.3, 0.5, 0.7)), abs=1e-6)
    metric.reset()
    metric.update(torch.tensor(prob[:5]), torch.tensor(label[:5]))
    assert len(metric.items()[0]) == 5


def test_torchmetric_refuses_a_wrong_width():
    with pytest.raises(ValueError, match=r"prob \(2, 2\) .* \[items, 3\]"):
        DetectionMetrics(FINDINGS).update(torch.zeros(2, 2), torch.zeros(2, 2))


SIZES = (0, 1, 5, 6, 7)


def values_of(items, rank, world):
    """What both metrics say of `items` items dealt to the ranks, in batches of two."""
    prob, label = (torch.tensor(a, dtype=torch.float32)[rank::world] for a in predictions(items, unlabelled=0.0))
    metrics, threshold = DetectionMetrics(FINDINGS), Threshold(FINDINGS, rule="f1")
    for part in range(0, len(prob), 2):  # a rank without items is never updated
        metrics.update(prob[part : part + 2], label[part : part + 2])
        threshold.update(prob[part : part + 2], label[part : part + 2])
    named = {name: float(value) for name, value in metrics.compute().items()}
    return named | {f"threshold/{c}": float(value) for c, value in enumerate(threshold.compute())}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder in which ranks of 2 and 3 processes, started from a fresh interpreter, left their values."""
    folder = tmp_path_factory.mktemp("ranks")
    source = str(Path(sys.modules[DetectionMetrics.__module__].__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, timeout=120, check=True)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")  # one item has but one class
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("items", SIZES)
def test_ranks_with_uneven_and_no_items_equal_one_process(ranks, world, items):
    expected = values_of(items, 0, 1)
    for rank in range(world):
        got = json.loads((ranks / f"{rank}_of_{world}.json").read_text())[str(items)]
        assert got == pytest.approx(expected, abs=1e-6, nan_ok=True), f"rank {rank}"


def run_rank(rank, world, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/{world}", rank=rank, world_size=world)
    values = {items: values_of(items, rank, world) for items in SIZES}
    torch.distributed.destroy_process_group()
    (folder / f"{rank}_of_{world}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    # forked here, where torch is imported but has not run: no thread to lose, and one import for all
    fork = multiprocessing.get_context("fork")
    for world in (2, 3):
        processes = [fork.Process(target=run_rank, args=(rank, world, Path(sys.argv[1]))) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(50)
            process.kill()  # one that hangs must not outlive the test
        if any(process.exitcode != 0 for process in processes):
            sys.exit(1)
