"""What sentences name and deny, and the shares of hallucinations and omissions."""

import numpy as np
import pytest

from mmpds.data.anatomy.patient import FINDINGS
from mmpds.data.phantom import Phantom
from mmpds.metrics.hallucination import answered, hallucination, named

SHORT = {
    "P": "Pneumonia", "I": "Infiltration", "E": "Effusion", "C": "Cardiomegaly", "N": "Nodule", "X": "Pneumothorax",
    "H": "Haemorrhage", "M": "Mass",
}  # fmt: skip
ALL = tuple(SHORT.values())
# a sentence, the findings that it names, those that it denies
SENTENCES = [
    ("No effusion.", "", "E"),
    ("No pleural effusion or pneumothorax.", "", "EX"),
    ("No effusion, pneumothorax, or nodule.", "", "EXN"),
    ("No focal infiltrate, large effusion or pneumothorax.", "", "IEX"),
    ("Small left pleural effusion.", "E", ""),
    ("Bilateral effusions with cardiomegaly.", "EC", ""),
    ("Effusion without pneumothorax.", "E", "X"),
    ("Pneumonia in the lower zone of the left lung. No effusion.", "P", "E"),
    ("No pneumonia, but a nodule in the right upper zone.", "N", "P"),
    ("There is no evidence of pneumothorax.", "", "X"),
    ("There is a large pneumothorax.", "X", ""),
    ("Negative for pneumonia.", "", "P"),
    ("Lungs are free of infiltrates.", "", "I"),
    ("The lungs are clear of infiltrate.", "", "I"),
    ("The heart is enlarged.", "C", ""),
    ("The heart is not enlarged.", "", "C"),
    ("The heart is mildly enlarged.", "C", ""),
    ("Heart size is normal.", "", ""),
    ("The lungs are clear and the heart is of normal size.", "", ""),
    ("Enlarged heart, in keeping with cardiomegaly.", "C", ""),
    ("Cardiomegaly is absent.", "", "C"),
    ("Pneumothorax has been ruled out.", "", "X"),
    ("Effusion: none.", "", "E"),
    ("Pneumothorax is not seen.", "", "X"),
    ("Effusion and pneumothorax are not present.", "", "EX"),
    ("The pneumonia has resolved.", "", "P"),
    ("Resolved pneumonia.", "", "P"),
    ("Pneumonia cannot be excluded.", "P", ""),
    ("Cannot exclude a nodule.", "N", ""),
    ("No change in the left effusion.", "E", ""),
    ("No significant change in the right pneumothorax.", "X", ""),
    ("Not only a nodule but a mass.", "NM", ""),
    ("No pneumothorax, small left effusion.", "E", "X"),
    ("No effusion and enlarged heart.", "C", "E"),
    ("No effusion and no pneumothorax.", "", "EX"),
    ("Neither effusion nor pneumothorax.", "", "EX"),
    ("Patchy infiltration of both lungs.", "I", ""),
    ("Findings are not consistent with pneumonia.", "", "P"),
    ("Opacity consistent with pneumonia.", "P", ""),
    ("No effusion. Moderate effusion on the left.", "E", ""),
    ("Massive gas in the bowel.", "", ""),
    ("Two masses in the left hemisphere; no hemorrhage.", "M", "H"),
    ("Bright haemorrhage in the left hemisphere.", "H", ""),
    ("Subdural haematoma without a tumour.", "H", "M"),
    ("Nodular opacities in both lungs, no effusion.", "N", "E"),
    ("There is cardiomegaly; however, no pleural fluid.", "C", "E"),
    ("Absence of pneumothorax.", "", "X"),
    ("Pneumonia rather than a mass.", "P", "M"),
    ("The patient denies nothing.", "", ""),
    ("No acute finding.", "", ""),
    ("Pneumothorax is present and effusion is absent.", "X", "E"),
    ("No nodule is seen, pneumonia remains.", "P", "N"),
    ("Cardiomegaly with a cardiothoracic ratio of 0.58. No nodule.", "C", "N"),
    ("Bronchopneumonia is unlikely.", "", "P"),
    ("No pneumothoraces, effusions, or infiltrates are identified.", "", "XEI"),
    ("CT of the head, axial plane. Normal brain.", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "names", "denies"), SENTENCES)
def test_a_sentence_names_what_it_does_not_deny(sentence, names, denies):
    said = dict(zip(SHORT, named(sentence, ALL), strict=True))
    assert {letter for letter, value in said.items() if value == 1} == set(names)
    assert {letter for letter, value in said.items() if value == 0} == set(denies)


def test_there_are_many_sentences():
    assert len(SENTENCES) >= 40


def test_the_phantoms_captions_name_exactly_what_they_show():
    table = Phantom(images=400, seed=3).table
    said = np.stack([named(text, FINDINGS) for text in table["caption"]])
    assert np.array_equal(said == 1, table[list(FINDINGS)].to_numpy() == 1)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there evidence of nodule?", "yes", (1, None)),
        ("Is there evidence of nodule?", "No", (0, None)),
        ("Is the lung free of nodules?", "Yes", (0, None)),
        ("Is the lung free of nodules?", "no", (1, None)),
        ("Is this image normal?", "no", (None, None)),
        ("What is shown?", "a nodule, no mass", (1, 0)),
        ("Is there a nodule or a mass?", "yes, both", (1, 1)),
    ],
)
def test_an_answer_is_of_what_its_question_names(question, answer, expected):
    said = answered(question, answer, ("Nodule", "Mass"))
    assert [None if np.isnan(value) else value for value in said] == list(expected)


def test_shares_are_those_of_precision_and_recall():
    said = np.array([[1, np.nan], [1, 0], [np.nan, 1], [0, 1.0], [1, 1]])
    label = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [np.nan, np.nan]])
    found = hallucination(said, label, ["A", "B"], np.arange(5), 200, 0)
    assert found.metrics["hallucination/A"] == 1 / 2
    assert found.metrics["omission/A"] == 2 / 3
    assert found.metrics["hallucination/B"] == 1 / 2
    assert found.metrics["omission/B"] == 1 / 2
    assert found.metrics["hallucination/all"] == 2 / 4
    assert found.metrics["omission/all"] == 3 / 5
    assert found.counts["present/A"] == 3
    low, high = found.intervals["omission/all"]
    assert low <= 3 / 5 <= high


def test_who_names_nothing_hallucinates_nothing_and_omits_all():
    found = hallucination(np.full((4, 1), np.nan), np.ones((4, 1)), ["A"], np.arange(4), 0, 0)
    assert found.metrics == {"omission/A": 1.0, "omission/all": 1.0}
    assert "no text names A" in found.warnings[0]
