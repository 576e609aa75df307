"""What a generated image says of itself, inside its own PNG, and which images a folder holds already."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mmpds

SYNTHETIC = "Drawn by a generative model. This is no patient's image; it is of no use for diagnosis."
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type for media that a trained model made."""
XMP = "XML:com.adobe.xmp"
"""The keyword of the text chunk that holds XMP (ISO 16684-1; the XMP specification, part 3)."""
PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
NAMED = 3
"""Files that a message names; more are counted."""


class Png(NamedTuple):
    """A whole PNG: its pixels, uint8 [H, W] or [H, W, 3], and its texts by keyword."""

    pixels: np.ndarray
    texts: dict[str, str]


class Item(NamedTuple):
    """What became of one prompt."""

    row: int  # in the table of prompts
    made: bool = False
    height: int | None = None
    width: int | None = None
    constant: bool = False  # all pixels are equal
    retried: bool = False  # in float32, after pixels that are no numbers
    rank: int | None = None  # None: an earlier leg of the run made it
    seconds: float | None = None

    def of(self, pixels: np.ndarray) -> Item:
        """This item as made, with these pixels: uint8 [H, W] or [H, W, 3]."""
        constant = bool((pixels == pixels[0, 0]).all())
        return self._replace(made=True, height=pixels.shape[0], width=pixels.shape[1], constant=constant)


def to_png(pixels: np.ndarray, marks: Mapping[str, str]) -> bytes:
    """A PNG marked as synthetic; equal pixels and marks give equal bytes, for it holds no time.

    Its text chunks: `Synthetic` (a sentence), `software` (mmpds and its version), those of `marks`, and XMP with
    IPTC's digital source type, which search engines and image viewers read.

    Args:
        pixels: uint8, grey [H, W] or RGB [H, W, 3].
        marks: further texts by keyword (ASCII, at most 79 characters), such as prompt, seed and model.
    """
    info = PngInfo()
    for keyword, text in {"Synthetic": SYNTHETIC, "software": f"mmpds {mmpds.__version__}", **marks}.items():
        # tEXt is Latin-1 by definition, and not every reader heeds that
        add = info.add_text if text.isascii() else info.add_itxt
        add(keyword, text)
    info.add_itxt(XMP, PACKET)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", pnginfo=info)
    return file.getvalue()


def read_png(path: Path) -> Png | None:
    """Reads what `to_png` made; None where the file is cut short or damaged: every chunk's checksum is verified."""
    content = path.read_bytes()
    if not content.endswith(END):  # Pillow reads what lacks its end
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels = np.asarray(image)
            return Png(pixels, {str(keyword): str(text) for keyword, text in image.text.items()})  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError):  # Pillow's names for damage
        return None


def made(folder: Path, table: pd.DataFrame, model: str) -> list[Item]:
    """The items that earlier legs of a run have made, in the table's order; damaged files do not count.

    Removes the temporary files that a killed leg left.

    Args:
        folder: of the images; it need not exist.
        table: `id`, `prompt` and `seed` of all items.
        model: the model's fingerprint.

    Raises:
        ValueError: an item's image is of another prompt, seed or model.
    """
    # listed, not asked for one by one: a network file system remembers for a while that a file was not there
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in names:
        if name.startswith(".") and name.endswith(".part"):
            (folder / name).unlink(missing_ok=True)
    items, others = [], []
    for row, (item, prompt, seed) in enumerate(table[["id", "prompt", "seed"]].to_numpy().tolist()):
        name = f"{item}.png"
        found = read_png(folder / name) if name in names else None
        if found is None:
            continue
        wanted = {"prompt": prompt, "seed": str(seed), "model": model}
        if other := [
            f"{key} {_short(found.texts.get(key))}, now {_short(value)}"
            for key, value in wanted.items()
            if found.texts.get(key) != value
        ]:
            others.append(f"{name} ({'; '.join(other)})")
        items.append(Item(row, retried="retried" in found.texts).of(found.pixels))
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise ValueError(
            f"{folder} holds images of another run: {', '.join(others[:NAMED])}{more}; "
            "give another run_dir, or delete the folder"
        )
    return items


def _short(text: str | None) -> str:
    return "unknown" if text is None else repr(textwrap.shorten(text, 60, placeholder="…"))
