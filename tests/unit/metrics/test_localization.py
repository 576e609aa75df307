"""Maps against boxes: known scores of known maps, the blind levels, intervals by patient."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import tensor
from torchvision.ops import box_iou

from mmpds.metrics.localization import METRICS, inside, localize, overlap

QUARTER = [[0.5, 0.0, 0.5, 0.5]]  # the upper right


def peak(size, row, column):
    heat = np.zeros((size, size))
    heat[row, column] = 1
    return heat


@pytest.mark.parametrize(("row", "column", "hit"), [(0, 7, 1), (3, 4, 1), (4, 4, 0), (3, 3, 0), (7, 0, 0)])
def test_a_peak_hits_or_misses_with_x_across_and_y_down(row, column, hit):
    scores = overlap(peak(8, row, column), QUARTER)
    assert scores["pointing_game"] == scores["box_energy"] == hit


def test_the_tolerance_is_a_distance_from_the_box_and_counts_for_the_peak_alone():
    # pixel centres lie 1/16 from the border, or that times the root of two from the corner
    for row, column, distance in ((3, 3, 1 / 16), (4, 3, 2**0.5 / 16)):
        heat = peak(8, row, column)
        assert overlap(heat, QUARTER, tolerance=distance - 1e-6)["pointing_game"] == 0
        near = overlap(heat, QUARTER, tolerance=distance + 1e-6)
        assert (near["pointing_game"], near["box_energy"], near["box_iou"]) == (1, 0, 0)


def test_of_equal_maxima_the_share_in_the_box_counts():
    heat = peak(8, 0, 7) + peak(8, 7, 0) + peak(8, 7, 7) + peak(8, 0, 0)
    assert overlap(heat, QUARTER)["pointing_game"] == 0.25


whole = st.integers(0, 31)


@given(st.tuples(whole, whole, whole, whole), st.tuples(whole, whole, whole, whole))
def test_iou_of_a_box_shaped_map_is_that_of_the_boxes(one, other):
    """The reference is torchvision's."""
    corners = [(min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1) for b in (one, other)]
    box, truth = (np.array([[x, y, right - x, low - y]]) / 32 for x, y, right, low in corners)
    found = overlap(0.4 + 0.6 * inside(box, 32), truth)
    expected = box_iou(tensor(corners[:1]).float(), tensor(corners[1:]).float()).item()
    assert found["box_iou"] == pytest.approx(expected, abs=1e-6)


def test_the_level_is_a_share_of_the_maximum():
    heat = np.where(inside(QUARTER, 8), 2.0, 0.9)
    assert overlap(heat, QUARTER)["box_iou"] == 1
    assert overlap(heat, QUARTER, level=0.45)["box_iou"] == 0.25
    assert overlap(heat, QUARTER)["box_energy"] == pytest.approx(2 * 16 / (2 * 16 + 0.9 * 48))


def test_boxes_that_overlap_count_once():
    assert overlap(np.ones((8, 8)), QUARTER + QUARTER) == dict.fromkeys(METRICS, 0.25)


def test_an_empty_map_scores_as_chance_and_a_box_thinner_than_a_pixel_is_one():
    assert overlap(np.zeros((8, 8)), QUARTER) == dict.fromkeys(METRICS, 0.25)
    assert overlap(peak(8, 0, 7), [[0.95, 0.01, 0.001, 0.001]]) == dict.fromkeys(METRICS, 1.0)


@given(arrays(float, (6, 6), elements=st.floats(0, 10)), st.floats(1e-3, 1e3))
def test_scores_lie_in_0_to_1_and_do_not_depend_on_the_maps_scale(heat, factor):
    heat = np.round(heat, 3)
    scores, scaled = overlap(heat, QUARTER, 0.1, 0.55555), overlap(heat * factor, QUARTER, 0.1, 0.55555)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scaled == pytest.approx(scores)


@pytest.mark.parametrize(
    ("heat", "boxes"),
    [
        (np.ones((2, 3)), QUARTER),
        (-np.ones((2, 2)), QUARTER),
        (np.full((2, 2), np.nan), QUARTER),
        (np.ones((2, 2)), []),
    ],
)
def test_what_cannot_be_scored_is_refused(heat, boxes):
    with pytest.raises(ValueError, match="must be square"):
        overlap(heat, boxes)


