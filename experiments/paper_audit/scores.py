"""What the study's detection figures are the figures of: a detector that says yes to every image."""

from math import log

import numpy as np
import pandas as pd
import torch
from rows import CONFIRMED, CORRECTED, NOT_COMPARABLE, NOT_RECOMPUTABLE, Row, agrees, half_digit, judged
from scipy.special import expit
from scipy.stats import norm

from mmpds.metrics.classification import FALSE_POSITIVE_RATE
from mmpds.metrics.diagnosis import diagnose
from mmpds.metrics.intervals import evaluate
from mmpds.metrics.thresholds import Threshold

PREDICTIONS = "nih_densenet121_predictions/preds.csv.gz"
LABELS = "nih_chest_xray14/Data_Entry_2017_v2020.csv.gz"


def rows_of(claims, data):
    """The rows that need no network; `data` is the folder of real data sets."""
    detection = claims["detection"]
    always = always_positive(detection)
    return [
        *values(detection, always),
        ranking(detection, always),
        normal(detection, always),
        calibrated(detection, always),
        *rule_rows(detection, data / PREDICTIONS),
        together(detection, data / LABELS),
    ]


def always_positive(detection):
    """Metrics of one score for all, at the study's prevalence and score, and what mmpds says of it."""
    images = int(detection["images"])
    label = np.zeros((images, 1))
    label[: round(images * float(detection["precision"]))] = 1
    prob = np.full((images, 1), float(detection["top_probability"]))
    threshold, name = [float(detection["rule"]["floor"])], detection["findings"][0]
    judgement = evaluate(prob, label, threshold, [name], normal=label[:, 0] == 0, replicates=0)
    named = {one.rsplit("/", 1)[0]: value for one, value in judgement.metrics.items() if one.endswith(f"/{name}")}
    named[FALSE_POSITIVE_RATE] = judgement.metrics[FALSE_POSITIVE_RATE]
    return {"metrics": named, "told": [one.evidence for one in diagnose(prob, label, threshold, [name])]}


def values(detection, always):
    """Precision, recall and F1 beside those of saying yes to every image."""
    rows = []
    for metric in ("precision", "recall", "f1"):
        value = always["metrics"][metric]
        measured = f"{value:.3f} of yes to every image, a share of {detection['precision']} of them positive"
        shown = "F1" if metric == "f1" else metric.capitalize()
        rows.append(Row(shown, detection[metric], measured, judged(detection[metric], value)))
    if all(row.verdict == CONFIRMED for row in rows):
        why = (
            "At a prevalence that equals the precision, all three are exactly those of yes to every image: nothing of "
            "a model is in them. mmpds says of such predictions: " + " ".join(f"“{told}”" for told in always["told"])
        )
        rows[-1] = Row(*(getattr(rows[-1], name) for name in ("claim", "says", "measured", "verdict")), why)
    return rows


def ranking(detection, always):
    """The ROC-AUC, which equal scores cannot have."""
    measured = f"{always['metrics']['auroc']:.2f} of equal scores"
    why = (
        "It needs the study's own scores. ROC-AUC looks at order alone: digits behind the printed ones can lift "
        "it above 0.5."
    )
    return Row("ROC-AUC", detection["auroc"], measured, NOT_RECOMPUTABLE, why)


def normal(detection, always):
    """The share of normal images flagged, where all images are."""
    value = 100 * always["metrics"][FALSE_POSITIVE_RATE]
    low, high = detection["normal_flagged"]
    within = float(low) <= value <= float(high)
    why = "" if within else f"Where {detection['flagged']} % of the images are flagged, so is each normal one."
    says = f"{low}–{high} %, with {detection['flagged']} % of all images flagged"
    verdict = CONFIRMED if within else CORRECTED
    return Row("False positives on “No Finding”", says, f"{value:.0f} %", verdict, why)


def calibrated(detection, always):
    """The calibration error of the constant."""
    error = always["metrics"]["ece"]
    measured = f"expected calibration error {error:.3f}; 0 would be calibrated"
    why = (
        f"A score of {detection['top_probability']} for images of which {detection['precision']} are positive is badly "
        "calibrated: too much calibration is not what makes scores alike."
    )
    verdict = CORRECTED if error > half_digit(detection["precision"]) else CONFIRMED
    says = f"{detection['top_probability']} ± {detection['top_deviation']}, by “over-calibration”"
    return Row("Why the scores are alike", says, measured, verdict, why)


def flagged(prob, findings):
    """Share of the items [N, C] that rule `paper`, fitted on them, flags: [C]."""
    threshold = Threshold(findings, rule="paper")
    prob = torch.tensor(prob, dtype=torch.float32)
    threshold.update(prob, torch.full_like(prob, torch.nan))
    threshold.compute()
    return threshold.decide(prob).float().mean(0).tolist()


