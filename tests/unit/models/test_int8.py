"""Products of int8: close to those of float32, in whatever dtype is asked for, of weights that stay as they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmpds.models.blip import Blip
from mmpds.models.int8 import Int8Linear, quantize
from mmpds.world import cpu_has
from tests.unit.models import test_blip, test_clip

pytestmark = pytest.mark.skipif(not cpu_has("avx512_vnni", "avx_vnni"), reason="this CPU has no VNNI")


def off(found, right):
    return ((found.float() - right).norm(dim=0) / right.norm(dim=0)).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_that_of_float32_in_the_inputs_dtype(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    with torch.no_grad():
        layer.weight[3] *= 1000  # a scale for each output: a large one takes no steps from the others
        layer.weight[4] = 0
        layer.bias[4] = 1
    items = torch.randn(4, 8, 96)
    right = layer(items).detach().flatten(0, 1)
    quantize(nn.Sequential(layer))
    assert isinstance(layer, Int8Linear)
    found = layer(items.to(dtype))
    assert found.shape == (4, 8, 40)
    assert found.dtype == dtype
    assert 0.001 < off(found.flatten(0, 1), right) < 0.02
    assert (found[..., 4] == 1).all()


def test_a_clip_embeds_as_before_and_has_its_name_still():
    clip = test_clip.model().eval()
    images = torch.rand(5, 1, clip.size, clip.size)
    with torch.inference_mode():
        before, named = clip.embed_images(images), clip.fingerprint()
        weights = {name: value.clone() for name, value in clip.state_dict().items()}
        quantize(clip)
        after = clip.embed_images(images)
    assert 0.98 < F.cosine_similarity(before, after).min() < 0.999999
    assert clip.fingerprint() == named
    assert all(torch.equal(value, weights[name]) for name, value in clip.state_dict().items())


def test_a_blip_of_bfloat16_writes_of_int8():
    images = test_blip.images()
    exact, rounded = test_blip.model(Blip), test_blip.model(Blip)
    quantize(rounded)
    rounded.to(torch.bfloat16)
    with torch.inference_mode():
        before, after = exact.see(images), rounded.see(images.bfloat16())
        assert after.dtype == torch.bfloat16
        assert F.cosine_similarity(before, after.float(), dim=-1).min() > 0.98
        assert len(rounded.write(after)) == len(images)
