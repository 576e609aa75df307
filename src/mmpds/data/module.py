"""A source of images as a LightningDataModule: verified, split by patient, rebalanced, batched for every rank."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mmpds.data.batch import PADDING, Batch, Source
from mmpds.data.cache import open_source
from mmpds.data.folder import Folder
from mmpds.data.sampling import Draw, EvalBatches, TrainBatches, class_weights, groups_of
from mmpds.data.splits import leaks, split_by_group
from mmpds.data.transforms import Augment, to_image

SPLITS = ("train", "val", "test")


class Images(Dataset[Any]):
    """The rows of one split of a source; an item, of which the loader makes a `Batch`, is drawn by a `Draw`."""

    collate = staticmethod(default_collate)

    def __init__(self, source: Source, rows: np.ndarray, findings: Sequence[str], size: int) -> None:
        self.source, self.rows, self.size = source, rows, size
        self.table = source.table.iloc[rows].reset_index(drop=True)
        # a finding that this source does not label is unknown, not absent
        self.label = torch.tensor(self.table.reindex(columns=list(findings)).to_numpy(dtype=np.float32))
        captions = self.table.get("caption", pd.Series("", index=self.table.index))
        self.caption = captions.fillna("").astype(str).tolist()
        self._several = self.table["captions"].tolist() if "captions" in self.table else None
        self.augment = Augment()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        pixels, caption = self.source.image(int(self.rows[draw.row]), self.size), self.caption[draw.row]
        if draw.seed is not None:
            pixels = self.augment(pixels, draw.seed)
            if self._several and (several := self._several[draw.row]):
                caption = several[draw.seed % len(several)]
        index = PADDING if draw.padding else draw.row
        return {
            "image": to_image(pixels), "label": self.label[draw.row], "caption": caption,
            "index": torch.tensor(index),
        }  # fmt: skip


class ImageData(pl.LightningDataModule):
    """Images of one source, ready for any number of ranks.

    Args:
        source: a data set's class; called with `root=` where a root is given.
        root: the folder that holds the data set; None for a source that needs none.
        test_root: a folder of the same layout, used whole as the test split.
        predict_root: a plain folder of images, for prediction.
        findings: label columns that models see, in this order; None: all of the source.
        size: pixels a side.
        batch_size: items a step over all ranks together.
        split: `own` (by patient, in `fractions`) or `official` (the source's `split` column).
        fractions: shares of train, val and test.
        rebalance: `none`, `balanced` or `equal_normal` (see `class_weights`).
        rebalance_by: attributes (`sex`, `age_band`, `view`) whose groups are drawn equally often too.
        augment: whether training images are augmented.
        on_bad_image: `skip` leaves unreadable images out, `error` raises; both list them.
        cache_dir: where decoded images are kept; None decodes at every read.
        workers: loader processes a rank.
        split_seed: of the split; runs that are compared must have the same.
        seed: of the order and the augmentation of training.

    Raises:
        BadImages: an image cannot be read and `on_bad_image="error"`.
        ValueError: an argument's value cannot work; the text names it and the cure.
    """

    def __init__(
        self, source: Callable[..., Source], root: str | None = None, test_root: str | None = None,
        predict_root: str | None = None, findings: Sequence[str] | None = None, size: int = 224,
        batch_size: int = 32, split: str = "own", fractions: Sequence[float] = (0.7, 0.15, 0.15),
        split_seed: int = 0, rebalance: str = "none", rebalance_by: Sequence[str] | None = None,
        augment: bool = True, on_bad_image: str = "error", cache_dir: str | None = None, workers: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.batch_size, self.split, self.fractions = size, batch_size, split, tuple(fractions)
        self.rebalance, self.rebalance_by = rebalance, tuple(rebalance_by or ())
        self.augment, self.on_bad_image = augment, on_bad_image
        self.cache_dir, self.workers = cache_dir, workers
        self.seed, self.split_seed = seed, split_seed
        self.predict_root = predict_root
        self.test_source = source(root=test_root) if test_root else None
        self.source: Source | None = None
        if "root" not in inspect.signature(source).parameters:
            self.source = source()
        elif root or not (test_root or predict_root):
            self.source = source(root=root)
        if self.source is not None:
            groups_of(self.source.table, self.rebalance_by)  # wrong ones are told before anything is decoded
        labelled = self.source or self.test_source
        known = labelled.findings if labelled else tuple(findings or ())
        if unknown := set(findings or ()) - set(known):
            raise ValueError(f"data.findings: {sorted(unknown)} are not labelled here; choose from {list(known)}")
        self.findings: tuple[str, ...] = tuple(findings or known)
        self.rejected = pd.DataFrame(columns=["id", "reason"])
        self.images: dict[str, Images] = {}
        self.notes = [note for source in (self.source, self.test_source) for note in getattr(source, "notes", ())]
        self.leaked: list[str] = []  # what the test split shares with that of training
        self.load_s = 0.0
        self._trained: set[str] = set()  # digests of the training images
        self._patients: set[str] = set()  # their patients
        self.position = (0, 0)

    def _open(self, source: Source) -> tuple[Source, list[str]]:
        opened = open_source(source, self.size, self.cache_dir, torch.get_num_threads())
        if len(opened.rejected):
            if self.on_bad_image == "error":
                raise BadImages(opened.rejected)
            self.rejected = pd.concat([self.rejected, opened.rejected]).drop_duplicates("id")
        return opened.source, opened.digests

    def prepare_data(self) -> None:
        """Once a node: read every image, so that the ranks' own `setup` finds all in the cache."""
        began = time.perf_counter()
        if self.cache_dir is not None:
            for source in (self.source, self.test_source):
                if source is not None:
                    self._open(source)
        self.load_s += time.perf_counter() - began

    def setup(self, stage: str) -> None:
        """Make the splits that `stage` (fit, validate, test or predict) needs."""
        began = time.perf_counter()
        if stage == "predict":
            if self.predict_root is None:
                raise ValueError("data.predict_root: give the folder of images to predict")
            self._use_whole("predict", Folder(self.predict_root))
        elif stage == "test" and self.test_source is not None:
            self._use_whole("test", self.test_source)
        elif ("test" if stage == "test" else "train") not in self.images:
            self._split_source()
        self.load_s += time.perf_counter() - began

    def _use_whole(self, name: str, source: Source) -> None:
        if name not in self.images:
            source, digests = self._open(source)
            self.images[name] = self._images(name, source, np.arange(len(source.table)))
            if known := len(self._trained & set(digests)):
                (self.leaked if name == "test" else self.notes).append(
                    f"{known} {name} images are byte-identical to training images"
                )
            if known := len(self._patients & set(source.table["group"])):
                self.notes.append(f"{known} {name} patients have the names of training patients: are they the same?")

    def _split_source(self) -> None:
        if self.source is None:
            raise ValueError("data.root: give the folder that holds the data set; test_root is for testing alone")
        source, digests = self._open(self.source)
        table = source.table
        if self.split == "own":
            names = split_by_group(table, self.findings, self.fractions, self.split_seed, digests)
        else:
            names = official_split(table, self.findings, self.fractions, self.split_seed, digests)
        if found := leaks(names, table["group"], digests):
            raise ValueError("the splits leak: " + "; ".join(found[:5]) + "; use data.split=own")
        for name in SPLITS:
            if name != "test" or self.test_source is None:
                self.images[name] = self._images(name, source, np.flatnonzero(names == name))
        self._trained = {digest for digest, name in zip(digests, names, strict=True) if name == "train"}
        self._patients = set(table["group"][names == "train"])

    def _images(self, name: str, source: Source, rows: np.ndarray) -> Images:
        if not len(rows):
            raise ValueError("data: a split has no images; give more images or other data.fractions")
        return Images(source, rows, self.findings, self.size)

    def positive_weight(self) -> torch.Tensor:
        """Negatives / positives of each finding in the training split, float32 [C]; 1 where there are no positives."""
        label = self.images["train"].label
        positive, negative = (label == 1).sum(0), (label == 0).sum(0)
        return torch.where(positive > 0, negative / positive.clamp(min=1), torch.ones(len(self.findings)))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, from where a resumed run stands."""
        images = self.images["train"]
        epoch, step = self.position
        rank, world_size = self._place()
        weights = class_weights(images.table, self.findings, self.rebalance, self.rebalance_by)
        batches = TrainBatches(
            len(images), self.batch_size, weights=weights, augment=self.augment, seed=self.seed,
            rank=rank, world_size=world_size, epoch=epoch, step=step,
        )  # fmt: skip
        return self._loader(images, batches)

    def _place(self) -> tuple[int, int]:
        """Rank and world size; alone where no trainer uses this module."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that training would go on with, for the checkpoint."""
        if self.trainer is None:
            return {"epoch": self.position[0], "step": self.position[1]}
        loop = self.trainer.fit_loop
        progress: Any = loop.epoch_progress.current
        step = loop.epoch_loop.batch_progress.current.ready
        if step < self.trainer.num_training_batches:
            return {"epoch": progress.processed, "step": step}
        return {"epoch": progress.started, "step": 0}  # the epoch's batches are through, it has been started

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning calls this before it asks for the training batches, and restores its own loops only after."""
        self.position = (state_dict["epoch"], state_dict["step"])

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation item once."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test item once."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Every image of the folder once."""
        return self.eval_dataloader("predict")

    def eval_dataloader(self, name: str) -> DataLoader[Batch]:
        """Every item of a split once, as it is; `name` is a key of `images`."""
        images = self.images[name]
        rank, world_size = self._place()
        return self._loader(images, EvalBatches(len(images), self.batch_size, rank=rank, world_size=world_size))

    def _loader(self, images: Images, batches: TrainBatches | EvalBatches) -> DataLoader[Batch]:
        return DataLoader(
            images, batch_sampler=batches, collate_fn=images.collate,
            num_workers=self.workers, persistent_workers=self.workers > 0,
            # a forked worker may inherit a lock that MPI or OpenMP holds
            multiprocessing_context="spawn" if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


def official_split(
    table: pd.DataFrame, findings: Sequence[str], fractions: Sequence[float], seed: int, digests: Sequence[str]
) -> pd.Series:
    """The `split` column; where it has no `val`, patients of `train` are set apart for it.

    Raises:
        ValueError: the source has no official split.
    """
    if "split" not in table or table["split"].isna().any():
        raise ValueError("data.split=official: this data set has no official split here; use data.split=own")
    names = table["split"].copy()
    if not (names == "val").any():
        train = (names == "train").to_numpy()
        share = fractions[1] / (fractions[0] + fractions[1])
        kept = [digest for digest, inside in zip(digests, train, strict=True) if inside]
        rows = table[train].reset_index(drop=True)
        names[train] = split_by_group(rows, findings, (1 - share, share, 0.0), seed, kept).to_numpy()
    return names


class BadImages(ValueError):  # noqa: N818 - named as BadImage is
    """Images that cannot be read; the text lists the first of them and how many there are."""

    def __init__(self, rejected: pd.DataFrame) -> None:
        listed = "; ".join(f"{row.id}: {row.reason}" for row in rejected.head(5).itertuples())
        more = f" and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        super().__init__(f"{len(rejected)} unreadable images ({listed}{more}); data.on_bad_image=skip leaves them out")
        self.rejected = rejected
