"""Archives on disk: what is added, what a killed build leaves, what is refused."""

import json

import numpy as np
import pytest

from mmpds.search.archive import Archive, begin, write_shard

MODEL = "0123456789abcdef"


def unit(rows, seed=0, width=4, dtype="float16"):
    made = np.random.default_rng(seed).standard_normal((rows, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(dtype)


def add(folder, rows, seed=0, source="/images", model=MODEL, settle=True):
    archive, number = begin(folder, model, "/best.ckpt", "float16", source)
    (name,) = archive.free(0, 1)
    write_shard(folder, name, number, unit(rows, seed), [f"{seed}/{row}.png" for row in range(rows)])
    if settle:
        Archive.read(folder).settle()
    return name


def test_what_is_written_is_read_back(tmp_path):
    add(tmp_path / "a", 5)
    archive = Archive.open(tmp_path / "a", verify=True)
    assert (len(archive), archive.width, archive.model, archive.weights) == (5, 4, MODEL, "/best.ckpt")
    assert np.array_equal(np.concatenate(archive.vectors()), unit(5))
    assert archive.at([3, 0]) == [("/images", "0/3.png"), ("/images", "0/0.png")]


def test_items_are_added_behind_those_there_are(tmp_path):
    add(tmp_path / "a", 3)
    add(tmp_path / "a", 2, seed=1, source="/more")
    archive = Archive.open(tmp_path / "a")
    assert len(archive) == 5
    assert np.array_equal(np.concatenate(archive.vectors()), np.concatenate([unit(3), unit(2, 1)]))
    assert archive.at([2, 3]) == [("/images", "0/2.png"), ("/more", "1/0.png")]


@pytest.mark.parametrize("suffix", ["npy", "ids"])
def test_a_half_written_shard_is_named_and_made_again(tmp_path, suffix):
    add(tmp_path / "a", 3)
    name = add(tmp_path / "a", 4, seed=1)
    path = tmp_path / "a" / f"{name}.{suffix}"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{path.name} is half-written.*search build"):
        Archive.open(tmp_path / "a")
    add(tmp_path / "a", 4, seed=1)
    assert np.array_equal(np.concatenate(Archive.open(tmp_path / "a").vectors()), np.concatenate([unit(3), unit(4, 1)]))


def test_a_missing_shard_is_named(tmp_path):
    name = add(tmp_path / "a", 3)
    (tmp_path / "a" / f"{name}.npy").unlink()
    with pytest.raises(ValueError, match=rf"{name}\.npy is missing"):
        Archive.open(tmp_path / "a")


def test_a_damaged_shard_of_the_right_size_is_found_by_its_hash(tmp_path):
    name = add(tmp_path / "a", 3)
    path = tmp_path / "a" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    Archive.open(tmp_path / "a")
    with pytest.raises(ValueError, match=rf"{name}\.npy is damaged"):
        Archive.open(tmp_path / "a", verify=True)
    archive, _ = begin(tmp_path / "a", MODEL, None, "float16", "/images")
    assert archive.shards == []  # a build makes it again


def test_a_build_that_did_not_come_to_an_end_is_told_and_keeps_its_whole_shards(tmp_path):
    add(tmp_path / "a", 3)
    name = add(tmp_path / "a", 2, seed=1, settle=False)
    (tmp_path / "a" / ".shard-00002.npy.77.part").write_bytes(b"half")
    (tmp_path / "a" / "shard-00003.npy").write_bytes(b"without a record")
    with pytest.raises(ValueError, match=rf"{name}\.ids is not in the manifest"):
        Archive.open(tmp_path / "a")
    archive, _ = begin(tmp_path / "a", MODEL, None, "float16", "/images")
    assert [shard.rows for shard in archive.shards] == [3, 2]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "manifest.json", "shard-00000.ids", "shard-00000.npy", "shard-00001.ids", "shard-00001.npy",
    ]  # fmt: skip


def test_another_model_s_vectors_are_refused(tmp_path):
    add(tmp_path / "a", 3)
    with pytest.raises(ValueError, match=rf"{MODEL} \(/best\.ckpt\).*fedcba"):
        add(tmp_path / "a", 3, model="fedcba9876543210")
    with pytest.raises(ValueError, match=r"float32.*float16"):
        begin(tmp_path / "a", MODEL, None, "float32", "/images")


def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path):
    wrong = unit(3)
    wrong[1] *= 2
    with pytest.raises(ValueError, match="b has an embedding of length 2"):
        write_shard(tmp_path, "shard-00000", 0, wrong, ["a", "b", "c"])
    wrong[1] = np.nan
    with pytest.raises(ValueError, match="b has an embedding of length nan"):
        write_shard(tmp_path, "shard-00000", 0, wrong, ["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_archive_is_told(tmp_path):
    with pytest.raises(ValueError, match="no archive"):
        Archive.open(tmp_path / "none")
    add(tmp_path / "a", 3)
    manifest = tmp_path / "a" / "manifest.json"
    known = json.loads(manifest.read_text())
    for wrong in ("", "[]", json.dumps(known | {"schema": 99}), json.dumps(known | {"more": 1})):
        manifest.write_text(wrong)
        with pytest.raises(ValueError, match=r"manifest\.json cannot be read.*delete"):
            Archive.open(tmp_path / "a")


def test_names_with_line_ends_and_other_scripts_are_kept(tmp_path):
    names = ["a\nb.png", "рентген.png", '"quoted".png']
    archive, number = begin(tmp_path / "a", MODEL, None, "float16", "/images")
    write_shard(tmp_path / "a", archive.free(0, 1)[0], number, unit(3), names)
    Archive.read(tmp_path / "a").settle()
    assert [name for _, name in Archive.open(tmp_path / "a").at([0, 1, 2])] == names
