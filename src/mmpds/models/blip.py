"""BLIP around transformers' own: texts written of images (Li et al., ICML 2022).

Shapes: B = batch of images, Q = questions, H = W = pixels a side, S = patches and one, D = width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmpds.data.batch import Batch, real_items
from mmpds.models import wordpiece
from mmpds.models.blip_layers import NormedEmbeddings, adapt, clip_tower, merged
from mmpds.models.clip import MAX_NORM
from mmpds.models.clip_network import primitives
from mmpds.models.fingerprint import fingerprint
from mmpds.models.greedy import greedy
from mmpds.models.optimization import attention, one_rate
from mmpds.models.pipelines import had, started_from

LORA_TARGETS = ("query", "value", "qkv")
TOWER = "vision_model."
TEXTS = 64
"""Texts that are written at once."""
IGNORED = -100
"""A label that counts in no loss."""


class Blip(pl.LightningModule):
    """Writes a caption of each image: a vision transformer, and a text decoder that attends to what it sees.

    Args:
        pretrained: a hub id, or a folder of transformers, whose sizes replace those below; no checkpoint needs it.
        size: H = W.
        vision: arguments of transformers.BlipVisionConfig.
        text: arguments of transformers.BlipTextConfig, of the question's encoder and of the decoder;
            `max_position_embeddings` is the longest text, in tokens.
        width: D, of images and texts alike.
        stem: `patch`, one convolution as published, or `convolutions` (see `Clip`) with a norm behind it, as in CLIP.
        tokenizer: a folder of BertTokenizer, or BERT's vocab.txt; None: it is learnt from the training texts.
        longest: tokens of a text that it writes, at most.
        lora_rank: above 0, only low-rank additions to queries and values learn (Hu et al. 2022).
        learning_rate: of AdamW at its peak.
        weight_decay: of AdamW.
        warmup_fraction: share of the steps until that peak.

    Raises:
        ValueError: an argument's value cannot work; the text names it and the cure.
    """

    task = "text"
    network: Any = BlipForConditionalGeneration
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, pretrained: str | None = None, size: int = 384, vision: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None, width: int = 768, stem: str = "patch", tokenizer: str | None = None,
        longest: int = 32, lora_rank: int = 0, learning_rate: float = 5e-4, weight_decay: float = 0.05,
        warmup_fraction: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self._tokenizer: BertTokenizer | None = None
        if pretrained:
            with had("model.pretrained", pretrained):
                self.blip = self.network.from_pretrained(pretrained, use_safetensors=True, dtype=torch.float32)
                self.tokenizer = wordpiece.published(pretrained, self._limit) if Path(pretrained).is_dir() else (
                    wordpiece.restored(wordpiece.state(BertTokenizer.from_pretrained(pretrained)))
                )  # fmt: skip
            stem = "patch"
        else:
            # keeps a state's size: with the published 0.02 narrow networks take long to see anything
            shared = {"hidden_size": width, "initializer_range": width**-0.5}
            marks = {"bos_token_id": 4, "sep_token_id": 3}  # until there is a tokenizer
            self.blip = self.network(BlipConfig(
                vision_config=shared | dict(vision or {}) | {"image_size": size},
                text_config=shared | marks | dict(text or {}),
            ))  # fmt: skip
        known = self.blip.config
        if stem == "convolutions":
            self.blip.vision_model.embeddings = NormedEmbeddings(known.vision_config)
        if not pretrained and isinstance(tokenizer, str):
            self.tokenizer = wordpiece.published(tokenizer, self._limit)
        # primitives only, and all sizes: the checkpoint then loads alone, with weights_only=True
        self.save_hyperparameters({
            "pretrained": None, "size": known.vision_config.image_size, "vision": primitives(known.vision_config),
            "text": primitives(known.text_config), "width": known.vision_config.hidden_size, "stem": stem,
            "tokenizer": None, "longest": longest, "lora_rank": lora_rank, "learning_rate": learning_rate,
            "weight_decay": weight_decay, "warmup_fraction": warmup_fraction,
        })  # fmt: skip
        adapt(self.blip)
        if lora_rank:
            from peft import LoraConfig

            self.blip.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=list(LORA_TARGETS)))
        grey = stem == "convolutions"
        self.register_buffer("image_mean", torch.tensor([0.5] if grey else OPENAI_CLIP_MEAN).view(-1, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.25] if grey else OPENAI_CLIP_STD).view(-1, 1, 1))
        self.val_loss = MeanMetric()

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: how long its texts may be."""
        return {"longest": settings["longest"]} if "longest" in settings else {}

    @property
    def size(self) -> int:
        """Pixels a side of the images that it sees."""
        return int(self.blip.config.vision_config.image_size)

    @property
    def _limit(self) -> int:
        return int(self.blip.config.text_config.max_position_embeddings)

    @property
    def tokenizer(self) -> Any:
        """A BertTokenizer; None until the vocabulary is learnt."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: BertTokenizer) -> None:
        if len(tokenizer) > (room := self.blip.config.text_config.vocab_size):
            raise ValueError(f"model.text.vocab_size={room}: the vocabulary has {len(tokenizer)} pieces; give as many")
        tokenizer.model_max_length = min(tokenizer.model_max_length, self._limit)
        self._tokenizer = tokenizer
        text = self.blip.config.text_config  # which its decoder and encoder share
        text.bos_token_id, text.sep_token_id = tokenizer.bos_token_id, tokenizer.sep_token_id
        text.eos_token_id, text.pad_token_id = tokenizer.sep_token_id, tokenizer.pad_token_id
        # where transformers' own `generate` looks
        self.blip.decoder_start_token_id = self.blip.decoder_input_ids = tokenizer.bos_token_id

    # seeing

    def see(self, image: Tensor) -> Tensor:
        """States, float [B, S, D], of images float32 [B, 1, H, W] in [0, 1].

        Raises:
            ValueError: the images have another size than the model.
        """
        if image.shape[-1] != self.size:
            raise ValueError(f"data.size={image.shape[-1]}: this model sees images of data.size={self.size}")
        scaled = (image - self.image_mean) / self.image_std
        states: Tensor = self.blip.vision_model(pixel_values=scaled).last_hidden_state
        return states

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens and whether they are there, int64 [N, L] each; of a text beyond the limit, its beginning."""
        if self.tokenizer is None:
            raise RuntimeError("this model has no vocabulary yet: it is learnt when training begins")
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return tokens.input_ids, tokens.attention_mask

    def write(self, states: Tensor, seen: Tensor | None = None) -> list[str]:
        """A text of each item, from what it is written of; arguments as in `greedy`."""
        longest = min(self.hparams["longest"], self._limit - 1)
        return wordpiece.written(self.tokenizer, greedy(self.blip.text_decoder, states, seen, longest))

    def losses(self, texts: Sequence[str], states: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of each text its cross-entropy, float [N], and the tokens that this is of, int64 [N]."""
        tokens, there = self._tokens(texts)
        tokens[:, 0] = self.tokenizer.bos_token_id
        found: Tensor = self.blip.text_decoder(
            input_ids=tokens, attention_mask=there, encoder_hidden_states=states, encoder_attention_mask=seen,
            labels=tokens.masked_fill(there == 0, IGNORED), reduction="none",
        ).loss  # fmt: skip
        return found, there[:, 1:].sum(dim=1)

    # training

    def texts(self, images: Any) -> list[str]:
        """All texts of a split, of which the vocabulary is learnt."""
        return sorted({text for texts in images.table.get("captions", []) for text in texts} | set(images.caption))

    def on_fit_start(self) -> None:
        """Learn the vocabulary from the training texts, where none came with the weights.

        Raises:
            ValueError: there are no texts to learn from.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        images = data.images["train"]
        texts = self.texts(images)
        if len(texts) < 2:
            raise ValueError("the training images have no texts to learn from: give data with captions or questions")
        if self.tokenizer is None:
            self.tokenizer = wordpiece.learn(texts, self.blip.config.text_config.vocab_size, self._limit)
        longest = min(self.hparams["longest"] + 1, self._limit)
        if long := sum(len(self.tokenizer(text, verbose=False).input_ids) > longest for text in texts):
            data.notes.append(f"{long} training texts have more tokens than model.longest or the limit of the encoder")
        if not hasattr(images, "questions") and (missing := images.caption.count("")):
            data.notes.append(f"{missing} training images have no caption, and teach to say nothing: leave them out")

    def batch_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """`losses` of a batch's captions."""
        return self.losses(batch["caption"], self.see(batch["image"]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a token."""
        with attention(self.device, self.blip.vision_model.embeddings.num_positions):
            losses, tokens = self.batch_losses(batch)
        loss = losses.sum() / tokens.sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The mean loss of a token, over all that the ranks see."""
        if real := real_items(batch):
            losses, tokens = self.batch_losses(real)
            self.val_loss.update(losses / tokens, tokens)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` over the images of all ranks."""
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the gradient's norm."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM)  # Lightning's own refuses a fused optimizer

    def configure_optimizers(self) -> Any:
        """See `one_rate`."""
        return one_rate(self)

    # writing

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """A text of each item that is no padding: `text`, and `row`, the item's own in its split's table."""
        if not (real := real_items(batch)):
            return {"text": [], "row": []}
        texts = [text for states in torch.split(self.see(real["image"]), TEXTS) for text in self.write(states)]
        return {"text": texts, "row": real["index"].tolist()}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """What `test_step` gives."""
        return self.test_step(batch, batch_idx)

    # keeping

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile what sees: it is most of the work, and its shapes do not change."""
        self.blip.vision_model.compile(*arguments, **options)

    def load_weights(self, file: str) -> list[str]:
        """Start from a checkpoint of BLIP of the same sizes, its vocabulary included, or from the tower of a CLIP.

        Of a model that answers, one that writes captions takes the tower alone: it has other words to learn.

        Returns:
            Nothing: what is not known is trained.

        Raises:
            ValueError: the file is no such checkpoint.
        """
        with started_from(file) as checkpoint:
            state = checkpoint["state_dict"]
            own = {name.removeprefix("blip."): v for name, v in state.items() if name.startswith("blip.")}
            tower = clip_tower(state)
            if any(name.startswith("text_encoder.") for name in own) and not hasattr(self.blip, "text_encoder"):
                tower = {name.removeprefix(TOWER): v for name, v in own.items() if name.startswith(TOWER)}
            if tower:
                self.blip.vision_model.load_state_dict(tower)
                return []
            if not own:
                raise ValueError("it holds neither BLIP nor CLIP; no other network's weights have a place here")
            self.on_load_checkpoint(checkpoint)
            missing, left = self.blip.load_state_dict(own, strict=False)
            # a captioner has no encoder of questions
            if wrong := [name for name in missing if not name.startswith("text_encoder.")] + left:
                raise ValueError(f"{len(wrong)} weights have no counterpart, such as {wrong[0]}")
        return []

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the weights."""
        return fingerprint(self.blip)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers loads; LoRA is merged.

        Raises:
            ValueError: its stem is none of theirs.
        """
        if self.hparams["stem"] != "patch":
            raise ValueError(f"model.stem={self.hparams['stem']}: transformers knows only a model of stem=patch")
        plain = self.network(self.blip.config)
        plain.load_state_dict(merged(self.blip))
        plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the vocabulary."""
        if self.tokenizer is not None:
            checkpoint["vocabulary"] = wordpiece.state(self.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo `on_save_checkpoint`."""
        if "vocabulary" in checkpoint:
            self.tokenizer = wordpiece.restored(checkpoint["vocabulary"])
