"""Predictions that exist already: the predictions.csv of a run, or any other model's probabilities and labels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmpds.data import nih
from mmpds.results import as_written

LABEL, PROBABILITY, PREFIX = " label", " probability", "prob_"
KNOWN = ("group", "split", "sex", "age", "view", "normal")
"""Columns of an item that are no findings; what they hold `Source` says."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities of items with labels.

    table: a row an item, a RangeIndex, and the columns of `Source`: `id`, `group`, a float column a finding
        (1, 0, NaN: not labelled), and `normal` (bool), `split`, `sex`, `age` and `view` where they are known.
    prob: float [N, C] in [0, 1]; float32 where a run wrote them, as its model gave them.
    findings: C names.
    notes: what a reader of the results must know of the files.
    """

    table: pd.DataFrame
    prob: np.ndarray
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> np.ndarray:
        """1, 0 or NaN: float64 [N, C]."""
        return self.table[list(self.findings)].to_numpy(dtype=np.float64)

    def part(self, rows: np.ndarray) -> Predictions:
        """The items of a mask, bool [N]."""
        return Predictions(self.table[rows].reset_index(drop=True), self.prob[rows], self.findings)


def read_predictions(
    path: str | Path, labels: str | Path | None = None, findings: Sequence[str] | None = None
) -> Predictions:
    """Read probabilities and join them with the labels that they are judged by; both files may be gzipped.

    Args:
        path: the predictions.csv of a run (`F probability`, and `F label` beside it), or a CSV with a column of
            probabilities a finding, named `F` or `prob_F`. The column `id`, or `Image Index`, or else the first
            one names the items.
        labels: a CSV with a row an item: NIH's Data_Entry_2017*.csv as released, or ids, a column a finding (1, 0,
            blank: not labelled) and, where known, `group` (the patient), `split`, `sex`, `age`, `view`, `normal`
            (1 or 0). None: `path` holds the labels.
        findings: which to read, in this order; None: all that have probabilities and labels.

    Raises:
        ValueError: whatever is wrong with the files, with counts, first examples and the cure.
    """
    raw = _read("data.predictions", Path(path))
    names = [str(name) for name in raw.columns if name not in ("id", *KNOWN)]
    own = {as_written(name.removesuffix(PROBABILITY)): name for name in names if name.endswith(PROBABILITY)}
    # of a finding's prob_F and F the first is the probability, the other is most likely its label
    columns = own or {n.removeprefix(PREFIX): n for n in names if n.startswith(PREFIX) or PREFIX + n not in names}
    raw.index = pd.Index(raw["id"])
    if labels is not None:
        known = _read_labels(Path(labels))
        known.index = pd.Index(known["id"])
    elif own:
        known = raw.drop(columns=own.values())
        labelled = {name: as_written(name.removesuffix(LABEL)) for name in map(str, known) if name.endswith(LABEL)}
        known = known.rename(columns=labelled)
    else:
        raise ValueError(f"data.predictions={path}: a CSV without labels; give data.labels=FILE, with a row an item")
    shared = [name for name in columns if name in known and name not in KNOWN]
    both = [name for name in findings or shared if name in shared]
    wrong = []
    if missing := [name for name in findings or () if name not in shared] or ([] if both else ["every finding"]):
        wrong.append(
            f"{_first(missing)} lacks a column of probabilities or one of labels; there are probabilities of "
            f"{_first(list(columns))}, and with them labels of {_first(shared) or 'none'}; a finding has the same name "
            "in both files, or prob_ before it"
        )
    wrong += _identity(raw, path) + (_identity(known, labels) if labels is not None else [])
    if absent := raw.index.dropna().difference(known.index, sort=False).tolist():
        wrong.append(f"{len(absent):,} items have no row in {labels} ({_first(absent)}); add their labels")
    known = known[~known.index.duplicated()].reindex(raw.index)
    for name in set(KNOWN) & set(raw.columns) - set(known.columns):
        known[name] = raw[name].to_numpy()
    prob, faults = _numbers(raw[[columns[name] for name in both]].set_axis(both, axis=1))
    faults |= (prob < 0) | (prob > 1) | prob.isna()
    wrong += _faults(faults, raw.rename(columns={columns[name]: name for name in both}), (
        "probabilities are no numbers from 0 to 1", "give probabilities, not logits; leave out items that have none"
    ))  # fmt: skip
    label, faults = _numbers(known[both])
    faults |= ~label.isin((0, 1)) & label.notna()
    wrong += _faults(faults, known, ("labels are none of 1, 0 and blank", "leave what is uncertain blank"))
    if wrong:
        raise ValueError(f"data.predictions={path}: " + "; ".join(wrong))

    kept = label.notna().any(axis=1).to_numpy()
    if not kept.any():
        raise ValueError(f"data.predictions={path}: no item has a label; give data.labels=FILE")
    table, notes = _described(known[kept])
    unused = [name for name in columns if name not in known] if findings is None else []
    notes += [f"{len(unused)} columns have no labels and are left out: {_first(unused)}"] if unused else []
    if left := int((~kept).sum()):
        notes.append(f"{left:,} items without any label are left out")
    values = prob.to_numpy(dtype=np.float32 if own else np.float64)
    table = pd.concat([table, label[kept]], axis=1).reset_index(drop=True)
    return Predictions(table, values[kept], tuple(both), tuple(notes))


def _read(key: str, path: Path) -> pd.DataFrame:
    """A CSV as texts, blanks as NaN; the ids in a column `id`, as they were before `inert` quoted them."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], index_col=False)
    except (OSError, EOFError, UnicodeError, zlib.error, pd.errors.ParserError, pd.errors.EmptyDataError) as why:
        reason = " ".join(str(why).split())
        raise ValueError(f"{key}={path}: cannot be read as CSV ({reason}); give a .csv or .csv.gz file") from None
    if table.empty or table.shape[1] < 2:
        size = f"{len(table)} rows and {table.shape[1]} columns"
        raise ValueError(f"{key}={path}: {size}; give a CSV with a header, a column of ids and one a finding")
    named = next((name for name in ("id", "Image Index") if name in table), table.columns[0])
    table = table.rename(columns={named: "id"})
    return table.assign(id=table["id"].map(as_written, na_action="ignore"))


