"""No patient and no image in two splits, whatever the data; shares and classes as even as patients allow."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.data.splits import SPLITS, leaks, split_by_group

FINDINGS = ("Pneumonia", "Infiltration")


def table(groups, labels, normal=None):
    labels = np.asarray(labels, dtype=float).reshape(len(groups), len(FINDINGS))
    rows = pd.DataFrame({"group": [f"p{group}" for group in groups], **dict(zip(FINDINGS, labels.T, strict=True))})
    return rows.assign(normal=(labels == 0).all(1) if normal is None else normal)


@st.composite
def data_sets(draw):
    images = draw(st.integers(3, 60))
    groups = draw(st.lists(st.integers(0, 25), min_size=images, max_size=images))
    labels = draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=2 * images, max_size=2 * images))
    digests = draw(st.lists(st.integers(0, 80).map(str), min_size=images, max_size=images))
    return table(groups, labels), digests


@settings(deadline=None)
@given(data=data_sets(), seed=st.integers(0, 5))
def test_splits_share_neither_patients_nor_images(data, seed):
    rows, digests = data
    try:
        split = split_by_group(rows, FINDINGS, seed=seed, digests=digests)
    except ValueError as error:
        assert "cannot fill 3 splits" in str(error)  # noqa: PT017
        return
    assert leaks(split, rows["group"], digests) == []
    assert set(split) == set(SPLITS)
    assert split.index.equals(rows.index)


@settings(deadline=None)
@given(data=data_sets(), seed=st.integers(0, 5), shuffle=st.integers(0, 1000))
def test_a_split_depends_on_content_and_seed_alone(data, seed, shuffle):
    rows, digests = data
    order = np.random.default_rng(shuffle).permutation(len(rows))
    try:
        split = split_by_group(rows, FINDINGS, seed=seed, digests=digests)
    except ValueError:  # shared images left fewer than three patients
        return
    shuffled = [digests[row] for row in order]
    again = split_by_group(rows.iloc[order], FINDINGS, seed=seed, digests=shuffled)
    pd.testing.assert_series_equal(again.sort_index(), split)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=80),
    share=st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.2, 0.0), (0.0, 0.5, 0.5)]),
    positive=st.randoms(use_true_random=False),
)
def test_sizes_are_within_two_patients_of_the_fractions(sizes, share, positive):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = table(groups, [positive.choice([0, 1]) for _ in range(2 * len(groups))])
    split = split_by_group(rows, FINDINGS, share)
    for name, fraction in zip(SPLITS, share, strict=True):
        count = int((split == name).sum())
        assert (count > 0) == (fraction > 0)
        assert abs(count - fraction * len(rows)) <= 2 * max(sizes)


def ordinary(patients, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.geometric(0.3, patients))
    return table(groups, rng.random((len(groups), 2)) < (0.05, 0.2))


def test_thirty_thousand_patients_are_split_evenly_in_seconds():
    rows = ordinary(30_000)
    began = time.perf_counter()
    split = split_by_group(rows, FINDINGS, digests=[str(row) for row in range(len(rows))])
    assert time.perf_counter() - began < 10
    for name, fraction in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        part = rows[split == name]
        assert len(part) == pytest.approx(fraction * len(rows), abs=3)
        for column in (*FINDINGS, "normal"):
            assert part[column].mean() == pytest.approx(rows[column].mean(), rel=0.05)
        # patients with many images are in every split alike
        assert len(part) / part["group"].nunique() == pytest.approx(len(rows) / 30_000, rel=0.02)
    assert leaks(split, rows["group"]) == []


def test_rare_classes_are_in_every_split():
    rows = table(range(300), [(row < 10, row % 3 == 0) for row in range(300)])
    for seed in range(10):
        split = split_by_group(rows, FINDINGS, seed=seed)
        positives = [int(rows.loc[split == name, "Pneumonia"].sum()) for name in SPLITS]
        assert positives[0] in (6, 7, 8)
        assert min(positives) >= 1


def test_seeds_differ():
    rows = ordinary(100)
    splits = [tuple(split_by_group(rows, FINDINGS, seed=seed)) for seed in range(5)]
    assert len(set(splits)) == 5


def test_patients_with_an_image_in_common_stay_together_also_through_others():
    rows = table(range(40), np.zeros((40, 2)))
    digests = [str(row // 2 if row < 20 else row) for row in range(40)]  # p0-p1, p2-p3, …
    chained = pd.concat([rows, rows.iloc[:19]], ignore_index=True)
    chain = digests + [digests[row + 1] for row in range(19)]  # p1-p2, p3-p4, …: p0 to p19 are one
    for seed in range(5):
        split = split_by_group(chained, FINDINGS, seed=seed, digests=chain)
        assert split[chained["group"].isin([f"p{row}" for row in range(20)])].nunique() == 1
        assert leaks(split, chained["group"], chain) == []
        assert set(split) == set(SPLITS)


def test_a_finding_that_is_not_labelled_does_not_matter():
    rows = ordinary(50)
    split = split_by_group(rows, (*FINDINGS, "Edema"))
    pd.testing.assert_series_equal(split, split_by_group(rows, FINDINGS))


def test_the_smallest_sets_fill_every_split_or_are_refused_with_the_cure():
    assert set(split_by_group(table(range(3), np.zeros((3, 2))), FINDINGS)) == set(SPLITS)
    big = table([0] * 50 + [1, 2], np.zeros((52, 2)))
    assert set(split_by_group(big, FINDINGS)) == set(SPLITS)
    with pytest.raises(ValueError, match="2 patients cannot fill 3 splits; give more, or set some fractions to 0"):
        split_by_group(table([0, 0, 1], np.zeros((3, 2))), FINDINGS)
    assert set(split_by_group(table([0, 1], np.zeros((2, 2))), FINDINGS, (0.5, 0, 0.5))) == {"train", "test"}


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (0.7, 0.3), (1.2, -0.1, -0.1)])
def test_fractions_that_make_no_sense_are_refused(fractions):
    with pytest.raises(ValueError, match=r"fractions=.*sum to 1"):
        split_by_group(ordinary(10), FINDINGS, fractions)


def test_leaks_are_named():
    split = pd.Series(["train", "test", "train", "val", "test", "test"])
    groups = pd.Series(["person12", "person12", "a", "b", "c", "c"])
    assert leaks(split, groups) == ["patient person12 is in train and test"]
    assert leaks(split, groups, ["1", "1", "2", "2", "3", "3"]) == [
        "patient person12 is in train and test",
        "an image that patients a and b share is in train and val",
    ]
    assert leaks(split[2:], groups[2:], ["2", "4", "3", "3"]) == []
