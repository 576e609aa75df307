"""Sentences in the place of a classifier's weights: which texts stand for a finding, and which for its absence.

Shapes: C = findings, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIDES = ("positive", "negative")


class Sentences(NamedTuple):
    """The texts of one finding; `negative` is empty where findings exclude one another."""

    positive: list[str]
    negative: list[str]


def sentences(
    findings: Sequence[str], exclusive: bool = False, templates: Sequence[str] = ("{}",),
    classes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Sentences]:  # fmt: skip
    """The sentences of each finding: every text in every template.

    Args:
        findings: C names.
        exclusive: exactly one finding is true of an image: each is weighed against the others, and needs no negative.
        templates: texts with `{}` where a finding's own text goes.
        classes: of a finding, `positive` and `negative`: a text or several; a finding that is not named, or a side
            that is not, is given its own name in lower case, and "no " before it.

    Raises:
        ValueError: all that is wrong, with the cure.
    """
    classes = dict(classes or {})
    wrong = [
        f"templates: {text!r} has no {{}}: write {{}} where the finding goes" for text in templates if "{}" not in text
    ]
    if not templates:
        wrong.append('templates=[]: give at least one; "{}" takes the texts as they are')
    for name, sides in classes.items():
        if unknown := set(sides) - set(SIDES):
            wrong.append(f"classes.{name}: {', '.join(sorted(unknown))}: give positive, negative")
        wrong += [f"classes.{name}.{side}: is empty; give a text" for side, texts in sides.items() if not texts]
    if classes and not set(classes) & set(findings):
        wrong.append(f"classes: {', '.join(classes)}: none is a finding here; choose from {', '.join(findings)}")
    if wrong:
        raise ValueError("; ".join(f"zero_shot.{each}" for each in wrong))
    found = {}
    for finding in findings:
        own = finding.lower()
        stated = {"positive": own, "negative": f"no {own}"} | dict(classes.get(finding, {}))
        texts = {side: [texts] if isinstance(texts, str) else list(texts) for side, texts in stated.items()}
        spread = {side: [each.replace("{}", text) for each in templates for text in texts[side]] for side in SIDES}
        found[finding] = Sentences(spread["positive"], [] if exclusive else spread["negative"])
    return found


def class_embeddings(of: Mapping[str, Sentences], embed: Callable[[list[str]], Tensor]) -> Tensor:
    """One direction a finding, float32 [C, D]: an ensemble of its sentences (Radford et al. 2021, section 3.1.4).

    Each side is the mean of its sentences' embeddings, of unit length again. Where there are negatives they are taken
    away: an image's product with the direction is the logit of positive against negative.

    Args:
        of: the sentences of each finding.
        embed: gives unit vectors [texts, D].
    """
    texts = sorted({text for each in of.values() for side in each for text in side})
    embedded = dict(zip(texts, embed(texts), strict=True))

    def mean(chosen: Sequence[str]) -> Tensor:
        total = sum((embedded[text] for text in chosen[1:]), embedded[chosen[0]])
        return F.normalize(total, dim=0)

    directions = [mean(each.positive) - (mean(each.negative) if each.negative else 0) for each in of.values()]
    return torch.stack(directions)
