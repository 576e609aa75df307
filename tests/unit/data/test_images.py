"""Every common format read as grey, every damaged file refused with a reason."""

import hashlib
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmpds.data.folder import Folder
from mmpds.data.images import BadImage, ImageFiles, find_images, read_grey, resize

GREY = (np.arange(40)[:, None] * 4 + np.arange(30)[None] * 3).astype(np.uint8)  # [40, 30], no two sides alike


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_in_any_lossless_mode_is_read_as_it_was(tmp_path, mode):
    path = saved(tmp_path / "a.png", Image.fromarray(GREY).convert(mode))
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = read_grey(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, GREY)


def test_colours_become_luma(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(np.full((4, 4, 3), (200, 100, 50), np.uint8)))
    assert (read_grey(path) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = np.array([[0, 128, 129, 257], [32768, 40000, 65279, 65535]], np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        path = saved(tmp_path / name, Image.fromarray(deep))
        np.testing.assert_array_equal(read_grey(path), expected)
    path = saved(tmp_path / "wide.tif", Image.fromarray(deep.astype(np.int32)))
    with Image.open(path) as image:
        assert image.mode == "I"
    np.testing.assert_array_equal(read_grey(path), expected)


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.indices((8, 8)).sum(0) % 2 == 0
    path = saved(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(read_grey(path), bits * np.uint8(255))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_read(tmp_path, mode):
    path = saved(tmp_path / "a.jpg", Image.fromarray(GREY).convert(mode), quality=98, subsampling=0)
    with Image.open(path) as image:
        assert image.mode == mode
    assert np.abs(read_grey(path).astype(int) - GREY).max() <= 4


def test_transparent_pixels_are_black(tmp_path):
    half = np.full((4, 4, 4), 200, np.uint8)
    half[:2, :, 3], half[2:, :, 3] = 0, 255
    pixels = read_grey(saved(tmp_path / "a.png", Image.fromarray(half)))
    assert (pixels[:2] == 0).all()
    assert (pixels[2:] == 200).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    turned = {  # what a viewer shows of a stored image, by the EXIF standard
        1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T, 6: GREY.T[:, ::-1],
        7: GREY.T[::-1, ::-1], 8: GREY.T[::-1],
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(GREY), exif=exif)
    np.testing.assert_array_equal(read_grey(path), turned[orientation])


def test_the_first_frame_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    path = saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_grey(path) == 10).all()


def test_damaged_files_are_refused_with_a_reason(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    cases = {"empty.png": (b"", "empty file"), "text.jpg": (b"patient,finding\n", "not an image")}
    for name in ("a.png", "a.jpg", "a.tif"):
        whole = saved(tmp_path / name, noise).read_bytes()
        cases[f"half-{name}"] = (whole[: len(whole) // 2], None)
    cases["half-a.png"] = (cases["half-a.png"][0], "truncated")
    cases["half-a.jpg"] = (cases["half-a.jpg"][0], "truncated")
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadImage) as caught:
            read_grey(tmp_path / name)
        assert str(caught.value)
        assert reason is None or str(caught.value) == reason


def test_what_cannot_be_opened_is_refused_with_the_systems_reason(tmp_path):
    with pytest.raises(BadImage, match="no such file or directory"):
        read_grey(tmp_path / "absent.png")
    with pytest.raises(BadImage, match="is a directory"):
        read_grey(tmp_path)
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(BadImage, match="floating-point pixels"):
        read_grey(path)


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000), png=st.booleans())
def test_any_damage_gives_an_image_or_a_reason(tmp_path_factory, where, value, cut, png):
    folder = tmp_path_factory.getbasetemp()
    path = saved(folder / ("fuzz.png" if png else "fuzz.jpg"), Image.fromarray(GREY))
    data = bytearray(path.read_bytes())
    data[where % len(data)] = value
    path.write_bytes(data[: len(data) - cut % len(data)])
    try:
        assert read_grey(path).ndim == 2
    except BadImage as error:
        assert str(error)  # noqa: PT017


def bomb(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))))
    return path


