"""Whether a generator is any good: its images of the test captions, judged beside the real ones.

Shapes: n = items of this rank, N = of all, C = findings, D = features, H = W = pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mmpds.callbacks.predictions import gathered
from mmpds.data.batch import PADDING
from mmpds.metrics.class_distances import class_distances
from mmpds.metrics.generation import feature_distances, near_duplicates, nearest
from mmpds.metrics.image_similarity import diversity, same_class_pairs
from mmpds.metrics.intervals import Evaluation
from mmpds.metrics.prompt_fidelity import prompt_fidelity

TRAINING_IMAGES = 2000
PIXELS = 64
"""Pixels a side that images are averaged down to before their pixels are compared."""
BATCH = 32

Parts = dict[str, np.ndarray]


class Quality(Callback):
    """After a test of a generator, judges the images that it made of the test captions.

    A test batch is a `Batch`, and its outputs `image`, float [B, 1 or 3, H, W] in [0, 1] (colours are averaged to
    grey; an item with a NaN pixel failed and is left out), and `index`. Images are judged in the 8 bits that they
    are written with. Every rank has the classifier see its own items; rank 0 adds up:

    ms_ssim/generated, ms_ssim/real: see `diversity`.
    near_duplicates/pixels, /features: see `near_duplicates`; of the first 2,000 training images.
    fid, kid: see `feature_distances`; fid_real and kid_real are those of as many training images, the level that a
        perfect generator reaches.
    class_fid/<finding>, class_kid/<finding> and their levels: see `class_distances`.
    fidelity/<finding> and its levels: see `prompt_fidelity`.

    Args:
        classifier: a detector of this package, trained on real images alone; None leaves out what needs one.
        extractor: what its features are called in results, such as "densenet121 features of best.ckpt".
        replicates: of the bootstrap behind the intervals; 0 for none.
        seed: of the bootstrap, the folds and the pairs.
    """

    def __init__(
        self, classifier: pl.LightningModule | None = None, extractor: str = "", replicates: int = 1000, seed: int = 0
    ) -> None:
        self.classifier: Any = classifier
        self.extractor, self.replicates, self.seed = extractor, replicates, seed
        self._batches: list[Parts] = []
        self._failed = 0
        self._found = Evaluation({}, {}, {}, [])

    def summary(self) -> dict[str, Any]:
        """`metrics`, `intervals`, `counts`, `warnings` and `extractor` (None without a classifier) of the last test.

        They are of all ranks, on rank 0 only.
        """
        return vars(self._found) | {"extractor": self.extractor if self.classifier else None}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a classifier that knows none of the findings that the captions speak of.

        Raises:
            ValueError: it knows none.
        """
        asked = trainer.datamodule.findings  # type: ignore[attr-defined]
        if self.classifier and not set(asked) & set(self.classifier.findings):
            raise ValueError(
                f"callbacks.quality.classifier: it knows {list(self.classifier.findings)}, the data {list(asked)}; "
                "give one that was trained on these findings"
            )

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep a batch's real and generated images.

        Raises:
            ValueError: they are not of one size.
        """
        made, real = outputs["image"], batch["image"]
        if made.shape[-2:] != real.shape[-2:]:
            raise ValueError(
                f"data.size: real images have {real.shape[-1]} pixels a side and generated ones {made.shape[-1]}; "
                "give the size that the generator makes"
            )
        kept = outputs["index"] != PADDING
        grey = made[kept].float().mean(dim=1, keepdim=True)
        whole = ~grey.isnan().flatten(1).any(dim=1)
        self._failed += int((~whole).sum())
        self._batches.append({
            "generated": _to_bytes(grey[whole]), "real": _to_bytes(real[kept][whole]),
            "index": outputs["index"][kept][whole].cpu().numpy(),
        })  # fmt: skip

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge this rank's items and its share of the training images; rank 0 adds up.

        Raises:
            RuntimeError: an item was tested twice.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mine = _joined(self._batches)
        self._batches = []
        for name in ("generated", "real"):
            mine |= self._seen(mine[name], name, pl_module.device)
        ranks = gathered((mine, self._training(data.images, trainer, pl_module.device), self._failed))
        if trainer.global_rank == 0:
            items, training = (_joined([rank[part] for rank in ranks]) for part in (0, 1))
            if len(np.unique(items["index"])) < len(items["index"]):
                raise RuntimeError(f"of {len(items['index'])} tested items some occur twice: each must occur once")
            self._found = self._judge(items, training, data)
            self._found.counts["failed"] = failed = sum(rank[2] for rank in ranks)
            if failed:
                self._found.warnings.append(f"{failed} generated images failed (NaN pixels): left out of all figures")
        self._failed = 0

    def _seen(self, images: np.ndarray, name: str, device: torch.device) -> Parts:
        """What the classifier makes of uint8 [n, 1, H, W]: features float32 [n, D], probabilities float32 [n, C]."""
        if self.classifier is None:
            return {}
        model = self.classifier.to(device).eval()
        features, probs = [], []
        with torch.inference_mode():
            for start in range(0, max(1, len(images)), BATCH):  # a rank without any hands in arrays of the right shape
                image = torch.from_numpy(images[start : start + BATCH]).to(device).float() / 255
                feature = model.backbone(image * model.input_scale + model.input_shift).float()
                features.append(feature.cpu().numpy())
                probs.append(model.calibration.calibrate(model.head(feature).sigmoid()).cpu().numpy())
        return {f"{name}_feature": np.concatenate(features), f"{name}_prob": np.concatenate(probs)}

    def _training(self, images: Any, trainer: pl.Trainer, device: torch.device) -> Parts:
        """This rank's share of the training images; nothing where the data have no training split."""
        if "train" not in images:
            return {}
        train = images["train"]
        index = np.arange(min(len(train), TRAINING_IMAGES))[trainer.global_rank :: trainer.world_size]
        batches = []
        for start in range(0, max(1, len(index)), BATCH):
            rows = index[start : start + BATCH]
            pixels = np.zeros((len(rows), 1, train.size, train.size), dtype=np.uint8)
            for place, row in enumerate(rows):
                pixels[place, 0] = train.source.image(int(train.rows[row]), train.size)
            kept = {"index": rows, "label": train.label.numpy()[rows], "pixels": _small(pixels)}
            batches.append(kept | self._seen(pixels, "training", device))
        return _joined(batches)

    def _judge(self, items: Parts, training: Parts, data: Any) -> Evaluation:
        """All figures of the items of all ranks, in the order of the test split."""
        test = data.images["test"]
        index = items["index"]
        group, label = test.table["group"].to_numpy()[index], test.label.numpy()[index]
        label[[not test.caption[row] for row in index]] = np.nan  # an empty prompt asks for nothing and denies nothing
        if len(index) < 2:
            return Evaluation({}, {}, {"items": len(index)}, ["fewer than two generated images: nothing to judge"])
        drawn = {"group": group, "replicates": self.replicates, "seed": self.seed}
        classes = [tuple(row) for row in np.nan_to_num(label, nan=-1).tolist()]
        pairs = same_class_pairs(classes, group, seed=self.seed)
        made, real = (torch.from_numpy(items[name]) for name in ("generated", "real"))
        found = [diversity(made, real, pairs, replicates=self.replicates, seed=self.seed)]
        if training:
            known = training["pixels"]
            distances = (nearest(_small(items[name]), known) for name in ("generated", "real"))
            found.append(_renamed(near_duplicates(*distances, **drawn), "{}/pixels"))
            if (total := len(data.images["train"])) > len(known):
                found[-1].warnings.append(
                    f"near_duplicates: only the first {len(known):,} of {total:,} training images"
                )
        else:
            found[-1].warnings.append("no near_duplicates, fid_real and kid_real: the data have no training split")
        if self.classifier:
            found += self._judge_by_classifier(items, training, label, data.findings, drawn)
        else:
            found[-1].warnings.append(
                "no fid, kid, fidelity and near_duplicates/features: callbacks.quality.classifier=FILE.ckpt adds them, "
                "the best.ckpt of a detector trained on real images"
            )
        return _merged(found, {"items": len(index), "training_images": len(training.get("index", ()))})

    def _judge_by_classifier(
        self, items: Parts, training: Parts, label: np.ndarray, asked: Sequence[str], drawn: dict[str, Any]
    ) -> list[Evaluation]:
        """What takes the classifier's features or probabilities."""
        made, real, group = items["generated_feature"], items["real_feature"], drawn["group"]
        found = [feature_distances(real, made, group=group, seed=self.seed)]
        if training:
            known = training["training_feature"]
            distances = (nearest(features, known) for features in (made, real))
            found.append(_renamed(near_duplicates(*distances, **drawn), "{}/features"))
            if (n := min(len(known), len(real))) > 1:
                level = feature_distances(real[:n], known[:n], group=group[:n], seed=self.seed)
                level.warnings.clear()  # they are those of fid and kid
                found.append(_renamed(level, "{}_real"))
            found.append(class_distances(
                real, made, label, known, training["label"], asked, group=group, seed=self.seed
            ))  # fmt: skip
            if n < len(real):
                found[0].warnings.append(f"fid_real: of {n:,} training images only, and fid of {len(real):,} images")
        model = self.classifier
        findings = [finding for finding in model.findings if finding in asked]
        threshold = model.threshold.value.cpu().numpy()
        if not model.threshold.fitted:
            threshold = np.full(len(model.findings), 0.5)
            found[0].warnings.append("fidelity: the classifier's thresholds were never fitted; at 0.5 instead")
        if unknown := [finding for finding in asked if finding not in findings]:
            found[0].warnings.append(f"fidelity: the classifier does not know {', '.join(unknown)}")
        columns = [model.findings.index(finding) for finding in findings]
        found.append(prompt_fidelity(
            items["generated_prob"][:, columns], label[:, [list(asked).index(finding) for finding in findings]],
            threshold[columns], findings, real_prob=items["real_prob"][:, columns], **drawn,
        ))  # fmt: skip
        return found


