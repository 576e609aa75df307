"""Generated images on disk: each marked with what made it, none made twice, and a table and a sheet of them all.

Shapes: B = items in a batch, C = channels (1 or 3), H = height, W = width.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from mmpds.callbacks.predictions import gathered, write_table
from mmpds.data.contact_sheet import draw_sheet
from mmpds.data.provenance import Item, made, to_png
from mmpds.results import inert, whole

MANIFEST, SHEET = "manifest.csv", "contact_sheet.png"
TILES = 64
"""Images on the contact sheet."""
TILE = 224
"""Pixels a side of the largest of its tiles."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NAMED = 5
"""Items that a warning names; more are counted."""
HALF = (torch.bfloat16, torch.float16)


class GeneratedImages(Callback):
    """Writes what a generator predicts, each item once however often a run is killed and started again.

    An item's PNG carries its prompt, seed and model (see `mmpds.data.provenance`); those found whole before the
    prediction starts are not made again: the data module's `missing` then holds the other rows, int64. An item
    with a NaN or an infinity is made once more, alone and in float32; if that fails too it is told and has no file.

    The weights must be in place when the prediction starts (no `ckpt_path`): the fingerprint is taken before.

    Writes: `<folder>/<id>.png`, 8 bits, grey (C = 1) or RGB (C = 3); at the end `<folder>/manifest.csv`, and beside
    the folder, which then holds images of the model alone, `contact_sheet.png` of the table's first images.

    Args:
        folder: where the images go; on several nodes one that all of them see.
        sheet_columns: tiles a line of the contact sheet.

    Raises:
        ValueError: the folder holds images of another prompt, seed or model.
        OSError: no space left; what was written until then is whole.
    """

    def __init__(self, folder: str, sheet_columns: int = 8) -> None:
        self.folder, self.sheet_columns = Path(folder), sheet_columns
        self.model = ""  # its fingerprint
        self._items: list[Item] = []  # of this rank, and after the prediction of all
        self._earlier: list[Item] = []  # of earlier legs
        self._table = pd.DataFrame(columns=["id", "prompt", "seed"])
        self._began = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell the data module, before it makes its loader, what is missing."""
        if stage != "predict":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found: Any = None
        if trainer.global_rank == 0:  # the others may not write before it has looked
            try:
                model = pl_module.fingerprint()  # type: ignore[operator]
                found = model, made(self.folder, data.table, model)
            except (OSError, ValueError) as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        self.model, self._earlier = found
        self._items, self._table = [], data.table
        with self._full():
            self.folder.mkdir(parents=True, exist_ok=True)
        data.missing = np.setdiff1d(np.arange(len(data.table)), [item.row for item in self._earlier])

    def on_predict_batch_start(self, *_: Any) -> None:
        """The batch's clock starts."""
        self._began = perf_counter()

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Write a batch: `image` float [B, C, H, W] in [0, 1] and `index` int64 [B]."""
        images = outputs["image"].detach().cpu()
        seconds = (perf_counter() - self._began) / len(images)
        for row, image in zip(outputs["index"].tolist(), images, strict=True):
            spent, retried = seconds, not bool(image.isfinite().all())
            if retried:
                began = perf_counter()
                image = _in_float32(pl_module, *self._table[["prompt", "seed"]].iloc[row])
                spent += perf_counter() - began
            item = Item(row, retried=retried, rank=trainer.global_rank, seconds=spent)
            if image.isfinite().all():
                pixels = _pixels(image)
                self._write(row, pixels, retried)
                item = item.of(pixels)
            self._items.append(item)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the ranks' parts up; here, for where nothing is missing Lightning calls no hook of the prediction."""
        if stage != "predict":
            return
        new = [item for rank in gathered(self._items) for item in rank]
        self._items = sorted(self._earlier + new, key=lambda item: item.row)
        rows = [item.row for item in self._items]
        if len(set(rows)) != len(rows):
            raise RuntimeError(f"of {len(rows)} images {len(set(rows))} are distinct: each must be made once")
        if trainer.global_rank == 0:
            with self._full():
                write_table(self.folder / MANIFEST, manifest(self._items, self._table, self.model))
                self._draw()

    def summary(self) -> dict[str, Any]:
        """`metrics`, `intervals` (none), `counts` and `warnings` of the last prediction, of all ranks on each."""
        failed = [item for item in self._items if not item.made]
        counts = {
            "predict/images": len(self._items) - len(failed),
            "predict/already_made": len(self._earlier),
            "predict/retried": sum(item.retried for item in self._items),
            "predict/failed": len(failed),
        }
        told = {
            "could not be made: their pixels are not finite, not even in float32": failed,
            "were made in float32, for in the run's own precision their pixels were not finite": [
                item for item in self._items if item.made and item.retried
            ],
            "are of one value all over": [item for item in self._items if item.constant],
        }
        warnings = [f"{len(items)} images {what}: {self._names(items)}" for what, items in told.items() if items]
        if unreached := len(self._table) - len(self._items):
            warnings.append(f"{unreached} of {len(self._table)} prompts were not reached: start the run again")
        return {"metrics": {}, "intervals": {}, "counts": counts, "warnings": warnings}

    def _names(self, items: Sequence[Item]) -> str:
        names = ", ".join(str(self._table["id"].iat[item.row]) for item in items[:NAMED])
        return f"{names} and {len(items) - NAMED} more" if len(items) > NAMED else names

    def _write(self, row: int, pixels: np.ndarray, retried: bool) -> None:
        prompt = self._table.iloc[row]
        marks = {"prompt": prompt["prompt"], "seed": str(prompt["seed"]), "model": self.model}
        marks |= {"retried": "float32"} if retried else {}
        with self._full(), whole(self.folder / f"{prompt['id']}.png") as file:
            file.write_bytes(to_png(pixels, marks))

    def _draw(self) -> None:
        """Draw the first images of the table: a fair sample, not the best ones."""
        rows = [item.row for item in self._items if item.made]
        if not rows:
            return
        count, rows = len(rows), rows[:TILES]
        tiles = [_tile(self.folder / f"{self._table['id'].iat[row]}.png") for row in rows]
        shown = f"{count} images" if count == len(rows) else f"the first {len(rows)} of {count} images"
        title = f"Synthetic, of no patient: {shown} of model {self.model}"
        sheet = draw_sheet(tiles, self._table["prompt"].iloc[rows].tolist(), self.sheet_columns, title)
        with whole(self.folder.with_name(SHEET)) as file:
            file.write_bytes(to_png(np.asarray(sheet), {"model": self.model}))

    @contextmanager
    def _full(self) -> Iterator[None]:
        """Say in one sentence that the disk is full."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            kept = sum(1 for _ in self.folder.glob("*.png"))
            raise OSError(
                error.errno,
                f"{self.folder}: no space left; {kept} whole images are kept: make room and start the run again with "
                "the same run_dir, and it makes the others",
            ) from error


def manifest(items: Sequence[Item], table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows of manifest.csv, one an item, in the table's order.

    Columns: id, prompt, seed; file (relative to the manifest), width and height in pixels, blank where the item
    failed; model; status (made or failed); rank and seconds, blank where an earlier leg of the run made the item;
    retried (1 or 0).
    """
    prompts = table.iloc[[item.row for item in items]]
    done = np.array([item.made for item in items], dtype=bool)
    optional = {
        name: pd.array([getattr(item, name) for item in items], "Int64") for name in ("width", "height", "rank")
    }
    return pd.DataFrame({
        "id": prompts["id"].map(inert).to_numpy(),
        "prompt": prompts["prompt"].map(inert).to_numpy(),
        "seed": prompts["seed"].to_numpy(),
        "file": [inert(f"{name}.png") if made else "" for name, made in zip(prompts["id"], done, strict=True)],
        "width": optional["width"],
        "height": optional["height"],
        "model": model,
        "status": np.where(done, "made", "failed"),
        "rank": optional["rank"],
        "seconds": [item.seconds for item in items],
        "retried": [int(item.retried) for item in items],
    })  # fmt: skip


def _in_float32(model: Any, prompt: str, seed: int) -> Tensor:
    """One item made anew in single precision; float32 [C, H, W] on the CPU."""
    # bf16-true and 16-true hold the weights themselves in half precision: a copy leaves them as they are
    if any(weight.dtype in HALF for weight in model.parameters()):
        model = copy.deepcopy(model).float()
    with torch.autocast(model.device.type, enabled=False):
        image: Tensor = model.generate([prompt], [int(seed)])[0]
    return image.detach().cpu()


def _pixels(image: Tensor) -> np.ndarray:
    """[C, H, W] in [0, 1] to uint8, [H, W] of one channel and [H, W, 3] of three, rounded to the nearest."""
    pixels = image.float().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _tile(path: Path) -> np.ndarray:
    """An image at a size at which the prompt beneath it can be read."""
    with Image.open(path) as image:
        side = max(image.size)
        if side > TILE:
            image.thumbnail((TILE, TILE))
        elif (times := TILE // side) > 1:
            return np.asarray(image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST))
        return np.asarray(image)
