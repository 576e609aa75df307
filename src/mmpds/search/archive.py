"""An archive of embeddings on disk: shards that are memory-mapped, what each vector is of, and hashes of it all.

Shapes: n = vectors of a shard, D = their width.

    shard-00000.npy     float16 or float32 [n, D], vectors of unit length
    shard-00000.ids     a line a vector, in JSON: what it is of; an image's path below its source's folder
    manifest.json       the model, the width, the sources, and of each shard its rows, bytes and SHA-256

Every file is written beside its name and renamed, the manifest last: what it does not list was being written when a
build was killed. A shard that is complete has a record of its own, shard-00000.json, until the manifest lists it. One
build at a time may write to an archive.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from mmpds.results import whole, write_text

SCHEMA = 1
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
ROWS = 16_384
"""Vectors of a shard at most: so many a rank are lost when a build is killed without warning."""
NORM = 1e-2
"""How far from 1 a vector's length may be."""
FILES = re.compile(r"\.?(shard-\d{5,})\.(npy|ids|json)(\.\d+\.part)?")
CURE = "run `python -m mmpds.search build` with the same archive and images again: it makes only what is not whole"
NAMED = 5
"""Faults that an error lists; more are counted."""


@dataclass(frozen=True)
class Shard:
    """What is known of a shard.

    name: such as shard-00000.
    width: D.
    source: which of the archive's sources its items are of.
    rows: n.
    files: name -> bytes and SHA-256.
    """

    name: str
    width: int
    source: int
    rows: int
    files: dict[str, tuple[int, str]]

    def fault(self, folder: Path, verify: bool) -> str | None:
        """Why it cannot be used, or None; with `verify` hashes are compared too."""
        for name, (size, digest) in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} is half-written: {path.stat().st_size:,} of {size:,} bytes"
            if verify and _sha256(path) != digest:
                return f"{name} is damaged: its SHA-256 is not the one it was written with"
        return None


@dataclass
class Archive:
    """What the manifest tells.

    folder: where it lies.
    model: fingerprint of the weights that embedded.
    weights: where they were: a checkpoint, or what transformers loads; None where that is not known.
    dtype: float16 or float32.
    sources: the folders that images are in.
    shards: in the archive's order.
    """

    folder: Path
    model: str
    weights: str | None = None
    dtype: str = "float16"
    sources: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Archive:
        """The manifest, whatever became of the shards.

        Raises:
            ValueError: there is none, or it cannot be read; the text says the cure.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{folder} is no archive: it has no {MANIFEST}; make one: python -m mmpds.search build")
        try:
            known = json.loads(path.read_text())
            if known.pop("schema") != SCHEMA:
                raise ValueError("another version of mmpds wrote it")
            return cls(folder, **known | {"shards": [_shard(each) for each in known["shards"]]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete {folder} and build it anew") from error

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> Archive:
        """An archive that is whole; with `verify`, hashes are compared and not sizes alone.

        Raises:
            ValueError: see `read`; or something is half-written, missing or damaged: the text names it.
        """
        archive = cls.read(folder)
        stray = [f"{path.name} is not in the manifest: its build did not come to an end" for path in archive.strays()]
        if faults := [text for shard in archive.shards if (text := shard.fault(folder, verify))] + stray:
            more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
            raise ValueError(f"{folder} is not whole: {'; '.join(faults[:NAMED])}{more}; {CURE}")
        if not archive.shards:
            raise ValueError(f"{folder} holds no vectors yet; {CURE}")
        return archive

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def width(self) -> int:
        """D."""
        return self.shards[0].width

    def strays(self) -> list[Path]:
        """Files of shards that the manifest does not list, and halves of files."""
        listed = {name for shard in self.shards for name in shard.files}
        return sorted(p for p in self.folder.iterdir() if FILES.fullmatch(p.name) and p.name not in listed)

    def vectors(self) -> list[np.ndarray]:
        """The shards' vectors, memory-mapped; writing to them changes no file.

        Raises:
            ValueError: a file is not what the manifest says.
        """
        found = []
        for shard in self.shards:
            # copy on write: torch wants memory that may be written
            vectors = np.load(self.folder / f"{shard.name}.npy", mmap_mode="c", allow_pickle=False)
            if vectors.shape != (shard.rows, shard.width) or vectors.dtype != self.dtype:
                raise ValueError(f"{shard.name}.npy is not what the manifest says; {CURE}")
            found.append(vectors)
        return found

    def ids(self, shard: Shard) -> list[str]:
        """What each vector of a shard is of."""
        with (self.folder / f"{shard.name}.ids").open() as lines:
            return [str(json.loads(line)) for line in lines]

    def at(self, positions: Sequence[int]) -> list[tuple[str, str]]:
        """Source and id of each position in the archive."""
        ends = np.cumsum([shard.rows for shard in self.shards])
        places = np.searchsorted(ends, positions, side="right").tolist()
        ids = {place: self.ids(self.shards[place]) for place in set(places)}
        return [
            (self.sources[self.shards[place].source], ids[place][position - int(ends[place])])
            for position, place in zip(positions, places, strict=True)
        ]

    def free(self, first: int, names: int) -> list[str]:
        """Names of shards that are to be: `names` of them after the `first` free ones."""
        taken = {shard.name for shard in self.shards}
        return list(islice((n for n in (f"shard-{k:05d}" for k in count()) if n not in taken), first, first + names))

    def settle(self, verify: bool = False) -> None:
        """Take complete shards in, and delete whatever is not whole."""
        recorded = [_shard(json.loads(path.read_text())) for path in self.folder.glob("shard-*.json")]
        shards = {shard.name: shard for shard in self.shards + recorded}.values()
        self.shards = [shard for shard in shards if not shard.fault(self.folder, verify)]
        self.shards.sort(key=lambda shard: (len(shard.name), shard.name))
        known = {name: value for name, value in vars(self).items() if name != "folder"}
        known["shards"] = [asdict(shard) for shard in self.shards]
        write_text(self.folder / MANIFEST, json.dumps({"schema": SCHEMA} | known, indent=1) + "\n")
        for path in self.strays():
            path.unlink()


def begin(folder: Path, model: str, weights: str | None, dtype: str, source: str) -> tuple[Archive, int]:
    """An archive to add to, cleared of what is not whole; made where there is none.

    Args:
        folder: of the archive.
        model: fingerprint of the weights that will embed.
        weights: where they are.
        dtype: one of `DTYPES`.
        source: the folder that the images are in.

    Returns:
        The archive, and the source's number in it.

    Raises:
        ValueError: the archive is another model's or of another dtype; the text names both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = Archive.read(folder) if (folder / MANIFEST).exists() else Archive(folder, model, weights, dtype)
    same_model(archive, model)
    if archive.dtype != dtype:
        raise ValueError(f"dtype={dtype}: {folder} holds {archive.dtype}; add that, or build another archive")
    archive.weights = weights or archive.weights
    if source not in archive.sources:
        archive.sources.append(source)
    archive.settle(verify=True)
    return archive, archive.sources.index(source)


