"""An image's augmentation is decided by its seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.data.phantom import Phantom
from mmpds.data.transforms import Augment, to_image

AUGMENT = Augment()
RADIOGRAPH = Phantom(images=1).image(0, 48)
SEEDS = st.integers(0, 2**63 - 1)  # what the sampler draws


@pytest.mark.parametrize(("pixel", "grey"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_pixels_become_shades_from_0_to_1(pixel, grey):
    image = to_image(np.full((3, 4), pixel, np.uint8))
    assert (image.dtype, image.shape) == (torch.float32, (1, 3, 4))
    assert torch.equal(image, torch.full((1, 3, 4), grey))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_equal_seeds_give_equal_images_and_leave_every_generator_alone(seed):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    once = AUGMENT(RADIOGRAPH, seed)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(seed ^ 1)  # what others drew meanwhile makes no difference
    torch.rand(3)
    assert np.array_equal(once, Augment()(RADIOGRAPH, seed))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_another_seed_gives_another_image(seed):
    assert not np.array_equal(AUGMENT(RADIOGRAPH, seed), AUGMENT(RADIOGRAPH, seed ^ 1))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["radiograph", "noise", "black", "white", "grey"]))
def test_shape_and_the_original_are_kept(seed, kind):
    images = {
        "radiograph": RADIOGRAPH, "noise": np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8),
        "black": np.zeros((32, 32), np.uint8), "white": np.full((32, 32), 255, np.uint8),
        "grey": np.full((32, 32), 128, np.uint8),
    }  # fmt: skip
    original = images[kind].copy()
    image = AUGMENT(images[kind], seed)
    assert (image.dtype, image.shape) == (np.uint8, original.shape)
    assert np.array_equal(images[kind], original)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_left_stays_left_and_top_stays_top(seed):
    image = np.zeros((64, 64), np.uint8)
    image[8:20, 8:20] = 255
    moved = AUGMENT(image, seed)
    bright = np.argwhere(moved > (int(moved.min()) + int(moved.max())) / 2)
    assert len(bright) > 50
    assert bright.max() < 32
