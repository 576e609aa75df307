"""Many images on one picture, each with its caption beneath it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmpds.data.batch import Source

INK, PAPER = 235, 24
MAX_LINES = 6
"""Of a caption; what is longer ends in an ellipsis."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_sheet(tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int, title: str = "") -> Image.Image:
    """Draws tiles, `columns` a line, with their captions beneath, wrapped to the widest tile's width.

    Args:
        tiles: uint8 pixels, grey [H, W] or RGB [H, W, 3]; those smaller than the largest are centred.
        captions: a text a tile; a line break in it is kept.
        columns: tiles a line.
        title: a text over the tiles.

    Returns:
        A picture: grey (mode "L") where all tiles are, else "RGB".

    Raises:
        ValueError: no tile, no column, or not a caption a tile.
    """
    if not len(tiles) or columns < 1 or len(captions) != len(tiles):
        raise ValueError(
            f"{len(tiles)} tiles, {len(captions)} captions, columns={columns}: "
            "a contact sheet needs a tile, a caption of each and a column at least"
        )
    wide, high = max(tile.shape[1] for tile in tiles), max(tile.shape[0] for tile in tiles)
    gap = max(6, wide // 16)
    font = ImageFont.load_default(min(15.0, max(9.0, wide / 13)))
    large = ImageFont.load_default(font.size * 1.25) if isinstance(font, ImageFont.FreeTypeFont) else font
    columns = min(columns, len(tiles))
    width = gap + columns * (wide + gap)
    heading, texts = _wrap(title, large, width - 2 * gap), [_wrap(caption, font, wide) for caption in captions]
    lines = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [high + max(_height(texts[place], font, gap // 2) for place in line) + gap for line in lines]
    top = gap + _height(heading, large, gap)
    mode, paper, ink = ("L", PAPER, INK) if all(tile.ndim == 2 for tile in tiles) else ("RGB", (PAPER,) * 3, (INK,) * 3)
    sheet = Image.new(mode, (width, top + sum(heights)), paper)
    pen = ImageDraw.Draw(sheet)
    _write(pen, gap, gap, heading, large, ink)
    for line, height in zip(lines, heights, strict=True):
        for column, place in enumerate(line):
            tile, left = tiles[place], gap + column * (wide + gap)
            sheet.paste(Image.fromarray(tile), (left + (wide - tile.shape[1]) // 2, top + (high - tile.shape[0]) // 2))
            _write(pen, left, top + high + gap // 2, texts[place], font, ink)
        top += height
    return sheet


def contact_sheet(source: Source, rows: Sequence[int], size: int, columns: int, title: str = "") -> Image.Image:
    """Draws images of a source in tiles of `size` pixels; a caption names a tile's positive findings.

    Args:
        source: any data set.
        rows: rows of its table, in the order of the tiles.
        size: pixels a side of one image.
        columns: tiles a line.
        title: a text over the tiles.

    Returns:
        A grey picture (mode "L").

    Raises:
        ValueError: no row, or no column.
        BadImage: an image cannot be read.
    """
    if not len(rows) or columns < 1:
        raise ValueError(f"rows={list(rows)}, columns={columns}: a contact sheet needs at least one of each")
    return draw_sheet([source.image(row, size) for row in rows], [_label(source, row) for row in rows], columns, title)


def _label(source: Source, row: int) -> str:
    """The positive findings of an image."""
    record = source.table.iloc[row]
    names = [name for name in source.findings if record[name] == 1]
    return ", ".join(names) if names else "normal" if record["normal"] else ""


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is broken."""
    lines = []
    # Pillow's own font, the one that every machine has, knows no accents
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width:
                line += f" {word}"
                continue
            lines += [line] if line else []
            while len(word) > 1 and font.getlength(word) > width:
                fits = next(
                    n for n in range(1, len(word)) if n + 1 == len(word) or font.getlength(word[: n + 1]) > width
                )
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[MAX_LINES - 1 :] = [f"{last}…"]
    return lines


def _line_height(font: Font) -> int:
    return int(font.getbbox("Ag")[3]) + 3


def _height(lines: Sequence[str], font: Font, margin: int) -> int:
    """Pixels of a block of lines and the margin that sets it apart; an absent one takes no room."""
    return len(lines) * _line_height(font) + margin if lines else 0


def _write(
    pen: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[str], font: Font, ink: int | tuple[int, ...]
) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * _line_height(font)), line, fill=ink, font=font)
