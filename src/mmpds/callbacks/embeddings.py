"""An archive of embeddings from what a model predicts, each image once however often a build is killed.

Shapes: B = items in a batch, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mmpds.data.batch import PADDING
from mmpds.data.module import Images
from mmpds.search.archive import DTYPES, ROWS, Archive, begin, write_shard


class Embeddings(Callback):
    """Writes an archive (see `mmpds.search.archive`) of a folder's images, each rank the shards of its own.

    The model gives `embedding` in its predict step, and has a `fingerprint`; its weights must be in place when the
    prediction starts. What the archive holds already is not embedded again: `images["predict"]` of the data module then
    has the other rows alone.

    Args:
        archive: its folder; on several nodes one that all of them see.
        weights: where the model's weights may be from, the first that is not None: a checkpoint, a folder, a hub id.
        dtype: of the vectors: float16 or float32.
        shard_rows: vectors of a shard at most.

    Raises:
        ValueError: the archive is another model's or of another dtype; the model gives no embeddings.
    """

    def __init__(
        self, archive: str, weights: Sequence[str | None] = (), dtype: str = "float16", shard_rows: int = ROWS
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: choose from {', '.join(DTYPES)}")
        self.folder, self.dtype, self.shard_rows = Path(archive), dtype, shard_rows
        self._weights = next((_absolute(place) for place in weights if place), None)
        self._source = 0
        self._names: list[str] = []  # of this rank's shards to be
        self._missing, self._held = 0, 0  # images, on all ranks
        self._vectors: list[np.ndarray] = []
        self._ids: list[str] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the images that are missing to the data module, before it makes its loader."""
        if stage != "predict":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images["predict"]
        found: Any = None
        if trainer.global_rank == 0:  # the others may not write before it has looked
            try:
                found = self._begin(pl_module, _absolute(data.predict_root), images.table["id"].tolist())
            except (OSError, ValueError) as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        archive, self._source, missing = found
        self._missing, self._held = len(missing), len(images) - len(missing)
        names = -(-self._missing // trainer.world_size) // self.shard_rows + 1
        self._names = archive.free(trainer.global_rank * names, names)
        # Lightning runs no prediction of nothing: one image is then predicted for nothing
        rows = missing if self._missing else np.zeros(1, np.int64)
        data.images["predict"] = Images(images.source, images.rows[rows], data.findings, images.size)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a batch: `embedding` float32 [B, D] of unit length and `index` int64 [B]; write shards that are full."""
        if not self._missing:
            return
        index: Tensor = outputs["index"].cpu()
        real = index != PADDING
        self._vectors.append(outputs["embedding"].cpu()[real].float().numpy().astype(self.dtype))
        images = trainer.datamodule.images["predict"]  # type: ignore[attr-defined]
        self._ids += images.table["id"].iloc[index[real].numpy()].tolist()
        while len(self._ids) >= self.shard_rows:
            self._write()

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rest; when all ranks have, list the shards in the manifest."""
        self._write()
        trainer.strategy.barrier()
        if trainer.global_rank == 0:
            Archive.read(self.folder).settle()
        trainer.strategy.barrier()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what an interrupted rank has."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self._write()

    def summary(self) -> dict[str, int]:
        """Images of the last prediction: those embedded, and those that the archive held already."""
        return {"predict/embedded": self._missing, "predict/already_embedded": self._held}

    def _begin(self, model: Any, source: str, ids: list[str]) -> tuple[Archive, int, np.ndarray]:
        """The archive, the folder's number in it, and the rows of the prediction's table that it lacks, int64."""
        if not hasattr(model, "embed_images"):
            raise ValueError(f"{type(model).__name__} gives no embeddings: build the archive with a run of model=clip")
        archive, number = begin(self.folder, model.fingerprint(), self._weights, self.dtype, source)
        held = {name for shard in archive.shards if shard.source == number for name in archive.ids(shard)}
        return archive, number, np.array([row for row, name in enumerate(ids) if name not in held], np.int64)

    def _write(self) -> None:
        """Write a shard of the first images that wait, if any do."""
        if not self._ids:
            return
        vectors, rows = np.concatenate(self._vectors), self.shard_rows
        write_shard(self.folder, self._names.pop(0), self._source, vectors[:rows], self._ids[:rows])
        self._vectors, self._ids = [vectors[rows:]], self._ids[rows:]


def _absolute(place: str) -> str:
    """A path as it can be found again from anywhere; what is none, such as a hub id, as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place
