"""CLIP around transformers' own: images and texts in one space (Radford et al., ICML 2021), and zero-shot detection.

Shapes: B = batch, H = W = pixels a side, C = findings, D = width of an embedding, T = texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmpds.data.batch import Batch
from mmpds.models import clip_network, vocabulary
from mmpds.models.contrastive import LOSSES, contrast, names
from mmpds.models.detector import Detector
from mmpds.models.fingerprint import fingerprint
from mmpds.models.optimization import attention, one_rate
from mmpds.models.pipelines import started_from
from mmpds.models.zero_shot import class_embeddings, sentences

MAX_LOG_SCALE = 4.6052
"""ln 100, beyond which the published model's temperature never went."""
MAX_NORM = 1.0
"""Of the gradient of all weights."""
TEXTS = 256
"""Texts that are embedded at once."""


class Clip(Detector):
    """Learns which report belongs to which image; then any sentence is a detector.

    A finding's probability comes from the cosine between an image and sentences that name it, against sentences that
    deny it (`zero_shot`). It is calibrated, thresholded and judged as that of a trained detector.

    Args:
        findings: names of the outputs, in the order of the label columns.
        pretrained: a hub id, or a folder of transformers; the sizes below are then its own. A checkpoint of training
            holds all weights: it needs the folder no more.
        size: H = W.
        vision: arguments of transformers.CLIPVisionConfig; `num_channels` is 1 or 3.
        text: arguments of transformers.CLIPTextConfig; `max_position_embeddings` is the longest text, in tokens.
        width: D.
        stem: `patch`, one convolution as published, or `convolutions`: a few small ones, with which small vision
            transformers learn sooner (Xiao et al., NeurIPS 2021); `pretrained` weights keep their own.
        tokenizer: a folder of CLIPTokenizer, or the file of OpenAI's merges (bpe_simple_vocab_16e6.txt.gz); None: the
            vocabulary is learnt from the training captions.
        loss: `info_nce` or `siglip` (see `contrastive`).
        zero_shot: arguments of `zero_shot.sentences`.
        calibration: see `Calibration`.
        threshold: arguments of `Threshold`.
        learning_rate: of AdamW at its peak.
        weight_decay: of AdamW.
        warmup_fraction: share of the steps until that peak.

    Raises:
        ValueError: an argument's value cannot work; the text names it and the cure.
    """

    clip: Any  # transformers' CLIPModel
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, findings: Sequence[str], pretrained: str | None = None, size: int = 224,
        vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None, width: int = 512,
        stem: str = "patch", tokenizer: str | Mapping[str, Any] | None = None, loss: str = "info_nce",
        zero_shot: Mapping[str, Any] | None = None, calibration: str = "none",
        threshold: Mapping[str, Any] | None = None, learning_rate: float = 5e-4, weight_decay: float = 0.1,
        warmup_fraction: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss={loss}: choose from {', '.join(LOSSES)}")
        self._tokenizer: CLIPTokenizer | None = None
        if pretrained:
            self.clip, self.tokenizer = clip_network.load(pretrained)
            stem = "patch"
        else:
            log_scale = 2.3026 if loss == "siglip" else 2.6592
            self.clip = clip_network.build(size, vision or {}, text or {}, width, stem, log_scale)
            if isinstance(tokenizer, str):
                self.tokenizer = vocabulary.published(tokenizer, self.clip.config.text_config.max_position_embeddings)
        known = self.clip.config
        # primitives only, and all sizes: the checkpoint then loads alone, with weights_only=True
        self.save_hyperparameters({
            "findings": list(findings), "pretrained": None, "size": known.vision_config.image_size,
            "vision": clip_network.primitives(known.vision_config), "text": clip_network.primitives(known.text_config),
            "width": known.projection_dim, "stem": stem, "tokenizer": None, "loss": loss,
            "zero_shot": dict(zero_shot or {}), "calibration": calibration, "threshold": dict(threshold or {}),
            "learning_rate": learning_rate, "weight_decay": weight_decay, "warmup_fraction": warmup_fraction,
        })  # fmt: skip
        grey = known.vision_config.num_channels == 1
        self.register_buffer("image_mean", torch.tensor([0.5] if grey else OPENAI_CLIP_MEAN).view(-1, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.25] if grey else OPENAI_CLIP_STD).view(-1, 1, 1))
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=loss == "siglip")
        self.exclusive = bool((zero_shot or {}).get("exclusive", False))
        self.sentences = sentences(findings, **dict(zero_shot or {}))
        self._directions: Tensor | None = None
        self.configure_detection(findings, calibration, threshold)

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: its sentences, and thresholds that are stated."""
        return Detector.restated(settings) | {"zero_shot": settings["zero_shot"]}

    @property
    def size(self) -> int:
        """Pixels a side of the images that it sees."""
        return int(self.clip.config.vision_config.image_size)

    @property
    def tokenizer(self) -> Any:
        """A CLIPTokenizer; None until the vocabulary is learnt."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        text = self.clip.config.text_config
        text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        text.pad_token_id = tokenizer.pad_token_id
        self.clip.text_model.eos_token_id = tokenizer.eos_token_id  # the text's vector is the one at its end

    # one space

    def embed_images(self, image: Tensor) -> Tensor:
        """Unit vectors, float32 [B, D], of images float32 [B, 1, H, W] in [0, 1].

        Raises:
            ValueError: the images have another size than the model.
        """
        if image.shape[-1] != self.size:
            raise ValueError(f"data.size={image.shape[-1]}: this model sees images of data.size={self.size}")
        scaled = (image - self.image_mean) / self.image_std
        features = self.clip.get_image_features(pixel_values=scaled.to(self.clip.dtype)).pooler_output
        return F.normalize(features.float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 [T, D]; of a text beyond the encoder's limit, of its beginning."""
        if self.tokenizer is None:
            raise RuntimeError("this model has no vocabulary yet: it is learnt when training begins")
        parts = []
        for start in range(0, len(texts), TEXTS):
            tokens = self.tokenizer(
                list(texts[start : start + TEXTS]), padding=True, truncation=True, return_tensors="pt"
            ).to(self.device)
            # attention looks back only: what pads behind a text's end is not seen
            parts.append(self.clip.get_text_features(input_ids=tokens.input_ids).pooler_output)
        return F.normalize(torch.cat(parts).float(), dim=1)

    @property
    def scale(self) -> Tensor:
        """The factor of the cosines, learnt with the weights."""
        factor: Tensor = self.clip.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        return factor

    # zero-shot detection

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32 [B, C], of images float32 [B, 1, H, W] in [0, 1]; of their sentences."""
        return self.logits(self.embed_images(image))

    def logits(self, embedding: Tensor) -> Tensor:
        """Logits, float32 [B, C], of images' embeddings, float32 [B, D]."""
        if self._directions is None:
            self._directions = class_embeddings(self.sentences, self.embed_texts)
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would tie the scores
            return self.scale.float() * embedding @ self._directions.T

    def train(self, mode: bool = True) -> Clip:
        """Training changes what sentences mean."""
        self._directions = None
        return super().train(mode)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Calibrated probabilities, float32 [B, C]; embeddings, float32 [B, D]; rows, int64 [B]."""
        embedding = self.embed_images(batch["image"])
        logit = self.logits(embedding)
        prob = logit.softmax(dim=1) if self.exclusive else logit.sigmoid()
        return {"prob": self.calibration.calibrate(prob), "embedding": embedding, "index": batch["index"]}

    def on_validation_start(self) -> None:
        """Other weights may have been loaded."""
        self._directions = None

    on_test_start = on_predict_start = on_validation_start

    # training

    def on_fit_start(self) -> None:
        """Learn the vocabulary from the training captions, where none came with the weights."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        captions = data.images["train"].caption
        if self.tokenizer is None:
            config = self.clip.config.text_config
            self.tokenizer = vocabulary.learn(captions, config.vocab_size, config.max_position_embeddings)
        limit = self.tokenizer.model_max_length
        if long := sum(len(self.tokenizer(text, verbose=False).input_ids) > limit for text in set(captions)):
            data.notes.append(
                f"{long} captions are longer than the text encoder's {limit} tokens: it reads their beginnings"
            )
        if missing := captions.count(""):
            data.notes.append(f"{missing} training images have no caption, and all are taken for alike: leave them out")
        if len(set(captions)) < 2:
            raise ValueError("the training images have no captions to tell apart: CLIP learns from pairs of both")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The contrastive loss of a batch; its negatives are those of the global batch, on whatever rank."""
        count = len(batch["caption"])
        with attention(self.device, self.clip.vision_model.embeddings.num_positions):
            image, text = self.embed_images(batch["image"]), self.embed_texts(batch["caption"])
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(image, text, names(batch["caption"]).to(self.device))
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        self.log("train/scale", self.scale.detach(), batch_size=count)
        return loss

    def loss(self, image: Tensor, text: Tensor, name: Tensor) -> Tensor:
        """`contrast` of this rank's embeddings, float32 [B, D], with those of all ranks; `name` as `names` gives it."""
        all_image, all_text, all_name = image, text, name
        if self._trainer is not None and self.trainer.world_size > 1:
            gathered: Any = self.all_gather({"image": image, "text": text}, sync_grads=True)
            names_of: Any = self.all_gather(name)
            all_image, all_text = gathered["image"].flatten(0, 1), gathered["text"].flatten(0, 1)
            all_name = names_of.flatten()
        same = name[:, None] == all_name[None, :]
        return contrast(self.hparams["loss"], image, text, all_image, all_text, same, self.scale, self.bias)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the gradient's norm: without that, small batches collapse the two spaces to a point."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM)  # Lightning's own refuses a fused optimizer

    def configure_optimizers(self) -> Any:
        """See `one_rate`."""
        return one_rate(self)

    # keeping

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile what sees: no step goes through `forward` alone, which Lightning would compile."""
        self.clip.vision_model.compile(*arguments, **options)

    def load_weights(self, file: str) -> list[str]:
        """Start from a checkpoint of a model of the same sizes, its vocabulary included; other findings are no matter.

        Returns:
            Nothing: sentences stand for findings.

        Raises:
            ValueError: the file is no such checkpoint.
        """
        with started_from(file) as checkpoint:
            self.on_load_checkpoint(checkpoint)
            kept = checkpoint["state_dict"].items()
            self.clip.load_state_dict({n.removeprefix("clip."): v for n, v in kept if n.startswith("clip.")})
            if self.tokenizer is None:
                raise ValueError("it has no vocabulary")
        return []

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the weights that embed."""
        return fingerprint(self.clip)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers' CLIPModel and CLIPTokenizer load.

        Raises:
            ValueError: its stem is none of theirs.
        """
        if self.hparams["stem"] != "patch":
            raise ValueError(f"model.stem={self.hparams['stem']}: transformers knows only a model of stem=patch")
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the vocabulary, and the sentences that thresholds and calibration are of."""
        checkpoint["sentences"] = {finding: list(map(list, each)) for finding, each in self.sentences.items()}
        if self.tokenizer is not None:
            checkpoint["vocabulary"] = vocabulary.state(self.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo `on_save_checkpoint`; of other sentences thresholds and calibration are yet to be fitted."""
        if "vocabulary" in checkpoint:
            self.tokenizer = vocabulary.restored(checkpoint["vocabulary"])
        if checkpoint.get("sentences") not in (None, {f: list(map(list, each)) for f, each in self.sentences.items()}):
            fitted = ("threshold.", "calibration.")
            checkpoint["state_dict"] |= {n: v for n, v in self.state_dict().items() if n.startswith(fitted)}
