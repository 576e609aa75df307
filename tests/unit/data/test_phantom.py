import pickle
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmpds.data.anatomy.patient import FINDINGS, FOCAL, Patient
from mmpds.data.anatomy.radiograph import draw_radiograph
from mmpds.data.anatomy.scene import Scene
from mmpds.data.contact_sheet import contact_sheet
from mmpds.data.phantom import Phantom

WORDS = {
    "Pneumonia": "pneumonia",
    "Infiltration": "infiltration",
    "Effusion": "effusion",
    "Cardiomegaly": "cardiomegaly",
    "Nodule": "nodule",
    "Pneumothorax": "pneumothorax",
}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom(images=3000, seed=3)


@pytest.fixture(scope="module")
def mixed() -> Phantom:
    return Phantom(images=400, seed=5, organs=("chest", "head", "abdomen"))


def test_table_meets_the_contract(phantom):
    table = phantom.table
    assert table.index.equals(pd.RangeIndex(3000))
    assert table["id"].is_unique
    assert table["normal"].dtype == bool
    assert phantom.findings == FINDINGS
    assert all(table[finding].dtype == float for finding in FINDINGS)
    assert set(np.unique(table[list(FINDINGS)])) == {0.0, 1.0}
    assert (table["normal"] == (table[list(FINDINGS)].sum(axis=1) == 0)).all()
    assert set(table["sex"]) == {"M", "F"}
    assert set(table["view"]) == {"PA", "AP"}
    assert table["age"].between(18, 92).all()


@pytest.mark.parametrize("organ", ["chest", "head", "abdomen"])
@pytest.mark.parametrize("size", [16, 65, 128])
def test_image_is_grey_bytes_of_the_asked_size(organ, size):
    image = Phantom(images=3, organs=(organ,)).image(1, size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.max() > 150
    assert image.min() < 30


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), row=st.integers(0, 30), more=st.integers(0, 40))
def test_a_row_is_the_same_whatever_the_number_of_images(seed, row, more):
    organs = ("chest", "head", "abdomen")
    short, long = Phantom(row + 1, seed, organs=organs), Phantom(row + 1 + more, seed, organs=organs)
    pd.testing.assert_frame_equal(short.table, long.table.iloc[: row + 1])
    np.testing.assert_array_equal(short.image(row, 32), long.image(row, 32))
    assert short.digest(row) == long.digest(row)


def test_label_selection_changes_no_image():
    every, one = Phantom(40, seed=9), Phantom(40, seed=9, findings=["Nodule"])
    assert one.findings == ("Nodule",)
    assert not set(FINDINGS) - {"Nodule"} & set(one.table)
    pd.testing.assert_series_equal(every.table["normal"], one.table["normal"])
    assert set(one.boxes["finding"]) <= {"Nodule"}
    np.testing.assert_array_equal(every.image(7, 32), one.image(7, 32))


def test_a_planted_bias_weakens_those_findings_in_that_sex_and_changes_nothing_else():
    plain = Phantom(120, seed=2)
    biased = Phantom(120, seed=2, faint={"sex": "F", "findings": ["Pneumonia", "Nodule"], "strength": 0.4})
    pd.testing.assert_frame_equal(plain.table, biased.table)
    pd.testing.assert_frame_equal(plain.boxes, biased.boxes)
    table = plain.table
    weak = (table["sex"] == "F") & (table[["Pneumonia", "Nodule"]].sum(axis=1) > 0)
    assert 5 < weak.sum() < 60
    for row in range(120):
        same = np.array_equal(plain.image(row, 64), biased.image(row, 64))
        assert same == (not weak[row])
        assert (plain.digest(row) == biased.digest(row)) == (not weak[row])
    stronger = Phantom(120, seed=2, faint={"sex": "F", "findings": ["Nodule", "Pneumonia"], "strength": 0.8})
    row = int(np.flatnonzero(weak & (table[list(FINDINGS)].sum(axis=1) == 1))[0])
    absent = Phantom(120, seed=2, faint={"sex": "F", "findings": ["Nodule", "Pneumonia"], "strength": 0})
    pictures = [source.image(row, 64).astype(float) for source in (plain, stronger, biased, absent)]
    change = [np.abs(picture - pictures[-1]).sum() for picture in pictures]
    assert change[0] > change[1] > change[2] > change[3] == 0
    assert len({source.digest(row) for source in (plain, stronger, biased, absent)}) == 4
    copy = pickle.loads(pickle.dumps(biased))
    np.testing.assert_array_equal(copy.image(row, 64), biased.image(row, 64))