def _to_bytes(images: Tensor) -> np.ndarray:
    """Float [n, 1, H, W] in [0, 1] to the nearest uint8."""
    return images.float().mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _small(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 1, H, W] to float32 [n, pixels] in [0, 1], averaged down to `PIXELS` a side where they are larger."""
    pixels = torch.from_numpy(images).float() / 255
    return adaptive_avg_pool2d(pixels, min(PIXELS, images.shape[-1])).flatten(1).numpy()


def _joined(parts: Sequence[Parts]) -> Parts:
    """The parts' arrays one after another, in the order of `index`."""
    if not parts or not parts[0]:
        return {}
    order = np.argsort(np.concatenate([part["index"] for part in parts]), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _renamed(found: Evaluation, name: str) -> Evaluation:
    metrics = {name.format(key): value for key, value in found.metrics.items()}
    intervals = {name.format(key): ends for key, ends in found.intervals.items()}
    return Evaluation(metrics, intervals, {}, found.warnings)


def _merged(found: Iterable[Evaluation], counts: dict[str, int]) -> Evaluation:
    merged = Evaluation({}, {}, counts, [])
    for one in found:
        merged.metrics.update(one.metrics)
        merged.intervals.update(one.intervals)
        merged.counts.update(one.counts)
        merged.warnings.extend(text for text in one.warnings if text not in merged.warnings)
    return merged
