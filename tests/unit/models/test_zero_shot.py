"""Sentences in the place of weights."""

import pytest
import torch
from torch.nn import functional as F

from mmpds.models.zero_shot import class_embeddings, sentences

WORDS = {"pneumonia": 0, "no pneumonia": 1, "effusion": 2, "no effusion": 3, "fluid": 4}


def embed(texts):
    return torch.eye(8)[[WORDS[text] for text in texts]]


def test_a_finding_stands_for_itself_and_its_denial():
    found = sentences(["Pneumonia"])
    assert found["Pneumonia"].positive == ["pneumonia"]
    assert found["Pneumonia"].negative == ["no pneumonia"]


def test_every_text_goes_into_every_template():
    found = sentences(
        ["Effusion"], templates=["{}", "X-ray: {}"], classes={"Effusion": {"positive": ["effusion", "fluid"]}}
    )["Effusion"]
    assert found.positive == ["effusion", "fluid", "X-ray: effusion", "X-ray: fluid"]
    assert found.negative == ["no effusion", "X-ray: no effusion"]


def test_findings_that_exclude_one_another_need_no_denial():
    assert sentences(["Pneumonia"], exclusive=True)["Pneumonia"].negative == []


def test_the_logit_is_that_of_positive_against_negative():
    """Of an image, the sigmoid of its product with the direction is the softmax over the pair of sentences."""
    directions = class_embeddings(sentences(["Pneumonia", "Effusion"]), embed)
    image = F.normalize(torch.rand(8), dim=0)
    pair = torch.stack([embed(["pneumonia"])[0], embed(["no pneumonia"])[0]]) @ image
    assert torch.isclose((7 * directions[0] @ image).sigmoid(), (7 * pair).softmax(0)[0])
    assert directions.shape == (2, 8)


def test_an_ensemble_is_the_mean_direction_of_its_sentences():
    of = sentences(["Effusion"], exclusive=True, classes={"Effusion": {"positive": ["effusion", "fluid"]}})
    (direction,) = class_embeddings(of, embed)
    assert torch.isclose(direction.norm(), torch.tensor(1.0))
    assert direction[2] == direction[4] > 0.7


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ValueError, match=r"write \{\}.*give positive, negative.*is empty") as told:
        sentences(["A"], templates=["an x-ray"], classes={"A": {"posative": "a", "negative": []}})
    assert "zero_shot.templates" in str(told.value)


def test_sentences_of_other_findings_are_told():
    with pytest.raises(ValueError, match=r"zero_shot\.classes: Head.*choose from Effusion"):
        sentences(["Effusion"], classes={"Head": {"positive": "brain"}})


def test_braces_of_a_text_are_left_alone():
    assert sentences(["Effusion"], templates=["{} {x}"])["Effusion"].positive == ["effusion {x}"]
