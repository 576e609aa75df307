"""An audit finds the gap that was planted, no other, and its figures are fairlearn's and scikit-learn's."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, true_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from mmpds.metrics.classification import Ranking
from mmpds.metrics.fairness import audit
from mmpds.metrics.group_thresholds import group_thresholds
from mmpds.metrics.subgroup import METRICS, Subgroup

FINDINGS = ("Pneumonia", "Effusion")
BANDS = ("18-39", "40-59", "60-79")


def people(seed, patients=500, faint=0.0, findings=FINDINGS):
    """Calibrated scores of patients with one to three images; `faint` weakens the first finding in women."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    sex, band = rng.choice(["M", "F"], patients)[group], rng.choice(BANDS, patients)[group]
    view = rng.choice(["PA", "AP"], len(group))
    label = (rng.random((len(group), len(findings))) < 0.3).astype(float)
    shared = rng.normal(size=(patients, len(findings)))[group]  # images of a patient resemble each other
    signal = 2.0 * label + 0.6 * shared + 0.8 * rng.normal(size=label.shape)
    signal[:, 0] -= faint * (sex == "F") * label[:, 0]
    prob = expit(2.0 * (signal - 1.2))
    attributes = pd.DataFrame({"sex": sex, "age_band": band, "view": view})
    return prob, label, prob > 0.5, findings, attributes, group


def rows(audited, section="groups"):
    return pd.DataFrame(audited[section])


@pytest.mark.parametrize("count", [1, 2])
def test_values_are_fairlearns_and_intervals_hold_them(count):
    prob, label, decision, findings, attributes, group = people(1, findings=FINDINGS[:count])
    groups = rows(audit(prob, label, decision, findings, attributes, group))
    assert set(groups["attribute"]) == {
        "sex", "age_band", "view", "sex & age_band", "sex & view", "age_band & view",
    }  # fmt: skip
    attributes["sex & view"] = attributes["sex"] + " & " + attributes["view"]
    for attribute in ("sex", "age_band", "sex & view"):
        for c, finding in enumerate(findings):
            frame = partial(MetricFrame, y_true=label[:, c], sensitive_features=attributes[attribute])
            rates = {"tpr": true_positive_rate, "fpr": false_positive_rate}
            score = {"auroc": roc_auc_score, "calibration_gap": lambda y, p: p.mean() - y.mean()}
            expected = frame(metrics=rates, y_pred=decision[:, c]).by_group.join(
                frame(metrics=score, y_pred=prob[:, c]).by_group
            )
            ours = groups.loc[(groups["attribute"] == attribute) & (groups["finding"] == finding)].set_index("group")
            assert ours["judged"].all()
            np.testing.assert_allclose(ours.loc[expected.index, list(METRICS)], expected[list(METRICS)], rtol=1e-9)
            for metric in METRICS:
                low, high = np.stack(ours[f"{metric}_interval"]).T
                assert ((low < ours[metric]) & (ours[metric] < high)).all()
                assert (high - low < 0.35).all()
            patients = pd.Series(group).groupby(attributes[attribute]).nunique()
            assert ours["patients"].to_dict() == patients.to_dict()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.integers(1, 30), items=st.integers(4, 60))
def test_resampled_values_are_those_of_the_items_so_often(seed, ties, items):
    rng = np.random.default_rng(seed)
    prob, member = rng.integers(0, ties + 1, items) / ties, rng.integers(0, 6, items)
    label = np.append([0.0, 1.0], rng.integers(0, 2, items - 2)).astype(float)
    decision, weight = prob > 0.4, rng.integers(0, 4, (6, 5)).astype(np.float32)
    group = Subgroup("F", prob, label, decision, member)
    ours = group.resampled(weight, group.sums(6) @ weight)
    expected = Ranking(prob, label, threshold=np.nextafter(np.float32(0.4), 1)).metrics(weight[member])
    np.testing.assert_allclose(ours["auroc"], expected["auroc"], rtol=1e-6)
    np.testing.assert_allclose(ours["tpr"], expected["recall"], rtol=1e-6)
    np.testing.assert_allclose(ours["fpr"], 1 - expected["specificity"], rtol=1e-6, atol=1e-7)
    for replicate in range(5):
        drawn = np.repeat(np.arange(items), weight[member, replicate].astype(int))
        if len(drawn):
            gap = prob[drawn].mean() - label[drawn].mean()
            assert ours["calibration_gap"][replicate] == pytest.approx(gap, abs=1e-5)
    plain = group.shares(6)
    value = Ranking(prob, label).metrics(np.ones((items, 1)))["auroc"][0]
    assert plain["auroc"][0].sum() / plain["auroc"][1].sum() == pytest.approx(value)


