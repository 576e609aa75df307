import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds import check
from mmpds.metrics.classification import Detection
from mmpds.metrics.thresholds import RULES, Threshold

FINDINGS = ["Pneumonia"]
GRID = np.linspace(0, 1, 21, dtype=np.float32)

# float32 neighbours among them: a middle that rounds to the lower score would flag it
SCORES = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.5, float(np.nextafter(np.float32(0.5), 1)), 0.0, 1.0]))
CASES = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=40).filter(
    lambda case: len({positive for _, positive in case}) == 2
)
RATES = st.sampled_from([0.1, 0.5, 0.8, 0.9, 1.0])


def arrays(case):
    prob, label = (np.array(column, dtype=np.float32)[:, np.newaxis] for column in zip(*case, strict=True))
    return prob, label


def fitted(prob, label, **arguments):
    threshold = Threshold(FINDINGS, **arguments)
    threshold.update(torch.from_numpy(prob), torch.from_numpy(label))
    threshold.compute()
    return threshold


def judged(prob, label, value):
    named = Detection(prob, label, [value], FINDINGS)(np.ones((len(prob), 1)))
    return {metric: float(named[f"{metric}/Pneumonia"][0]) for metric in ("f1", "recall", "specificity")}


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_no_threshold_has_a_higher_f1(case):
    prob, label = arrays(case)
    best = judged(prob, label, fitted(prob, label, rule="f1").value[0])["f1"]
    assert all(best >= judged(prob, label, other)["f1"] - 1e-9 for other in [*GRID, *prob[:, 0]])


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_no_threshold_has_a_higher_youden_index(case):
    prob, label = arrays(case)

    def youden(value):
        rates = judged(prob, label, value)
        return rates["recall"] + rates["specificity"] - 1

    best = youden(fitted(prob, label, rule="youden").value[0])
    assert all(best >= youden(other) - 1e-9 for other in [*GRID, *prob[:, 0]])


@pytest.mark.filterwarnings("ignore:.*only flagging nothing")
@settings(max_examples=40, deadline=None)
@given(CASES, RATES)
def test_a_constrained_rule_honours_its_rate_and_none_that_does_is_better(case, rate):
    prob, label = arrays(case)
    rules = [
        ("sensitivity@specificity", "specificity", "recall"),
        ("specificity@sensitivity", "recall", "specificity"),
    ]
    for rule, held, best in rules:
        value = fitted(prob, label, rule=rule, specificity=rate, sensitivity=rate).value[0]
        chosen = judged(prob, label, value)
        assert chosen[held] >= rate
        for other in [*GRID, *prob[:, 0]]:
            rates = judged(prob, label, other)
            assert rates[held] < rate or rates[best] <= chosen[best] + 1e-9


@pytest.mark.filterwarnings("ignore:.*only flagging nothing")
@settings(max_examples=50, deadline=None)
@given(
    CASES,
    st.sampled_from(["f1", "youden", "sensitivity@specificity", "specificity@sensitivity"]),
    st.randoms(),
)
def test_a_fit_stays_among_the_scores_and_knows_no_order(case, rule, random):
    prob, label = arrays(case)
    threshold = fitted(prob, label, rule=rule)
    if not threshold.unfit:
        assert prob.min() <= float(threshold.value[0]) <= prob.max()
    shuffled = case[:]
    random.shuffle(shuffled)
    assert torch.equal(threshold.value, fitted(*arrays(shuffled), rule=rule).value)


def test_the_threshold_lies_midway_between_the_scores_it_parts():
    prob, label = arrays([(0.9, True), (0.7, True), (0.3, False), (0.1, False)])
    for rule in ("f1", "youden", "sensitivity@specificity", "specificity@sensitivity"):
        assert fitted(prob, label, rule=rule).value[0] == pytest.approx(0.5)


def test_paper_rule_is_the_studys_formula_and_needs_no_label():
    prob = np.array([[0.9], [0.7], [0.8], [0.6]], dtype=np.float32)
    value = fitted(prob, np.full((4, 1), np.nan, dtype=np.float32), rule="paper").value[0]
    assert value == pytest.approx(0.75 + 0.25 * np.std([0.9, 0.7, 0.8, 0.6]))
    assert fitted(prob / 2, np.zeros((4, 1), dtype=np.float32), rule="paper").value[0] == pytest.approx(0.6)


def test_paper_rule_flags_every_image_only_of_a_constant_score():
    constant = np.full((1000, 1), 0.6347, dtype=np.float32)
    threshold = fitted(constant, np.zeros_like(constant), rule="paper")
    assert threshold.decide(torch.from_numpy(constant)).all()
    varied = constant + np.linspace(-1e-4, 1e-4, 1000, dtype=np.float32)[:, np.newaxis]
    assert not fitted(varied, np.zeros_like(varied), rule="paper").decide(torch.from_numpy(varied)).all()


