"""Images verified once and decoded once: digests remembered, pixels kept in a memory-mapped file.

Shapes: N = rows of the source, S = pixels a side.

    directory/digests-<root>.json   digest of each file with the size and time of change it had then
    directory/<key>/pixels          uint8 [N, S, S], then uint32 [N]: a checksum a slot, 0 where it is empty

The key tells what the pixels were made of, so no entry ever gets stale. Any number of processes fill a file
at once without locks: all would write the same bytes, and a slot counts only where its checksum is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd

from mmpds.data.batch import Source
from mmpds.data.images import BadImage, ImageFiles

PREPROCESSING = 1
"""Part of the key: to be raised whenever `mmpds.data.images` makes other pixels of the same file."""
WORTH_A_WORKER = 1000
"""Starting a process takes about as long as decoding this many small images."""


class Opened(NamedTuple):
    """A source whose every image can be read.

    source: the rows that can be read, numbered anew.
    digests: of these rows.
    rejected: columns `id` and `reason` of the other rows.
    """

    source: Source
    digests: list[str]
    rejected: pd.DataFrame


def open_source(source: Source, size: int, directory: str | Path | None, workers: int = 0) -> Opened:
    """Read every image of a source, to leave out those that cannot be.

    With a directory, each image is decoded only the first time, and what does not change is not read again.

    Args:
        source: a set of images.
        size: pixels a side that images will be asked for.
        directory: where digests and decoded images are kept; None keeps nothing.
        workers: processes to decode with; up to 1, this one does.

    Raises:
        OSError: the directory cannot be written or has no room.
    """
    folder = None if directory is None else Path(directory)
    digests, rejected = _digests(source, folder, workers)
    kept: Source = source
    todo: np.ndarray = np.arange(len(digests))
    if folder is not None:
        cached = CachedSource(source, size, folder / key(source, digests, size))
        kept, todo = cached, np.flatnonzero(cached.empty)
    rejected |= _verify(kept, [row for row in todo.tolist() if row not in rejected], size, workers)
    good = np.array([row for row in range(len(digests)) if row not in rejected], dtype=np.int64)
    bad = sorted(rejected)
    listed = pd.DataFrame({"id": source.table["id"].iloc[bad].tolist(), "reason": [rejected[row] for row in bad]})
    return Opened(Rows(kept, good) if bad else kept, [digests[row] for row in good], listed)


def key(source: Source, digests: Iterable[str], size: int) -> str:
    """Name of the pixels that a class of source makes of the images with these digests, at this size."""
    made_by = f"{type(source).__module__}.{type(source).__qualname__}"
    text = "\n".join([f"{PREPROCESSING} {made_by} {size}", *digests])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Rows:
    """Some rows of a source, numbered anew; a `Source`."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.table = source.table.iloc[rows].reset_index(drop=True)
        self.findings = source.findings

    @property
    def boxes(self) -> pd.DataFrame | None:
        """The source's boxes, by id; None where it has none."""
        return getattr(self.source, "boxes", None)

    @property
    def questions(self) -> pd.DataFrame | None:
        """The source's questions, by image_name; None where it has none."""
        return getattr(self.source, "questions", None)

    def image(self, row: int, size: int) -> np.ndarray:
        """See `Source.image`."""
        return self.source.image(int(self.rows[row]), size)

    def digest(self, row: int) -> str:
        """See `Source.digest`."""
        return self.source.digest(int(self.rows[row]))


class CachedSource:
    """A source with its images of one size kept in a file, each from when it is first asked for; a `Source`.

    Args:
        source: the source.
        size: pixels a side that are kept; other sizes go to the source.
        folder: of this source's pixels, made with all the room it needs where it is not there.

    Raises:
        OSError: the folder cannot be written or has no room.
    """

    def __init__(self, source: Source, size: int, folder: Path) -> None:
        self.source, self.size, self.folder = source, size, folder
        self.table, self.findings = source.table, source.findings
        shape = (len(self.table), size, size)
        path = _file(folder, shape)
        checksums = int(np.prod(shape))
        self._pixels = np.memmap(path, np.uint8, "r+", 0, shape)
        self._checksums = np.memmap(path, "<u4", "r+", checksums, shape[:1])

    def __reduce__(self) -> tuple[type[CachedSource], tuple[Source, int, Path]]:
        # a worker process maps the file itself: pickled, a map would become a copy
        return CachedSource, (self.source, self.size, self.folder)

    @property
    def boxes(self) -> pd.DataFrame | None:
        """The source's boxes, by id; None where it has none."""
        return getattr(self.source, "boxes", None)

    @property
    def questions(self) -> pd.DataFrame | None:
        """The source's questions, by image_name; None where it has none."""
        return getattr(self.source, "questions", None)

    @property
    def empty(self) -> np.ndarray:
        """Rows whose image is not kept yet, bool [N]."""
        return np.asarray(self._checksums == 0)

    def image(self, row: int, size: int) -> np.ndarray:
        """See `Source.image`."""
        if size != self.size:
            return self.source.image(row, size)
        pixels = np.array(self._pixels[row])
        if self._checksums[row] != _checksum(pixels):  # empty, damaged, or being written right now
            pixels = self.source.image(row, size)
            self._pixels[row] = pixels
            self._checksums[row] = _checksum(pixels)
        return pixels

    def digest(self, row: int) -> str:
        """See `Source.digest`."""
        return self.source.digest(row)


