"""A folder of class folders, the layout of Kermany's chest X-rays and of most small public sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from mmpds.data.images import ImageFiles, find_images

NORMAL = {"normal", "no_finding", "no finding", "healthy", "negative"}
SPLITS = {"train", "val", "test"}
PATIENT = re.compile(r"(person\d+)_|((?:NORMAL\d*-)?IM-\d+)-")


class ChestXray(ImageFiles):
    """Images labelled by the folder they lie in: `root/CLASS/…` or `root/{train,val,test}/CLASS/…`.

    The class folders normal, no_finding, healthy and negative (in any case) hold images without any finding;
    every other one is a finding, with its name capitalised: PNEUMONIA becomes Pneumonia. All images found are
    taken, whatever their split folder, which becomes the column `split`. An image of one class counts as not
    having the other findings.

    Patients are told by Kermany's file names (Kermany et al., Cell 172(5), 2018): `person12_virus_34.jpeg` is
    of person12, `NORMAL2-IM-0555-0001.jpeg` of the series NORMAL2-IM-0555. Any other file is its own patient.

    Args:
        root: the folder of class folders, or of split folders.
        findings: the label columns; None: one a class folder that is not normal, in alphabetical order.

    Attributes:
        notes: what a run warns of: that files do not tell their patients.

    Raises:
        ValueError: there are no class folders with images, or none for a finding asked for, or images lie beside
            folders of splits.
    """

    def __init__(self, root: str | Path, findings: Sequence[str] | None = None) -> None:
        paths = [PurePosixPath(path) for path in find_images(Path(root))]
        split = [path.parts[0].lower() if path.parts[0].lower() in SPLITS else None for path in paths]
        depth = [0 if name is None else 1 for name in split]
        label = [_label(path.parts[at:-1]) for path, at in zip(paths, depth, strict=True)]
        table = pd.DataFrame({
            "id": [str(path) for path in paths],
            "group": [patient(path) for path in paths],
            "normal": [name == "normal" for name in label],
            "path": [str(path) for path in paths],
            "split": split,
            "class": label,
        })  # fmt: skip
        table = table[table["class"].notna()].reset_index(drop=True)  # files beside the class folders
        found = tuple(sorted(set(table["class"]) - {"normal"}))
        chosen = found if findings is None else tuple(findings)
        if table.empty or not chosen:
            raise ValueError(
                f"root={root}: found no class folders with images, one of them a finding; "
                "give the folder that holds NORMAL and PNEUMONIA, or train, val and test with those in each"
            )
        inside = table["split"].notna()
        if inside.any() and not inside.all():
            strays = sorted({PurePosixPath(path).parts[0] for path in table["path"][~inside]})
            raise ValueError(
                f"root={root}: {', '.join(strays)} beside {', '.join(sorted(table['split'][inside].unique()))}: is it "
                "a split of another name, or a copy of all? name splits train, val and test, and move the rest away"
            )
        if found and (unknown := sorted(set(chosen) - set(found))):
            raise ValueError(f"findings={unknown}: {root} has class folders only for {list(found)}; name these")
        unnamed = sum(PATIENT.match(PurePosixPath(path).name) is None for path in table["path"])
        self.notes = [
            f"{unnamed} images count as a patient each, for their names tell none: where several are of one patient, "
            "splits leak and intervals are too narrow"
        ] * (unnamed > 0)  # fmt: skip
        columns = {finding: (table["class"] == finding).astype(float) for finding in chosen}
        unused = ["class"] if inside.any() else ["class", "split"]
        super().__init__(root, table.drop(columns=unused).assign(**columns), chosen)


def _label(folders: tuple[str, ...]) -> str | None:
    """`normal`, or the finding that the topmost folder is named for."""
    if not folders:
        return None
    name = folders[0]
    if name.lower() in NORMAL:
        return "normal"
    return name.capitalize() if name.isupper() or name.islower() else name


def patient(path: PurePosixPath) -> str:
    """The patient, as far as the file's name tells: a person, else a series, else the file itself."""
    match = PATIENT.match(path.name)
    return next(name for name in match.groups() if name) if match else str(path.with_suffix(""))
