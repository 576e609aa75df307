"""An image's augmentation is decided by its seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.data.phantom import Phantom
from mmpds.data.transforms import Augment, to_image

AUGMENT = Augment()
RADIOGRAPH = to_image(Phantom(images=1).image(0, 48))
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
    assert torch.equal(once, Augment()(RADIOGRAPH, seed))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_another_seed_gives_another_image(seed):
    assert not torch.equal(AUGMENT(RADIOGRAPH, seed), AUGMENT(RADIOGRAPH, seed ^ 1))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["radiograph", "noise", "black", "white", "grey"]))
def test_range_shape_and_the_original_are_kept(seed, kind):
    images = {
        "radiograph": RADIOGRAPH, "noise": torch.rand(1, 24, 40, generator=torch.Generator().manual_seed(0)),
        "black": torch.zeros(1, 32, 32), "white": torch.ones(1, 32, 32), "grey": torch.full((1, 32, 32), 0.5),
    }  # fmt: skip
    original = images[kind].clone()
    image = AUGMENT(images[kind], seed)
    assert (image.dtype, image.shape) == (torch.float32, original.shape)
    assert image.isfinite().all()
    assert 0 <= image.min() <= image.max() <= 1
    assert torch.equal(images[kind], original)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_left_stays_left_and_top_stays_top(seed):
    image = torch.zeros(1, 64, 64)
    image[:, 8:20, 8:20] = 1
    moved = AUGMENT(image, seed)
    bright = (moved > (moved.min() + moved.max()) / 2).nonzero()
    assert len(bright) > 50
    assert bright[:, 1:].max() < 32
