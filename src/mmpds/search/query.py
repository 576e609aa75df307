"""Ask an archive: for a text or an image, the images that a CLIP puts next to it.

Shapes: Q = queries, D = width of an embedding, K = hits a query.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape

from mmpds.console import say_out, table
from mmpds.data.images import BadImage, read_grey, resize
from mmpds.data.transforms import to_image
from mmpds.models.clip import Clip
from mmpds.results import write_text
from mmpds.search import approximate, ranks
from mmpds.search.archive import Archive, same_model
from mmpds.search.exact import Exact, Hits
from mmpds.search.sheet import Hit, Query, html
from mmpds.world import cores


def ask(
    folder: Path, texts: Sequence[str], images: Sequence[Path], k: int = 10, size: int = 1, index: str = "exact",
    device: str = "cpu", checkpoint: str | None = None, sheet: Path = Path("hits.html"), verify: bool = False,
) -> None:  # fmt: skip
    """Print the hits of each query and write their sheet.

    Args:
        folder: of the archive.
        texts: queries.
        images: queries too: files in any common format.
        k: K; of a smaller archive all.
        size: MPI ranks that search.
        index: `exact`, `ivf` or `hnsw`.
        device: that exact search runs on: `cpu`, or `cuda`.
        checkpoint: the model's weights, where they are no longer where the archive was built with them.
        sheet: the HTML file.
        verify: compare the archive's hashes first.

    Raises:
        ValueError: the archive, an image or the weights cannot be used; the text names the cure.
        OSError: a rank failed, or the sheet cannot be written.
    """
    archive = Archive.open(folder, verify)
    model = model_of(archive, checkpoint)
    queries = np.concatenate([_embed_images(model, images), _embed_texts(model, texts)])
    k, began = min(k, len(archive)), time.perf_counter()
    if index != "exact":
        hits, how = _approximate(archive, index, queries, k)
    elif size > 1:
        hits, how = ranks.start(folder, queries, k, size, device), f"exact search on {size} ranks"
    else:
        hits, how = Exact(archive.vectors(), threads=cores(), device=device).search(queries, k), "exact search"
    how = f"{how}, {time.perf_counter() - began:.2f} s"
    named = [(str(file), file) for file in images] + [(text, None) for text in texts]
    found = [
        Query(title, file, _hits(archive, score, row))
        for (title, file), score, row in zip(named, *hits, strict=True)
    ]  # fmt: skip
    for query in found:
        rows = [[escape(hit.id), str(hit.place), f"{hit.score:.3f}"] for hit in query.hits]
        table(escape(query.title), ["image", "place", "cosine"], rows)
    write_text(sheet, html(archive, found, how))
    say_out(f"  {len(archive):,} images, model {archive.model}; {how}\n  {sheet}")


def model_of(archive: Archive, checkpoint: str | None = None) -> Clip:
    """The CLIP that made an archive.

    Args:
        archive: the archive.
        checkpoint: its weights; None: where the archive was built with them.

    Raises:
        ValueError: they are not there, are none, or another model's.
    """
    place = checkpoint or archive.weights
    if place is None or (Path(place).is_absolute() and not Path(place).exists()):
        where = "are not known" if place is None else f"are no longer at {place}"
        raise ValueError(f"the weights of model {archive.model} {where}: give --checkpoint FILE.ckpt")
    if not Path(place).is_file():
        model = Clip(["finding"], pretrained=place)
    else:
        try:
            model = Clip.load_from_checkpoint(place, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file raises; torch's text advises to trust the file
            cure = "give --checkpoint a run's checkpoints/best.ckpt"
            raise ValueError(f"{place} is no checkpoint of a CLIP; {cure} ({type(error).__name__})") from error
    same_model(archive, model.fingerprint())
    return model.eval()


@torch.inference_mode()
def _embed_images(model: Clip, files: Sequence[Path]) -> np.ndarray:
    """Float32 [Q, D]."""
    pixels = []
    for file in files:
        try:
            pixels.append(to_image(resize(read_grey(file), model.size)))
        except BadImage as error:
            raise ValueError(f"--image {file}: {error}") from error
    if not pixels:
        return np.empty((0, model.clip.config.projection_dim), np.float32)
    return model.embed_images(torch.stack(pixels)).numpy()


@torch.inference_mode()
def _embed_texts(model: Clip, texts: Sequence[str]) -> np.ndarray:
    """Float32 [Q, D]."""
    if not texts:
        return np.empty((0, model.clip.config.projection_dim), np.float32)
    return model.embed_texts(texts).numpy()


def _approximate(archive: Archive, kind: str, queries: np.ndarray, k: int) -> tuple[Hits, str]:
    """The hits of an index, and its recall in words: of these queries, and of some of the archive's own vectors."""
    made, sample = approximate.index(archive, kind), approximate.sample(archive)
    asked = [queries, sample]
    exact = Exact(archive.vectors(), threads=cores())
    found = [approximate.search(made, each, k) for each in asked]
    recalls = [approximate.recall(hits, exact.search(each, k)) for hits, each in zip(found, asked, strict=True)]
    how = f"{kind} with recall@{k} {recalls[0]:.3f} of exact search, {recalls[1]:.3f} for {len(sample)} of its images"
    return found[0], how


def _hits(archive: Archive, score: np.ndarray, row: np.ndarray) -> list[Hit]:
    """What was found for a query; an index may find fewer than K."""
    score, row = score[row >= 0], row[row >= 0]
    named = zip(archive.at(row.tolist()), score.tolist(), strict=True)
    return [Hit(place, value, source, name) for place, ((source, name), value) in enumerate(named, start=1)]
