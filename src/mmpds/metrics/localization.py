"""Whether a heat map points where the finding is: maps against boxes, beside what two blind maps score.

Shapes: N = maps, H = W = pixels a side of a map, K = boxes of one finding in one image.

The blind maps are the levels that a figure must beat. `chance` is the constant map: its score is the share of the
image that the boxes take up. `prior` is the mean of all other patients' boxes of that finding: it knows where the
finding tends to be and has not seen the image, which is the level that counts where the place hardly varies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import interval, resamples

METRICS = ("pointing_game", "box_iou", "box_energy")
BLIND = ("chance", "prior")


@dataclass(frozen=True)
class Localization:
    """How well maps localise.

    metrics: `<metric>/<finding>`, `<metric>_chance/<finding>`, `<metric>_prior/<finding>` and the same of `macro`,
        in [0, 1]; absent where undefined.
    intervals: name -> (low, high), 95 %; absent where withheld.
    counts: `boxed/<finding>`, the number of maps judged.
    warnings: a sentence for whatever is absent or odd, with its reason.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    warnings: list[str]


def inside(boxes: ArrayLike, size: int, margin: float = 0.0) -> Array:
    """The pixels whose centre lies in a box, bool [size, size]; the one at a box's own centre always does.

    Args:
        boxes: [K, 4], x, y, width, height in fractions of the image.
        size: pixels a side.
        margin: how far from a box (Euclidean) still counts as in it, in fractions of the image's side.
    """
    centre = (np.arange(size) + 0.5) / size
    mask = np.zeros((size, size), dtype=np.bool_)
    for x, y, width, height in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        across = np.maximum(np.maximum(x - centre, centre - x - width), 0)
        down = np.maximum(np.maximum(y - centre, centre - y - height), 0)
        mask |= np.hypot(across, down[:, np.newaxis]) <= margin
        column, row = (np.clip([x + width / 2, y + height / 2], 0, 1) * size).astype(int).clip(max=size - 1)
        mask[row, column] = True  # a box may be thinner than a pixel
    return mask


def overlap(heat: Array, boxes: ArrayLike, tolerance: float = 0.0, level: float = 0.5) -> dict[str, float]:
    """Scores of one map against the boxes of one finding in its image, each in [0, 1].

    pointing_game: 1 if the map's maximum lies in a box or within `tolerance` of one (Zhang et al., IJCV 2018);
        of several equal maxima, the share that do: what one of them picked blindly scores on average.
    box_iou: intersection over union of {map >= level x maximum} and the union of the boxes. It depends on the level
        (Choe et al., CVPR 2020), which is therefore fixed beforehand and not fitted to boxes.
    box_energy: the share of the map's sum that lies in the boxes (the energy-based pointing game of Wang et al.,
        Score-CAM, CVPR Workshops 2020).

    A map that is zero everywhere points nowhere: it scores as the constant map that it is, the chance level. That of
    IoU, the share of the image in the boxes, is also no less than a random region of any size has on average.

    Args:
        heat: float [H, H], non-negative.
        boxes: [K, 4], K >= 1, as for `inside`.
        tolerance: in fractions of the image's side.
        level: in (0, 1].

    Raises:
        ValueError: the map is not square, or has negative values or NaN; or there is no box.
    """
    heat, boxes = np.asarray(heat, dtype=np.float64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if heat.ndim != 2 or heat.shape[0] != heat.shape[1] or not heat.size or not np.all(heat >= 0) or not len(boxes):
        raise ValueError(f"heat {heat.shape} must be square and non-negative, and boxes {boxes.shape} one or more")
    size, top = len(heat), heat.max()
    if top == 0:
        heat, top = np.ones_like(heat), 1.0
    mask = inside(boxes, size)
    hot = heat >= level * top
    return {
        "pointing_game": float(inside(boxes, size, tolerance)[heat == top].mean()),
        "box_iou": float((mask & hot).sum() / (mask | hot).sum()),
        "box_energy": float(heat[mask].sum() / heat.sum()),
    }


def localize(
    items: pd.DataFrame, size: int, *, tolerance: float = 0.0, level: float = 0.5,
    not_in_macro: Collection[str] = (), replicates: int = 1000, seed: int = 0,
) -> Localization:  # fmt: skip
    """Mean scores of each finding beside those of the blind maps, with intervals from a bootstrap by patient.

    Args:
        items: a row a judged map, with the columns `finding`, `group` (the patient), `boxes` ([K, 4]) and the three
            that `overlap` returned of it.
        size: pixels a side of the maps.
        tolerance: as the maps were judged with.
        level: as the maps were judged with.
        not_in_macro: findings left out of the macro mean, such as one whose boxes are an organ that hardly moves.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
    """
    if items.empty:
        return Localization({}, {}, {}, ["no image has a box of a finding: nothing to localise"])
    rows = {str(finding): np.asarray(place) for finding, place in items.groupby("finding").indices.items()}
    values = np.concatenate([items[list(METRICS)].to_numpy(np.float64), _blind(items, rows, size, tolerance, level)], 1)
    names = [*METRICS, *(f"{metric}_{blind}" for blind in BLIND for metric in METRICS)]
    averaged = [finding for finding in rows if finding not in not_in_macro]

    def means(weight: Array) -> dict[str, Array]:
        """Name -> [R] under each column of item weights [N, R]."""
        named: dict[str, Array] = {}
        with np.errstate(invalid="ignore"):
            mean = {f: values[r].T @ weight[r] / weight[r].sum(axis=0) for f, r in rows.items()}
        if averaged:
            mean["macro"] = np.mean([mean[finding] for finding in averaged], axis=0)
        for finding, rates in mean.items():
            named |= {f"{name}/{finding}": rate for name, rate in zip(names, rates, strict=True)}
        return named

    metrics = {name: float(v[0]) for name, v in means(np.ones((len(items), 1))).items() if not np.isnan(v[0])}
    counts = {f"boxed/{finding}": len(place) for finding, place in rows.items()}
    member, patients = pd.factorize(items["group"], sort=True)
    alone = [finding for finding in rows if f"{METRICS[0]}_prior/{finding}" not in metrics]
    warnings = [f"{finding}: no prior map, for all its boxes are of one patient" for finding in alone]
    if not replicates or len(patients) < 2:
        why = "no intervals of localisation: all boxes are of one patient"
        return Localization(metrics, {}, counts, warnings + [why] * bool(replicates))
    chunks = [means(weight) for weight in resamples(member, replicates, seed)]
    found = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics}
    few = [finding for finding in rows if found[f"{METRICS[0]}/{finding}"] is None]
    warnings += [f"{finding}: boxes of too few patients for intervals of localisation" for finding in few]
    return Localization(metrics, {name: ends for name, ends in found.items() if ends}, counts, warnings)


def _blind(items: pd.DataFrame, rows: Mapping[str, Array], size: int, tolerance: float, level: float) -> Array:
    """What the constant map and the prior map score on each item, [N, 2 x 3]; NaN where there is no prior."""
    boxes, group = items["boxes"].tolist(), items["group"].to_numpy()
    scores = np.full((len(items), len(BLIND), len(METRICS)), np.nan)
    for place in rows.values():
        masks = np.stack([inside(boxes[row], size) for row in place])
        total = masks.sum(axis=0)
        for row in place:
            prior = total - masks[group[place] == group[row]].sum(axis=0)  # no score depends on a map's scale
            for kind, heat in enumerate((np.ones((size, size)), prior)):
                if heat.any():
                    scores[row, kind] = list(overlap(heat, boxes[row], tolerance, level).values())
    return scores.reshape(len(items), -1)
