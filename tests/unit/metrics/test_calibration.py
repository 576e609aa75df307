"""Probabilities that mean what they say, the same from every rank and every checkpoint."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from mmpds.metrics.calibration import KNOTS, METHODS, Calibration
from mmpds.metrics.classification import Detection

FINDINGS = ("Pneumonia", "Nodule")


def overconfident(items, sharpness=(3.0, 0.5), seed=0):
    """Probabilities whose log-odds are `sharpness` times those that the labels were drawn with: float32 [N, 2]."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-0.5, 1.2, (items, 2))
    label = (rng.random((items, 2)) < expit(log_odds)).astype(np.float32)
    return expit(log_odds * sharpness).astype(np.float32), label


def fitted(prob, label, method, findings=FINDINGS):
    calibration = Calibration(findings, method)
    for part in range(0, len(prob), 64):
        calibration.update(torch.from_numpy(prob[part : part + 64]), torch.from_numpy(label[part : part + 64]))
    calibration.compute()
    return calibration


def calibrated(calibration, prob):
    return calibration.calibrate(torch.from_numpy(prob)).numpy()


def test_temperature_is_what_logistic_regression_without_intercept_finds():
    prob, label = overconfident(3000)
    label[::7, 1] = np.nan
    calibration = fitted(prob, label, "temperature")
    for c in range(2):
        known = ~np.isnan(label[:, c])
        log_odds = logit(prob[known, c].astype(np.float64))[:, np.newaxis]
        regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-9).fit(log_odds, label[known, c])
        assert float(calibration.temperature[c]) == pytest.approx(1 / regression.coef_.item(), rel=1e-3)
    assert calibration.temperature.tolist() == pytest.approx([3.0, 0.5], rel=0.1)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_other_items_of_the_same_kind_are_better_calibrated(method):
    calibration = fitted(*overconfident(4000), method)
    prob, label = overconfident(4000, seed=1)

    def judged(values):
        named = Detection(values, label, [0.5] * 2, FINDINGS)(np.ones((len(label), 1)))
        return named["ece/Pneumonia"][0], named["brier/macro"][0]

    (ece_before, brier_before), (ece_after, brier_after) = judged(prob), judged(calibrated(calibration, prob))
    assert ece_after < ece_before / 3
    assert brier_after < brier_before


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 400))
def test_temperature_keeps_the_order_and_the_auroc(seed, items):
    prob, label = overconfident(items, seed=seed)
    label[0], label[1] = 0, 1
    after = calibrated(fitted(prob, label, "temperature"), prob)
    for c in range(2):
        assert (np.diff(after[np.argsort(prob[:, c]), c]) >= 0).all()
        expected = roc_auc_score(label[:, c], prob[:, c])
        assert roc_auc_score(label[:, c], after[:, c]) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 60, 2000]), st.booleans())
def test_isotonic_equals_scikit_learn_on_any_score(seed, items, tied):
    prob, label = overconfident(items, seed=seed)
    prob = prob.round(1) if tied else prob
    label[0], label[-1] = 0, 1
    calibration = fitted(prob, label, "isotonic")
    asked = np.random.default_rng(seed).random((200, 2), dtype=np.float32)
    asked[:3] = [[0, 0], [1, 1], [0.5, 0.5]]
    for c in range(2):
        reference = IsotonicRegression(out_of_bounds="clip").fit(prob[:, c].astype(np.float64), label[:, c])
        assert len(reference.X_thresholds_) <= KNOTS
        expected = reference.predict(asked[:, c].astype(np.float64))
        np.testing.assert_allclose(calibrated(calibration, asked)[:, c], expected, atol=2e-6)


def test_more_steps_than_knots_stay_increasing_and_close():
    prob = np.linspace(0, 1, 40_000, dtype=np.float32)[:, np.newaxis]
    # a quarter of a per cent more positives in each hundred: each is a step of its own
    label = np.concatenate([np.arange(100) >= 100 - k / 4 for k in range(400)]).astype(np.float32)[:, np.newaxis]
    reference = IsotonicRegression(out_of_bounds="clip").fit(prob[:, 0].astype(np.float64), label[:, 0])
    calibration = fitted(prob, label, "isotonic", ["x"])
    after = calibrated(calibration, prob)[:, 0]
    assert len(reference.X_thresholds_) > KNOTS
    assert (np.diff(after) >= 0).all()
    assert np.abs(after - reference.predict(prob[:, 0].astype(np.float64))).max() < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_before_the_fit(method):
    prob, _ = overconfident(50)
    calibration = Calibration(FINDINGS, method)
    assert np.array_equal(calibrated(calibration, prob), prob)
    assert calibration.fitted == (method == "none")


