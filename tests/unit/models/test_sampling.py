"""The loop gives what diffusers' own pipeline gives, an item at a time, whatever the batch and the precision."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmpds.models import sampling
from mmpds.models.sampling import SCHEDULERS, generators, initial_noise, make_scheduler, sample

TRAINING = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
CONFIG = DDPMScheduler(**TRAINING).config
ZERO_SNR = DDPMScheduler(**TRAINING, rescale_betas_zero_snr=True, prediction_type="v_prediction").config
SHAPE = (4, 8, 8)
SEEDS = [7, 0, 2**63 - 1]
PROMPTS = ["no finding", "pleural effusion", "a nodule"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A Stable Diffusion of random weights with all its parts, small."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=1,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, sample_size=8),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16),
        unet=unet.eval(), scheduler=make_scheduler("ddim", CONFIG),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def embedded(pipeline, prompts):
    """Of the prompts and of the empty prompt."""
    with torch.no_grad():
        return pipeline.encode_prompt(prompts, "cpu", 1, True)


def sampled(pipeline, name="ddim", config=CONFIG, items=3, guidance_scale=7.5, steps=5, cache_interval=1):
    embeddings, unconditional = embedded(pipeline, PROMPTS[:items])
    scheduler = make_scheduler(name, config)
    with torch.no_grad():
        return sample(
            pipeline.unet, scheduler, embeddings, unconditional, SEEDS[:items], SHAPE, steps, guidance_scale,
            cache_interval,
        )  # fmt: skip


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_those_of_the_diffusers_pipeline(pipeline, name, items):
    pipeline.scheduler = make_scheduler(name, CONFIG)
    expected = pipeline(
        PROMPTS[:items], height=8, width=8, num_inference_steps=5, guidance_scale=7.5, output_type="latent",
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS[:items]],
    ).images  # fmt: skip
    torch.testing.assert_close(sampled(pipeline, name, items=items), expected, rtol=1e-5, atol=1e-5)


def test_latents_are_those_of_the_pipeline_without_guidance(pipeline):
    pipeline.scheduler = make_scheduler("ddim", CONFIG)
    expected = pipeline(
        PROMPTS, height=8, width=8, num_inference_steps=5, guidance_scale=1.0, output_type="latent",
        generator=generators(SEEDS),
    ).images  # fmt: skip
    torch.testing.assert_close(sampled(pipeline, guidance_scale=1.0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("guidance_scale", "batch"), [(1.0, 3), (2.0, 6)])
def test_guidance_doubles_the_batch_and_nothing_else_does(pipeline, guidance_scale, batch):
    sizes = []
    hook = pipeline.unet.conv_in.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    sampled(pipeline, guidance_scale=guidance_scale)
    hook.remove()
    assert sizes == [batch] * 5


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "lcm"])
def test_an_item_is_the_same_in_any_batch_though_the_scheduler_draws(pipeline, name):
    together, alone = sampled(pipeline, name), sampled(pipeline, name, items=1)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_noise_is_what_each_seed_says():
    noise = initial_noise(generators(SEEDS), SHAPE)
    for row, seed in zip(noise, SEEDS, strict=True):
        assert torch.equal(row[None], torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)))


def test_one_embedding_of_the_empty_prompt_serves_all(pipeline):
    embeddings, unconditional = embedded(pipeline, PROMPTS)
    with torch.no_grad():
        one = sample(pipeline.unet, make_scheduler("ddim", CONFIG), embeddings, unconditional[:1], SEEDS, SHAPE, 5, 7.5)
    assert torch.equal(one, sampled(pipeline))


def test_the_scheduler_is_left_as_it_was(pipeline):
    embeddings, unconditional = embedded(pipeline, PROMPTS)
    scheduler = make_scheduler("dpm++", CONFIG)
    with torch.no_grad():
        first, second = (
            sample(pipeline.unet, scheduler, embeddings, unconditional, SEEDS, SHAPE, steps, 2.0) for steps in (3, 3)
        )
    assert torch.equal(first, second)
    assert scheduler.num_inference_steps is None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_stay_float32_in_a_bfloat16_network(pipeline, name):
    exact = sampled(pipeline, name)
    seen = set()
    hook = pipeline.unet.conv_in.register_forward_hook(lambda _, inputs, __: seen.add(inputs[0].dtype))
    try:
        pipeline.unet.to(torch.bfloat16, memory_format=torch.channels_last)
        rough = sampled(pipeline, name)
    finally:
        pipeline.unet.to(torch.float32, memory_format=torch.contiguous_format)
        hook.remove()
    assert seen == {torch.bfloat16}
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    assert 0 < (rough - exact).std() < 0.1 * exact.std()


def test_autocast_reaches_the_network_but_not_the_scheduler(pipeline):
    dtypes = set()

    class Watched(sampling.make_scheduler("unipc", CONFIG).__class__):
        def step(self, *arguments, generator=None, **named):
            dtypes.add(torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype)
            return super().step(*arguments, **named)

    embeddings, _ = embedded(pipeline, PROMPTS)
    inside = set()
    hook = pipeline.unet.conv_out.register_forward_hook(lambda _, __, output: inside.add(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = sample(pipeline.unet, Watched.from_config(CONFIG), embeddings, None, SEEDS, SHAPE, 3, 1.0)
    hook.remove()
    assert (inside, dtypes, latents.dtype) == ({torch.bfloat16}, {torch.float32}, torch.float32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_default_of_bfloat16_changes_no_scheduler(pipeline, name):
    exact = sampled(pipeline, name)
    embeddings, unconditional = embedded(pipeline, PROMPTS)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true does
    try:
        scheduler = make_scheduler(name, CONFIG)
        with torch.no_grad():
            latents = sample(pipeline.unet, scheduler, embeddings, unconditional, SEEDS, SHAPE, 5, 7.5)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(latents, exact, rtol=1e-5, atol=1e-5)


def test_cached_features_give_nearly_the_same_latents(pipeline):
    ran = []
    hook = pipeline.unet.mid_block.resnets[0].register_forward_hook(lambda *_: ran.append(True))
    exact, cached = (sampled(pipeline, steps=20, cache_interval=interval) for interval in (1, 2))
    hook.remove()
    assert len(ran) == 20 + 10
    assert 0 < (exact - cached).std() < 0.1 * exact.std()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_keeps_the_noise_schedule_of_training(name):
    config = DDPMScheduler(**TRAINING, prediction_type="v_prediction", num_train_timesteps=500).config
    scheduler = make_scheduler(name, config)
    torch.testing.assert_close(scheduler.betas, DDPMScheduler.from_config(config).betas)
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "dpm++_karras", "euler", "euler_a", "lcm", "unipc"])
def test_zero_terminal_snr_starts_at_the_last_timestep(pipeline, name):
    scheduler = make_scheduler(name, ZERO_SNR)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.max() >= 998
    assert sampled(pipeline, name, ZERO_SNR).isfinite().all()


@pytest.mark.parametrize("name", ["pndm", "heun"])
def test_a_scheduler_that_cannot_start_from_pure_noise_is_refused(name):
    with pytest.raises(ValueError, match=rf"scheduler='{name}' .*rescale_betas_zero_snr=true: choose one of .*ddim"):
        make_scheduler(name, ZERO_SNR)


def test_an_unknown_scheduler_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"scheduler='dpm' is unknown: choose one of ddim, .*dpm\+\+, .*unipc"):
        make_scheduler("dpm", CONFIG)


def test_impossible_arguments_are_named_at_once(pipeline):
    embeddings, _ = embedded(pipeline, PROMPTS)
    with pytest.raises(ValueError, match=r"steps=0 .*cache_interval=-1 .*2 seeds for 3 .*guidance_scale=3.0 needs"):
        sample(pipeline.unet, make_scheduler("ddim", CONFIG), embeddings, None, [1, 2], SHAPE, 0, 3.0, -1)
