import numpy as np
import pytest

from mmpds.metrics.class_distances import class_distances
from mmpds.metrics.generation import feature_distances, frechet_distance

FINDINGS = ("A", "B")


def features(label, rng):
    """Eight features, of which the first two tell the findings."""
    noise = rng.normal(size=(len(label), 8))
    noise[:, :2] += 3 * label
    return noise


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    label, training_label = (rng.integers(0, 2, size=(n, 2)).astype(float) for n in (400, 600))
    return {
        "real": features(label, rng), "label": label, "training": features(training_label, rng),
        "training_label": training_label, "findings": FINDINGS,
    }, rng  # fmt: skip


def test_a_perfect_generator_is_as_near_as_real_images_and_nearer_than_shuffled_ones(sets):
    given, rng = sets
    found = class_distances(generated=features(given["label"], rng), **given)
    for finding in (*FINDINGS, "macro"):
        kid, real, shuffled = (found.metrics[f"class_kid{part}/{finding}"] for part in ("", "_real", "_shuffled"))
        assert abs(kid) < 0.3
        assert abs(real) < 0.3
        assert shuffled > 0.5
        low, high = found.intervals[f"class_kid/{finding}"]
        assert low <= kid <= high < found.intervals[f"class_kid_shuffled/{finding}"][0]
        fid, shuffled_fid = (found.metrics[f"class_fid{part}/{finding}"] for part in ("", "_shuffled"))
        assert fid < 1 < shuffled_fid


def test_a_generator_that_ignores_its_prompts_is_as_far_as_shuffled_images(sets):
    given, rng = sets
    found = class_distances(generated=features(rng.permutation(given["label"]), rng), **given)
    assert found.metrics["class_kid/macro"] == pytest.approx(found.metrics["class_kid_shuffled/macro"], rel=0.5)
    assert found.metrics["class_kid/macro"] > 5 * abs(found.metrics["class_kid_real/macro"])


def test_a_finding_of_few_images_is_named_and_left_out(sets):
    given, rng = sets
    given["label"][:, 1] = 0
    given["label"][:5, 1] = 1
    found = class_distances(generated=features(given["label"], rng), **given)
    assert "class_kid/B" not in found.metrics
    assert "B" in found.warnings[0]
    assert found.metrics["class_kid/macro"] == found.metrics["class_kid/A"]


def test_one_distance_alone_is_what_it_is_among_both():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 4)), rng.normal(1, 1, size=(60, 4))
    both = feature_distances(x, y)
    assert feature_distances(x, y, only="kid").metrics == {"kid": both.metrics["kid"]}
    assert frechet_distance(x, y) == pytest.approx(both.metrics["fid"])
