"""Normalisation, matches, recall, baselines, and figures against torchmetrics."""

import numpy as np
import pandas as pd
import pytest
from torchmetrics.functional.text import bleu_score

from mmpds.metrics.text import correct, judge_answers, majority, normalized, similarity, token_recall


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The pancreatic head", "pancreatic head"),
        ("X-ray", "x ray"),
        ("x - ray", "x ray"),
        ("Two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("5.6cm", "5.6cm"),
        ("a, b; c", "b c"),
        (" Left\tlung ", "left lung"),
        ("don't", "don't"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_the_vqa_evaluation_does(answer, expected):
    assert normalized(answer) == expected
    assert normalized(expected) == expected


def test_a_match_is_exact_once_normalised():
    assert correct(["YES", "left", "one"], ["yes.", "left lung", "1"]) == [True, False, True]


def test_recall_is_the_share_of_the_reference_s_words():
    assert token_recall("it is the left lung", "Left lung") == 1
    assert token_recall("left", "left upper lobe") == pytest.approx(1 / 3)
    assert token_recall("right", "left") == 0


def test_the_majority_is_that_of_training_and_of_a_question_s_type():
    trained = pd.DataFrame({
        "answer": ["Yes", "no", "No.", "axial", "CT"], "share": [1.0, 1, 1, 1, 1],
        "answer_type": ["CLOSED"] * 3 + ["OPEN"] * 2, "question_type": ["ABN", "PRES", "PRES", "PLANE", "MODALITY"],
    })  # fmt: skip
    asked = pd.DataFrame(
        {"answer_type": ["CLOSED", "CLOSED", "OPEN", "CLOSED"], "question_type": ["ABN", "PRES", "PLANE", "X"]}
    )
    assert majority(trained, asked) == ["yes", "no", "axial", "no"]
    assert majority(trained.assign(share=[1, 0.1, 0.1, 1, 1]), asked)[3] == "yes"


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        closed = number % 2 == 0
        truth = str(rng.choice(["yes", "no"] if closed else ["left lung", "right lung", "axial"]))
        other = str(rng.choice(["yes", "no"] if closed else ["left lung", "the right lung", "axial"]))
        rows.append({
            "answer": truth, "prediction": truth if number % 3 else other, "blank": other, "majority": "no",
            "answer_type": "CLOSED" if closed else "OPEN", "question_type": "PRES, POS" if number % 5 else "ATRIB",
            "image_organ": "CHEST" if number % 4 < 2 else "HEAD",
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_figures_are_shares_with_intervals_by_group(answers):
    group = np.arange(120) // 4
    found = judge_answers(answers, group, 300, 0)
    closed = answers[answers["answer_type"] == "CLOSED"]
    hits = np.array(correct(closed["prediction"], closed["answer"]))
    assert found.metrics["accuracy/closed"] == pytest.approx(hits.mean())
    head = (closed["image_organ"] == "HEAD").to_numpy()
    assert found.metrics["accuracy/closed/organ/HEAD"] == pytest.approx(hits[head].mean())
    assert found.metrics["accuracy_majority/closed"] == pytest.approx((closed["answer"] == "no").mean())
    gap = found.metrics["accuracy/closed"] - found.metrics["accuracy_blank/closed"]
    assert found.metrics["accuracy_above_blank/closed"] == pytest.approx(gap)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    assert found.counts["questions/closed/type/POS"] == (closed["question_type"] != "ATRIB").sum()
    assert "accuracy/closed/type/ATTRIB" in found.metrics
    assert "accuracy_shuffled/closed" not in found.metrics


def test_the_order_of_questions_changes_no_figure(answers):
    group = np.arange(120) // 4
    turn = np.random.default_rng(1).permutation(120)
    one, other = judge_answers(answers, group, 50, 0), judge_answers(answers.iloc[turn], group[turn], 50, 0)
    assert one.metrics.keys() == other.metrics.keys()
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, abs=1e-6), name
    for name, span in one.intervals.items():
        assert other.intervals[name] == pytest.approx(span, abs=1e-6), name


def test_similarity_is_that_of_torchmetrics():
    written, known = ["left upper lobe mass", "no effusion"], ["mass in the left upper lobe", "no effusion"]
    found = similarity(written, known, np.arange(2), 0, 0)
    theirs = bleu_score(["left upper lobe mass", "no effusion"], [["mass in left upper lobe"], ["no effusion"]], 2)
    assert found.metrics["bleu/2"] == pytest.approx(float(theirs))
    assert found.metrics["rouge_l"] == pytest.approx((2 * 0.75 * 0.6 / 1.35 + 1) / 2)


def test_bleu_of_more_words_than_a_reference_has_is_left_out():
    found = similarity(["left lung", "no"], ["left lung", "no"], np.arange(2), 0, 0).metrics
    assert [name for name in found if "bleu" in name] == ["bleu/1", "bleu/2"]
    assert found["bleu/2"] == pytest.approx(1)
