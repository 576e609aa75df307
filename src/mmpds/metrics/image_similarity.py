"""How alike images are: the diversity of a generator's images, and the price of generating them in another way.

Shapes: N = images, P = pairs, H = W = pixels a side.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import Evaluation, interval, resamples

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, finest first (Wang et al., Asilomar 2003)."""
KERNEL = 11
PAIRS = 500
BATCH = 32


def scales(size: int) -> int:
    """Scales of MS-SSIM that images of `size` pixels a side allow with the usual kernel of 11 pixels, 1 to 5.

    A smaller kernel would measure other structures: the coarsest scales are left out instead, and the weights of the
    rest scaled to sum to one. Images from 176 pixels have all five, those of 64 have three, those of 32 two.

    Raises:
        ValueError: the image is smaller than the kernel.
    """
    if size < KERNEL:
        raise ValueError(f"size: images of {size} pixels a side are smaller than the kernel of SSIM, {KERNEL}")
    # the library's own limit, and one it does not check: the coarsest scale must hold the kernel, else it is NaN
    return max(s for s in range(1, len(BETAS) + 1) if size // max((s - 1) ** 2, 2 ** (s - 1)) >= KERNEL)


def same_class_pairs(
    classes: Sequence[Hashable], group: ArrayLike, *, limit: int = PAIRS, seed: int = 0
) -> list[tuple[int, int]]:
    """Random pairs of images of one class and two patients, each image in one pair at most.

    Args:
        classes: N, what the prompts ask for.
        group: [N], the patients.
        limit: pairs at most.
        seed: of the draw.
    """
    group, rng = np.asarray(group), np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for row in rng.permutation(len(classes)).tolist():
        members.setdefault(classes[row], []).append(row)
    pairs = [pair for rows in members.values() for pair in zip(rows[::2], rows[1::2], strict=False)]
    pairs = [pairs[k] for k in rng.permutation(len(pairs)) if group[pairs[k][0]] != group[pairs[k][1]]]
    return pairs[:limit]


def diversity(
    generated: Tensor, real: Tensor, pairs: Sequence[tuple[int, int]], *, replicates: int = 1000, seed: int = 0
) -> Evaluation:
    """`ms_ssim/generated` and `ms_ssim/real`: how alike two images of one prompt class are, in [0, 1].

    The mean multi-scale structural similarity (Wang et al., Asilomar 2003) over the pairs, as Odena et al. (ICML
    2017) have it: a generator whose images are more alike than the real ones has lost modes. Equal images have 1. On
    fewer scales than five (`scales`) values do not compare with those of other image sizes. The intervals are
    percentiles of a bootstrap over the pairs.

    Args:
        generated: [N, 1, H, W], float in [0, 1] or uint8.
        real: the same of the images whose captions were the prompts.
        pairs: P pairs of rows, the same for both; see `same_class_pairs`.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: the shapes differ, or the images are smaller than 11 pixels.
    """
    _check(generated, real)
    if not pairs:
        return Evaluation({}, {}, {"pairs": 0}, ["no ms_ssim: no two patients have prompts of one class"])
    values = {
        "ms_ssim/generated": _ms_ssim(generated, pairs),
        "ms_ssim/real": _ms_ssim(real, pairs),
    }
    return _means(values, {"pairs": len(pairs), "ms_ssim_scales": scales(generated.shape[-1])}, replicates, seed)


def image_difference(reference: Tensor, images: Tensor, *, replicates: int = 1000, seed: int = 0) -> Evaluation:
    """`psnr` (dB) and `ssim` (up to 1) between two sets of images of the same prompts and seeds.

    ssim: mean structural similarity (Wang et al., IEEE TIP 2004); images smaller than 11 pixels have none.
    psnr: mean of 10 log10(1 / mean squared error). Identical images have an infinite one: they are left out of its
        mean and counted as `identical`.

    The intervals are percentiles of a bootstrap over the images.

    Args:
        reference: [N, C, H, W], float in [0, 1] or uint8.
        images: the same; row i is of the prompt and the seed of the reference's row i.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: the shapes differ, or there is no image, or they are smaller than 11 pixels.
    """
    _check(reference, images)
    if not len(images):
        raise ValueError("images: none to compare")
    psnr, ssim = [], []
    for start in range(0, len(images), BATCH):
        a, b = (_unit(part[start : start + BATCH]) for part in (images, reference))
        psnr.append(peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3)))
        similarity = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        ssim.append(similarity.reshape(-1))
    values = {"psnr": torch.cat(psnr).numpy(), "ssim": torch.cat(ssim).numpy()}
    identical = ~np.isfinite(values["psnr"])
    values["psnr"] = np.where(identical, np.nan, values["psnr"])
    found = _means(values, {"items": len(images), "identical": int(identical.sum())}, replicates, seed)
    if identical.any():
        found.warnings.append(f"psnr: {identical.sum():,} of {len(images):,} images are identical: not in its mean")
    return found


def _check(one: Tensor, other: Tensor) -> None:
    if one.ndim != 4 or one.shape != other.shape or one.shape[2] != one.shape[3]:
        raise ValueError(
            f"images {tuple(one.shape)} and {tuple(other.shape)} must both be [images, channels, size, size]"
        )
    scales(one.shape[-1])


def _unit(images: Tensor) -> Tensor:
    """float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _ms_ssim(images: Tensor, pairs: Sequence[tuple[int, int]]) -> Array:
    """[P]; negative correlations count as none, for a fractional power of them is undefined."""
    betas = np.array(BETAS[: scales(images.shape[-1])])
    values = []
    for start in range(0, len(pairs), BATCH):
        left, right = (list(rows) for rows in zip(*pairs[start : start + BATCH], strict=True))
        value = multiscale_structural_similarity_index_measure(
            _unit(images[left]), _unit(images[right]), kernel_size=KERNEL, data_range=1.0, reduction="none",
            betas=tuple((betas / betas.sum()).tolist()), normalize="relu",
        )  # fmt: skip
        values.append(value.reshape(-1).numpy())
    return np.concatenate(values)


def _means(values: dict[str, Array], counts: dict[str, int], replicates: int, seed: int) -> Evaluation:
    """Means of values [K], NaN left out, with intervals over the K."""

    def means(weight: Array) -> dict[str, Array]:
        with np.errstate(invalid="ignore"):
            return {
                name: np.nan_to_num(value).astype(np.float64) @ weight / ((~np.isnan(value)) @ weight)
                for name, value in values.items()
            }

    size = len(next(iter(values.values())))
    metrics = {name: float(v[0]) for name, v in means(np.ones((size, 1))).items() if not np.isnan(v[0])}
    if not replicates or size < 2:
        return Evaluation(metrics, {}, counts, ["no intervals of one value alone"] * bool(replicates))
    chunks = [means(weight) for weight in resamples(np.arange(size), replicates, seed)]
    found = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics}
    return Evaluation(metrics, {name: ends for name, ends in found.items() if ends}, counts, [])
