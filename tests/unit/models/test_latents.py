"""What is denoised in place of images, and the way back."""

import pytest
import torch
from diffusers import AutoencoderKL

from mmpds.models.latents import Latents
from tests.unit.models.test_diffusion import VAE


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**VAE, scaling_factor=0.5).eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_folding_into_channels_is_undone_by_decoding(channels):
    image = torch.rand(2, 1, 32, 32)
    latents = Latents(None, 2, channels * 4)
    folded = latents.encode(image, drawn=True)
    assert folded.shape == (2, channels * 4, 16, 16)
    torch.testing.assert_close(latents.decode(folded), image.expand(-1, channels, -1, -1))


def test_latents_are_the_autoencoder_s_scaled_means(vae):
    image = torch.rand(2, 1, 32, 32)
    latents = Latents(vae, 1, VAE["latent_channels"])
    with torch.no_grad():
        mean = vae.encode(image.expand(-1, 3, -1, -1) * 2 - 1).latent_dist.mean
        shown = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
        encoded = latents.encode(image, drawn=False)
        torch.testing.assert_close(encoded, mean * 0.5)
        torch.testing.assert_close(latents.decode(encoded), shown)
    drawn = [latents.encode(image, drawn=True) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_images_of_a_key_are_encoded_once(vae, monkeypatch):
    image = torch.rand(3, 1, 32, 32)
    latents = Latents(vae, 1, VAE["latent_channels"])
    first = latents.encode(image, False, ["a", "b", "c"])
    torch.testing.assert_close(first, latents.encode(image, False), atol=0.02, rtol=0.02)  # kept as bfloat16
    monkeypatch.setattr(latents, "moments", lambda image: pytest.fail("encoded again"))
    assert torch.equal(latents.encode(image.flip(0), False, ["c", "b", "a"]), first.flip(0))
