"""Deep blocks are computed at every interval-th call only, and the UNet is afterwards what it was."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmpds.models.feature_cache import feature_cache

STEPS = 6


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()  # fmt: skip


def calls(unet):
    """A UNet's outputs over some steps, and how often its mid block's first layer ran."""
    random, ran = torch.Generator().manual_seed(0), []
    x, context = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 5, 32, generator=random)
    hook = unet.mid_block.resnets[0].register_forward_hook(lambda *_: ran.append(True))
    with torch.no_grad():
        outputs = [unet(x + 0.005 * i, 500 - i, context).sample for i in range(STEPS)]
    hook.remove()
    return torch.stack(outputs), len(ran)


def test_interval_one_changes_nothing(unet):
    exact, ran = calls(unet)
    with feature_cache(unet, 1):
        cached, ran_within = calls(unet)
    assert torch.equal(exact, cached)
    assert ran == ran_within == STEPS


@pytest.mark.parametrize(("interval", "whole"), [(2, [0, 2, 4]), (3, [0, 3])])
def test_only_every_interval_th_call_is_whole(unet, interval, whole):
    exact, _ = calls(unet)
    with feature_cache(unet, interval):
        cached, ran = calls(unet)
    assert ran == len(whole)
    error = (cached - exact).abs().amax(dim=(1, 2, 3, 4))
    assert [step for step in range(STEPS) if error[step] == 0] == whole
    assert (cached - exact).std() < 0.1 * exact.std()


def test_a_second_batch_starts_anew(unet):
    exact, _ = calls(unet)
    for _ in range(2):
        with feature_cache(unet, STEPS):
            cached, ran = calls(unet)
        assert ran == 1
        assert torch.equal(cached[0], exact[0])


def test_the_unet_is_left_as_it_was(unet):
    exact, _ = calls(unet)
    names, own = list(unet.state_dict()), {name: set(vars(module)) for name, module in unet.named_modules()}
    with feature_cache(unet, 2):
        assert list(unet.state_dict()) == names
        calls(unet)
    with pytest.raises(TypeError), feature_cache(unet, 2):
        unet()
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == own
    assert not unet._forward_pre_hooks
    again, ran = calls(unet)
    assert torch.equal(exact, again)
    assert ran == STEPS
