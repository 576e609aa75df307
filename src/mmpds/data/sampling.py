"""Which item each rank sees when: every item exactly once in evaluation, the stated global batch in training.

Sampler state is a pure function of (seed, epoch, step, rank), so a resumed run draws what the interrupted
one would have drawn, and N ranks draw together what one rank draws alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmpds.data.attributes import attributes


class Draw(NamedTuple):
    """One item to load: its row, the seed of its augmentation (None: as it is), and whether it only pads."""

    row: int
    seed: int | None = None
    padding: bool = False


class TrainBatches:
    """Batches of draws for one rank: a permutation, or weighted draws with replacement, cut into global batches.

    A global batch holds `batch_size` items whatever the number of ranks; rank r gets its r-th slice. What is
    left over at an epoch's end is dropped, since a smaller batch would weigh its items more.

    Args:
        rows: number of items.
        batch_size: items a step, over all ranks; divides by `world_size`.
        weights: probability of each item up to a factor, float [rows]; None draws each once an epoch.
        augment: whether draws carry an augmentation seed.
        epoch: the epoch to begin with, and `step` the first batch in it: where a resumed run goes on.
    """

    def __init__(
        self, rows: int, batch_size: int, *, weights: np.ndarray | None = None, augment: bool = True,
        seed: int = 0, rank: int = 0, world_size: int = 1, epoch: int = 0, step: int = 0,
    ) -> None:  # fmt: skip
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} does not divide over {world_size} ranks; give a multiple")
        if rows < batch_size:
            raise ValueError(f"batch_size={batch_size} is larger than the training set of {rows}; give at most {rows}")
        self.rows, self.batch_size, self.weights, self.augment = rows, batch_size, weights, augment
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch, self._skip = epoch, (epoch, step)

    def __len__(self) -> int:
        """Batches an epoch, those skipped after resuming included."""
        return self.rows // self.batch_size

    @property
    def sampler(self) -> TrainBatches:
        """Itself: this is where Lightning looks for `set_epoch` in a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        """This rank's share of each global batch of the epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        count = len(self) * self.batch_size
        if self.weights is None:
            order = rng.permutation(self.rows)[:count]
        else:
            order = rng.choice(self.rows, size=count, p=self.weights / self.weights.sum())
        seeds = rng.integers(2**63, size=count)
        share = self.batch_size // self.world_size
        first = self._skip[1] if self._skip[0] == self.epoch else 0
        for step in range(first, len(self)):
            start = step * self.batch_size + self.rank * share
            yield [Draw(int(order[i]), int(seeds[i]) if self.augment else None) for i in range(start, start + share)]


class EvalBatches:
    """Batches of draws for one rank such that all ranks together see each item exactly once.

    Every rank gets the same number of items, so that collectives match; the surplus is marked as padding.

    Args:
        rows: number of items, at least one.
        batch_size: items a step, over all ranks.
    """

    def __init__(self, rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if rows < 1:
            raise ValueError("there is nothing to evaluate: the split has no items")
        share = -(-rows // world_size)
        mine = range(rank * share, (rank + 1) * share)
        self.draws = [Draw(row) if row < rows else Draw(rows - 1, padding=True) for row in mine]
        self.share = max(1, batch_size // world_size)

    def __len__(self) -> int:
        """Batches of this rank, the same for every rank."""
        return -(-len(self.draws) // self.share)

    def __iter__(self) -> Iterator[list[Draw]]:
        """This rank's batches; the last may be smaller."""
        for start in range(0, len(self.draws), self.share):
            yield self.draws[start : start + self.share]


def groups_of(table: pd.DataFrame, by: Sequence[str]) -> list[pd.Series]:
    """Each attribute's group of every row, str; "unknown" where it is.

    Raises:
        ValueError: the table does not tell an attribute.
    """
    known = attributes(table)
    if missing := [name for name in by if name not in known]:
        cure = f"choose from {list(known)}" if len(known.columns) else "use rebalance_by=null"
        raise ValueError(f"data.rebalance_by: this data set does not tell {', '.join(missing)}; {cure}")
    return [known[name].fillna("unknown").astype(str) for name in by]


def class_weights(
    table: pd.DataFrame, findings: Sequence[str], rebalance: str, by: Sequence[str] = ()
) -> np.ndarray | None:
    """Sampling weight of each row, float64 [N], for a rebalanced epoch; None where nothing tells classes apart.

    Images are put in classes, classes are drawn equally often, then patients within a class, then a patient's
    images in it: a patient with many images does not count more.

    Args:
        table: the training rows, with `group`, `normal` and the finding columns.
        findings: columns that tell the classes apart.
        rebalance: none; balanced (each combination of findings is a class); equal_normal (normal against the rest).
        by: attributes (see `attributes`) that divide each of these classes further; those of whom one is unknown are
            a class of their own.

    Raises:
        ValueError: all rows are of one class, so there is nothing to balance; or an attribute is not known here.
    """
    if rebalance == "none" and not by:
        return None
    parts = groups_of(table, by)
    if rebalance == "equal_normal":
        parts.append(table["normal"].astype(int).astype(str))
    elif rebalance == "balanced":
        parts.append(table[list(findings)].fillna(0).astype(int).astype(str).agg("".join, axis=1))
    label = pd.concat(parts, axis=1).agg("/".join, axis=1).rename("label")
    if label.nunique() < 2:
        asked = f"data.rebalance={rebalance}" + (f" data.rebalance_by={list(by)}" if by else "")
        cure = "use rebalance=none" + (" rebalance_by=null" if by else "")
        raise ValueError(f"{asked}: all training images are of one class; {cure}")
    images = table.groupby([label, table["group"]])["id"].transform("size")
    patients = table.groupby(label)["group"].transform("nunique")
    return (1.0 / (images * patients)).to_numpy(dtype=np.float64)
