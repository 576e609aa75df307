"""Train, validation and test sets that share no patient and no image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

SPLITS = ("train", "val", "test")


def split_by_group(
    table: pd.DataFrame,
    findings: Sequence[str],
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    digests: Sequence[str] | None = None,
) -> pd.Series:
    """Split rows by patient, stratified over the combinations of findings as far as patients allow.

    Patients who share a byte-identical image count as one. Patients are put in order by their findings over
    all their images, then roughly by their number of images, then at random, and dealt out one by one to the
    split that is furthest behind its share. So each stretch of that order, a class or all, is shared out in
    the fractions to within about the images of one patient.

    Args:
        table: rows with `group`, `normal` and finding columns (1, 0, NaN); a missing one counts as all NaN.
        findings: the columns to stratify over.
        fractions: shares of train, val and test, summing to 1; 0 leaves a split empty.
        seed: another one gives another split; the same one gives the same split, whatever the order of rows.
        digests: a hash of each row's image, equal for identical images.

    Returns:
        "train", "val" or "test" of each row, with the index of `table`. No split with a share is empty.

    Raises:
        ValueError: the fractions make no sense, or there are fewer patients than splits.
    """
    shares = np.array(fractions, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or not np.isclose(shares.sum(), 1):
        raise ValueError(f"fractions={list(fractions)}: give shares of train, val and test that sum to 1")
    patient = _merged(table["group"], digests)
    patients = _patients(table, findings, patient, seed)
    wanted = int((shares > 0).sum())
    if len(patients) < wanted:
        raise ValueError(f"{len(patients)} patients cannot fill {wanted} splits; give more, or set some fractions to 0")
    images = patients["images"].to_numpy()
    split = _deal(images, shares)
    for empty in np.flatnonzero((np.bincount(split, minlength=3) == 0) & (shares > 0)):
        # a tiny set: the smallest patient of the split that has most of them
        largest = np.flatnonzero(split == np.bincount(split, minlength=3).argmax())
        split[largest[images[largest].argmin()]] = empty
    name = pd.Series(np.array(SPLITS)[split], index=patients.index)
    return pd.Series(name.loc[patient].to_numpy(), index=table.index, name="split")


def _deal(images: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Split of each patient, given in order: always the one most images behind its share."""
    behind = np.zeros(len(shares))
    split = np.empty(len(images), dtype=np.int64)
    for place, count in enumerate(images):
        behind += shares * count
        split[place] = np.where(shares > 0, behind, -np.inf).argmax()
        behind[split[place]] -= count
    return split


def _merged(groups: pd.Series, digests: Sequence[str] | None) -> np.ndarray:
    """Group of each row after groups with an image in common are made one, named by the smallest of them."""
    names = groups.to_numpy(dtype=object)
    parent: dict[str, str] = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    first: dict[str, str] = {}
    for name, digest in zip(names, digests or (), strict=digests is not None):
        one, other = root(first.setdefault(digest, name)), root(name)
        parent[max(one, other)] = min(one, other)
    return np.array([root(name) for name in names], dtype=object)


def _patients(table: pd.DataFrame, findings: Sequence[str], patient: np.ndarray, seed: int) -> pd.DataFrame:
    """One row a patient, indexed by name: the columns to order by, and `images`, in dealing order."""
    label = table.reindex(columns=list(findings)).astype(float).fillna(-1.0)
    label.columns = pd.Index([f"finding {name}" for name in findings])
    label["normal"] = table["normal"].astype(bool)
    by = label.groupby(patient)
    patients = by.max().assign(normal=by["normal"].min(), images=by.size())
    # rounded to half powers of two, so that patients of nearly the same size are still shuffled
    patients["size"] = -(2 * np.log2(patients["images"])).round()
    patients["random"] = [hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in patients.index]
    order = [name for name in patients.columns if name != "images"]
    return patients.sort_values(order)


def leaks(split: pd.Series, groups: pd.Series, digests: Sequence[str] | None = None) -> list[str]:
    """What splits have in common that they must not: patients, and byte-identical images of two patients.

    Args:
        split: the split of each row.
        groups: the patient of each row.
        digests: a hash of each row's image, equal for identical images.

    Returns:
        A line a leak, such as "patient person12 is in train and test"; empty if there are none.
    """
    rows = pd.DataFrame({"split": split.to_numpy(), "group": groups.to_numpy()})
    found = [f"patient {name} is in {_and(part['split'])}" for name, part in _shared(rows, "group")]
    if digests is not None:
        rows["digest"] = list(digests)
        for _, part in _shared(rows, "digest"):
            if part["group"].nunique() > 1:  # within one patient, the line above tells
                found.append(f"an image that patients {_and(part['group'])} share is in {_and(part['split'])}")
    return found


def _shared(rows: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """Values of `column` that occur in more than one split, with their rows."""
    places = rows[["split", column]].drop_duplicates()
    twice = places.loc[places[column].duplicated(), column]
    return [(str(value), part) for value, part in rows[rows[column].isin(twice)].groupby(column)]


def _and(names: pd.Series) -> str:
    return " and ".join(dict.fromkeys(str(name) for name in names))
