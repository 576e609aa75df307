"""Each illness is named with its figures, and no healthy model is called ill."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torchxrayvision.models import DenseNet

from mmpds.callbacks.input_range import InputRange
from mmpds.metrics.diagnosis import diagnose

FITTING = {"variance_ratio": 1.1, "mean_shift": 0.1, "items": 8, "minimum": -1024.0, "maximum": 1024.0}


def told(prob, label, threshold=0.5, **arguments):
    prob, label = (np.asarray(a, dtype=float).reshape(len(a), -1) for a in (prob, label))
    findings = ["Pneumonia", "Effusion", "Nodule"][: prob.shape[1]]
    return diagnose(prob, label, [threshold] * prob.shape[1], findings, **arguments)


def names(*arguments, **others):
    return [diagnosis.name for diagnosis in told(*arguments, **others)]


def informative(items, seed=0):
    rng = np.random.default_rng(seed)
    prob = rng.random(items)
    return prob, (rng.random(items) < prob).astype(float)


def test_a_useful_model_is_left_alone():
    assert told(*informative(1000), input_range=FITTING) == []


def test_the_studys_scores_are_named_with_precision_and_f1_of_saying_yes():
    rng = np.random.default_rng(0)
    label = np.arange(1000) < 350
    prob = 0.6347 + rng.normal(0, 3e-5, 1000) + 1.5e-5 * label
    double, constant, always = told(prob, label, threshold=0.6)
    assert (double.name, double.finding) == ("double_sigmoid", None)
    assert "mean is 0.63, the share of positive labels 0.35" in double.evidence
    assert (constant.name, constant.finding) == ("constant_scores", "Pneumonia")
    assert constant.evidence.startswith("All 1,000 scores lie in 0.634")
    assert (always.name, always.finding) == ("always_positive", "Pneumonia")
    assert "All 1,000 images are flagged at threshold 0.6" in always.evidence
    assert "precision 0.35" in always.evidence
    assert "F1 0.52" in always.evidence


def test_a_nearly_constant_score_is_named_despite_outliers():
    prob = np.full(1000, 0.6347)
    prob[:3] = 0.1, 0.9, 0.99
    constant, *_ = told(prob, np.arange(1000) % 2, threshold=0.63)
    assert constant.evidence.startswith("997 of 1,000 scores lie in 0.6347-0.6347")


def test_a_rare_findings_small_scores_are_no_illness():
    prob, label = informative(1000)
    assert told(prob * 1e-3, label, threshold=5e-4) == []  # standard deviation 3e-4, and it ranks as before


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_saturated_scores_are_constant(value):
    assert "constant_scores" in names(np.full(50, value), np.arange(50) % 2)


def test_a_threshold_that_parts_nothing_is_to_blame_where_scores_vary():
    prob, label = informative(200)
    never, outside = told(prob * 0.4, label)
    assert never.evidence == f"No image is flagged at threshold 0.5: all {int(label.sum())} positives are missed."
    assert (never.name, outside.name) == ("never_positive", "threshold_outside_scores")
    assert f"reach from {prob.min() * 0.4:.4f} to {prob.max() * 0.4:.4f}" in outside.evidence
    assert names(prob * 0.4 + 0.59, label) == ["always_positive", "threshold_outside_scores"]


def test_one_class_is_named_and_answering_it_is_right():
    prob, label = informative(200)
    (only,) = told(prob * 0.4, np.zeros(200))
    assert only.name == "one_class_labels"
    assert "All 200 labelled images are negative" in only.evidence
    assert names(prob * 0.4 + 0.59, np.ones(200)) == ["one_class_labels"]
    label[5:] = np.nan
    label[:5] = 1
    assert "one_class_labels" not in names(prob, label)  # five are too few to wonder at


def test_chance_is_named_only_when_it_is_clear():
    rng = np.random.default_rng(1)
    prob, label = rng.random(4000), np.arange(4000) % 2
    (chance,) = told(prob, label)
    assert chance.name == "chance_ranking"
    assert "no better than chance (0.5) on 2,000 positive and 2,000 negative images" in chance.evidence
    assert told(prob[:30], label[:30]) == []
    prob, label = informative(1000)
    assert "below chance" in told(1 - prob, label)[0].evidence


def test_one_sick_finding_is_not_averaged_away():
    good, label = informative(500)
    found = told(np.stack([good, np.full(500, 0.7)], axis=1), np.stack([label, label], axis=1))
    assert {diagnosis.finding for diagnosis in found} == {"Effusion"}


def test_unlabelled_findings_are_still_watched():
    found = told(np.full(20, 0.7), np.full(20, np.nan))
    assert [diagnosis.name for diagnosis in found] == ["constant_scores", "always_positive"]
    assert found[1].evidence.endswith("at threshold 0.5.")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.9), st.integers(60, 800), st.integers(1, 3))
def test_a_second_sigmoid_is_named_whatever_the_prevalence_and_a_single_one_never(seed, prevalence, items, findings):
    rng = np.random.default_rng(seed)
    label = (rng.random((items, findings)) < prevalence).astype(float)
    once = expit(rng.normal(np.log(prevalence / (1 - prevalence)), 0.5, label.shape) + 3 * (label - prevalence))
    # below 0.5125, where all scores of a very rare finding may lie, a network that knows nothing answers too
    assert ("double_sigmoid" in names(expit(once), label)) or expit(once).max() <= 0.5125
    assert "double_sigmoid" not in names(once, label)


@pytest.mark.parametrize("prevalence", [0.1, 0.35, 0.6])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_models_whose_scores_lie_there_rightly_have_no_second_sigmoid(prevalence, seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 0.73, 400)  # calibrated, of a finding that is common
    assert "double_sigmoid" not in names(truth, (rng.random(400) < np.quantile(truth, 0.5)).astype(float))
    label = (np.arange(400) < 400 * prevalence).astype(float)
    assert "double_sigmoid" not in names(np.full(400, 0.5) + rng.uniform(0, 0.01, 400), label)  # knows nothing
    few = np.full(8, 0.6347)
    assert told(few, np.arange(8) % 2) == []
    if prevalence == 0.6:  # the share of positives, learnt and nothing else
        assert "double_sigmoid" not in names(np.full(400, 0.62), label)


@pytest.mark.parametrize("ratio", [1 / 15, 1.0, 15.0])
def test_other_hospitals_and_scanners_are_no_wrong_scale(ratio):
    assert told(*informative(100), input_range=FITTING | {"variance_ratio": ratio, "mean_shift": 2.0}) == []


@pytest.mark.parametrize(
    "change", [{"variance_ratio": 1e-6}, {"variance_ratio": 65025.0}, {"mean_shift": 9.0}, {"variance_ratio": np.nan}]
)
def test_a_wrong_scale_is_named_even_for_few_items(change):
    (found,) = told([0.2, 0.8], [0, 1], input_range=FITTING | change)
    assert (found.name, found.finding) == ("unexpected_input_range", None)
    assert "values from -1024.00 to 1024.00" in found.evidence


def test_a_wrong_scale_is_told_as_contrast():
    (found,) = told([0.2, 0.8], [0, 1], input_range=FITTING | {"variance_ratio": 1 / 2048**2})
    assert "2,048.0 times less contrast" in found.evidence
    assert "up to 4.5" in found.evidence
    (found,) = told([0.2, 0.8], [0, 1], input_range=FITTING | {"variance_ratio": 255**2})
    assert "255.0 times more contrast" in found.evidence


def test_shared_patients_are_leakage_even_for_few_items():
    (found,) = told([0.2, 0.8], [0, 1], leaks=[f"patient p{n} is in train and test" for n in range(1200)])
    assert found.name == "leakage"
    assert "patient p4 is in train and test; and 1,195 more" in found.evidence


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="must fit prob"):
        diagnose(np.zeros((20, 1)), np.zeros((20, 1)), [0.5, 0.5], ["Pneumonia"])


@pytest.fixture(scope="module")
def xray():
    """A small network of torchxrayvision's, trained on [-1024, 1024], and unseen images in [0, 1] with labels."""
    torch.manual_seed(0)
    model = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=1)
    image, label = torch.rand(600, 1, 32, 32) * 0.5, (torch.arange(600) % 20 < 7).float()  # 35 % positive
    spot = torch.rand(600, 1, 1, 1) * 0.4
    image[:, :, 8:24, 8:24] += torch.where(label.bool()[:, None, None, None], spot + 0.05, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        rows = torch.arange(step * 40, step * 40 + 40) % 400
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(image[rows] * 2048 - 1024).squeeze(1), label[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), image[400:], label[400:]


def judged(xray, scale, shift, sigmoids):
    """The diagnoses of a model fed `scale * image + shift` whose output goes through so many sigmoids."""
    model, image, label = xray
    callback, trainer = InputRange(), SimpleNamespace(state=SimpleNamespace(fn="test"))
    probs = []
    with torch.inference_mode():
        for number, rows in enumerate(torch.arange(len(image)).split(50)):
            callback.on_test_batch_start(trainer, model, {"image": image[rows], "index": rows}, number)
            prob = model(scale * image[rows] + shift)
            for _ in range(sigmoids):
                prob = prob.sigmoid()
            callback.on_test_batch_end(trainer, model, None, None, number)
            probs.append(prob)
    prob = torch.cat(probs).numpy()
    return diagnose(prob, label[:, None], [0.5], ["Pneumonia"], input_range=callback.summary())


def test_the_story_wrong_range_and_two_sigmoids_are_both_found(xray):
    found = {diagnosis.name: diagnosis for diagnosis in judged(xray, 1, 0, sigmoids=2)}
    assert set(found) >= {"unexpected_input_range", "double_sigmoid", "constant_scores", "always_positive"}
    assert "precision 0.35" in found["always_positive"].evidence
    assert "F1 0.52" in found["always_positive"].evidence
    assert "values from 0.00 to " in found["unexpected_input_range"].evidence


def test_the_story_each_mistake_alone_is_told_from_the_other(xray):
    range_alone = {diagnosis.name for diagnosis in judged(xray, 1, 0, sigmoids=1)}
    sigmoid_alone = {diagnosis.name for diagnosis in judged(xray, 2048, -1024, sigmoids=2)}
    assert "unexpected_input_range" in range_alone - sigmoid_alone
    assert "double_sigmoid" in sigmoid_alone
    assert "constant_scores" not in sigmoid_alone


def test_the_story_without_mistakes_names_nothing(xray):
    assert judged(xray, 2048, -1024, sigmoids=1) == []
