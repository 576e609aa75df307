"""Each corruption does what its level says, to nothing else, and the same every time."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.data.corruptions import (
    CORRUPTIONS,
    Item,
    compress,
    conditions,
    expose,
    flip,
    noise,
    rotate,
    window,
    wrong_levels,
)
from mmpds.data.images import resize
from mmpds.data.phantom import Phantom

SIZE = 48
PHANTOM = Phantom(images=1)
RADIOGRAPH = PHANTOM.image(0, SIZE)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
LEVELS = [(name, level) for name, known in CORRUPTIONS.items() for level in known.levels]


def item(seed=7):
    return Item(lambda side: PHANTOM.image(0, side), SIZE, seed)


def difference(one, other):
    return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_every_level_changes_the_image_alike_each_time_and_not_the_original(name, level):
    shown = item()
    image = CORRUPTIONS[name].apply(shown, level)
    assert (image.dtype, image.shape) == (np.uint8, (SIZE, SIZE))
    assert difference(image, RADIOGRAPH) > 0
    assert np.array_equal(image, CORRUPTIONS[name].apply(item(), level))
    assert np.array_equal(shown.pixels, RADIOGRAPH)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_undisturbed_level_leaves_the_image_as_it_is(name):
    (level,) = [each.level for each in conditions({name: None}, SIZE) if each.undisturbed]
    assert np.array_equal(CORRUPTIONS[name].apply(item(), level), RADIOGRAPH)


@pytest.mark.parametrize("name", ["noise", "jpeg"])
def test_later_levels_are_stronger(name):
    known = CORRUPTIONS[name]
    errors = [difference(known.apply(item(), level), RADIOGRAPH) for level in known.levels]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 3


def test_resolution_asks_for_the_image_at_that_size():
    asked = []

    def read(side):
        asked.append(side)
        return PHANTOM.image(0, side)

    for side in (16, 128):
        image = CORRUPTIONS["resolution"].apply(Item(read, SIZE, 0), side)
        assert np.array_equal(image, resize(PHANTOM.image(0, side), SIZE))
    assert asked == [16, 128]
    errors = [difference(CORRUPTIONS["resolution"].apply(item(), side), RADIOGRAPH) for side in (32, 16)]
    assert errors[0] < errors[1]


def test_turns_are_counter_clockwise_and_leave_black_corners():
    assert np.array_equal(rotate(RADIOGRAPH, 90), np.rot90(RADIOGRAPH))
    assert np.array_equal(rotate(RADIOGRAPH, 180), np.rot90(RADIOGRAPH, 2))
    white = rotate(np.full((40, 40), 255, np.uint8), 45)
    assert white[0, 0] == white[-1, -1] == 0
    assert white[20, 20] == 255


def test_flips_are_numpys():
    assert np.array_equal(flip(RADIOGRAPH, "left_right"), RADIOGRAPH[:, ::-1])
    assert np.array_equal(flip(RADIOGRAPH, "up_down"), RADIOGRAPH[::-1])


@settings(max_examples=40, deadline=None)
@given(factor=st.floats(0.05, 10), width=st.floats(0.05, 10))
def test_exposure_and_window_are_the_clipped_line_they_say(factor, width):
    wanted = (GREYS * factor).clip(0, 255)
    assert np.abs(expose(GREYS, factor) - wanted).max() <= 0.5
    wanted = ((GREYS - 127.5) / width + 127.5).clip(0, 255)
    assert np.abs(window(GREYS, width) - wanted).max() <= 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), sigma=st.sampled_from([0.02, 0.05, 0.1]))
def test_noise_has_its_standard_deviation_and_is_its_seeds_own(seed, sigma):
    grey = np.full((64, 64), 128, np.uint8)
    noisy = noise(grey, sigma, seed)
    assert noisy.std() == pytest.approx(255 * sigma, rel=0.1)
    assert noisy.mean() == pytest.approx(128, abs=255 * sigma / 10)
    assert not np.array_equal(noisy, noise(grey, sigma, seed ^ 1))
    louder = noise(grey, 2 * sigma, seed).astype(float) - 128  # the same, twice as loud, to the rounding and the rim
    assert np.corrcoef(louder.ravel(), noisy.ravel())[0, 1] > 0.98


def test_jpeg_is_a_grey_jpeg():
    smooth = np.tile(np.linspace(40, 200, 64).astype(np.uint8), (64, 1))
    assert difference(compress(smooth, 95), smooth) < 2
    assert difference(compress(RADIOGRAPH, 5), RADIOGRAPH) > 2


def test_levels_ascend_with_the_undisturbed_one_among_them_once():
    def named(chosen, size=64):
        return [each.name for each in conditions(chosen, size)]

    assert named({"rotation": [10, 0, -5.0, 0.5]}) == ["rotation/-5", "rotation/0", "rotation/0.5", "rotation/10"]
    assert named({"resolution": [64, 512, 32]}) == ["resolution/32", "resolution/64", "resolution/512"]
    assert named({"jpeg": [10, 90]}) == ["jpeg/10", "jpeg/90", "jpeg/none"]
    assert named({"flip": None}) == ["flip/none", "flip/left_right", "flip/up_down"]
    assert named({"noise": [0.1], "window": [2]}) == ["noise/0", "noise/0.1", "window/1", "window/2"]
    assert [each.undisturbed for each in conditions({"rotation": [1]}, 64)] == [True, False]
    every = conditions(None, 224)
    assert {each.corruption for each in every} == set(CORRUPTIONS)
    assert [each.corruption for each in every if each.undisturbed] == list(CORRUPTIONS)
    assert len({each.name for each in every}) == len(every) == len(LEVELS) + len(CORRUPTIONS)


def test_no_choice_and_its_own_levels_are_right():
    assert wrong_levels(None) == []
    assert wrong_levels({name: [at.level for at in conditions({name: None}, 64)] for name in CORRUPTIONS}) == []
    assert wrong_levels(dict.fromkeys(CORRUPTIONS)) == []


@pytest.mark.parametrize(
    ("chosen", "cure"),
    [
        ({"blur": [1]}, "choose from resolution, rotation"), ({"rotation": 10}, "give a list"),
        ({"rotation": []}, "give a list"), ({"rotation": "10"}, "give a list"), ({}, "such as {rotation"),
        (["rotation"], "such as {rotation"), ({"rotation": [181]}, "from -180 to 180"),
        ({"rotation": [True]}, "from -180"), ({"rotation": [float("nan")]}, "from -180"),
        ({"resolution": [15]}, "from 16 to 4096"), ({"resolution": [64.5]}, "whole numbers"),
        ({"flip": ["diagonal"]}, "left_right, up_down"), ({"flip": [[1]]}, "left_right"),
        ({"brightness": [0]}, "above 0"), ({"window": [-1]}, "above 0"), ({"noise": [2]}, "from 0 to 1"),
        ({"jpeg": [0]}, "from 1 to 100"), ({"jpeg": ["worst"]}, "from 1 to 100"),
    ],
)  # fmt: skip
def test_wrong_choices_are_told_with_their_cure(chosen, cure):
    ((_, _, told),) = wrong_levels(chosen)
    assert cure in told


def test_several_wrong_choices_are_told_at_once():
    chosen = {"rotation": [500, 10, 600], "blur": None}
    assert [(name, value) for name, value, _ in wrong_levels(chosen)] == [
        ("rotation", 500), ("rotation", 600), ("blur", None),
    ]  # fmt: skip


def test_a_configuration_is_checked_without_numpy():
    code = "import sys, mmpds.check.callbacks; sys.exit(any(name in sys.modules for name in ('numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
