"""How far generated images are from real ones, and whether they are training images over again.

Shapes: N = pairs of a real image and one generated from its caption, M = training images, D = features.

The features are those of any extractor, one row an image; a figure holds for its extractor alone, which is
therefore to be named beside it. The Inception network of the original definitions is trained on photographs; where
torch-fidelity and its weights are installed, torchmetrics' `NoTrainInceptionV3` gives its 2,048 features.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import LEVEL, Evaluation, interval, resamples

FOLDS = 10
NEAR = 0.01
"""The quantile of held-out images' distances below which a generated image counts as a near duplicate."""
QUERIES = 256  # images whose distances to all training images are held at a time


class _Given(nn.Module):
    """Hands features on: torchmetrics takes a network, and these are extracted already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def feature_distances(
    real: ArrayLike, generated: ArrayLike, *, group: ArrayLike | None = None, seed: int = 0, only: str | None = None
) -> Evaluation:
    """`fid` and `kid` between the features of real and of generated images, with 95 % intervals.

    fid: squared Fréchet distance between two Gaussians fitted to the features (Heusel et al., NeurIPS 2017), by
        torchmetrics; 0 or more. It is biased upwards, by about 1 / N (Chong & Forsyth, CVPR 2020): only values of
        equal N compare, and what a perfect generator would have is not 0 but what two sets of real images have.
    kid: squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Bińkowski et al., ICLR 2018), the unbiased
        estimate over all pairs, not over random subsets; about 0, also below it, for equal distributions.

    The intervals are those of a delete-a-group jackknife: ten folds of whole patients are left out in turn, of both
    sets at once, and the spread of the ten values gives a standard error for Student's t with 9 degrees of freedom
    (Kott, J. Off. Stat. 2001). A bootstrap would draw images twice, which shrinks the covariances and moves FID
    itself. The interval tells the spread over other images of the same number: it does not correct FID's bias.

    Args:
        real: float [N, D], N >= 2.
        generated: float [N, D]; row i is of the same caption as the real row i.
        group: [N], the patient of each pair; without it each pair is its own group.
        seed: of the folds.
        only: `fid` or `kid`; None for both.

    Raises:
        ValueError: the shapes differ, or N < 2, or a feature is not finite.
    """
    x, y = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"real {x.shape} and generated {y.shape} must both be [images, features], of two or more")
    if wrong := int(np.count_nonzero(~np.isfinite(x)) + np.count_nonzero(~np.isfinite(y))):
        raise ValueError(f"real, generated: {wrong} features are not finite; leave out images that failed")
    member = numbered(group, len(x))
    groups = int(member.max()) + 1
    fold = (np.random.default_rng(seed).permutation(groups) % FOLDS)[member]
    values = {name: of(x, y, fold) for name, of in (("fid", _fid), ("kid", _kid)) if only in (None, name)}
    metrics = {name: float(value[0]) for name, value in values.items()}
    warnings = []
    if len(x) <= x.shape[1] and "fid" in values:
        warnings.append(
            f"fid: {len(x):,} images give {x.shape[1]:,} features a singular covariance, and FID a large upward bias; "
            "compare it with fid_real alone, or take kid"
        )
    if groups < FOLDS:
        warnings.append(f"no intervals of {' and '.join(values)}: fewer than {FOLDS} patients to leave out in turn")
        return Evaluation(metrics, {}, {"items": len(x)}, warnings)
    intervals = {name: _jackknife(value) for name, value in values.items()}
    if "fid" in intervals:
        intervals["fid"] = (max(0.0, intervals["fid"][0]), intervals["fid"][1])
    return Evaluation(metrics, intervals, {"items": len(x)}, warnings)


def frechet_distance(real: Array, generated: Array) -> float:
    """FID, as in `feature_distances`, of float [N, D] and [M, D]."""
    return float(_fid(real, generated, np.zeros(len(real), dtype=np.int64))[0])


def near_duplicates(
    generated: ArrayLike, held_out: ArrayLike, *, group: ArrayLike | None = None, replicates: int = 1000, seed: int = 0
) -> Evaluation:
    """Whether generated images lie nearer to the training images than new real images do (memorisation).

    near_duplicates: the share of generated images that are nearer to a training image than the 1 % quantile of
        held-out real images is, the level that a generator without memory has being 0.01. Copies give 1. Thresholds
        of nearest-neighbour distances: Carlini et al., USENIX Security 2023; held-out images as the reference:
        Meehan et al., AISTATS 2020.
    neighbour_distance, neighbour_distance_real: mean distances of generated and of held-out images.

    The intervals are percentiles of a bootstrap by patient; the quantile is drawn anew in each replicate.

    Args:
        generated: float [N], the distance of each generated image to the training image `nearest` to it.
        held_out: float [N], the same of the real image of its caption, which training has not seen.
        group: [N], the patient of each pair; without it each pair is its own group.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: the shapes differ or are empty, or a distance is negative or NaN.
    """
    made, held = np.asarray(generated, dtype=np.float64), np.asarray(held_out, dtype=np.float64)
    if made.ndim != 1 or made.shape != held.shape or not len(made) or not ((made >= 0) & (held >= 0)).all():
        raise ValueError(f"generated {made.shape} and held_out {held.shape} must be equally many distances from 0 up")
    order = np.argsort(held)

    def shares(weight: Array) -> dict[str, Array]:
        total = weight.sum(axis=0, dtype=np.float64)
        reached = np.cumsum(weight[order], axis=0, dtype=np.float64) >= NEAR * total
        level = held[order][reached.argmax(axis=0)]
        return {
            "near_duplicates": ((made[:, np.newaxis] < level) * weight).sum(axis=0) / total,
            "neighbour_distance": made @ weight / total,
            "neighbour_distance_real": held @ weight / total,
        }

    metrics = {name: float(value[0]) for name, value in shares(np.ones((len(made), 1))).items()}
    member = numbered(group, len(made))
    warnings = []
    if len(held) < 1 / NEAR:
        warnings.append(f"near_duplicates: the {NEAR:.0%} quantile of {len(held)} held-out images is but the nearest")
    if np.quantile(held, NEAR, method="inverted_cdf") == 0:
        warnings.append("near_duplicates: held-out images are copies of training images, so that none can be nearer")
    intervals: dict[str, tuple[float, float]] = {}
    if replicates and member.max() > 0:
        chunks = [shares(weight) for weight in resamples(member, replicates, seed)]
        found = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics}
        intervals = {name: ends for name, ends in found.items() if ends}
    return Evaluation(metrics, intervals, {"items": len(made)}, warnings)


def nearest(images: ArrayLike, training: ArrayLike) -> Array:
    """Euclidean distance of each image to the nearest training image: float64 [N].

    Args:
        images: float [N, D], features or pixels.
        training: float [M, D], M >= 1.
    """
    known = torch.from_numpy(np.asarray(training, dtype=np.float64))  # float32 would blur distances near zero
    queries = torch.from_numpy(np.asarray(images, dtype=np.float64))
    parts = (queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES))
    return np.concatenate([torch.cdist(part, known).amin(dim=1).numpy() for part in parts])


def numbered(group: ArrayLike | None, items: int) -> Array:
    """The group of each item as a number from 0 to G - 1: int [N]; each item its own where `group` is None.

    Raises:
        ValueError: not one group an item.
    """
    if group is None:
        return np.arange(items)
    names = np.asarray(group)
    if names.shape != (items,):
        raise ValueError(f"group: shape {names.shape} must be ({items},), one an item")
    return np.unique(names, return_inverse=True)[1]


def _fid(real: Array, generated: Array, fold: Array) -> Array:
    """FID of all and without each fold in turn: [1 + folds], of all alone where the folds are too few."""
    # rank 0 judges alone: a metric that waited for the other ranks would wait for ever
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]), sync_on_compute=False)
    values = []
    for left_out in range(-1, FOLDS if fold.max() + 1 == FOLDS else 0):
        kept = fold != left_out
        for features, of_real in ((real, True), (generated, False)):
            metric.update(torch.from_numpy(features[kept]), real=of_real)
        values.append(max(0.0, float(metric.compute())))  # the eigenvalues' rounding may fall below zero
        metric.reset()
    return np.array(values)


def _kid(real: Array, generated: Array, fold: Array) -> Array:
    """As `_fid`, the KID; kernel values are summed a pair of folds at a time."""
    folds = int(fold.max()) + 1
    x, y = ([torch.from_numpy(part[fold == f]) for f in range(folds)] for part in (real, generated))
    within, across = np.zeros((folds, folds)), np.zeros((folds, folds))
    for a, b in product(range(folds), repeat=2):
        for part in (x, y):
            kernel = poly_kernel(part[a], part[b])
            within[a, b] += float(kernel.sum() - (kernel.trace() if a == b else 0))
        across[a, b] = float(poly_kernel(x[a], y[b]).sum())
    size = np.bincount(fold, minlength=folds)
    values = []
    for left_out in range(-1, folds if folds == FOLDS else 0):
        kept = np.arange(folds) != left_out
        n = size[kept].sum()
        values.append(within[kept][:, kept].sum() / (n * (n - 1)) - 2 * across[kept][:, kept].sum() / n**2)
    return np.array(values)


def _jackknife(values: Array) -> tuple[float, float]:
    """95 % interval about the value of all, `values[0]`, from those without each fold, `values[1:]`."""
    left = values[1:]
    error = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    width = float(stats.t.ppf(LEVEL[1], len(left) - 1) * error)
    return float(values[0]) - width, float(values[0]) + width
