"""Figures of generated images against closed forms, the library's own, and cases whose answer is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.kid import KernelInceptionDistance

from mmpds.metrics.generation import feature_distances, near_duplicates, nearest
from mmpds.metrics.image_similarity import diversity, image_difference, same_class_pairs, scales
from mmpds.metrics.prompt_fidelity import prompt_fidelity


def gaussian(rng, mean, deviation, images=200):
    """Features whose sample mean and covariance are exactly those of N(mean, diag(deviation^2))."""
    x = rng.normal(size=(images, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x * deviation + mean


def test_fid_of_two_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    mean, narrow, wide = np.array([[0.0, 0, 0], [1, 2, 0]]), np.array([1.0, 1, 2]), np.array([3.0, 1, 1])
    real, made = gaussian(rng, mean[0], narrow), gaussian(rng, mean[1], wide)
    found = feature_distances(real, made)
    assert found.metrics["fid"] == pytest.approx(5 + (2**2 + 0 + 1**2), rel=1e-9)
    low, high = found.intervals["fid"]
    assert low < found.metrics["fid"] < high
    assert not found.warnings
    assert feature_distances(real, real).metrics["fid"] == pytest.approx(0, abs=1e-6)


def test_kid_is_the_librarys_over_all_images():
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(2, 47, 6)) + np.array([0, 0.3])[:, None, None]
    library = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=47)
    library.update(torch.from_numpy(real), real=True)
    library.update(torch.from_numpy(made), real=False)
    found = feature_distances(real, made, seed=3)
    assert found.metrics["kid"] == pytest.approx(float(library.compute()[0]), rel=1e-9)
    assert found.intervals["kid"][0] < found.metrics["kid"] < found.intervals["kid"][1]


def test_kid_of_equal_distributions_is_zero_on_average_and_its_interval_holds_zero_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [feature_distances(*rng.normal(size=(2, 60, 4)), seed=r) for r in range(60)]
    kid = np.array([one.metrics["kid"] for one in found])
    assert abs(kid.mean()) < 3 * kid.std() / np.sqrt(len(kid))
    assert np.mean([one.intervals["kid"][0] <= 0 <= one.intervals["kid"][1] for one in found]) >= 0.9
    assert np.mean([one.metrics["fid"] for one in found]) > 0.1  # the bias that its docstring tells of


def test_images_of_one_patient_widen_the_intervals():
    rng = np.random.default_rng(3)
    real, made = np.repeat(rng.normal(size=(2, 50, 3)), 4, axis=1)
    patient = np.repeat(np.arange(50), 4)
    wide, narrow = (feature_distances(real, made, group=group).intervals for group in (patient, None))
    for name in ("fid", "kid"):
        assert np.diff(wide[name]) > 1.3 * np.diff(narrow[name])


def test_few_images_are_told_of():
    rng = np.random.default_rng(4)
    found = feature_distances(*rng.normal(size=(2, 12, 30)), group=np.arange(12) // 2)
    assert not found.intervals
    assert any("12 images give 30 features a singular covariance" in text for text in found.warnings)
    assert any("fewer than 10 patients" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("real", "made", "said"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), "of two or more"),
        (np.zeros((1, 2)), np.zeros((1, 2)), "of two or more"),
        (np.zeros((3, 2)), np.array([[0, 0], [0, np.nan], [0, 0]]), "1 features are not finite"),
    ],
)
def test_wrong_features_are_refused(real, made, said):
    with pytest.raises(ValueError, match=said):
        feature_distances(real, made)


def test_copies_are_found_and_new_images_are_not():
    rng = np.random.default_rng(5)
    training, held_out, new = rng.random((700, 40)), rng.random((600, 40)), rng.random((600, 40))
    copies = training[rng.integers(700, size=600)]
    level = nearest(held_out, training)
    assert nearest(copies, training) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(
        level[:5], [np.sqrt(((image - training) ** 2).sum(1)).min() for image in held_out[:5]], rtol=1e-9
    )
    copied = near_duplicates(nearest(copies, training), level, replicates=50)
    assert copied.metrics["near_duplicates"] == 1
    assert copied.intervals["near_duplicates"] == (1, 1)
    honest = near_duplicates(nearest(new, training), level, replicates=200)
    assert honest.metrics["near_duplicates"] < 0.03
    assert honest.metrics["neighbour_distance_real"] == pytest.approx(level.mean())
    for name, value in honest.metrics.items():
        low, high = honest.intervals[name]
        assert low <= value <= high
    half = near_duplicates(np.where(np.arange(600) % 2, 0, level), level, replicates=0)
    assert half.metrics["near_duplicates"] == pytest.approx(0.5 + 0.01 / 2, abs=0.01)


def test_held_out_copies_and_few_of_them_are_told_of():
    found = near_duplicates(np.ones(20), np.r_[np.zeros(1), np.ones(19)])
    assert found.metrics["near_duplicates"] == 0
    assert [text.partition(": ")[2][:8] for text in found.warnings] == ["the 1% q", "held-out"]
    with pytest.raises(ValueError, match="equally many distances"):
        near_duplicates(np.ones(3), np.ones(4))


def test_fidelity_of_hand_made_probabilities():
    asked = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, np.nan]])
    prob = np.array([[0.9, 0.1], [0.8, 0.9], [0.2, 0.9], [0.7, 0.2], [0.1, 0.9]])
    found = prompt_fidelity(prob, asked, [0.5, 0.8], ("A", "B"), real_prob=np.nan_to_num(asked), replicates=0)
    rates = found.metrics
    assert rates["fidelity/A"] == pytest.approx(2 / 3)
    assert rates["fidelity_chance/A"] == pytest.approx(1 / 2)
    assert rates["fidelity/B"] == rates["fidelity_chance/B"] == pytest.approx(1 / 2)
    assert rates["fidelity/macro"] == pytest.approx(7 / 12)
    known = ~np.isnan(asked[:, 1])
    assert rates["fidelity_auroc/B"] == pytest.approx(roc_auc_score(asked[known, 1], prob[known, 1]))
    assert rates["fidelity_real/macro"] == rates["fidelity_auroc_real/macro"] == 1
    assert rates["fidelity_chance_real/macro"] == 0
    assert found.counts["asked/B"] == found.counts["not_asked/B"] == 2


def test_fidelity_of_ignored_prompts_is_chance_and_the_intervals_hold_it():
    rng = np.random.default_rng(6)
    asked = (rng.random((400, 2)) < 0.3).astype(float)
    blind = rng.random((400, 2))
    found = prompt_fidelity(blind, asked, [0.7, 0.7], ("A", "B"), real_prob=blind[::-1], group=np.arange(400) // 2)
    assert found.metrics["fidelity/macro"] == pytest.approx(found.metrics["fidelity_chance/macro"], abs=0.1)
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low <= value <= high
    assert found.intervals["fidelity_auroc/macro"][0] < 0.5 < found.intervals["fidelity_auroc/macro"][1]
    assert any("does not surely see it in real images either" in text for text in found.warnings)


def test_a_finding_that_no_prompt_asks_for_is_left_out():
    found = prompt_fidelity(np.full((4, 2), 0.6), np.array([[0, 1], [0, 0]] * 2), [0.5, 0.5], ("A", "B"), replicates=9)
    assert "fidelity/A" not in found.metrics
    assert found.metrics["fidelity/macro"] == found.metrics["fidelity/B"] == 1
    assert found.warnings[0].startswith("A: not one of the prompts asks for it")


def test_scales_of_ms_ssim_by_size():
    assert [scales(size) for size in (16, 32, 64, 128, 176, 512)] == [1, 2, 3, 4, 5, 5]
    for size in (11, 21, 22, 43, 44, 98, 99, 175, 176):
        image = torch.rand(2, 1, size, size)
        assert diversity(image, image, pairs=[(0, 0)], replicates=0).metrics["ms_ssim/real"] == pytest.approx(
            1, abs=1e-4
        )
    with pytest.raises(ValueError, match="10 pixels a side are smaller than the kernel"):
        scales(10)


def test_ms_ssim_tells_a_lost_mode():
    noise = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = same_class_pairs([row % 2 for row in range(40)], np.arange(40))
    found = diversity(noise[:1].expand(40, -1, -1, -1), (noise * 255).byte(), pairs, replicates=50)
    assert found.metrics["ms_ssim/generated"] == pytest.approx(1, abs=1e-5)
    assert found.metrics["ms_ssim/real"] < 0.3
    low, high = found.intervals["ms_ssim/real"]
    assert low < found.metrics["ms_ssim/real"] < high
    assert found.counts == {"pairs": 20, "ms_ssim_scales": 2}


def test_ms_ssim_of_large_images_is_the_librarys():
    images = torch.rand(40, 1, 176, 176).cumsum(-1) / 176
    pairs = [(row, 39 - row) for row in range(20)]
    mine = diversity(images, images, pairs, replicates=0).metrics["ms_ssim/real"]
    theirs = multiscale_structural_similarity_index_measure(
        images[:20], images.flip(0)[:20], data_range=1.0, normalize="relu"
    )
    assert mine == pytest.approx(float(theirs), rel=1e-4)  # its weights sum to 1.0001


def test_pairs_are_of_one_class_and_two_patients():
    rng = np.random.default_rng(7)
    classes, patient = rng.integers(3, size=101).tolist(), np.arange(101) // 4
    pairs = same_class_pairs(classes, patient, seed=1)
    assert len(pairs) > 40
    assert len({row for pair in pairs for row in pair}) == 2 * len(pairs)
    assert all(classes[a] == classes[b] and patient[a] != patient[b] for a, b in pairs)
    assert pairs == same_class_pairs(classes, patient, seed=1) != same_class_pairs(classes, patient, seed=2)
    assert len(same_class_pairs(classes, patient, limit=7)) == 7
    assert diversity(*torch.rand(2, 4, 1, 32, 32), pairs=[]).warnings


def test_the_price_in_image_difference():
    reference = torch.rand(70, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.8
    shift = torch.full((70, 1, 1, 1), 0.1)
    shift[:10] = 0
    shift[10:40] = 0.01
    found = image_difference(reference, reference + shift, replicates=200)
    assert found.metrics["psnr"] == pytest.approx((30 * 40 + 30 * 20) / 60, abs=1e-3)
    assert found.counts == {"items": 70, "identical": 10}
    assert 0.9 < found.metrics["ssim"] < 1
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low < value < high
    same = image_difference(reference, reference)
    assert same.metrics == {"ssim": pytest.approx(1)}
    with pytest.raises(ValueError, match="must both be"):
        image_difference(reference, reference[:3])
