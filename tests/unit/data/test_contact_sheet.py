"""Every tile is on the sheet, unscaled; captions stay within their tile's width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from mmpds.data.contact_sheet import INK, MAX_LINES, PAPER, _wrap, contact_sheet, draw_sheet
from mmpds.data.phantom import Phantom

FONT = ImageFont.load_default(12.0)


@pytest.fixture(scope="module")
def phantom():
    return Phantom(images=12)


def tile(*shape, seed=0):
    return np.random.default_rng(seed).integers(40, 200, shape, dtype=np.uint8)


def places(sheet, part):
    """Where `part` lies on the sheet: tops and lefts."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, part.shape)
    return np.argwhere((windows == part).all(axis=tuple(range(sheet.ndim, 2 * sheet.ndim))))


@pytest.mark.parametrize(("count", "columns", "lines"), [(1, 1, 1), (5, 3, 2), (6, 3, 2), (2, 8, 1)])
def test_every_tile_is_there_once_and_margins_are_even(count, columns, lines):
    tiles = [tile(48, 48, seed=seed) for seed in range(count)]
    sheet = draw_sheet(tiles, [""] * count, columns)
    assert sheet.mode == "L"
    found = [places(np.asarray(sheet), one) for one in tiles]
    assert [len(where) for where in found] == [1] * count
    tops, lefts = np.concatenate(found).T
    gap = lefts[0]
    across = min(columns, count)
    assert sheet.size == (gap + across * (48 + gap), gap + lines * (48 + gap))
    assert tops.tolist() == [gap + place // across * (48 + gap) for place in range(count)]
    assert lefts.tolist() == [gap + place % across * (48 + gap) for place in range(count)]


def test_colour_and_grey_lie_side_by_side():
    grey, colour = tile(32, 32), tile(32, 32, 3, seed=1)
    sheet = np.asarray(draw_sheet([grey, colour], ["", ""], 2))
    assert len(places(sheet, colour)) == 1
    assert len(places(sheet, np.stack([grey] * 3, -1))) == 1


def test_a_smaller_tile_is_centred():
    small = tile(20, 10)
    sheet = np.asarray(draw_sheet([tile(40, 40), small], ["", ""], 2))
    ((large_top, large_left),), ((top, left),) = places(sheet, tile(40, 40)), places(sheet, small)
    gap = large_left
    assert (top - large_top, left - large_left - 40 - gap) == (10, 15)


def test_captions_and_title_are_written_and_make_room():
    bare = draw_sheet([tile(96, 96)], [""], 1)
    told = draw_sheet([tile(96, 96)], ["Pneumonia of the right lower lobe"], 1, title="Phantom")
    assert told.width == bare.width
    assert told.height > bare.height + 3 * 10
    pixels = np.asarray(told)
    ((top, _),) = places(pixels, tile(96, 96))
    for part in (pixels[:top], pixels[top + 96 :]):
        assert INK - 60 < part.max() <= INK  # thin strokes are smoothed
        assert (part[:, -4:] == PAPER).all()


@given(text=st.text(max_size=300), width=st.integers(30, 200))
def test_a_line_is_never_wider_than_its_tile(text, width):
    lines = _wrap(text, FONT, width)
    assert len(lines) <= MAX_LINES
    assert all(FONT.getlength(line) <= width or len(line) == 1 for line in lines)


@given(words=st.lists(st.sampled_from(["a", "lung", "effusion", "with", "x" * 40]), max_size=6))
def test_wrapping_keeps_every_letter(words):
    lines = _wrap(" ".join(words), FONT, 250)
    assert "".join(lines).replace(" ", "") == "".join(words)


def test_wrapping_tells_where_it_left_out():
    assert _wrap("lung " * 100, FONT, 60)[-1].endswith("…")
    assert _wrap("Müller, Ç", FONT, 200) == ["Muller, C"]  # Pillow's font would draw boxes
    assert _wrap("one\ntwo", FONT, 200) == ["one", "two"]


@pytest.mark.parametrize(
    ("tiles", "captions", "columns", "named"), [(0, 0, 2, "0 tiles"), (1, 1, 0, "columns=0"), (2, 1, 1, "1 captions")]
)
def test_wrong_arguments_are_named(tiles, captions, columns, named):
    with pytest.raises(ValueError, match=named):
        draw_sheet([tile(8, 8)] * tiles, [""] * captions, columns)


def test_a_source_is_shown_with_its_findings(phantom):
    sheet = contact_sheet(phantom, range(4), size=64, columns=2, title="Phantom")
    assert sheet.mode == "L"
    for row in range(4):
        assert len(places(np.asarray(sheet), phantom.image(row, 64))) == 1
    record = phantom.table.iloc[0]
    names = [finding for finding in phantom.findings if record[finding] == 1]
    label = ", ".join(names) or "normal"
    expected = draw_sheet([phantom.image(0, 64)], [label], 1)
    assert contact_sheet(phantom, [0], size=64, columns=1).tobytes() == expected.tobytes()