def _checksum(pixels: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data) | 1  # never 0, which an empty slot has


def _file(folder: Path, shape: tuple[int, int, int]) -> Path:
    """The file of pixels and checksums, made at once with all its room, by whichever process is first."""
    path = folder / "pixels"
    needed = int(np.prod(shape)) + 4 * shape[0]
    if path.exists():
        if path.stat().st_size != needed:
            raise OSError(f"{path} has {path.stat().st_size} bytes instead of {needed}; delete {folder}")
        return path
    made = folder.with_name(f"{folder.name}.{uuid4().hex}")
    try:
        made.mkdir(parents=True)
        with (made / path.name).open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk is SIGBUS, once mapped memory is written
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.truncate(needed)
        try:
            made.rename(folder)  # fails where the folder is there already, with another process's file
        except OSError:
            if not path.exists():
                raise
    except OSError as error:
        raise OSError(
            f"cache_dir={folder.parent}: decoded images need {needed:,} bytes there: {error.strerror}; "
            "make room, name another folder, or set cache_dir=null to decode at every read"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return path


def _verify(source: Source, rows: Sequence[int], size: int, workers: int) -> dict[int, str]:
    """Decode rows; returns the reason of each that cannot be."""
    workers = min(workers, len(rows) // WORTH_A_WORKER)
    if workers <= 1:
        return _unreadable(source, size, rows)
    # small chunks, so that no worker is the last for long; spawned, as MPI and threads do not survive a fork
    chunks = [rows[start :: workers * 8] for start in range(workers * 8)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = pool.map(partial(_unreadable, source, size), chunks)
        return {row: reason for part in found for row, reason in part.items()}


def _unreadable(source: Source, size: int, rows: Sequence[int]) -> dict[int, str]:
    reasons = {}
    for row in rows:
        try:
            source.image(row, size)
        except BadImage as error:
            reasons[row] = str(error)
    return reasons


def _digests(source: Source, directory: Path | None, workers: int) -> tuple[list[str], dict[int, str]]:
    """Digest of each row, "" where it cannot be read, and the reason there."""
    if directory is None or not isinstance(source, ImageFiles):
        return _read_digests(source, range(len(source.table)), workers)
    memo = directory / f"digests-{hashlib.sha256(os.fsencode(source.root.resolve())).hexdigest()[:16]}.json"
    known = _load(memo)
    paths = source.table["path"].tolist()
    stamps = [_stamp(source.root / path) for path in paths]  # before reading, so that a later change shows
    digests = [
        known[path][-1] if path in known and known[path][:2] == stamp else ""
        for path, stamp in zip(paths, stamps, strict=True)
    ]
    todo = [row for row, digest in enumerate(digests) if not digest]
    read, reasons = _read_digests(source, todo, workers)
    for row, digest in zip(todo, read, strict=True):
        digests[row] = digest
        known[paths[row]] = [*stamps[row], digest]
    if any(read):
        _save(memo, {path: entry for path, entry in known.items() if entry[-1]})
    return digests, reasons


def _read_digests(source: Source, rows: Sequence[int], workers: int) -> tuple[list[str], dict[int, str]]:
    reasons: dict[int, str] = {}

    def digest(row: int) -> str:
        try:
            return source.digest(row)
        except BadImage as error:
            reasons[row] = str(error)
            return ""

    with ThreadPoolExecutor(max(1, workers)) as pool:  # threads will do: hashing holds no lock
        return list(pool.map(digest, rows)), reasons


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change in nanoseconds; nothing where there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _load(memo: Path) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(memo.read_text()))
    except (OSError, ValueError):  # not there yet, or cut short by a crash: all is read again
        return {}


def _save(memo: Path, entries: dict[str, list[Any]]) -> None:
    part = memo.with_name(f"{memo.name}.{uuid4().hex}")
    with suppress(OSError):  # no room for the memo costs time alone
        memo.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps(entries))
            part.replace(memo)
        finally:
            part.unlink(missing_ok=True)