def rule_rows(detection, path):
    """Whether the rule can flag all: of scores as printed, of equal ones, of real ones."""
    mean, deviation = float(detection["top_probability"]), float(detection["top_deviation"])
    images = int(detection["images"])
    normally = norm.ppf((np.arange(images) + 0.5) / images, mean, deviation)
    varying, equal = (100 * flagged(prob[:, np.newaxis], ["top"])[0] for prob in (normally, np.full(images, mean)))
    rule = f"max({detection['rule']['floor']}, μ + {detection['rule']['deviations']} σ)"
    says = f"{detection['flagged']} % of the images"
    measured = f"{varying:.0f} % of scores {mean} ± {deviation}, normally distributed; {equal:.0f} % of equal ones"
    why = (
        "The rule's threshold lies above the mean of scores that vary, and no score below the mean reaches it. All are "
        f"flagged if all are equal, or if the threshold was the floor of {detection['rule']['floor']} alone."
    )
    rows = [Row(f"Flagged by {rule}", says, measured, judged(detection["flagged"], varying), why)]
    claim, says = "A threshold above the mean", "cannot flag every image of scores that vary"
    if not path.is_file():
        missing = f"no {PREDICTIONS} in the folder of data (--root or MMPDS_DATA)"
        return [*rows, Row(claim, says, missing, NOT_RECOMPUTABLE)]
    table = pd.read_csv(path)
    names = [name for name in table if name.startswith("prob_")]
    prob = table[names].to_numpy(np.float32)
    ruled = 100 * np.array(flagged(prob, names))
    deviations = float(detection["rule"]["deviations"])
    bare = 100 * (prob >= prob.mean(0, dtype=np.float64) + deviations * prob.std(0, dtype=np.float64)).mean(0)
    measured = (
        f"{ruled.min():.1f} to {ruled.max():.1f} % of {len(prob):,} images flagged, by finding; without the floor "
        f"{bare.min():.0f} to {bare.max():.0f} %"
    )
    why = (
        "The same rule on the predictions that J. Zech published of a DenseNet-121 for ChestX-ray14; more in "
        "[adaptive_thresholds](../adaptive_thresholds/README.md)."
    )
    verdict = CONFIRMED if max(ruled.max(), bare.max()) < 100 else CORRECTED
    return [*rows, Row(claim, says, measured, verdict, why)]


def together(detection, path):
    """Findings beside flagged Pneumonia: where all is flagged, the share of all images."""
    says = ", ".join(f"{name} {share} %" for name, share in detection["with_pneumonia"].items())
    claim = "Findings beside Pneumonia"
    if not path.is_file():
        missing = f"no {LABELS} in the folder of data (--root or MMPDS_DATA)"
        return Row(claim, says, missing, NOT_RECOMPUTABLE)
    labels = pd.read_csv(path, index_col=False)["Finding Labels"].str.split("|")
    pneumonia = labels[labels.map(lambda names: "Pneumonia" in names)]

    def shares(images):
        each = {name: 100 * images.map(lambda names, n=name: n in names).mean() for name in detection["with_pneumonia"]}
        return ", ".join(f"{name} {share:.0f} %" for name, share in each.items())

    measured = f"of all {len(labels):,} images of ChestX-ray14: {shares(labels)}"
    why = (
        f"Of its {len(pneumonia):,} images labelled Pneumonia: {shares(pneumonia)}. Beside a flag that every image "
        "has, another finding is as frequent as anywhere. Which images the study took is not known."
    )
    return Row(claim, says, measured, NOT_COMPARABLE, why)


def constant_rows(claims):
    """The value itself: a second sigmoid of torchxrayvision's constant."""
    detection, constants = claims["detection"], claims["torchxrayvision"]["constants"]
    twice = {name: float(expit(float(value))) for name, value in constants.items()}
    top = max(twice, key=twice.get)
    mean, deviation = float(detection["top_probability"]), float(detection["top_deviation"])
    low, high = (log(p / (1 - p)) for p in (mean - deviation, mean + deviation))
    measured = (
        "; ".join(f"{name}: sigmoid({constants[name]}) = {value:.5f}" for name, value in twice.items())
        + f"; {mean} ± {deviation} undone is {low:.4f} to {high:.4f}"
    )
    same = agrees(detection["top_probability"], twice[top])
    why = (
        f"The larger of the two, of {top}: the digits {'agree' if same else 'differ'}. That the study's value came "
        "about so is a hypothesis: it takes the published weights, which are not here, to show it. The constants were "
        "reported of the weights trained on all data sets; the study names those of ChestX-ray14, whose constants are "
        "said to be others."
    )
    says = f"{detection['top_probability']} ± {detection['top_deviation']} for every image"
    low, high = claims["audit"]["second_sigmoid"]
    least, most = float(expit(0.0)), float(expit(1.0))
    verdict = CONFIRMED if agrees(low, least) and agrees(high, most) else CORRECTED
    squeezed = f"{least:.4f} to {most:.4f}, and differences shrink to {most * (1 - most):.2f} to 0.25 of their size"
    return [
        Row("Mean top confidence", says, measured, NOT_RECOMPUTABLE, why),
        Row("A second sigmoid of probabilities", f"all fall into {low}–{high}", squeezed, verdict),
    ]