@pytest.mark.parametrize(
    ("faint", "message"),
    [
        ({"sex": "F"}, "give these three"),
        ({"sex": "f", "findings": ["Nodul"], "strength": 2}, "neither M nor F; faint.strength: 2 is no share"),
        ({"sex": "F", "findings": ["Cardiomegaly"], "strength": 0.5}, "faint.findings: 'Cardiomegaly' is unknown"),
    ],
)
def test_a_bias_that_cannot_be_drawn_is_refused(faint, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Phantom(3, faint=faint)


def test_rows_seeds_and_digests_differ():
    one, other = Phantom(300, seed=1), Phantom(300, seed=2)
    digests = [source.digest(row) for source in (one, other) for row in range(300)]
    assert len(set(digests)) == 600
    pictures = {source.image(row, 32).tobytes() for source in (one, other) for row in range(50)}
    assert len(pictures) == 100
    head, chest = Phantom(5, organs=["head"]), Phantom(5, organs=["chest"])
    assert head.digest(0) != chest.digest(0)


@pytest.mark.parametrize("organ", ["chest", "head", "abdomen"])
def test_one_scene_at_every_size(organ):
    source = Phantom(8, seed=4, organs=(organ,))
    for row in range(8):
        small = source.image(row, 64).astype(float)
        large = source.image(row, 256).reshape(64, 4, 64, 4).mean(axis=(1, 3))
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.97
        assert abs(small.mean() - large.mean()) < 4


def test_survives_pickling(mixed):
    copy = pickle.loads(pickle.dumps(mixed))
    pd.testing.assert_frame_equal(copy.table, mixed.table)
    np.testing.assert_array_equal(copy.image(3, 48), mixed.image(3, 48))


def test_prevalence_and_independence_of_sex_age_and_view(phantom):
    table = phantom.table
    assert table["normal"].mean() == pytest.approx(0.45, abs=0.04)
    assert table[list(FINDINGS)].sum(axis=1).max() == 2
    labels = table[list(FINDINGS)]
    assert labels.mean().between(0.10, 0.15).all()
    traits = pd.DataFrame({"m": table["sex"] == "M", "age": table["age"], "ap": table["view"] == "AP"}).astype(float)
    # 18 correlations of 3000 rows: 0.07 is 3.8 standard errors
    assert all(abs(labels[f].corr(traits[t])) < 0.07 for f in FINDINGS for t in traits)


def test_patients_have_one_to_four_images_and_keep_their_traits(phantom):
    groups = phantom.table.groupby("group", sort=False)
    counts = groups.size().iloc[:-1]  # the last patient's images may be cut off
    assert set(counts) == {1, 2, 3, 4}
    assert (groups[["sex", "age"]].nunique() == 1).all(axis=None)
    assert groups.ngroup().is_monotonic_increasing


def test_anatomy_is_the_patients(phantom):
    """Two normal images of a patient differ less than those of two patients."""
    normal = phantom.table[phantom.table["normal"] & (phantom.table["view"] == "PA")]
    pairs = [group.index[:2] for _, group in normal.groupby("group") if len(group) > 1][:60]
    firsts, seconds = (np.stack([phantom.image(pair[k], 32).astype(float)[:20] for pair in pairs]) for k in (0, 1))
    same = np.abs(firsts - seconds).mean()
    other = np.abs(firsts - np.roll(seconds, 1, axis=0)).mean()
    assert same < 0.9 * other


def test_boxes_lie_in_the_image_and_name_their_finding(phantom):
    boxes = phantom.boxes
    assert list(boxes) == ["id", "finding", "x", "y", "w", "h"]
    assert (boxes[["x", "y"]] >= 0).all(axis=None)
    assert (boxes[["w", "h"]] > 0).all(axis=None)
    assert (boxes["x"] + boxes["w"] <= 1).all()
    assert (boxes["y"] + boxes["h"] <= 1).all()
    labels = phantom.table.set_index("id")
    for finding in (*FOCAL, "Cardiomegaly"):
        assert set(boxes.loc[boxes["finding"] == finding, "id"]) == set(labels.index[labels[finding] == 1])
    assert "Infiltration" not in set(boxes["finding"])


def test_focal_boxes_lie_on_their_side_of_the_spine(phantom):
    seen = set()
    for name, scene in zip(phantom.table["id"], phantom._scenes(), strict=True):
        for lesion in scene.lesions:
            if lesion.finding in FOCAL:
                x, _, w, _ = scene.box(lesion)
                inside = x >= scene.midline if lesion.side == "left" else x + w <= scene.midline
                assert inside, (name, lesion)
                seen.add((lesion.finding, lesion.side))
    assert len(seen) == 2 * len(FOCAL)


def test_heart_box_holds_the_cardiothoracic_ratio(phantom):
    for scene in phantom._scenes():
        enlarged = [lesion for lesion in scene.lesions if lesion.finding == "Cardiomegaly"]
        assert (scene.heart_ratio > 0.55) == bool(enlarged)
        for lesion in enlarged:
            width = scene.box(lesion)[2] / (2 * scene.patient.chest_width * scene.zoom)
            assert width == pytest.approx(scene.heart_ratio, rel=1e-6)


@pytest.mark.parametrize("finding", [*FOCAL, "Cardiomegaly"])
def test_the_finding_changes_the_picture_inside_its_box_only(finding):
    """The same image without the lesion differs, and the difference fills the box."""
    for number in range(25):
        patient = Patient.draw(0, number, ("chest",))
        with_it = next(s for s in (Scene.draw(0, row, patient) for row in range(500)) if _only(s, finding))
        without = replace(with_it, lesions=())
        if finding == "Cardiomegaly":
            without = replace(without, heart_ratio=patient.heart_ratio)
        size = 128
        shown, hidden = (draw_radiograph(0, s, size).astype(float) for s in (with_it, without))
        change = np.abs(shown - hidden)
        x, y, w, h = (size * value for value in with_it.box(with_it.lesions[0]))
        margin = 4
        box = np.zeros((size, size), dtype=bool)
        box[
            max(0, int(y) - margin) : int(np.ceil(y + h)) + margin,
            max(0, int(x) - margin) : int(np.ceil(x + w)) + margin,
        ] = True
        assert change[box].sum() > 0.9 * change.sum() > 0
        columns, lines = np.nonzero(change.max(axis=0) > 5)[0], np.nonzero(change.max(axis=1) > 5)[0]
        assert np.ptp(columns) > 0.5 * w - 2
        assert np.ptp(lines) > 0.5 * h - 2


def _only(scene: Scene, finding: str) -> bool:
    return [lesion.finding for lesion in scene.lesions] == [finding]


def test_captions_name_exactly_the_positive_findings(phantom):
    for _, record in phantom.table.iterrows():
        caption = record["caption"].lower()
        named = {finding for finding, word in WORDS.items() if word in caption}
        assert named == {finding for finding in FINDINGS if record[finding] == 1}, caption
        assert record["view"] in record["caption"]
    assert phantom.table["caption"].nunique() > 60


def test_captions_tell_the_right_side(phantom):
    for caption, scene in zip(phantom.table["caption"], phantom._scenes(), strict=True):
        sides = {lesion.side for lesion in scene.lesions} - {""}
        assert set(re.findall(r"\b(right|left|both)\b", caption)) == sides


def test_answers_agree_with_the_labels(phantom):
    questions = phantom.questions
    assert list(questions) == [
        "image_name", "qid", "question", "answer", "answer_type", "question_type", "image_organ",
    ]  # fmt: skip
    assert questions["qid"].is_unique
    labels = phantom.table.set_index("id")
    presence = questions[questions["question_type"] == "PRES"]
    for finding, word in WORDS.items():
        asked = presence[presence["question"].str.contains(word)].set_index("image_name")["answer"]
        assert len(asked) == 3000
        assert ((asked == "Yes") == (labels.loc[asked.index, finding] == 1)).all()
    normal = questions[questions["question_type"] == "ABN"].set_index("image_name")["answer"]
    assert ((normal == "Yes") == labels.loc[normal.index, "normal"]).all()
    plane = questions[questions["question_type"] == "PLANE"].set_index("image_name")["answer"]
    assert (plane == labels.loc[plane.index, "view"]).all()
    side = questions[questions["question_type"] == "POS"]
    for name, answer in zip(side["image_name"], side["answer"], strict=True):
        assert answer.lower() in labels.loc[name, "caption"]
    closed = questions["answer"].isin(["Yes", "No"])
    assert (closed == (questions["answer_type"] == "CLOSED")).all()


def test_slices_of_head_and_abdomen(mixed):
    table, questions = mixed.table, mixed.questions.merge(mixed.table, left_on="image_name", right_on="id")
    assert set(table["organ"]) == {"CHEST", "HEAD", "ABD"}
    assert table["organ"].value_counts().min() > 70
    slices = table[table["organ"] != "CHEST"]
    assert (slices["view"] == "axial").all()
    assert (slices[list(FINDINGS)] == 0).all(axis=None)
    assert table.loc[table["organ"] == "ABD", "normal"].all()
    assert 0.2 < (~table.loc[table["organ"] == "HEAD", "normal"]).mean() < 0.6
    assert (questions["image_organ"] == questions["organ"]).all()
    modality = questions[questions["question_type"] == "MODALITY"]
    assert ((modality["answer"] == "CT") == (modality["organ"] != "CHEST")).all()
    assert not set(mixed.boxes["id"]) & set(slices["id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"findings": ["pneumonia"]}, "'pneumonia' is unknown; take Pneumonia"),
        ({"findings": ["Nodul"]}, "Nodule"),
        ({"findings": ["xyz"]}, "Cardiomegaly"),
        ({"findings": []}, "at least one"),
        ({"findings": ["Nodule", "Nodule"]}, "each once"),
        ({"organs": ["abdomn"]}, "abdomen"),
        ({"images": 0}, "images=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_named_with_a_cure(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Phantom(**arguments)


def test_too_small_a_picture_is_refused(phantom):
    with pytest.raises(ValueError, match="size=8"):
        phantom.image(0, 8)


@pytest.fixture(scope="module")
def small_pictures() -> tuple[Phantom, np.ndarray]:
    source = Phantom(1200, seed=11)
    return source, np.stack([source.image(row, 32) for row in range(1200)]) / 255.0


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name != "Nodule"])
def test_a_finding_can_be_seen(small_pictures, finding):
    """A linear classifier, fitted on one half of the patients, ranks the other half."""
    source, pictures = small_pictures
    pixels = pictures.reshape(len(pictures), -1)
    fit = source.table.groupby("group", sort=False).ngroup().to_numpy() % 2 == 0
    label = source.table[finding].to_numpy() == 1
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    score = model.fit(pixels[fit], label[fit]).decision_function(pixels[~fit])
    assert roc_auc_score(label[~fit], score) > 0.68


def test_a_nodule_can_be_seen():
    """It has no usual place, so its centre is compared with its surroundings, there and in a clear image."""
    source, size = Phantom(600, seed=11), 64
    clear = source.table.index[source.table["normal"]]
    row_of = pd.Series(source.table.index, index=source.table["id"])
    nodules = source.boxes[source.boxes["finding"] == "Nodule"]

    def contrast(image: np.ndarray, x: float, y: float, radius: float) -> float:
        grid = (np.arange(size) + 0.5) / size
        distance = np.hypot(grid[None] - x, grid[:, None] - y) / radius
        return float(image[distance < 0.8].mean() - image[(distance > 1.3) & (distance < 2.2)].mean())

    scores, labels = [], []
    for number, box in enumerate(nodules.itertuples()):
        place = (box.x + box.w / 2, box.y + box.h / 2, box.h / 2)
        for label, row in ((1, row_of[box.id]), (0, clear[number])):
            scores.append(contrast(source.image(int(row), size).astype(float), *place))
            labels.append(label)
    assert len(nodules) > 40
    assert roc_auc_score(labels, scores) > 0.85


def test_draws_at_least_150_images_a_second(phantom):
    phantom.image(0, 64)
    seconds = []
    for row in range(60):
        start = time.process_time()
        phantom.image(row, 64)
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < 1 / 150


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 3), (6, 3)])
def test_contact_sheet_shows_every_tile(mixed, count, columns):
    sheet = contact_sheet(mixed, range(count), size=64, columns=columns, title="Phantom")
    assert sheet.mode == "L"
    assert sheet.width >= 64 * columns
    pixels = np.asarray(sheet)
    for row in range(count):
        tile = mixed.image(row, 64)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (1, 64))[:, :, 0]
        assert (windows == tile[40]).all(axis=-1).any()


def test_contact_sheet_needs_rows_and_columns(mixed):
    with pytest.raises(ValueError, match="columns=0"):
        contact_sheet(mixed, [0], size=64, columns=0)
    with pytest.raises(ValueError, match="rows="):
        contact_sheet(mixed, [], size=64, columns=2)
