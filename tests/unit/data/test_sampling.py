"""Every item exactly once in evaluation; the same global batches at any number of ranks in training."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpds.data.attributes import age_band
from mmpds.data.sampling import EvalBatches, TrainBatches, class_weights


@given(rows=st.integers(1, 60), ranks=st.integers(1, 5), share=st.integers(1, 7))
def test_evaluation_sees_every_row_once_and_ranks_keep_step(rows, ranks, share):
    loaders = [EvalBatches(rows, share * ranks, rank=rank, world_size=ranks) for rank in range(ranks)]
    draws = [draw for loader in loaders for batch in loader for draw in batch]
    assert sorted(draw.row for draw in draws if not draw.padding) == list(range(rows))
    assert all(0 <= draw.row < rows for draw in draws)
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert all(len(loader) == len(list(loader)) for loader in loaders)


@given(
    rows=st.integers(12, 60),
    ranks=st.sampled_from([1, 2, 3, 4, 6]),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_global_batches_do_not_depend_on_the_number_of_ranks(rows, ranks, seed, epoch):
    def batches(world_size):
        loaders = [
            TrainBatches(rows, 12, seed=seed, rank=r, world_size=world_size, epoch=epoch) for r in range(world_size)
        ]
        return [[draw for part in parts for draw in part] for parts in zip(*loaders, strict=True)]

    assert batches(ranks) == batches(1)
    rows_seen = [draw.row for batch in batches(1) for draw in batch]
    assert len(rows_seen) == len(set(rows_seen)) == rows // 12 * 12


@given(step=st.integers(0, 5))
def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole(step):
    whole = TrainBatches(60, 10, seed=3)
    whole.set_epoch(2)
    resumed = TrainBatches(60, 10, seed=3, epoch=2, step=step)
    assert list(resumed) == list(whole)[step:]
    assert len(resumed) == len(whole) == 6
    whole.set_epoch(3)
    resumed.set_epoch(3)
    assert list(resumed) == list(whole)


def test_epochs_differ_and_seeds_differ():
    first, second = TrainBatches(60, 10, seed=3), TrainBatches(60, 10, seed=4)
    assert list(first) != list(second)
    before = list(first)
    first.set_epoch(1)
    assert list(first) != before


def test_a_batch_that_cannot_be_made_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="batch_size=10 does not divide over 3 ranks"):
        TrainBatches(60, 10, world_size=3)
    with pytest.raises(ValueError, match="larger than the training set of 7; give at most 7"):
        TrainBatches(7, 10)


def table(normal, group, finding):
    return pd.DataFrame({"id": range(len(group)), "normal": normal, "group": group, "Pneumonia": finding})


def test_rebalanced_draws_are_half_normal_and_patients_count_alike():
    groups = ["a"] * 50 + [f"p{i}" for i in range(50)] + [f"n{i}" for i in range(10)]
    normal = [False] * 100 + [True] * 10
    rows = table(normal, groups, [1.0] * 100 + [0.0] * 10)
    for mode in ("equal_normal", "balanced"):
        weights = class_weights(rows, ("Pneumonia",), mode)
        drawn = np.concatenate([[d.row for d in b] for b in TrainBatches(110, 110, weights=weights, seed=1)])
        for epoch in range(1, 40):
            loader = TrainBatches(110, 110, weights=weights, seed=1, epoch=epoch)
            drawn = np.append(drawn, [d.row for d in next(iter(loader))])
        assert np.mean(drawn >= 100) == pytest.approx(0.5, abs=0.03)
        patient_a = np.mean(drawn[drawn < 100] < 50)
        assert patient_a == pytest.approx(1 / 51, abs=0.01)


def test_one_class_cannot_be_balanced():
    with pytest.raises(ValueError, match="one class; use rebalance=none"):
        class_weights(table([True] * 3, list("abc"), [0.0] * 3), ("Pneumonia",), "equal_normal")
    assert class_weights(table([True] * 3, list("abc"), [0.0] * 3), ("Pneumonia",), "none") is None


def people(count):
    rng = np.random.default_rng(0)
    rows = table(rng.random(count) < 0.5, [f"p{i}" for i in rng.integers(0, count // 2, count)], 0.0)
    rows["Pneumonia"] = (~rows["normal"]).astype(float)
    return rows.assign(sex=rng.choice(["M", "F", None], count, p=[0.8, 0.15, 0.05]), age=rng.uniform(0, 95, count))


@pytest.mark.parametrize("rebalance", ["none", "equal_normal", "balanced"])
def test_groups_are_drawn_equally_often_and_the_unknown_as_one_of_them(rebalance):
    rows = people(600)
    weights = class_weights(rows, ("Pneumonia",), rebalance, ["sex"])
    share = pd.Series(weights / weights.sum())
    sex = rows["sex"].fillna("unknown")
    assert share.groupby(sex).sum().to_dict() == pytest.approx({"M": 1 / 3, "F": 1 / 3, "unknown": 1 / 3})
    within = share.groupby([sex, rows["normal"]]).sum()
    assert (np.isclose(within, 1 / 6).all()) == (rebalance != "none")
    two = pd.Series(class_weights(rows, ("Pneumonia",), rebalance, ["sex", "age_band"]))
    bands = [sex, pd.cut(rows["age"], [0, 18, 40, 60, 80, 121], right=False)]
    total = two.groupby([*bands, *([rows["normal"]] if rebalance != "none" else [])], observed=True).sum()
    np.testing.assert_allclose(total, 1.0)


def test_balancing_by_what_is_not_known_is_refused_with_the_cure():
    rows = people(60)
    with pytest.raises(ValueError, match=r"does not tell view; choose from \['sex', 'age_band'\]"):
        class_weights(rows, ("Pneumonia",), "none", ["view"])
    with pytest.raises(ValueError, match=r"does not tell sex; use rebalance_by=null"):
        class_weights(rows.drop(columns=["sex", "age"]), ("Pneumonia",), "balanced", ["sex"])
    with pytest.raises(ValueError, match=r"rebalance_by=\['sex'\]: all training images are of one class"):
        class_weights(rows.assign(sex="F"), ("Pneumonia",), "none", ["sex"])


def test_ages_fall_into_bands_and_impossible_ones_into_none():
    ages = pd.Series([0, 17.9, 18, 39, 40, 59.5, 60, 79, 80, 120, -1, 148, np.nan])
    expected = ["<18", "<18", "18-39", "18-39", "40-59", "40-59", "60-79", "60-79", "80+", "80+", None, None, None]
    assert age_band(ages).where(lambda band: band.notna(), None).tolist() == expected


def test_lightning_finds_where_to_set_the_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    batches = TrainBatches(60, 10, seed=3)
    _set_sampler_epoch(DataLoader(range(60), batch_sampler=batches), 2)
    assert batches.epoch == 2