@pytest.fixture(scope="module")
def fair_audits():
    audits = []
    for seed in range(50):
        *scores, attributes, group = people(seed, patients=250, findings=("Pneumonia",))
        audits.append(audit(*scores, attributes[["sex", "age_band"]], group, replicates=200, seed=seed))
    return audits


def test_false_alarms_are_as_rare_as_stated(fair_audits):
    """5 % of audits may report any gap: more than 6 of 50 would once in a hundred times."""
    assert all(len(audited["gaps"]) == 12 for audited in fair_audits)
    assert sum(rows(audited, "gaps")["found"].any() for audited in fair_audits) <= 6


def test_uncorrected_gaps_would_cry_wolf(fair_audits):
    """The reason for the correction: the difference beyond 1.96 of its own standard errors is no news."""
    cries = 0
    for audited in fair_audits:
        gaps = rows(audited, "gaps")
        critical = float(audited["notes"][-1].split("exceeds ")[1].split(" ")[0])
        error = (gaps["interval"].str[1] - gaps["gap"]) / critical
        cries += bool((gaps["gap"] > 1.96 * error).any())
    assert cries > 15


def test_a_planted_gap_is_found_where_it_was_planted_only():
    elsewhere = 0
    for seed in range(5):
        gaps = rows(audit(*people(seed, faint=1.2), seed=seed), "gaps")
        planted = gaps[(gaps["attribute"] == "sex") & (gaps["finding"] == "Pneumonia")].set_index("metric")
        assert planted.loc[["tpr", "auroc"], "found"].all()
        assert (planted.loc[["tpr", "auroc"], "worst_group"] == "F").all()
        assert not planted.loc["fpr", "found"]
        elsewhere += bool(gaps.loc[gaps["finding"] == "Effusion", "found"].any())
        for row in gaps[gaps["found"] & (gaps["metric"] == "tpr") & (gaps["finding"] == "Pneumonia")].itertuples():
            assert "F" in row.worst_group.split(" & ")
            assert row.interval[0] < row.gap < row.interval[1]
    assert elsewhere <= 1  # the 5 % that are allowed


def test_an_overrated_group_is_found_by_calibration():
    prob, label, decision, findings, attributes, group = people(2)
    prob = np.where((attributes["view"] == "AP").to_numpy()[:, None], prob**0.4, prob)
    gaps = rows(audit(prob, label, decision, findings, attributes, group), "gaps")
    told = gaps[(gaps["attribute"] == "view") & (gaps["metric"] == "calibration_gap")]
    assert told["found"].all()
    assert (told["worst_group"] == "AP").all()


