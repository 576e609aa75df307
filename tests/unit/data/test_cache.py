"""Verified once, decoded once: by any number of processes, after any damage, never stale."""

import errno
import json
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpds.data import cache
from mmpds.data.cache import CachedSource, open_source
from mmpds.data.folder import Folder
from mmpds.data.images import BadImage

SIZE = 16
BAD = {"03.png": b"", "07.png": b"no image"}


@pytest.fixture
def images(tmp_path):
    """Twelve images, two of them bad."""
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for row in range(12):
        name = f"{row:02}.png"
        if name in BAD:
            (root / name).write_bytes(BAD[name])
        else:
            Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(root / name)
    return root


class Counted(Folder):
    """Counts what it reads."""

    def __init__(self, root):
        super().__init__(root)
        self.decoded, self.hashed = [], []

    def image(self, row, size):
        self.decoded.append(row)
        return super().image(row, size)

    def digest(self, row):
        self.hashed.append(row)
        return super().digest(row)


class Rendered:
    """A source without files."""

    findings = ()

    def __init__(self, items):
        names = [f"r{row}" for row in range(items)]
        self.table = pd.DataFrame({"id": names, "group": names, "normal": True})
        self.rendered = 0

    def image(self, row, size):
        self.rendered += 1
        if row == 1:
            raise BadImage("cannot be drawn")
        return np.full((size, size), row, np.uint8)

    def digest(self, row):
        return f"rendered-{row}"


def folder_of(directory):
    return next(path.parent for path in directory.glob("*/pixels"))


@pytest.mark.parametrize("cached", [True, False])
def test_bad_images_are_left_out_and_rows_keep_their_own_pixels(images, tmp_path, cached):
    plain = Folder(images)
    for _ in range(2):
        opened = open_source(Folder(images), SIZE, tmp_path / "cache" if cached else None)
        assert opened.rejected.to_dict("list") == {"id": list(BAD), "reason": ["empty file", "not an image"]}
        table = opened.source.table
        assert table["id"].tolist() == [name for name in plain.table["id"] if name not in BAD]
        assert table.index.tolist() == list(range(10))
        for row, name in enumerate(table["id"]):
            original = plain.table.index[plain.table["id"] == name][0]
            np.testing.assert_array_equal(opened.source.image(row, SIZE), plain.image(original, SIZE))
            assert opened.digests[row] == opened.source.digest(row) == plain.digest(original)


def test_the_second_time_only_bad_images_are_read(images, tmp_path):
    first = Counted(images)
    opened = open_source(first, SIZE, tmp_path)
    assert sorted(first.decoded) == sorted(first.hashed) == list(range(12))
    for row in range(10):
        opened.source.image(row, SIZE)
    assert len(first.decoded) == 12
    second = Counted(images)
    again = open_source(second, SIZE, tmp_path)
    for row in range(10):
        np.testing.assert_array_equal(again.source.image(row, SIZE), opened.source.image(row, SIZE))
    assert (second.decoded, second.hashed) == ([3, 7], [])
    assert again.digests == opened.digests


def test_a_changed_file_is_seen(images, tmp_path):
    before = open_source(Folder(images), SIZE, tmp_path)
    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(images / "05.png")
    after = open_source(source := Counted(images), SIZE, tmp_path)
    assert source.hashed == [5]
    row = after.source.table["id"].tolist().index("05.png")
    assert (after.source.image(row, SIZE) == 7).all()
    assert [a == b for a, b in zip(before.digests, after.digests, strict=True)].count(False) == 1
    (images / "05.png").write_bytes(b"")
    assert open_source(Folder(images), SIZE, tmp_path).rejected["id"].tolist() == [
        "03.png",
        "05.png",
        "07.png",
    ]


def test_sizes_have_caches_of_their_own_and_other_sizes_are_still_served(images, tmp_path):
    small, large = (open_source(Folder(images), size, tmp_path).source for size in (8, SIZE))
    assert len(list(tmp_path.glob("*/pixels"))) == 2
    assert small.image(0, 8).shape == (8, 8)
    np.testing.assert_array_equal(small.image(0, SIZE), large.image(0, SIZE))


def test_another_preprocessing_has_another_cache(images, tmp_path, monkeypatch):
    open_source(Folder(images), SIZE, tmp_path)
    monkeypatch.setattr(cache, "PREPROCESSING", cache.PREPROCESSING + 1)
    open_source(source := Counted(images), SIZE, tmp_path)
    assert len(source.decoded) == 12


def test_a_damaged_slot_is_decoded_again(images, tmp_path):
    opened = open_source(Counted(images), SIZE, tmp_path)
    intact = opened.source.image(4, SIZE)
    with (folder_of(tmp_path) / "pixels").open("r+b") as file:
        file.seek(5 * SIZE * SIZE)  # row 4 of the good ones is file 05.png, slot 5
        file.write(b"\x00" * 100)
    source = Counted(images)
    again = open_source(source, SIZE, tmp_path)
    source.decoded.clear()
    np.testing.assert_array_equal(again.source.image(4, SIZE), intact)
    np.testing.assert_array_equal(again.source.image(4, SIZE), intact)
    assert source.decoded == [5]


