"""Predictions of a run come back bit by bit, those of others join their labels, and all that is wrong is told."""

import numpy as np
import pandas as pd
import pytest

from mmpds.callbacks.predictions import prediction_table, write_table
from mmpds.data.predictions import read_predictions


@pytest.fixture
def file(tmp_path):
    """Writes a text into a file; returns its path."""

    def write(text, name="predictions.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_runs_predictions_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    ids = ["=a", "person1-2", "007", "NA", "'quoted"]
    table = pd.DataFrame({
        "id": ids, "group": ["+1", "p", "7", "7", "q"], "normal": [True, False, False, True, False],
        "sex": ["M", "F", "M", None, "F"], "age": [61.5, 3.0, np.nan, 40.0, 1.0],
        "view": ["PA", "AP", "PA", "PA", "AP"],
        "Nodule": [0.0, 1.0, np.nan, 0.0, 1.0], "=Mass": [0.0, np.nan, 1.0, 0.0, 0.0],
    })  # fmt: skip
    prob = rng.random((5, 2)).astype(np.float32) ** 9
    findings = ("Nodule", "=Mass")
    folder = pd.DataFrame({"id": ["x.png"], "group": ["x.png"], "normal": [False]})
    write_table(tmp_path / "predictions.csv", pd.concat([
        prediction_table("test", table, findings, prob, prob > 0.5),
        prediction_table("predict", folder, findings, prob[:1], prob[:1] > 0.5),
    ]))  # fmt: skip
    found = read_predictions(tmp_path / "predictions.csv")
    assert found.findings == findings
    assert found.prob.dtype == np.float32
    np.testing.assert_array_equal(found.prob, prob)
    assert found.table["split"].unique().tolist() == ["test"]
    pd.testing.assert_frame_equal(
        found.table[table.columns], table, check_dtype=False, check_column_type=False
    )  # fmt: skip
    np.testing.assert_array_equal(found.label, table[["Nodule", "=Mass"]])
    assert found.notes == ("1 items without any label are left out",)


def test_probabilities_of_another_model_join_their_labels_by_id(file):
    prob = file("Image Index,prob_Nodule,Mass,Fracture\nb.png,0.25,0.5,0.1\na.png,1,0,0.2\n")
    labels = file(
        "name,Mass,Nodule,age,sex,group,normal,hospital\na.png,1,,034,female,p,0,x\nc.png,0,0,1,M,q,1,x\nb.png,0,0,7,m,p,1,y\n",
        "labels.csv",
    )
    found = read_predictions(prob, labels)
    assert found.findings == ("Nodule", "Mass")
    assert found.prob.tolist() == [[0.25, 0.5], [1.0, 0.0]]
    np.testing.assert_array_equal(found.label, [[0, 0], [np.nan, 1]])
    assert found.table[["id", "group", "sex"]].values.tolist() == [["b.png", "p", "M"], ["a.png", "p", "F"]]
    assert found.table["age"].tolist() == [7, 34]
    assert found.table["normal"].tolist() == [True, False]
    assert found.notes == ("1 columns have no labels and are left out: Fracture",)
    assert read_predictions(prob, labels, ["Mass"]).prob.tolist() == [[0.5], [0.0]]
    assert read_predictions(prob, labels, ["Mass", "Nodule"]).findings == ("Mass", "Nodule")


def test_nihs_own_table_gives_labels_patients_and_no_finding(file):
    entries = file(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,a[Width,Height],b\n"
        "1.png,Mass|Pleural_Thickening,0,12,058Y,M,PA,1,2,3\n2.png,No Finding,0,13,61,F,AP,1,2,3\n",
        "Data_Entry_2017.csv",
    )
    found = read_predictions(file("id,prob_Mass,prob_Hernia\n2.png,0.5,0.5\n1.png,0.5,0.5\n"), entries)
    assert found.table[["id", "group", "sex", "age", "view", "normal", "Mass", "Hernia"]].values.tolist() == [
        ["2.png", "13", "F", 61.0, "AP", True, 0.0, 0.0], ["1.png", "12", "M", 58.0, "PA", False, 1.0, 0.0],
    ]  # fmt: skip
    assert found.notes == ()


def test_what_is_not_known_is_said(file):
    found = read_predictions(file("id,Mass\na,0.5\nb,0.1\n"), file("id,Mass\na,1\nb,0\n", "labels.csv"))
    assert found.table["group"].tolist() == ["a", "b"]
    assert "normal" not in found.table
    assert [note.partition(":")[0] for note in found.notes] == [
        "no column group names the patient of 2 items", "no column normal (1 or 0 of every item)",
    ]  # fmt: skip


def test_all_faults_are_told_at_once_with_counts_examples_and_cures(file):
    prob = file("id,prob_Mass,prob_Nodule\na,1.5,0.5\na,0.5,x\nb,,0.5\nzz,-0.1,nan\n,0.5,0.5\nc,0.5,0.5\n")
    labels = file("id,Mass,Nodule\na,1,-1\nb,yes,0\nb,0,0\nc,0,0\n", "labels.csv")
    with pytest.raises(ValueError, match="predictions") as caught:
        read_predictions(prob, labels, ["Mass", "Nodule", "Hernia"])
    text = str(caught.value)
    for told in (
        "Hernia lacks a column of probabilities or one of labels; there are",
        f"1 rows of {prob} have no id; give each its own",
        f"1 ids occur more than once in {prob} (a); keep one",
        f"1 ids occur more than once in {labels} (b); keep one",
        f"1 items have no row in {labels} (zz); add",
        "5 probabilities are no numbers from 0 to 1 (Mass of a: 1.5; Nodule of a: x; Mass of b: nan); give",
        "3 labels are none of 1, 0 and blank (Nodule of a: -1; Nodule of a: -1; Mass of b: yes); leave",
    ):
        assert told in text


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        (b"", "cannot be read as CSV (No columns to parse from file)"),
        (b"id,Mass\n", "0 rows and 2 columns"),
        (b"no csv at all\nbut text\n", "1 rows and 1 columns"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "cannot be read as CSV"),
        (b'id,Mass\n"a,0.5\n', "cannot be read as CSV"),
        (b"id,Mass\na,0.5\n", "a CSV without labels; give data.labels=FILE"),
        (b"id,Mass probability\na,0.5\n", "every finding lacks a column of probabilities or one of labels"),
        (b"id,Mass probability,Mass label\na,0.5,\n", "no item has a label"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_sentence(tmp_path, content, cure):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.predictions=") as caught:
        read_predictions(path)
    assert cure in str(caught.value)


def test_damaged_gzip_and_folders_are_named(tmp_path):
    (tmp_path / "p.csv.gz").write_bytes(b"id,Mass\n")
    for path in (tmp_path / "p.csv.gz", tmp_path):
        with pytest.raises(ValueError, match="cannot be read as CSV"):
            read_predictions(path)


def test_a_finding_that_is_not_there_is_named(file):
    prob, labels = file("id,Mass\na,0.5\n"), file("id,Mass\na,1\n", "labels.csv")
    with pytest.raises(ValueError, match=r"Nodul lacks a column of .*; there are probabilities of Mass"):
        read_predictions(prob, labels, ["Mass", "Nodul"])


def test_ids_are_looked_at_also_where_no_finding_can_be(file):
    prob, labels = file("id,Mas\na,0.5\na,0.5\nz,0.5\n"), file("id,Mass\na,1\n", "labels.csv")
    with pytest.raises(ValueError, match=r"every finding lacks .* 1 ids occur more than once .* 1 items have no"):
        read_predictions(prob, labels)


@pytest.mark.parametrize("names", ["prob_Mass,Mass", "Mass,prob_Mass"])
def test_a_label_beside_a_probability_is_not_taken_for_it(file, names):
    values = {"prob_Mass": ("0.25", "0.5"), "Mass": ("0", "1")}
    rows = [",".join([item, *(values[name][n] for name in names.split(","))]) for n, item in enumerate("ab")]
    both = file("\n".join([f"id,{names}", *rows]) + "\n")
    found = read_predictions(both, both)
    assert found.prob[:, 0].tolist() == [0.25, 0.5]
    assert found.label[:, 0].tolist() == [0, 1]
