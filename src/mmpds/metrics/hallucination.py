"""Which findings a text names, and what of that is not there: hallucination and omission.

Shapes: N = texts, C = findings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import Evaluation, ratios

TERMS = {
    "Pneumonia": r"(broncho)?pneumonia|pneumonic",
    "Infiltration": r"infiltrat(ion|ions|e|es)",
    "Effusion": r"effusions?|pleural fluid",
    "Cardiomegaly": r"cardiomegaly|cardiac enlargement|enlarge(d|ment of the) (heart|cardiac silhouette)"
    r"|(heart|cardiac silhouette) (is|appears|was)( \w+)? enlarged",
    "Nodule": r"nodules?|nodular (opacity|opacities|density|lesion)",
    "Pneumothorax": r"(hydro)?pneumothora(x|xes|ces)|collapsed lung",
    "Haemorrhage": r"ha?emorrhages?|ha?ematomas?|ha?emorrhagic",
    "Mass": r"mass(es)?|tumou?rs?",
    "Atelectasis": r"atelecta(sis|ses|tic)",
    "Consolidation": r"consolidations?",
    "Edema": r"o?edema",
    "Emphysema": r"emphysema(tous)?",
    "Fibrosis": r"fibro(sis|tic)",
    "Hernia": r"hernias?",
    "Pleural_Thickening": r"pleural thickening",
}
"""What findings are called: those of the phantom and of ChestX-ray14; no other can be told in a text."""
BEFORE = re.compile(
    r"\b(no|not|without|never|neither|nor|negative for|free of|absence of|absent|lack of|lacks|den(y|ies|ied)|"
    r"rather than|instead of|resolution of|resolved|clear of|unlikely)\b"
)
"""What denies a finding that comes after it in the same clause (NegEx: Chapman et al., J. Biomed. Inform. 2001)."""
AFTER = re.compile(
    r"\b(is|are|was|were|has|have)( been)?( \w+)? (absent|excluded|ruled out|resolved|not|unlikely|cleared|denied)\b"
    r"|\b(not|never) (seen|present|visible|identified|detected|found|evident|demonstrated)\b"
    r"|^[ :=-]*(none|no|absent|negative)\b"
)
"""What denies a finding that comes before it."""
NO_DENIAL = re.compile(r"\b(not only|no( \w+)? (change|increase) in|(can)?not( be)? (exclude|rule)d?( out)?)\b")
"""What looks like a denial and is none; whoever does not exclude a finding names it."""
CLAUSES = re.compile(
    r"[.;?!](?!\d)|\b(but|however|although|though|except|apart from|showing|there is|there are)\b"
    r"|(?<!consistent )(?<!compatible )(?<!keeping )\bwith\b"
)
"""Where what is denied ends; "with", "showing" and "there is" begin what is said to be there."""
SAYS_MORE = re.compile(
    r"(?:,|\band\b)\s+(?=(?:a|an|the|small|moderate|large|mild|left|right|bilateral|enlarged|stable)\b)"
    r"|,\s+(?=[\w ]+\b(?:is|are|remains?|persists?|seen|present|noted)\b)"
    r"|(?:(?<=seen)|(?<=present)|(?<=absent)|(?<=normal)|(?<=clear))\s+and\b"
)
"""Where a list that is denied ends too, unless an "or" or "nor" holds it together."""


def named(text: str, findings: Sequence[str]) -> Array:
    """What a text says of each finding, float [C]: 1 it is there, 0 it is not, NaN nothing.

    Within a clause a denial holds for all that is listed after it ("no effusion, pneumothorax or nodule"); what one
    clause names and another denies is named.

    Args:
        text: any text.
        findings: C names, out of `TERMS`.
    """
    said = np.full(len(findings), np.nan)
    for clause in _clauses(text.lower()):
        for place, finding in enumerate(findings):
            for found in re.finditer(rf"\b({TERMS[finding]})\b", clause):
                # what is found may hold its own denial: the heart is not enlarged
                denied = BEFORE.search(clause[: found.end()]) or AFTER.search(clause[found.end() :])
                said[place] = np.fmax(said[place], 0.0 if denied else 1.0)
    return said


def _clauses(text: str) -> list[str]:
    """The parts of a text that a denial does not reach beyond."""
    parts = [part or "" for part in CLAUSES.split(NO_DENIAL.sub(" ", text))]
    return [one for part in parts for one in ([part] if re.search(r"\bn?or\b", part) else SAYS_MORE.split(part))]


def answered(question: str, answer: str, findings: Sequence[str]) -> Array:
    """What an answer says of each finding, float [C], as `named`: yes is what its question says, no the contrary."""
    first = (re.findall(r"\w+", answer.lower()) or [""])[0]
    if first not in ("yes", "no"):
        return named(answer, findings)
    asked = named(question, findings)
    return asked if first == "yes" else 1 - asked


def hallucination(
    said: Array, label: Array, findings: Sequence[str], group: Array, replicates: int, seed: int
) -> Evaluation:
    """Shares of what is named and not there, and of what is there and not named, with 95 % intervals by group.

    `hallucination/<finding>` is 1 - precision and `omission/<finding>` 1 - recall of the findings that texts name;
    `all` is over all findings together. What is not labelled counts in neither.

    Args:
        said: [N, C], as `named` has it; NaN where nothing is said, which is not to name it.
        label: [N, C], 1, 0 or NaN (not labelled, or not asked).
        findings: C names.
        group: [N], the patient of each text.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
    """
    judged = ~np.isnan(label)
    called, there = (said == 1) & judged, (label == 1) & judged
    parts: dict[str, tuple[Array, Array]] = {}
    counts: dict[str, int] = {}
    every = slice(None)
    for name, columns in [*((finding, [place]) for place, finding in enumerate(findings)), ("all", every)]:
        here, truth = called[:, columns], there[:, columns]
        parts[f"hallucination/{name}"] = ((here & ~truth).sum(axis=1), here.sum(axis=1))
        parts[f"omission/{name}"] = ((truth & ~here).sum(axis=1), truth.sum(axis=1))
        counts |= {f"named/{name}": int(here.sum()), f"present/{name}": int(truth.sum())}
    metrics, intervals = ratios(parts, group, replicates, seed)
    silent = [name for name in findings if not counts[f"named/{name}"]]
    warnings = [f"no text names {', '.join(silent)}: no share of hallucinations there"] if silent else []
    return Evaluation(metrics, intervals, counts, warnings)
