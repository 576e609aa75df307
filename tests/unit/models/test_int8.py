"""Linear layers in int8: near those of float32, in any batch, of weights that stay as they are."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.nn import functional as F

from mmpds.models.blip import Blip
from mmpds.models.int8 import Int8Linear, quantize
from mmpds.world import has_vnni
from tests.unit.models import test_blip, test_clip

pytestmark = pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI")


def off(found, right):
    return ((found.float() - right).norm(dim=0) / right.norm(dim=0)).max()


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(96, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_near_that_of_float32_in_the_inputs_dtype(layer, dtype):
    with torch.no_grad():
        layer.weight[3] *= 1000  # a scale for each output: a large one takes no steps from the others
        layer.weight[4] = 0
        layer.bias[4] = 1
    items = torch.randn(4, 8, 96)
    right = layer(items).detach()
    quantize(nn.Sequential(layer))
    assert isinstance(layer, Int8Linear)
    found = layer(items.to(dtype))
    assert found.shape == (4, 8, 40)
    assert found.dtype == dtype
    assert 0.001 < off(found.flatten(0, 1), right.flatten(0, 1)) < 0.02
    assert (found[..., 4] == 1).all()


def test_a_clip_embeds_as_before_and_has_its_name_still():
    clip = test_clip.model().eval()
    images = torch.rand(5, 1, clip.size, clip.size)
    with torch.inference_mode():
        before, named = clip.embed_images(images), clip.fingerprint()
        weights = {name: value.clone() for name, value in clip.clip.state_dict().items()}
        quantize(clip)
        after = clip.embed_images(images)
        alone = torch.cat([clip.embed_images(image[None]) for image in images])
    assert not torch.equal(before, after)
    assert F.cosine_similarity(before, after).min() > 0.98
    assert F.cosine_similarity(alone, after).min() > 0.99
    assert clip.fingerprint() == named
    assert all(torch.equal(value, weights[name]) for name, value in clip.clip.state_dict().items())


def test_a_blip_of_bfloat16_sees_and_writes_of_int8():
    images = test_blip.images()
    exact, rounded = test_blip.model(Blip, sharp=2), test_blip.model(Blip, sharp=2)
    quantize(rounded)
    rounded.to(torch.bfloat16)
    with torch.inference_mode():
        before, after = exact.see(images), rounded.see(images.bfloat16())
        assert after.dtype == torch.bfloat16
        assert not torch.equal(before.bfloat16(), after)
        assert F.cosine_similarity(before, after.float(), dim=-1).min() > 0.98
        assert isinstance(rounded.blip.text_decoder.cls.predictions.decoder, Int8Linear)
        assert all(rounded.write(after))


def test_what_lora_adds_is_not_rounded():
    blip = test_blip.model(Blip)
    blip.blip.add_adapter(LoraConfig(r=2, target_modules=["qkv"]))
    quantize(blip)
    added = [module for name, module in blip.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))]
    assert {type(module) for module in added} == {nn.Linear}
    assert isinstance(blip.blip.vision_model.encoder.layers[0].self_attn.qkv.base_layer, Int8Linear)
    with torch.inference_mode():
        assert blip.see(test_blip.images()).isfinite().all()
