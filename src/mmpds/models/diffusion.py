"""Text-to-image diffusion around diffusers' components (Ho et al. 2020; in latents, Rombach et al., CVPR 2022).

Shapes: B = batch, C = image channels (1 or 3), H = W = pixels a side; K, h, w = channels and sides of what is denoised:
latents of an autoencoder, or squares of pixels folded into channels; L = tokens, D = width of their embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mmpds.data.batch import PADDING, Batch, PromptBatch, item_seed
from mmpds.models import pipelines, vocabulary
from mmpds.models.fingerprint import fingerprint
from mmpds.models.latents import Latents
from mmpds.models.memo import Memo
from mmpds.models.objective import weighted_errors
from mmpds.models.optimization import attention, one_rate
from mmpds.models.sampling import SAMPLING, generators, initial_noise, make_scheduler, sample

STATES = {"state_dict", "current_model_state"}  # of a checkpoint; the second where the first is the moving average


class Diffusion(pl.LightningModule):
    """Denoises what it learnt images to be, guided by a text.

    From scratch the network and the text encoder learn together, and the vocabulary is learnt from the captions;
    without `vae` the network sees pixels. From `pretrained` weights the text encoder and the autoencoder stand
    still: then embeddings, and latents of images that are not augmented, are computed once and kept.

    Args:
        pretrained: a hub id, or a folder that diffusers or `save_pretrained` wrote; the sizes below are then its own.
        unet: arguments of diffusers.UNet2DConditionModel.
        text_encoder: arguments of transformers.CLIPTextConfig; `max_position_embeddings` is the longest prompt.
        vae: a hub id or folder of an AutoencoderKL, or its arguments, which leave it random: fit to measure speed, not
            to be trained; None for a model of pixels.
        size: H = W.
        channels: C, where there is no autoencoder.
        patch: pixels a side that a model of pixels sees as one.
        noise: arguments of diffusers.DDPMScheduler; `prediction_type` is `epsilon` (noise) or `v_prediction`
            (Salimans & Ho 2022).
        min_snr_gamma: of min-SNR weighting (Hang et al., ICCV 2023); None weighs all noise levels alike.
        caption_dropout: share of captions left out in training, for classifier-free guidance (Ho & Salimans 2022).
        lora_rank: above 0, only low-rank additions to the network's attention learn (Hu et al. 2022).
        learning_rate: of AdamW at its peak.
        weight_decay: of AdamW.
        warmup_fraction: share of the steps until that peak.
        sampling: how images are generated: `scheduler` (see `sampling.SCHEDULERS`), `steps`, `guidance_scale`
            (1: none), `negative_prompt`, `cache_interval` (see `feature_cache`), `size` (None: as trained).

    Raises:
        ValueError: an argument's value cannot work; the text names it and the cure.
    """

    task = "generation"

    def __init__(
        self, pretrained: str | None = None, unet: Mapping[str, Any] | None = None,
        text_encoder: Mapping[str, Any] | None = None, vae: str | Mapping[str, Any] | None = None, size: int = 64,
        channels: int = 1, patch: int = 1, noise: Mapping[str, Any] | None = None,
        min_snr_gamma: float | None = 5.0, caption_dropout: float = 0.1, lora_rank: int = 0,
        learning_rate: float = 1e-4, weight_decay: float = 1e-2, warmup_fraction: float = 0.05,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        chosen: dict[str, Any] = SAMPLING | {k: v for k, v in dict(sampling or {}).items() if v is not None}
        pretrained, vae = pipelines.absolute(pretrained), pipelines.absolute(vae)
        # primitives only, and absolute paths: the checkpoint then loads alone, from anywhere, with weights_only=True
        self.save_hyperparameters({
            "pretrained": pretrained, "unet": dict(unet or {}), "text_encoder": dict(text_encoder or {}),
            "vae": dict(vae) if isinstance(vae, Mapping) else vae, "size": size, "channels": channels, "patch": patch,
            "noise": dict(noise or {}), "min_snr_gamma": min_snr_gamma, "caption_dropout": caption_dropout,
            "lora_rank": lora_rank, "learning_rate": learning_rate, "weight_decay": weight_decay,
            "warmup_fraction": warmup_fraction, "sampling": chosen,
        })  # fmt: skip
        parts = pipelines.load(pretrained) if pretrained else pipelines.scratch(
            unet or {}, text_encoder or {}, vae, size, channels, patch, noise or {}
        )  # fmt: skip
        self.unet, self.text_encoder, self.vae = parts.unet, parts.text_encoder, parts.vae
        self.tokenizer, self.noise, self.shrink = parts.tokenizer, parts.noise, parts.shrink
        self.latents = Latents(parts.vae, parts.patch, self.unet.config.in_channels)
        self.sampling = chosen
        # an autoencoder is never trained here; a text encoder only from scratch
        self.frozen = [part for part in (self.vae, self.text_encoder if pretrained else None) if part is not None]
        if lora_rank:
            pipelines.add_lora(self.unet, lora_rank)
        for module in self.frozen:
            module.requires_grad_(False)
        self.val_loss = MeanMetric()
        self._embeddings = Memo()  # of captions, where the encoder stands still

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: where the pretrained weights now are."""
        return {name: settings[name] for name in ("pretrained", "vae") if isinstance(settings.get(name), str)}

    def load_weights(self, file: str) -> list[str]:
        """Start from a checkpoint of a model of the same sizes, its vocabulary included.

        Returns:
            Nothing: all weights are known.

        Raises:
            ValueError: the file is no such checkpoint.
        """
        with pipelines.started_from(file) as checkpoint:
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"])
            if self.tokenizer is None:
                raise ValueError("it has no vocabulary")
        return []

    # texts

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, [B, L, D]."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        embedded: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return embedded

    def _conditions(self, captions: Sequence[str]) -> Tensor:
        """`embed` in training; an encoder that stands still reads each caption once."""
        if self.text_encoder not in self.frozen:
            return self.embed(captions)
        kept = self._embeddings.of(captions, lambda places: self.embed([captions[place] for place in places]))
        return torch.stack(kept).to(self.device)

    # training

    def on_fit_start(self) -> None:
        """Learn the vocabulary from the training captions, where none came with the weights.

        Raises:
            ValueError: the autoencoder is random.
        """
        if isinstance(self.hparams["vae"], Mapping) and not self.hparams["pretrained"]:
            cure = "give model.vae=FOLDER of a trained AutoencoderKL, or model.pretrained=FOLDER"
            raise ValueError(f"model.vae: it would be random; {cure}")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        captions = data.images["train"].caption
        if self.tokenizer is None:
            config = self.text_encoder.config
            self.tokenizer = vocabulary.learn(captions, config.vocab_size, config.max_position_embeddings)
        if long := vocabulary.too_long(self.tokenizer, captions):
            data.notes.append(
                f"{len(long)} captions are longer than the text encoder's {self.tokenizer.model_max_length} tokens: "
                "it reads their beginnings"
            )
        if not any(captions):
            data.notes.append("the training images have no captions: the generator cannot learn what a prompt means")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Lightning puts all parts in training mode: what stands still must not drop anything out."""
        for module in self.frozen:
            module.eval()

    def forward(self, noisy: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """The prediction, [B, K, h, w], from what is noisy, [B, K, h, w], timesteps int64 [B] and text [B, L, D]."""
        predicted: Tensor = self.unet(noisy, time, text).sample
        return predicted

    def losses(self, latent: Tensor, captions: Sequence[str], time: Tensor, noise: Tensor) -> Tensor:
        """Weighted squared error of each item, float32 [B]."""
        noisy = self.noise.add_noise(latent, noise, time)
        predicted = self(noisy, time, self._conditions(captions))
        return weighted_errors(self.noise, predicted, latent, noise, time, self.hparams["min_snr_gamma"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a batch at noise levels drawn at random."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        keys = None if data.augment else [("train", index) for index in batch["index"].tolist()]
        latent = self.latents.encode(batch["image"], True, keys)
        count = len(latent)
        time = torch.randint(self.noise.config.num_train_timesteps, (count,), device=self.device)
        kept = (torch.rand(count) >= self.hparams["caption_dropout"]).tolist()
        captions = [caption if keep else "" for caption, keep in zip(batch["caption"], kept, strict=True)]
        with attention(self.device, latent[0, 0].numel()):
            loss = self.losses(latent, captions, time, torch.randn_like(latent)).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of each item at a noise level and a noise of its own: the same at each epoch, whatever the ranks."""
        keys = [("val", index) for index in batch["index"].tolist()]
        seeds = [item_seed(0, f"{split} {index}") for split, index in keys]
        latent = self.latents.encode(batch["image"], False, keys)
        time = torch.tensor([seed % self.noise.config.num_train_timesteps for seed in seeds], device=self.device)
        noise = initial_noise(generators(seeds), latent.shape[1:])
        real = batch["index"] != PADDING
        self.val_loss.update(self.losses(latent, batch["caption"], time, noise.to(self.device))[real])

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` over the items of all ranks."""
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()

    def configure_optimizers(self) -> Any:
        """See `one_rate`."""
        return one_rate(self)

    # generation

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images, float32 [B, C, H, W] in [0, 1], of B prompts; each item's noise is drawn from its own seed.

        A seed gives the same image in any batch, up to the rounding that other shapes of a matrix product bring.
        A pixel that is not finite says that the item failed.

        Raises:
            ValueError: the size asked for is none that the model can make.
        """
        how = self.sampling
        if how["size"] and how["size"] % self.shrink:
            cure = f"this model makes multiples of {self.shrink} pixels a side"
            raise ValueError(f"model.sampling.size={how['size']}: {cure}")
        side = (how["size"] or self.size) // self.shrink
        free = self.embed([how["negative_prompt"]]) if how["guidance_scale"] > 1 else None
        latent = sample(
            self.unet, make_scheduler(how["scheduler"], self.noise.config), self.embed(prompts), free, seeds,
            (self.unet.config.in_channels, side, side), how["steps"], how["guidance_scale"], how["cache_interval"],
        )  # fmt: skip
        return self.latents.decode(latent)

    @property
    def size(self) -> int:
        """Pixels a side that it was trained at."""
        return int(self.unet.config.sample_size) * self.shrink

    def on_predict_start(self) -> None:
        """Refuse prompts that the text encoder would cut.

        Raises:
            ValueError: naming them.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        vocabulary.refuse_long(self.tokenizer, data.table["prompt"].tolist())

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Tensor]:
        """Images float32 [B, C, H, W] in [0, 1], and rows int64 [B]."""
        return {"image": self.generate(batch["prompt"], batch["seed"].tolist()), "index": batch["index"]}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """An image of each test image's caption; its seed is the same in every run, so that models can be compared."""
        seeds = [item_seed(0, f"test {index}") for index in batch["index"].tolist()]
        return {"image": self.generate(batch["caption"], seeds), "index": batch["index"]}

    # keeping

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile the network alone: it is nearly all of the work."""
        self.unet.compile(*arguments, **options)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the weights and how images are sampled from them."""
        how = {name: float(value) if isinstance(value, int) else value for name, value in self.sampling.items()}
        return fingerprint(self, how)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that diffusers loads, as StableDiffusionPipeline or `PixelPipeline`; LoRA is merged."""
        parts = pipelines.Parts(self.unet, self.text_encoder, self.vae, self.tokenizer, self.noise, self.latents.patch)
        pipelines.save(parts, make_scheduler(self.sampling["scheduler"], self.noise.config), Path(folder))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the vocabulary, and leave out what stands still: it came with pretrained weights, and does so again."""
        if not self.hparams["pretrained"]:
            checkpoint["vocabulary"] = vocabulary.state(self.tokenizer)
        spared = self._spared()
        for key in STATES & set(checkpoint):
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if name not in spared}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo `on_save_checkpoint`."""
        if "vocabulary" in checkpoint:
            self.tokenizer = vocabulary.restored(checkpoint["vocabulary"])
        own = self.state_dict()
        spared = {name: own[name] for name in self._spared()}
        for key in STATES & set(checkpoint):
            checkpoint[key] = spared | checkpoint[key]

    def _spared(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
