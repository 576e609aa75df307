"""A problem of the configuration, and what every check of one is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a run from starting: the offending key, its value, and the cure.

    lacking: the user made no mistake, but this machine lacks what the value asks for, such as a GPU.
    """

    key: str
    value: object
    cure: str
    lacking: bool = False

    def __str__(self) -> str:
        return f"{self.key}{'=' if self.value != '' else ''}{self.value}: {self.cure}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names a user may have meant, the closest first; all of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    siblings = [other for other in known if other.rpartition(".")[0] == name.rpartition(".")[0]]
    return "did you mean " + " or ".join(close) + "?" if close else "choose from " + ", ".join(siblings or known)


def exists(key: str, value: Any, what: str) -> list[Problem]:
    """A problem where `value` names a file or folder that is not there; None names none."""
    if value is None or Path(str(value)).exists():
        return []
    return [Problem(key, value, f"no such {what}; give the path of one that exists (this is {Path.cwd()})")]


def is_file(key: str, value: Any) -> list[Problem]:
    """A problem where `value` names no file that is there, or a folder; None names none."""
    if value is not None and Path(str(value)).is_dir():
        return [Problem(key, value, "is a folder; give the path of a file")]
    return exists(key, value, "file")