def _read_labels(path: Path) -> pd.DataFrame:
    table = _read("data.labels", path)
    return nih.label_columns(nih.read_entries(path), nih.FINDINGS) if "Finding Labels" in table else table


def _identity(table: pd.DataFrame, path: str | Path | None) -> list[str]:
    """What is wrong with the ids of a file."""
    wrong = []
    if blank := int(table["id"].isna().sum()):
        wrong.append(f"{blank:,} rows of {path} have no id; give each its own")
    if twice := table["id"].dropna().loc[lambda ids: ids.duplicated().to_numpy()].unique().tolist():
        wrong.append(f"{len(twice):,} ids occur more than once in {path} ({_first(twice)}); keep one row an item")
    return wrong


def _numbers(texts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Numbers, NaN where there is none, and which cells are no numbers although they are not blank."""
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    return numbers, numbers.isna() & texts.notna()


def _faults(faults: pd.DataFrame, texts: pd.DataFrame, told: tuple[str, str]) -> list[str]:
    """One sentence for all faulty cells, with the first of them; none where there are none."""
    rows, places = np.nonzero(faults.to_numpy())
    if not len(rows):
        return []
    cells = [(texts.index[row], faults.columns[place]) for row, place in zip(rows[:3], places[:3], strict=True)]
    shown = [f"{name} of {item}: {texts[name].iloc[row]}" for (item, name), row in zip(cells, rows[:3], strict=True)]
    return [f"{len(rows):,} {told[0]} ({'; '.join(shown)}); {told[1]}"]


def _described(known: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`id`, `group` and what else is known of the items, in the types of `Source`; and what is not known."""
    table, notes = pd.DataFrame({"id": known.index.astype(str)}, index=known.index), []
    for name in ("group", "split", "view"):
        if name in known:
            table[name] = known[name].map(as_written, na_action="ignore")
    if blank := int(table["group"].isna().sum()) if "group" in table else len(table):
        table["group"] = table["group"].fillna(table["id"]) if "group" in table else table["id"]
        notes.append(
            f"no column group names the patient of {blank:,} items: each counts as a patient of its own, and "
            "intervals are too narrow where patients have several"
        )
    if "sex" in known:
        table["sex"] = known["sex"].str.strip().str[:1].str.upper()
    if "age" in known:
        table["age"] = pd.to_numeric(known["age"], errors="coerce").astype(np.float64)
    normal = known["normal"].astype(str).str.lower().str.removesuffix(".0") if "normal" in known else None
    if normal is not None and normal.isin(("1", "0", "true", "false")).all():
        table["normal"] = normal.isin(("1", "true"))
    else:
        notes.append("no column normal (1 or 0 of every item): false positives on normal items are not known")
    return table, notes


def _first(values: Mapping[str, str] | Sequence[str] | pd.Index) -> str:
    """The first few of many names."""
    names = list(values)
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
