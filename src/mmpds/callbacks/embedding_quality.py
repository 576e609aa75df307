"""What a model's embeddings are worth besides zero-shot detection: retrieval, few examples, a linear probe.

Shapes: N = test items, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmpds.callbacks.predictions import gathered
from mmpds.data.batch import PADDING
from mmpds.metrics.intervals import Evaluation
from mmpds.metrics.probe import probe
from mmpds.metrics.retrieval import retrieval


class EmbeddingQuality(Callback):
    """Judges the embeddings of the test split; rank 0 has the figures.

    The model gives `embedding` in its test step, and has `embed_images` and `embed_texts`.

    Args:
        ks: of recall@k, image to text and text to image; the captions of the test split are the texts, and images
            without one are left out. None for none.
        shots: of the few-shot classifiers, which learn from the training split, as the linear probe. None for none.
        replicates: of the bootstrap behind the intervals.
        seed: of the bootstrap and of the examples.
    """

    def __init__(
        self, ks: Sequence[int] | None = (1, 5, 10), shots: Sequence[int] | None = (1, 4, 16, 64),
        replicates: int = 1000, seed: int = 0,
    ) -> None:  # fmt: skip
        self.ks, self.shots, self.replicates, self.seed = ks, shots, replicates, seed
        self._kept: list[dict[str, Tensor]] = []
        self._found = Evaluation({}, {}, {}, [])

    def summary(self) -> dict[str, Any]:
        """`metrics`, `intervals`, `counts` and `warnings` of the last test; on rank 0 only."""
        return vars(self._found)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the batch's embeddings."""
        self._kept.append(_real(outputs["embedding"], outputs["index"]))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' embeddings; rank 0 judges."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images["test"]
        test, self._kept = _whole(self._kept), []
        train = self._embedded(trainer, pl_module, data) if self.shots else None
        if trainer.global_rank:
            return
        group, label = images.table["group"].to_numpy(), images.label.numpy()
        parts = []
        told = [row for row, text in enumerate(images.caption) if text]
        captions = [images.caption[row] for row in told]
        if self.ks and len(set(captions)) > 1:
            with torch.inference_mode():
                text = pl_module.embed_texts(captions).cpu().numpy()  # type: ignore[operator]
            same, _ = pd.factorize(pd.Series(captions))
            parts.append(retrieval(
                test[told], text, caption_id=same, group=group[told], ks=self.ks, replicates=self.replicates,
                seed=self.seed,
            ))  # fmt: skip
        if train is not None:
            parts.append(probe(
                train, data.images["train"].label.numpy(), test, label, pl_module.findings,  # type: ignore[arg-type]
                shots=self.shots or (), group=group, replicates=self.replicates, seed=self.seed,
            ))  # fmt: skip
        self._found = Evaluation(
            {name: value for part in parts for name, value in part.metrics.items()},
            {name: value for part in parts for name, value in part.intervals.items()},
            {name: value for part in parts for name, value in part.counts.items()},
            [text for part in parts for text in part.warnings],
        )

    def _embedded(self, trainer: pl.Trainer, model: Any, data: Any) -> np.ndarray | None:
        """The training images as they are, [M, D]; None where a data set of its own is tested."""
        if data.source is None:
            return None
        data.setup("fit")
        kept = []
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for batch in data.eval_dataloader("train"):
                embedding = model.embed_images(batch["image"].to(model.device))
                kept.append(_real(embedding, batch["index"]))
        return _whole(kept)


def _real(embedding: Tensor, index: Tensor) -> dict[str, Tensor]:
    real = index.cpu() != PADDING
    return {"embedding": embedding.cpu()[real], "index": index.cpu()[real]}


def _whole(kept: Sequence[dict[str, Tensor]]) -> np.ndarray:
    """The embeddings of all ranks in the order of the split's table, float32 [N, D], on every rank."""
    mine = {name: torch.cat([batch[name] for batch in kept]).numpy() for name in ("embedding", "index")}
    ranks = gathered(mine)
    index = np.concatenate([rank["index"] for rank in ranks])
    embedding: np.ndarray = np.concatenate([rank["embedding"] for rank in ranks])
    return embedding[np.argsort(index)]