def test_a_scan_that_was_cut_short_goes_on(images, tmp_path):
    source = Counted(images)
    digests = [source.digest(row) for row in range(12)]
    half = CachedSource(source, SIZE, tmp_path / cache.key(source, digests, SIZE))
    for row in (0, 1, 2, 11):
        half.image(row, SIZE)
    source.decoded.clear()
    open_source(source, SIZE, tmp_path)
    assert source.decoded == [3, 4, 5, 6, 7, 8, 9, 10]


def test_four_processes_fill_one_cache_at_once(images, tmp_path):
    for row in range(12, 40):
        shutil.copy(images / f"{row % 3:02}.png", images / f"{row}.png")
    source = Folder(images)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        opened = list(pool.map(partial(open_source, source, SIZE), [tmp_path / "cache"] * 4))
    expected = open_source(source, SIZE, None).source
    for each in opened:
        assert len(each.rejected) == 2
        for row in range(38):
            np.testing.assert_array_equal(each.source.image(row, SIZE), expected.image(row, SIZE))
    left = sorted((tmp_path / "cache").iterdir(), key=lambda path: path.is_dir())
    assert [path.is_dir() for path in left] == [False, True]  # the memo and one cache, nothing temporary
    assert left[0].suffix == ".json"
    slots = CachedSource(source, SIZE, left[1])
    assert np.flatnonzero(slots.empty).tolist() == [3, 7]


def test_workers_find_the_same(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WORTH_A_WORKER", 1)
    alone = open_source(Folder(images), SIZE, tmp_path / "alone")
    for directory in (tmp_path / "together", None):
        together = open_source(Folder(images), SIZE, directory, workers=2)
        pd.testing.assert_frame_equal(together.rejected, alone.rejected)
        assert together.digests == alone.digests
    assert (folder_of(tmp_path / "together") / "pixels").read_bytes() == (
        folder_of(tmp_path / "alone") / "pixels"
    ).read_bytes()


def test_a_pickled_source_maps_the_same_file(images, tmp_path):
    source = open_source(Folder(images), SIZE, tmp_path).source
    packed = pickle.dumps(source)
    twin = pickle.loads(packed)
    (images / "00.png").unlink()
    np.testing.assert_array_equal(twin.image(0, SIZE), source.image(0, SIZE))
    twin.image(0, SIZE)[:] = 0  # what a reader does to its image stays its own
    np.testing.assert_array_equal(twin.image(0, SIZE), source.image(0, SIZE))
    assert source.image(0, SIZE).any()


def test_images_without_files_are_kept_as_well(tmp_path):
    source = Rendered(4)
    opened = open_source(source, SIZE, tmp_path)
    assert source.rendered == 4
    assert [int(opened.source.image(row, SIZE)[0, 0]) for row in range(3)] == [0, 2, 3]
    assert source.rendered == 4
    assert opened.rejected.to_dict("list") == {"id": ["r1"], "reason": ["cannot be drawn"]}
    assert opened.digests == ["rendered-0", "rendered-2", "rendered-3"]
    assert not list(tmp_path.glob("digests-*"))


def test_a_file_that_is_gone_is_rejected(images, tmp_path):
    source = Folder(images)
    (images / "11.png").unlink()
    opened = open_source(source, SIZE, tmp_path)
    assert opened.rejected["id"].tolist() == ["03.png", "07.png", "11.png"]
    assert opened.rejected["reason"].iat[2] == "no such file or directory"
    assert len(opened.digests) == len(opened.source.table) == 9


def test_a_full_disk_is_told_with_the_cure_and_leaves_nothing(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    needed = 12 * SIZE * SIZE + 4 * 12
    with pytest.raises(OSError, match=f"need {needed:,} bytes there: No space left on device; make room, name another"):
        open_source(Folder(images), SIZE, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_directory_that_cannot_be_made_is_told_with_the_cure(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cache_dir=.*file: .*Not a directory; .*cache_dir=null to decode"):
        open_source(Folder(images), SIZE, tmp_path / "file")


def test_a_file_of_pixels_that_was_cut_is_told(images, tmp_path):
    open_source(Folder(images), SIZE, tmp_path)
    os.truncate(folder_of(tmp_path) / "pixels", 100)
    with pytest.raises(OSError, match=r"has 100 bytes instead of .*; delete"):
        open_source(Folder(images), SIZE, tmp_path)


def test_a_damaged_memo_is_made_anew(images, tmp_path):
    opened = open_source(Folder(images), SIZE, tmp_path)
    memo = next(tmp_path.glob("digests-*"))
    memo.write_text(memo.read_text()[:50])
    assert open_source(Folder(images), SIZE, tmp_path).digests == opened.digests
    assert len(json.loads(memo.read_text())) == 12