def test_none_changes_nothing_after_it():
    prob, label = overconfident(50)
    assert np.array_equal(calibrated(fitted(prob, label, "none"), prob), prob)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
@pytest.mark.parametrize(("only", "missing"), [(0.0, "no positive"), (1.0, "no negative"), (np.nan, "no positive")])
def test_a_finding_of_one_class_stays_as_it_is_and_is_named(method, only, missing):
    prob, label = overconfident(200)
    label[:, 1] = only
    calibration = fitted(prob, label, method)
    after = calibrated(calibration, prob)
    np.testing.assert_allclose(after[:, 1], prob[:, 1], rtol=1e-6)
    assert np.abs(after[:, 0] - prob[:, 0]).max() > 0.05
    assert calibration.fitted
    assert list(calibration.unfit) == ["Nodule"]
    assert missing in calibration.unfit["Nodule"]
    assert fitted(*overconfident(200), method).unfit == {}


@pytest.mark.parametrize("prob", [[[0.1], [0.2], [0.8], [0.9]], [[0.9], [0.8], [0.2], [0.1]]])
def test_a_temperature_that_runs_away_is_not_taken(prob):
    prob, label = np.array(prob, dtype=np.float32), np.array([[0], [0], [1], [1]], dtype=np.float32)
    calibration = fitted(prob, label, "temperature", ["x"])
    assert "no temperature from 0.05 to 20" in calibration.unfit["x"]
    assert np.array_equal(calibrated(calibration, prob), prob)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_certain_scores_are_fitted_and_stay_probabilities(method):
    prob, label = overconfident(200)
    prob[:5], prob[5:10] = 0, 1
    after = calibrated(fitted(prob, label, method), prob)
    assert ((after >= 0) & (after <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_the_fit_whatever_its_size(method, tmp_path):
    prob, _ = overconfident(50, seed=9)
    for calibration in (Calibration(FINDINGS, method), *(fitted(*overconfident(n), method) for n in (30, 3000))):
        torch.save(calibration.state_dict(), tmp_path / "c.pt")
        fresh = fitted(*overconfident(100, seed=5), method)
        fresh.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True), strict=True)
        assert fresh.fitted == calibration.fitted
        assert np.array_equal(calibrated(fresh, prob), calibrated(calibration, prob))


def test_checkpoints_of_another_method_and_of_none_load_as_not_fitted():
    fit = fitted(*overconfident(100), "temperature").state_dict()
    other, older = Calibration(FINDINGS, "isotonic"), Calibration(FINDINGS, "temperature")
    other.load_state_dict(fit, strict=True)
    older.load_state_dict({}, strict=True)
    assert not other.fitted
    assert not older.fitted


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="no calibration method 'platt'; choose from none, temperature, isotonic"):
        Calibration(FINDINGS, "platt")
    with pytest.raises(ValueError, match=r"\(3, 1\) must be \[items, 2\]"):
        Calibration(FINDINGS).calibrate(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="not logits"):
        fitted(np.full((4, 2), 3, np.float32), np.zeros((4, 2), np.float32), "temperature")


def test_brier_score_is_scikit_learns_under_any_weights():
    prob, label = overconfident(300)
    label[::5, 0] = np.nan
    weight = np.random.default_rng(0).random((300, 3))
    named = Detection(prob, label, [0.5] * 2, FINDINGS)(weight)
    for c, finding in enumerate(FINDINGS):
        known = ~np.isnan(label[:, c])
        for r in range(3):
            expected = brier_score_loss(label[known, c], prob[known, c], sample_weight=weight[known, r])
            assert named[f"brier/{finding}"][r] == pytest.approx(expected, abs=1e-7)
    unlabelled = Detection(prob, np.full_like(prob, np.nan), [0.5] * 2, FINDINGS)(weight)
    assert np.isnan(unlabelled["brier/macro"]).all()


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
@pytest.mark.parametrize("mine", [0, 1, 100])
def test_a_rank_with_few_or_no_items_fits_over_those_of_all(method, mine):
    prob, label = (torch.from_numpy(array) for array in overconfident(300))
    rank = Calibration(FINDINGS, method)
    rank.update(prob[:mine], label[:mine])
    others = iter([prob[mine:], label[mine:]])
    # what gloo brings from the other rank; that it can, is tested with the metrics
    rank.distributed_available_fn = lambda: True
    rank.dist_sync_fn = lambda state, group: [state, next(others)]
    rank.compute()
    alone = fitted(prob.numpy(), label.numpy(), method)
    np.testing.assert_allclose(rank.calibrate(prob), alone.calibrate(prob), atol=1e-6)
    assert len(rank.items()[0]) == mine
