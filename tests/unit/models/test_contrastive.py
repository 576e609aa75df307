"""Losses of images and texts against their definitions, written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmpds.models.contrastive import contrast, names

SCALE, BIAS = torch.tensor(5.0), torch.tensor(-2.0)


def vectors(count, seed):
    return F.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def whole(kind, image, text, texts, scale=SCALE):
    name = names(texts)
    return contrast(kind, image, text, image, text, name[:, None] == name[None], scale, BIAS)


def test_info_nce_is_the_published_one_where_no_text_occurs_twice():
    image, text = vectors(5, 0), vectors(5, 1)
    logit = SCALE * image @ text.T
    expected = (F.cross_entropy(logit, torch.arange(5)) + F.cross_entropy(logit.T, torch.arange(5))) / 2
    assert torch.isclose(whole("info_nce", image, text, list("abcde")), expected)


def test_siglip_is_the_published_one():
    image, text = vectors(3, 0), vectors(3, 1)
    total = 0.0
    for i in range(3):
        for j in range(3):
            z = 1 if i == j else -1
            total += math.log(1 / (1 + math.exp(z * -(float(SCALE * image[i] @ text[j]) + float(BIAS)))))
    assert float(whole("siglip", image, text, list("abc"))) == pytest.approx(-total / 3, abs=1e-5)


def test_the_same_report_is_no_wrong_answer():
    """Two normal images with one report: to be near both is right, and cannot be right where one counts as wrong."""
    image = text = torch.eye(6)[[0, 1, 2, 0]]
    right = whole("siglip", image, text, ["a", "b", "c", "a"], torch.tensor(50.0))
    wrong = whole("siglip", image, text, ["a", "b", "c", "d"], torch.tensor(50.0))
    assert float(wrong - right) > 10


def test_a_perfect_match_of_repeated_reports_has_the_least_loss_there_is():
    """The cross-entropy with a target spread over two can be no less than ln 2 for these rows."""
    axes = torch.eye(6)
    image = text = axes[[0, 1, 2, 0]]
    loss = whole("info_nce", image, text, ["a", "b", "c", "a"], torch.tensor(100.0))
    assert float(loss) == pytest.approx(math.log(2) / 2, abs=1e-4)


@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(kind, ranks):
    image, text, name = vectors(6, 2), vectors(6, 3), names(list("abcadb"))
    same = name[:, None] == name[None]
    parts = [
        contrast(kind, image[mine], text[mine], image, text, same[mine], SCALE, BIAS)
        for mine in torch.arange(6).chunk(ranks)
    ]
    expected = contrast(kind, image, text, image, text, same, SCALE, BIAS)
    assert torch.isclose(torch.stack(parts).mean(), expected, atol=1e-6)


def test_names_are_those_of_any_process():
    assert names(["pneumonia", "pneumonia"]).tolist() == names(["pneumonia"]).tolist() * 2
    assert names(["pneumonia"]).tolist() == [int.from_bytes(bytes.fromhex("72a8df6694d5ca04"), "big", signed=True)]