def items(*rows, size=8):
    """(finding, group, boxes, heat) a row."""
    return pd.DataFrame([
        {"finding": finding, "group": group, "boxes": np.array(boxes), **overlap(heat, boxes)}
        for finding, group, boxes, heat in rows
    ])  # fmt: skip


LEFT = [[0.0, 0.0, 0.5, 0.5]]


def test_blind_maps_score_the_boxes_share_and_what_other_patients_boxes_tell():
    hit, miss = peak(8, 0, 7), peak(8, 7, 0)
    found = localize(
        items(
            ("Nodule", "a", QUARTER, hit), ("Nodule", "a", QUARTER, miss), ("Nodule", "b", QUARTER, hit),
            ("Nodule", "c", LEFT, miss), ("Effusion", "a", LEFT, peak(8, 0, 0)), ("Effusion", "b", LEFT, hit),
        ), 8, replicates=0,
    )  # fmt: skip
    value = found.metrics
    assert value["pointing_game/Nodule"] == 0.5
    assert value["pointing_game/Effusion"] == 0.5
    assert value["pointing_game/macro"] == 0.5
    assert all(value[f"{metric}_chance/{name}"] == 0.25 for metric in METRICS for name in ("Nodule", "macro"))
    # a's two boxes: b and c point each way equally often; b's: a twice and c; c's own side is no one else's
    assert value["pointing_game_prior/Nodule"] == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert value["box_energy_prior/Nodule"] == pytest.approx((0.5 + 0.5 + 2 / 3 + 0) / 4)
    assert value["pointing_game_prior/Effusion"] == 1
    assert found.counts == {"boxed/Nodule": 4, "boxed/Effusion": 2}
    assert found.warnings == []


def test_a_finding_can_stay_out_of_the_macro_mean():
    rows = items(("Heart", "a", QUARTER, peak(8, 0, 7)), ("Nodule", "b", QUARTER, peak(8, 7, 0)))
    assert localize(rows, 8, replicates=0).metrics["pointing_game/macro"] == 0.5
    assert localize(rows, 8, replicates=0, not_in_macro=["Heart"]).metrics["pointing_game/macro"] == 0
    alone = localize(rows, 8, replicates=0, not_in_macro=["Heart", "Nodule"]).metrics
    assert "pointing_game/macro" not in alone


def test_intervals_draw_patients_and_not_images():
    rng = np.random.default_rng(0)
    hit, miss = peak(8, 0, 7), peak(8, 7, 0)
    right = rng.random(30) < 0.6
    rows = [("Nodule", f"p{p}", QUARTER, hit if good else miss) for p, good in enumerate(right) for _ in range(4)]
    by_patient = localize(items(*rows), 8, seed=1).intervals["pointing_game/Nodule"]
    apart = [(name, f"i{place}", boxes, heat) for place, (name, _, boxes, heat) in enumerate(rows)]
    by_image = localize(items(*apart), 8, seed=1).intervals["pointing_game/Nodule"]
    # the binomial's standard error over 30 patients, and over 120 images
    p = right.mean()
    assert np.diff(by_patient)[0] == pytest.approx(2 * 1.96 * (p * (1 - p) / 30) ** 0.5, rel=0.15)
    assert np.diff(by_image)[0] == pytest.approx(2 * 1.96 * (p * (1 - p) / 120) ** 0.5, rel=0.15)


def test_what_is_undefined_is_absent_and_said():
    found = localize(items(("Nodule", "a", QUARTER, peak(8, 0, 7))), 8)
    assert found.metrics["pointing_game/Nodule"] == 1
    assert not any("prior" in name for name in found.metrics)
    assert found.intervals == {}
    assert found.warnings == [
        "Nodule: no prior map, for all its boxes are of one patient",
        "no intervals of localisation: all boxes are of one patient",
    ]
    assert localize(pd.DataFrame(), 8).warnings == ["no image has a box of a finding: nothing to localise"]


def test_a_finding_of_too_few_patients_has_no_interval():
    many = [("Nodule", f"p{p}", QUARTER, peak(8, 0, 7)) for p in range(20)]
    found = localize(items(*many, ("Mass", "p0", QUARTER, peak(8, 0, 7))), 8)
    assert "pointing_game/Nodule" in found.intervals
    assert not any(name.endswith(("/Mass", "/macro")) for name in found.intervals)
    assert found.warnings[1:] == ["Mass: boxes of too few patients for intervals of localisation"]
