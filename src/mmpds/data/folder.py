"""A plain folder of images without labels, as for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmpds.data.images import ImageFiles, find_images


class Folder(ImageFiles):
    """Every image below a folder, in natural order; nothing is known of any: labels are NaN.

    Args:
        root: the folder.
        findings: label columns to have, all NaN.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """

    def __init__(self, root: str | Path, findings: Sequence[str] = ()) -> None:
        paths = find_images(Path(root))
        table = pd.DataFrame({"id": paths, "group": paths, "normal": False, "path": paths})
        super().__init__(root, table.assign(**dict.fromkeys(findings, np.nan)), findings)