@pytest.mark.filterwarnings("error")
def test_bombs_are_refused_from_their_header(tmp_path):
    with pytest.raises(BadImage, match=r"^12000 x 12000 pixels is over the limit of 89 million$"):
        read_grey(bomb(tmp_path / "a.png", 12_000, 12_000))
    with pytest.raises(BadImage, match=r"^its size is over the limit of 89 million pixels$"):
        read_grey(bomb(tmp_path / "b.png", 60_000, 60_000))
    small = saved(tmp_path / "c.png", Image.fromarray(GREY))
    with pytest.raises(BadImage, match="30 x 40 pixels is over the limit of 1,199"):
        read_grey(small, max_pixels=1199)
    assert read_grey(small, max_pixels=1200).shape == (40, 30)


def test_resizing_stretches_and_averages_what_falls_into_a_pixel():
    stripes = np.tile(np.array([0, 255], np.uint8), (100, 150))  # [100, 300], finer than the result
    small = resize(stripes, 20)
    assert small.shape == (20, 20)
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() < 30  # without antialiasing: 0 or 255
    left_half = np.zeros((50, 200), np.uint8)
    left_half[:, :100] = 255
    assert (resize(left_half, 10)[:, :4] == 255).all()
    assert small.flags.writeable


def test_images_are_found_in_natural_order_without_hidden_ones(tmp_path):
    for name in ("a10.PNG", "a2.png", "a2.txt", ".a3.png", "b/c/1.JPeG", ".git/x.png", "__MACOSX/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a2.png", "a10.PNG", "b/c/1.JPeG"]
    (tmp_path / ".git/empty").mkdir()
    assert find_images(tmp_path, "b") == ["b/c/1.JPeG"]
    with pytest.raises(ValueError, match=r"no images in .*give a folder that holds files of"):
        find_images(tmp_path, ".git/empty")
    with pytest.raises(ValueError, match=r"there is no folder .*absent; give the folder"):
        find_images(tmp_path / "absent")


def files(root, *paths):
    return ImageFiles(root, pd.DataFrame({"id": paths, "path": paths}), ())


def test_paths_that_leave_the_root_are_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    outside = saved(tmp_path / "secret.png", Image.fromarray(GREY))
    inside = saved(root / "a.png", Image.fromarray(GREY))
    (root / "link.png").symlink_to(outside)
    (root / "alias.png").symlink_to(inside)
    (tmp_path / "root2").mkdir()
    saved(tmp_path / "root2" / "a.png", Image.fromarray(GREY))
    source = files(root, "../secret.png", str(outside), "link.png", "../root2/a.png", "alias.png", "a.png")
    for row in range(4):
        with pytest.raises(BadImage, match="path leaves the data root"):
            source.image(row, 8)
        with pytest.raises(BadImage, match="path leaves the data root"):
            source.digest(row)
    np.testing.assert_array_equal(source.image(4, 8), source.image(5, 8))
    linked = tmp_path / "linked"
    linked.symlink_to(root)  # the root itself may be a link
    np.testing.assert_array_equal(files(linked, "a.png").image(0, 8), source.image(5, 8))


def test_a_digest_is_the_files_sha256(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    source = files(tmp_path, "a.png", "absent.png")
    assert source.digest(0) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(BadImage, match="no such file"):
        source.digest(1)


def test_a_plain_folder_knows_no_labels(tmp_path):
    for name in ("10.png", "9.png"):
        saved(tmp_path / name, Image.fromarray(GREY))
    source = Folder(tmp_path, findings=("Pneumonia",))
    assert source.table["id"].tolist() == source.table["group"].tolist() == ["9.png", "10.png"]
    assert source.table["Pneumonia"].isna().all()
    assert not source.table["normal"].any()
    assert source.image(0, 16).shape == (16, 16)
    assert Folder(tmp_path).findings == Folder.findings == ()