@pytest.mark.parametrize("rule", ["f1", "youden", "sensitivity@specificity", "specificity@sensitivity"])
@pytest.mark.parametrize(("only", "missing"), [(0.0, "no positive"), (1.0, "no negative"), (np.nan, "no positive")])
def test_one_class_falls_back_with_a_warning_and_says_so(rule, only, missing):
    threshold = Threshold(["Pneumonia", "Hernia"], rule=rule)
    prob = torch.tensor([[0.2, 0.01], [0.8, 0.02]])
    threshold.update(prob, torch.tensor([[0.0, only], [1.0, only]]))
    with pytest.warns(UserWarning, match=f"Hernia: {missing} among"):
        threshold.compute()
    assert threshold.value.tolist() == [0.5, 0.5]
    assert list(threshold.unfit) == ["Hernia"]
    assert missing in threshold.unfit["Hernia"]
    threshold.reset()
    threshold.update(prob, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    threshold.compute()
    assert threshold.unfit == {}


@pytest.mark.parametrize("rule", ["f1", "paper"])
def test_no_item_falls_back_with_a_warning(rule):
    threshold = Threshold(FINDINGS, rule=rule)
    threshold.update(torch.zeros(0, 1), torch.zeros(0, 1))
    with pytest.warns(UserWarning, match="Pneumonia: no "):
        threshold.compute()
    assert threshold.value.tolist() == [0.5]


@pytest.mark.parametrize("top", [0.7, 1.0])
def test_an_unreachable_specificity_flags_nothing_and_warns(top):
    prob, label = arrays([(top, False), (0.5, True), (0.4, False)])
    with pytest.warns(UserWarning, match="only flagging nothing"):
        threshold = fitted(prob, label, rule="sensitivity@specificity", specificity=0.9)
    assert not threshold.decide(torch.from_numpy(prob)).any()


def test_the_value_survives_reset_checkpoint_and_training_of_another():
    prob, label = arrays([(0.9, True), (0.7, True), (0.3, False)])
    threshold = fitted(prob, label, rule="f1")
    threshold.reset()
    assert threshold.value[0] == pytest.approx(0.5)
    fresh = Threshold(FINDINGS, rule="f1")
    assert not fresh.fitted
    fresh.load_state_dict(threshold.state_dict(), strict=True)
    assert fresh.fitted
    assert torch.equal(fresh.value, threshold.value)


def test_stated_thresholds_win_over_a_checkpoints():
    stated = Threshold(FINDINGS, rule="fixed", fixed=0.7)
    stated.load_state_dict(fitted(*arrays([(0.9, True), (0.3, False)]), rule="f1").state_dict(), strict=True)
    assert stated.value[0] == pytest.approx(0.7)


def test_stated_rules_are_ready_and_do_not_look_at_the_data():
    threshold = Threshold(
        ["Infiltration", "Pneumonia"], rule="class_specific", values={"Pneumonia": 0.7, "Infiltration": 0.6}
    )
    threshold.update(torch.tensor([[0.1, 0.2]]), torch.tensor([[1.0, 1.0]]))
    threshold.compute()
    assert threshold.value.tolist() == pytest.approx([0.6, 0.7])
    assert threshold.decide(torch.tensor([[0.6, 0.69], [0.59, 0.7]])).tolist() == [
        [True, False],
        [False, True],
    ]


def test_deciding_before_fitting_says_what_to_do():
    with pytest.raises(RuntimeError, match="not fitted: validate before testing"):
        Threshold(FINDINGS, rule="youden").decide(torch.tensor([[0.5]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "yuden"}, "did you mean youden"),
        ({"rule": "zzz"}, "choose from fixed, "),
        ({"rule": "fixed", "fixed": 1.2}, "fixed: 1.2"),
        ({"rule": "fixed", "fixed": float("nan")}, "fixed: nan"),
        ({"rule": "sensitivity@specificity", "specificity": -0.1}, "specificity: -0.1"),
        ({"rule": "class_specific"}, r"values: \['Pneumonia'\]"),
        ({"rule": "class_specific", "values": {"Pneumonia": 0.7, "Hernai": 0.5}}, r"values: \['Hernai'\]"),
        ({"rule": "class_specific", "values": {"Pneumonia": 7}}, r"values\[Pneumonia\]: 7"),
        ({"findings": []}, "one or more different names"),
        ({"findings": ["a", "a"]}, "one or more different names"),
    ],
)
def test_bad_configuration_names_argument_value_and_cure(arguments, message):
    with pytest.raises(ValueError, match=message):
        Threshold(**({"findings": FINDINGS} | arguments))


def test_bad_probabilities_are_refused_before_they_become_a_threshold():
    threshold = Threshold(FINDINGS, rule="paper")
    threshold.update(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    with pytest.raises(ValueError, match="not logits"):
        threshold.compute()


def test_every_rule_that_a_configuration_may_name_exists():
    assert set(check.RULES) <= set(RULES)