def test_images_of_one_patient_are_not_independent():
    """The same items told apart as ten times fewer patients leave wider intervals and find less."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 10)
    sex = np.where(group % 2, "F", "M")
    label = np.repeat(rng.random(60) < 0.5, 10).astype(float)[:, None]
    prob = np.clip(label * 0.3 + np.repeat(rng.random(60), 10)[:, None] * 0.6, 0, 1)
    attributes = pd.DataFrame({"sex": sex})
    clustered, independent = (
        audit(prob, label, prob > 0.5, ["Pneumonia"], attributes, by) for by in (group, np.arange(600))
    )
    width = [np.diff(rows(each)["tpr_interval"].iloc[0])[0] for each in (clustered, independent)]
    assert width[0] > 2 * width[1]


def test_small_groups_and_unknown_values_are_said_to_be():
    prob, label, decision, findings, attributes, group = people(3)
    attributes.loc[attributes.index[:30], "sex"] = None
    old = np.flatnonzero(attributes["age_band"] == "60-79")
    label[old, 0] = np.where(np.arange(len(old)) < 8, 1.0, 0.0)
    label[:40, 1] = np.nan
    audited = audit(prob, label, decision, findings, attributes, group)
    groups = rows(audited).set_index(["attribute", "group", "finding"]).sort_index()
    small = groups.loc[("age_band", "60-79", "Pneumonia")]
    assert not small["judged"]
    assert small["why"] == "8 positives, fewer than 20"
    assert small[["auroc", "tpr", "tpr_interval"]].isna().all()
    assert groups.loc["sex", "items"].groupby("finding").sum().to_dict() == {
        "Pneumonia": len(prob) - 30, "Effusion": len(prob) - 40,
    }  # fmt: skip
    gaps = rows(audited, "gaps")
    pneumonia = gaps[(gaps["attribute"] == "age_band") & (gaps["finding"] == "Pneumonia")]
    assert "60-79" not in set(pneumonia["worst_group"]) | set(pneumonia["best_group"])
    assert any(note.startswith("sex is unknown for 30 of") for note in audited["notes"])
    assert any("too small to judge" in note for note in audited["notes"])
    few = audit(prob, label, decision, findings, attributes, np.arange(len(prob)) % 9)
    assert set(rows(few)["judged"]) == {False}
    assert not few["gaps"]


@pytest.mark.parametrize(("rate", "flagged"), [(0.85, 25), (0.01, 2)])
def test_a_small_group_needs_more_than_one_that_happens_to_have_all_flagged_or_a_few_of_many(rate, flagged):
    """25 of 25 at a rate of 0.85 has a chance of 0.02, 2 of 25 at one of 0.01 of 0.03: no gaps, of four metrics."""
    rng = np.random.default_rng(0)
    site = np.repeat(["small", "large"], [50, 2000])
    label = np.where(site == "small", np.arange(2050) < 25, np.arange(2050) % 4 == 0).astype(float)[:, None]
    prob = np.clip(0.5 * label + 0.5 * rng.random((2050, 1)), 0, 1)
    decision = (label == 1) & (rng.random((2050, 1)) < rate)
    decision[:25, 0] = np.arange(25) < flagged
    audited = audit(prob, label, decision, ["Pneumonia"], pd.DataFrame({"site": site}), np.arange(2050))
    gaps = rows(audited, "gaps").set_index("metric")
    assert gaps.loc["tpr", "gap"] > 0.05
    assert not gaps.loc["tpr", "found"]


def test_no_replicates_no_intervals_and_nothing_found():
    audited = audit(*people(0, faint=2.0), replicates=0)
    assert rows(audited)["tpr_interval"].isna().all()
    assert not rows(audited, "gaps")["found"].any()
    assert audited["notes"] == ["no gap can be told from chance: bootstrap=0"]
    nothing = audit(*people(0)[:4], pd.DataFrame(index=range(len(people(0)[0]))), people(0)[5])
    assert not nothing["groups"]
    assert "no two groups" in nothing["notes"][0]


def test_an_audit_repeats_itself():
    assert audit(*people(5), replicates=50) == audit(*people(5), replicates=50)


def test_all_that_is_wrong_is_told_at_once():
    prob, label, decision, _, attributes, group = people(0)
    attributes = attributes.assign(age=np.arange(len(prob), dtype=float))
    with pytest.raises(ValueError, match=r"decision: float64.*findings: 1 names for 2.*group.*age holds numbers"):
        audit(prob, label, decision.astype(float), ["Pneumonia"], attributes, group[:-1])


def test_thresholds_of_each_group_close_a_planted_gap_at_a_cost():
    fit, judged = people(1, patients=900, faint=1.2), people(2, patients=900, faint=1.2)
    arguments = (fit[0], fit[1], fit[4]["sex"], FINDINGS, "specificity@sensitivity")
    each = group_thresholds(*arguments, sensitivity=0.85)
    prob, label, _, _, attributes, _ = judged
    women, sick = (attributes["sex"] == "F").to_numpy(), label[:, 0] == 1

    def gap(decision):
        return abs(decision[women & sick, 0].mean() - decision[~women & sick, 0].mean())

    common, own = prob >= each.overall, each.decide(prob, attributes["sex"])
    assert gap(common) > 0.2
    assert gap(own) < 0.08
    assert own[women & ~sick, 0].mean() > common[women & ~sick, 0].mean()  # what it costs
    assert each.values["F"][0] < each.values["M"][0]
    unknown = each.decide(prob, np.full(len(prob), None))
    np.testing.assert_array_equal(unknown, prob.astype(np.float32) >= each.overall)


def test_a_group_too_small_for_its_own_threshold_gets_the_common_one():
    prob, label, *_ = people(6)
    site = np.where(np.arange(len(prob)) < 30, "new", "old")
    prob[:30] = 1 - prob[:30]
    fitted = group_thresholds(prob, label, site, FINDINGS, "youden")
    np.testing.assert_array_equal(fitted.values["new"], fitted.overall)
    assert not np.array_equal(fitted.values["old"], fitted.overall)
    assert fitted.notes == ["new: too few items of Pneumonia, Effusion; the thresholds of all groups apply"]
    with pytest.raises(ValueError, match="fixed states its thresholds"):
        group_thresholds(prob, label, site, FINDINGS, "fixed")
    with pytest.raises(ValueError, match="5 groups for"):
        group_thresholds(prob, label, site[:5], FINDINGS)