def same_model(archive: Archive, model: str) -> None:
    """Raises a ValueError that names both where another model made the archive."""
    if archive.model != model:
        raise ValueError(
            f"{archive.folder} was made by model {archive.model} ({archive.weights or 'weights unknown'}), and this is "
            f"model {model}: embeddings of two models cannot be compared; give that one's weights, or build another "
            "archive"
        )


def write_shard(folder: Path, name: str, source: int, vectors: np.ndarray, ids: Sequence[str]) -> None:
    """Write a shard and its record, each whole or not at all.

    Args:
        folder: of the archive.
        name: see `Archive.free`.
        source: see `begin`.
        vectors: float16 or float32 [n, D].
        ids: n.

    Raises:
        ValueError: a vector is not of unit length; the text names its item.
    """
    norm = np.linalg.norm(vectors.astype(np.float32), axis=1)
    if len(wrong := np.flatnonzero(~(np.abs(norm - 1) <= NORM))):
        named = f"{ids[wrong[0]]} has an embedding of length {norm[wrong[0]]:.3g}"
        raise ValueError(f"{named}, as {len(wrong)} of {len(norm)} images: vectors of unit length are searched for")
    with whole(folder / f"{name}.npy") as part, part.open("wb") as file:  # np.save would add a suffix
        np.save(file, np.ascontiguousarray(vectors))
    write_text(folder / f"{name}.ids", "".join(f"{json.dumps(item)}\n" for item in ids))
    made = [folder / f"{name}.npy", folder / f"{name}.ids"]
    files = {path.name: (path.stat().st_size, _sha256(path)) for path in made}
    shard = Shard(name, vectors.shape[1], source, len(vectors), files)
    write_text(folder / f"{name}.json", json.dumps(asdict(shard)) + "\n")


def _shard(known: Mapping[str, Any]) -> Shard:
    return Shard(**dict(known) | {"files": {name: (size, digest) for name, (size, digest) in known["files"].items()}})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
