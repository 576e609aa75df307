"""Many images of a source on one picture, each with its findings beneath it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mmpds.data.batch import Source

GAP = 4  # pixels between tiles
INK, PAPER = 235, 24


def contact_sheet(source: Source, rows: Sequence[int], size: int, columns: int, title: str = "") -> Image.Image:
    """Draws tiles of `size` pixels, `columns` a line; a caption names a tile's positive findings.

    Args:
        source: any data set.
        rows: rows of its table, in the order of the tiles.
        size: pixels a side of one image.
        columns: tiles a line.
        title: a line over the tiles.

    Returns:
        A grey picture (mode "L").

    Raises:
        ValueError: no row, or no column.
        BadImage: an image cannot be read.
    """
    if not len(rows) or columns < 1:
        raise ValueError(f"rows={list(rows)}, columns={columns}: a contact sheet needs at least one of each")
    font = ImageFont.load_default(min(15.0, max(9.0, size / 13)))
    line = int(font.getbbox("Ag")[3]) + 3
    head = 2 * line if title else GAP
    wide, high = size + GAP, size + 2 * line + GAP
    lines = -(-len(rows) // columns)
    sheet = Image.new("L", (columns * wide + GAP, lines * high + head), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, line // 2), title, fill=INK, font=font)
    for place, row in enumerate(rows):
        left, top = GAP + place % columns * wide, head + place // columns * high
        sheet.paste(Image.fromarray(source.image(row, size)), (left, top))
        pen.multiline_text((left, top + size), _label(source, row, font, size), fill=INK, font=font, spacing=1)
    return sheet


def _label(source: Source, row: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The positive findings on at most two lines of `width` pixels; what does not fit is counted."""
    record = source.table.iloc[row]
    names = [name for name in source.findings if record[name] == 1]
    if not names:
        return "normal" if record["normal"] else ""
    lines = [names[0]]
    for done, name in enumerate(names[1:], start=1):
        if font.getlength(f"{lines[-1]}, {name}") <= width:
            lines[-1] += f", {name}"
        elif len(lines) == 1:
            lines[-1] += ","
            lines.append(name)
        else:
            lines[-1] += f" +{len(names) - done}"
            break
    return "\n".join(lines)
