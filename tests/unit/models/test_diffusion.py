"""The generator, on networks of a few thousand weights."""

import copy
import warnings
from functools import partial

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.data.prompts import PromptData
from mmpds.models import vocabulary
from mmpds.models.diffusion import Diffusion
from tests.conftest import quiet_trainer

UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
TEXT = {
    "vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
VAE = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
SAMPLING = {"scheduler": "ddim", "steps": 3, "guidance_scale": 2.0}
PROMPTS = ["Chest X-ray, PA projection. Cardiomegaly.", "CT of the head, axial plane. No acute finding."]


def model(**arguments):
    torch.manual_seed(0)
    built = Diffusion(**{
        "unet": UNET, "text_encoder": TEXT, "size": 32, "patch": 2, "sampling": SAMPLING,
        "noise": {"prediction_type": "v_prediction"},
    } | arguments)  # fmt: skip
    if built.tokenizer is None:
        built.tokenizer = vocabulary.learn(PROMPTS, 600, 40)
    return built.eval()


def latent(vae=VAE, **arguments):
    return model(vae=vae, patch=1, **arguments)


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    """The folder of an autoencoder that somebody has trained."""
    folder = tmp_path_factory.mktemp("vae")
    latent().vae.save_pretrained(folder)
    return str(folder)


def phantom(**arguments):
    settings = {"size": 32, "batch_size": 4, "cache_dir": None, "augment": False} | arguments
    return ImageData(partial(Phantom, images=30), **settings)


def trainer(folder, **arguments):
    return quiet_trainer(folder, **{"max_epochs": 1, "enable_checkpointing": False} | arguments)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("build", [model, latent])
def test_images_have_the_contract_s_shape_and_range(build):
    images = build().generate(PROMPTS, [1, 2])
    assert images.shape == (2, 1 if build is model else 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


def test_an_item_depends_on_its_seed_and_prompt_alone():
    built = model()
    both = built.generate(PROMPTS, [1, 2])
    torch.testing.assert_close(both[1:], built.generate(PROMPTS[1:], [2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(both, built.generate(PROMPTS[::-1], [2, 1]).flip(0), atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], built.generate(PROMPTS[:1], [3])[0], atol=1e-2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", [model, latent])
def test_training_learns_and_a_checkpoint_generates_the_same(kind, precision, autoencoder, tmp_path):
    build = kind if kind is model else partial(latent, vae=autoencoder)
    data = phantom()
    built = build()
    built.tokenizer = None
    run = trainer(tmp_path, max_epochs=2, precision=precision)
    run.fit(built, data)
    assert run.callback_metrics["val/loss"].isfinite()
    assert built.tokenizer is not None
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = Diffusion.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert torch.equal(again.generate(PROMPTS, [1, 2]), built.eval().generate(PROMPTS, [1, 2]))
    fresh = build()
    assert fresh.load_weights(str(tmp_path / "model.ckpt")) == []
    assert fresh.fingerprint() == again.fingerprint() != build().fingerprint()
    kept = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert not any(name.startswith("vae.") for name in kept["state_dict"])
    del kept["state_dict"]["unet.conv_in.weight"]
    torch.save(kept, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match=r"init_from=.*part.ckpt: .*conv_in"):
        build().load_weights(str(tmp_path / "part.ckpt"))


def test_a_random_autoencoder_is_not_trained_with(tmp_path):
    with pytest.raises(ValueError, match=r"model.vae: it would be random; give model.vae=FOLDER"):
        trainer(tmp_path).fit(latent(), phantom())


def test_noise_that_cannot_be_learnt_is_refused():
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr=true: .* use v_prediction"):
        model(noise={"prediction_type": "epsilon", "rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="prediction_type=sample: choose from epsilon, v_prediction"):
        model(noise={"prediction_type": "sample"})


def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again():
    built = model().train()
    optimizer = torch.optim.Adam(built.parameters(), 1e-2)
    image, time = torch.rand(4, 1, 32, 32), torch.tensor([100, 300, 500, 700])
    clean, noise = built.latents.encode(image, drawn=True), torch.randn(4, 4, 16, 16)
    losses = []
    for _ in range(30):
        loss = built.losses(clean, [PROMPTS[0]] * 4, time, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_min_snr_weighting(kind):
    """Hang et al. 2023, section 3.4: min(SNR, 5) / SNR for noise, min(SNR, 5) / (SNR + 1) for v."""
    built = model(noise={"prediction_type": kind})
    plain = model(noise={"prediction_type": kind}, min_snr_gamma=None)
    clean, noise, time = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([20, 800])
    kept = built.noise.alphas_cumprod[time]
    ratio = kept / (1 - kept)
    expected = ratio.clamp(max=5) / (ratio if kind == "epsilon" else ratio + 1)
    assert ratio[0] > 5 > ratio[1]
    with torch.no_grad():
        torch.testing.assert_close(
            built.losses(clean, PROMPTS, time, noise), expected * plain.losses(clean, PROMPTS, time, noise)
        )


def test_captions_are_left_out_at_the_stated_share(tmp_path, monkeypatch):
    seen = []
    built = model(caption_dropout=0.5)
    monkeypatch.setattr(built, "losses", lambda clean, captions, *_: seen.extend(captions) or clean.mean((1, 2, 3)))
    built.log = lambda *_, **__: None
    built._trainer = type("Trainer", (), {"datamodule": phantom()})()
    batch = {"image": torch.rand(400, 1, 32, 32), "caption": ["some"] * 400, "index": torch.arange(400)}
    torch.manual_seed(0)
    built.training_step(batch, 0)
    assert 160 < seen.count("") < 240
    assert seen.count("some") == 400 - seen.count("")


def exported(built, folder):
    built.save_pretrained(folder)
    return str(folder)


def drawn(pipeline, built, seed):
    """What the loaded pipeline makes, as [C, H, W] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS[0], num_inference_steps=3, guidance_scale=2.0, generator=[torch.Generator().manual_seed(seed)],
        output_type="pt", height=32, width=32,
    ).images[0]  # fmt: skip


def test_plain_diffusers_loads_a_saved_latent_model_and_draws_the_same_image(tmp_path):
    built = latent()
    pipeline = StableDiffusionPipeline.from_pretrained(exported(built, tmp_path / "saved"))
    torch.testing.assert_close(drawn(pipeline, built, 7), built.generate(PROMPTS[:1], [7])[0], atol=1e-5, rtol=0)


def test_plain_diffusers_loads_a_saved_pixel_model_and_draws_the_same_image(tmp_path):
    built = model()
    folder = exported(built, tmp_path / "saved")
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipeline).__module__.startswith("diffusers_modules")  # the folder's own code, not ours
    torch.testing.assert_close(drawn(pipeline, built, 7), built.generate(PROMPTS[:1], [7])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", [model, latent])
def test_training_goes_on_from_a_saved_folder(build, tmp_path):
    folder = exported(build(), tmp_path / "saved")
    tuned = Diffusion(pretrained=folder, sampling=SAMPLING)
    assert torch.equal(tuned.eval().generate(PROMPTS, [1, 2]), build().generate(PROMPTS, [1, 2]))
    assert not any(p.requires_grad for p in tuned.text_encoder.parameters())
    trainer(tmp_path).fit(tuned, phantom())
    assert not torch.equal(tuned.eval().generate(PROMPTS, [1, 2]), build().generate(PROMPTS, [1, 2]))


def test_what_stands_still_is_computed_once(tmp_path, monkeypatch):
    folder = exported(latent(), tmp_path / "saved")
    tuned = Diffusion(pretrained=folder)
    calls = {"vae": 0, "text": 0}
    encode, text = tuned.latents.moments, tuned.embed
    monkeypatch.setattr(tuned.latents, "moments", lambda i: (calls.update(vae=calls["vae"] + len(i)), encode(i))[1])
    monkeypatch.setattr(tuned, "embed", lambda t: (calls.update(text=calls["text"] + len(t)), text(t))[1])
    data = phantom()
    trainer(tmp_path, max_epochs=3, precision="bf16-mixed").fit(tuned, data)
    captions = {caption for name in ("train", "val") for caption in data.images[name].caption}
    assert calls["vae"] <= len(data.images["train"]) + len(data.images["val"])
    assert calls["text"] <= len(captions) + 1  # that of no text
    augmented = Diffusion(pretrained=folder)
    trainer(tmp_path, max_epochs=2).fit(augmented, phantom(augment=True))
    assert len(augmented.latents.kept) == len(data.images["val"])


def test_lora_trains_little_and_keeps_little(tmp_path):
    folder = exported(latent(), tmp_path / "saved")
    tuned = Diffusion(pretrained=folder, lora_rank=2, sampling=SAMPLING, learning_rate=1e-1)
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    run = trainer(tmp_path)
    run.fit(tuned, phantom())
    run.save_checkpoint(tmp_path / "lora.ckpt")
    kept = torch.load(tmp_path / "lora.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in kept if name in dict(tuned.named_parameters()))
    again = Diffusion.load_from_checkpoint(tmp_path / "lora.ckpt", weights_only=True).eval()
    images = tuned.eval().generate(PROMPTS, [1, 2])
    assert torch.equal(again.generate(PROMPTS, [1, 2]), images)
    assert not torch.allclose(images, latent().generate(PROMPTS, [1, 2]), atol=1e-3)
    merged = StableDiffusionPipeline.from_pretrained(exported(tuned, tmp_path / "merged"))
    torch.testing.assert_close(drawn(merged, tuned, 1), images[0], atol=1e-4, rtol=0)
    assert torch.equal(tuned.generate(PROMPTS, [1, 2]), images)  # merging was done on a copy


def test_prompts_beyond_the_encoder_s_limit_are_refused(tmp_path):
    long = "effusion " * 60
    data = PromptData(["short", long], batch_size=2)
    with pytest.raises(ValueError, match=r"data.prompts: 1 prompt is longer than .* 40 tokens.*has \d+; shorten"):
        trainer(tmp_path).predict(model(), data)


def test_wrong_arguments_are_told_with_their_cure(tmp_path):
    with pytest.raises(ValueError, match="size=33: give a multiple of 2"):
        model(size=33)
    with pytest.raises(ValueError, match=r"sampling.size=33: .* multiples of 2"):
        model(sampling={"size": 33}).generate(PROMPTS, [1, 2])
    with pytest.raises(ValueError, match=r"model.pretrained=.*: give a folder that diffusers wrote"):
        Diffusion(pretrained=str(tmp_path))
    (tmp_path / "bad.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"init_from=.*: is it a checkpoint of this model"):
        model().load_weights(str(tmp_path / "bad.ckpt"))


def test_another_size_can_be_asked_for():
    built = model(sampling=SAMPLING | {"size": 48})
    assert built.generate(PROMPTS, [1, 2]).shape == (2, 1, 48, 48)


def test_a_copy_in_bfloat16_makes_nearly_the_same_image():
    built = model()
    half = copy.deepcopy(built).bfloat16()
    assert (half.generate(PROMPTS, [1, 2]) - built.generate(PROMPTS, [1, 2])).abs().mean() < 0.05
