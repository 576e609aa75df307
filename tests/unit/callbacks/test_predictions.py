"""Each item once and in its place, whatever the ranks and batches; the table is safe to open."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpds.callbacks.predictions import Predictions, prediction_table, write_table
from mmpds.data.batch import PADDING

FINDINGS = ("Pneumonia", "Nodule")


def stage(callback, batches):
    """A test stage whose batches hold these indices; the probabilities of item i are i / 1000 and 1 minus that."""
    callback.on_test_epoch_start(None, None)
    for position, batch in enumerate(batches):
        index = torch.tensor(batch, dtype=torch.int64)
        first = torch.where(index == PADDING, 0.9, index / 1000)
        callback.on_test_batch_end(
            None, None, {"prob": torch.stack([first, 1 - first], 1), "index": index}, None, position
        )
    callback.on_test_epoch_end(None, None)
    return callback.prob


@given(data=st.data(), items=st.integers(1, 40))
def test_every_item_is_in_its_row_and_padding_in_none(data, items):
    draws = data.draw(st.permutations([*range(items), *[PADDING] * data.draw(st.integers(0, 5))]))
    size = data.draw(st.integers(1, len(draws)))
    prob = stage(Predictions(), [draws[start : start + size] for start in range(0, len(draws), size)])
    assert prob.dtype == np.float32
    expected = np.arange(items, dtype=np.float32) / 1000
    np.testing.assert_allclose(prob, np.stack([expected, 1 - expected], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("batches", "distinct"),
    [([[0, 1], [1, 2]], "of 4 gathered rows 3"), ([[0, 2], [2]], "of 3 gathered rows 2"), ([[0, 2]], "of 2 gathered")],
)  # fmt: skip
def test_a_row_that_is_twice_or_missing_is_found(batches, distinct):
    with pytest.raises(RuntimeError, match=distinct):
        stage(Predictions(), batches)


@pytest.mark.parametrize(("fn", "batches", "kept"), [("validate", 2, True), ("fit", 2, False), ("validate", 3, False)])
def test_a_whole_validation_of_final_weights_is_kept_and_no_other(fn, batches, kept):
    trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), num_val_batches=[2], val_dataloaders=range(batches))
    callback = Predictions()
    for index in ([1, 0], [2, PADDING]):
        outputs = {"prob": torch.tensor(index)[:, None] / 10, "index": torch.tensor(index)}
        callback.on_validation_batch_end(trainer, None, outputs, None, 0)
    callback.on_validation_epoch_end(trainer, None)
    assert (callback.prob is not None) == kept
    if kept:
        np.testing.assert_allclose(callback.prob, [[0.0], [0.1], [0.2]], atol=1e-6)


def test_a_second_stage_starts_anew():
    callback = Predictions()
    stage(callback, [[0, 1, 2]])
    assert stage(callback, [[1, 0]]).shape == (2, 2)


def table(ids, **columns):
    return pd.DataFrame({"id": ids, "group": [f"g{row}" for row in range(len(ids))]} | columns)


def test_a_row_holds_label_probability_and_decision_of_each_finding():
    prob = np.array([[0.25, 0.75], [0.5, 0.125]], dtype=np.float32)
    found = prediction_table("test", table(["a", "b"], Pneumonia=[1.0, np.nan]), FINDINGS, prob, prob >= 0.5)
    assert found.columns.tolist() == [
        "split", "id", "group", "Pneumonia label", "Pneumonia probability", "Pneumonia decision",
        "Nodule label", "Nodule probability", "Nodule decision",
    ]  # fmt: skip
    assert found["split"].tolist() == ["test", "test"]
    assert found["Pneumonia decision"].tolist() == [0, 1]
    assert found["Nodule decision"].tolist() == [1, 0]
    np.testing.assert_array_equal(found["Pneumonia label"], [1, np.nan])
    assert found["Nodule label"].isna().all()  # this data set does not label it
    np.testing.assert_array_equal(found[["Pneumonia probability", "Nodule probability"]], prob)


def test_what_is_known_of_an_item_stands_beside_it():
    rows = table(["a", "b"], Nodule=[0.0, np.nan], normal=[True, False], age=[61.5, np.nan], sex=["M", "=F"], view="PA")
    prob = np.zeros((2, 1))
    found = prediction_table("test", rows, ["Nodule"], prob, prob > 0)
    assert found.columns.tolist()[:7] == ["split", "id", "group", "sex", "age", "view", "normal"]
    assert found["sex"].tolist() == ["M", "'=F"]
    assert found["normal"].tolist() == [1, pd.NA], "of an item without labels nothing is known"


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", '=cmd|" /C calc"!A0']


def test_a_cell_that_begins_like_a_formula_is_only_text(tmp_path):
    ids = [*FORMULAS, "a=b", "person1-2", "a\r=1+1"]  # a bare carriage return would begin a row
    rows = table(ids).assign(group=ids)
    prob = np.zeros((len(ids), 1))
    found = prediction_table("test", rows, ["Nodule"], prob, prob > 0)
    expected = [*(f"'{formula}" for formula in FORMULAS), "a=b", "person1-2", "a\r=1+1"]
    assert found["id"].tolist() == found["group"].tolist() == expected
    write_table(tmp_path / "p.csv", found)
    assert pd.read_csv(tmp_path / "p.csv")["id"].tolist() == expected


def test_a_heading_that_begins_like_a_formula_is_only_text():
    found = prediction_table("test", table(["a"]), ["=1+1"], np.zeros((1, 1)), np.zeros((1, 1), bool))
    assert found.columns.tolist()[3:] == ["'=1+1 label", "'=1+1 probability", "'=1+1 decision"]


def test_the_file_reads_back_as_it_was(tmp_path):
    ids = ['comma, "quote"', "line\nbreak", "Ünïcödé", "007"]
    prob = np.random.default_rng(0).random((4, 2)).astype(np.float32)
    tables = [
        prediction_table(split, table(ids, Nodule=[0.0, 1.0, np.nan, 1.0]), FINDINGS, prob, prob >= 0.5)
        for split in ("test", "predict")
    ]
    write_table(tmp_path / "predictions.csv", pd.concat(tables))
    found = pd.read_csv(tmp_path / "predictions.csv", dtype={"id": str})
    pd.testing.assert_frame_equal(found, pd.concat(tables, ignore_index=True), check_dtype=False, rtol=1e-6)
    assert (found["Nodule label"].isna() == [False, False, True, False] * 2).all()


class Unwritable:
    def __str__(self):
        raise OSError("No space left on device")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"):
        write_table(path, pd.DataFrame({"id": ["a", Unwritable()]}))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
