"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients with 14 findings mined from reports.

Wang et al., "ChestX-ray8: Hospital-scale chest X-ray database and benchmarks", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mmpds.data.images import ImageFiles, find_images

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
ORIGINAL = 1024
"""Pixels a side of the released images, in which the boxes are given."""
BOX = ["x", "y", "w", "h"]


class Nih(ImageFiles):
    """The images of ChestX-ray14 that are on disk, with labels, patients, official split and boxes.

    Args:
        root: the folder of `Data_Entry_2017*.csv`, `train_val_list.txt`, `test_list.txt` and
            `BBox_List_2017.csv`; the tables may be gzipped, the lists and boxes may be missing.
        findings: the label columns, out of the 14.
        images: the folder of images below `root`, searched with all its folders.

    Attributes:
        boxes: expert boxes of the images on disk: `id`, `finding`, and `x, y, w, h` of left edge, top edge,
            width and height as fractions of the image, in [0, 1].
        missing: number of labelled images that have no file here.

    Raises:
        ValueError: a table or the images are not there, or a finding is unknown.
    """

    def __init__(
        self,
        root: str | Path,
        findings: Sequence[str] = FINDINGS,
        images: str = ".",
    ) -> None:
        for finding in findings:
            if finding not in FINDINGS:
                near = get_close_matches(finding.capitalize(), FINDINGS, cutoff=0.4) or FINDINGS
                raise ValueError(f"findings: {finding!r} is not labelled in NIH; did you mean {' or '.join(near)}?")
        root = Path(root)
        file = _one_of(root, "Data_Entry_2017*.csv")
        if file is None:
            raise ValueError(f"root={root}: found no Data_Entry_2017*.csv[.gz]; give the folder of the NIH tables")
        entries = read_entries(file)
        path = entries["id"].map(_by_name(find_images(root, images)))
        self.missing = int(path.isna().sum())
        table = entries.assign(path=path)[path.notna()].reset_index(drop=True)
        if table.empty:
            raise ValueError(f"root={root}: no file in {root / images} is named in the table of labels; set images")
        table = label_columns(table, findings)
        split = _official_split(root)
        if split:
            table["split"] = table["id"].map(split)
        super().__init__(root, table, findings)
        self.boxes = _read_boxes(root, table["id"])


def _one_of(root: Path, pattern: str) -> Path | None:
    # the last by name is the newest: Data_Entry_2017_v2020.csv corrects Data_Entry_2017.csv
    return max((path for end in ("", ".gz") for path in root.glob(pattern + end)), default=None)


def read_entries(path: Path) -> pd.DataFrame:
    """The table of a release's labels, Data_Entry_2017*.csv: `id`, `group`, `sex`, `age`, `view` and `labels`.

    Raises:
        ValueError: a column is missing.
    """
    names = {
        "Image Index": "id", "Patient ID": "group", "Patient Gender": "sex", "Patient Age": "age",
        "View Position": "view", "Finding Labels": "labels",
    }  # fmt: skip
    # index_col=False: the header counts other columns than the rows, `OriginalImage[Width,Height]` being two
    raw = pd.read_csv(path, dtype=str, index_col=False)
    if absent := sorted(set(names) - set(raw.columns)):
        raise ValueError(f"{path}: columns {absent} are missing; use the table of the NIH release as it is")
    table = raw[list(names)].rename(columns=names)
    # the first release wrote 058Y, 011M and 003D, and some ages above 400
    age = table["age"].str.extract(r"^(\d+)([YMD]?)$")
    years = age[0].astype(float) / age[1].map({"Y": 1.0, "M": 12.0, "D": 365.25}).fillna(1.0)
    return table.assign(age=years.where(years <= 120))


def label_columns(entries: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The entries with a float column a finding (1 or 0) and `normal`, in place of `labels`."""
    labels = "|" + entries["labels"] + "|"
    columns = {name: labels.str.contains(f"|{name}|", regex=False).astype(float) for name in findings}
    return entries.drop(columns="labels").assign(**columns, normal=labels == "|No Finding|")


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Path of each file name.

    Raises:
        ValueError: a name occurs twice, as where folders of several sizes are searched.
    """
    found: dict[str, str] = {}
    for path in paths:
        name = PurePosixPath(path).name
        if name in found:
            raise ValueError(
                f"images: both {found[name]} and {path} are there; name one of these folders, by data.source.images"
            )
        found[name] = path
    return found


def _official_split(root: Path) -> dict[str, str]:
    """Split of each image: the release has no validation list, that of training is for both."""
    names = {}
    for file, split in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        if (root / file).is_file():
            names.update(dict.fromkeys((root / file).read_text().split(), split))
    return names


def _read_boxes(root: Path, ids: pd.Series) -> pd.DataFrame:
    path = _one_of(root, "BBox_List_2017.csv")
    if path is None:
        return pd.DataFrame({"id": [], "finding": []} | {name: np.empty(0) for name in BOX})
    # the header has stray columns: take the six by place
    boxes = pd.read_csv(path, header=None, skiprows=1, usecols=range(6), names=["id", "finding", *BOX])
    boxes = boxes[boxes["id"].isin(ids)].reset_index(drop=True)
    boxes["finding"] = boxes["finding"].replace("Infiltrate", "Infiltration")
    boxes[BOX] = boxes[BOX] / ORIGINAL
    return boxes
