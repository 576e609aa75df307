"""What groups a patient belongs to: those that sampling balances and that an audit compares."""

from __future__ import annotations

import pandas as pd

ATTRIBUTES = ("sex", "age_band", "view")
AGE_BANDS = {"<18": (0, 18), "18-39": (18, 40), "40-59": (40, 60), "60-79": (60, 80), "80+": (80, 121)}
"""Name -> years, from and below: children, young, middle-aged, old and very old adults."""


def age_band(age: pd.Series) -> pd.Series:
    """Band of each age in years, str; missing where the age is missing or none that people reach (below 0, above 120).

    The bands are those of `AGE_BANDS`.
    """
    edges = [low for low, _ in AGE_BANDS.values()] + [121]
    years = pd.to_numeric(age, errors="coerce")
    return pd.cut(years, edges, right=False, labels=list(AGE_BANDS)).astype(object)


def attributes(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `ATTRIBUTES` that a source's table tells of: `age_band` from its `age`, the others as they are.

    Values are str, missing where unknown; a column of which nothing is known is left out.

    Args:
        table: N rows, with or without `sex`, `age` and `view`.
    """
    columns = {}
    for name in ATTRIBUTES:
        source = "age" if name == "age_band" else name
        if source in table and table[source].notna().any():
            columns[name] = age_band(table["age"]) if name == "age_band" else table[name]
    return pd.DataFrame(columns, index=table.index)
