"""A DenseNet-121 of torchxrayvision's class, trained briefly, fed rightly and wrongly.

Shapes: N = images, C = findings.
"""

import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rows import CONFIRMED, CORRECTED, Row
from scores import flagged
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mmpds.callbacks.input_range import InputRange
from mmpds.data.phantom import Phantom
from mmpds.metrics.diagnosis import diagnose
from mmpds.metrics.intervals import evaluate
from mmpds.metrics.thresholds import Threshold
from mmpds.sweep import markdown

RIGHT, WRONG = "[-1024, 1024]", "[0, 1]"
INPUTS = {RIGHT: (2048.0, -1024.0), WRONG: (1.0, 0.0)}
"""Scale and shift of an image in [0, 1]."""
CAUSES = ("unexpected_input_range", "double_sigmoid", "constant_scores")
BATCH = 32


class Network(pl.LightningModule):
    """torchxrayvision's DenseNet, which returns logits, or probabilities once its op_threshs are set.

    As its published weights do: with op_threshs the sigmoid is applied, and each finding's threshold moved to 0.5.
    """

    def __init__(self, findings, steps, **sizes):
        super().__init__()
        with warnings.catch_warnings():  # its import silences all
            import torchxrayvision

        self.densenet = torchxrayvision.models.DenseNet(num_classes=len(findings), **sizes)
        self.steps, self.fed = steps, RIGHT

    def forward(self, image):
        """float32 [N, C] of images float32 [N, 1, H, W] in [0, 1], brought to the range `fed`."""
        scale, shift = INPUTS[self.fed]
        return self.densenet(image * scale + shift)

    def training_step(self, batch):
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(self(batch["image"]), batch["label"])

    def predict_step(self, batch):
        """The model's answer."""
        return self(batch["image"])

    def configure_optimizers(self):
        """AdamW, its rate rising and falling once."""
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def drawn(images, seed, size):
    """Items of phantoms, and their labels float32 [N, C]; no patient is in two seeds."""
    phantom = Phantom(images, seed)
    label = torch.tensor(phantom.table[list(phantom.findings)].to_numpy(np.float32))
    items = [
        {"image": torch.from_numpy(phantom.image(row, size)).float()[None] / 255, "label": label[row], "index": row}
        for row in range(images)
    ]
    return items, label


def measured(images=800, judged=400, size=64, epochs=4, **sizes):
    """Train, then predict with both input ranges, with one sigmoid and with two.

    Args:
        images: to train with.
        judged: to judge by; half as many set the operating points.
        size: pixels a side.
        epochs: of training.
        sizes: of the network, 121 layers unless told.

    Returns:
        A list of what each of the four ways gave.
    """
    torch.manual_seed(0)
    findings = Phantom(1).findings
    (training, _), (validation, known), (test, label) = (
        drawn(count, seed, size) for seed, count in enumerate((images, judged // 2, judged))
    )
    network = Network(findings, epochs * (images // BATCH), **sizes)

    def trainer(*callbacks):
        return pl.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, plugins=[LightningEnvironment()],
        )  # fmt: skip

    def predicted(items, *callbacks):
        return torch.cat(trainer(*callbacks).predict(network, DataLoader(items, BATCH)))

    trainer().fit(network, DataLoader(training, BATCH, shuffle=True, drop_last=True))
    youden = Threshold(findings, rule="youden")
    youden.update(predicted(validation).sigmoid(), known)
    network.densenet.op_threshs = youden.compute()
    found = []
    for fed in INPUTS:
        network.fed, watched = fed, InputRange()
        prob = predicted(test, watched)
        for sigmoids in (1, 2):
            if sigmoids == 2:
                prob = prob.sigmoid()
            found.append(summary(prob.numpy(), label.numpy(), findings, watched.summary(), fed=fed, sigmoids=sigmoids))
    return found


def summary(prob, label, findings, input_range, **way):
    """Spread, ranking and share flagged of each finding, and what mmpds says of the predictions."""
    threshold = Threshold(findings, rule="paper")
    threshold.update(torch.from_numpy(prob), torch.from_numpy(label))
    limits = threshold.compute().numpy()
    metrics = evaluate(prob, label, limits, findings, replicates=0).metrics
    told = diagnose(prob, label, limits, findings, input_range=input_range)
    return {
        **way,
        "mean": dict(zip(findings, prob.mean(0, dtype=np.float64).tolist(), strict=True)),
        "deviation": dict(zip(findings, prob.std(0, dtype=np.float64).tolist(), strict=True)),
        "flagged": dict(zip(findings, flagged(prob, findings), strict=True)),
        "auroc": {name: metrics[f"auroc/{name}"] for name in findings},
        "told": [{"name": one.name, "finding": one.finding, "evidence": one.evidence} for one in told],
    }


def named(way):
    """The causes that mmpds names for one of the ways."""
    return [cause for cause in CAUSES if any(one["name"] == cause for one in way["told"])]


def table(claims, found):
    """The four ways, for the findings of the study, as Markdown."""
    heads = ["input", "sigmoids", "finding", "mean ± deviation", "ROC-AUC", "flagged by the rule", "mmpds names"]
    rows = [
        [
            way["fed"], str(way["sigmoids"]), name, f"{way['mean'][name]:.4f} ± {way['deviation'][name]:.2g}",
            f"{way['auroc'][name]:.2f}", f"{100 * way['flagged'][name]:.0f} %", ", ".join(named(way)) or "–",
        ]
        for way in found for name in claims["detection"]["findings"]
    ]  # fmt: skip
    return markdown(heads, rows)


def rows_of(found):
    """The rows of the mechanism: what a wrong range does, and whether mmpds names both faults."""
    ways = {(way["fed"], way["sigmoids"]): way for way in found}
    right, wrong, both = ways[RIGHT, 1], ways[WRONG, 1], ways[WRONG, 2]
    spread = {fed: (min(each), max(each)) for fed, each in (
        (way["fed"], way["deviation"].values()) for way in (right, wrong)
    )}  # fmt: skip
    shares = wrong["flagged"].values()
    constant = [one["finding"] for one in wrong["told"] if one["name"] == "constant_scores"]
    same = len(constant) == len(wrong["mean"]) and not named(right)
    measured = (
        f"deviation over images {spread[RIGHT][0]:.2g} to {spread[RIGHT][1]:.2g} in {RIGHT}, "
        f"{spread[WRONG][0]:.1g} to {spread[WRONG][1]:.1g} in {WRONG}; constant scores: {len(constant)} of "
        f"{len(wrong['mean'])} findings"
    )
    texts = [one["evidence"] for cause in CAUSES for one in both["told"] if one["name"] == cause]
    firsts = list(dict.fromkeys(text for text in texts if text in (texts[0], *texts[1:3])))
    return [
        Row(
            f"Input in {WRONG} for {RIGHT}", "the same outputs for every image", measured,
            CONFIRMED if same else CORRECTED,
            "So little contrast does not pass the first norms and ReLUs. Which constant a finding gets is a matter of "
            "the weights; the rule flags all images or none of "
            f"{sum(share in (0, 1) for share in shares)} of {len(shares)}.",
        ),
        Row(
            "mmpds recognises it", "both faults are named", ", ".join(named(both)) or "none",
            CONFIRMED if set(CAUSES) <= set(named(both)) else CORRECTED, " ".join(f"“{text}”" for text in firsts),
        ),
    ]  # fmt: skip
