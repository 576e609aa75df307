"""Archives built and searched by ranks really started: the same images, each once; the same hits, to the last bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmpds.data.phantom import Phantom
from mmpds.models.int8 import quantize
from mmpds.search import ranks
from mmpds.search.archive import Archive, begin, write_shard
from mmpds.search.exact import UNIT
from mmpds.stages import has_bfloat16
from mmpds.world import has_vnni
from tests.conftest import ROOT, quiet_trainer
from tests.unit.models.test_clip import model

COUNT = 23
TWO = ("trainer=mpi_cpu", "ranks=2", "trainer.threads=1")
FAULT = (
    "+callbacks.fault._target_=tests.distributed.faults.PredictionFault",
    "+callbacks.fault.step=3",
    "+callbacks.fault.rank=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint of random weights and a folder of images."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "images").mkdir()
    phantom = Phantom(images=COUNT)
    for row in range(COUNT):
        Image.fromarray(phantom.image(row, 32)).save(folder / "images" / f"{row:02d}.png")
    run = quiet_trainer(folder, max_epochs=1)
    run.strategy.connect(model())
    run.save_checkpoint(folder / "clip.ckpt")
    return folder


def search(place, *arguments):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_")) and not k.endswith("_NUM_THREADS")
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "mmpds.search", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=250)


def build(place, archive, *overrides):
    return search(
        place, "build", archive, "checkpoint=clip.ckpt", "data.predict_root=images", "data.size=32", "model.size=32",
        "data.batch_size=2", "data.cache_dir=null", "trainer.precision=32-true", "+callbacks.embeddings.shard_rows=4",
        *overrides,
    )  # fmt: skip


def held(place, archive):
    """Each image's vector, of an archive in which each occurs once."""
    opened = Archive.open(place / archive, verify=True)
    names = [name for _, name in opened.at(range(len(opened)))]
    assert len(set(names)) == len(names)
    return dict(zip(names, np.concatenate(opened.vectors()).astype(np.float32), strict=True))


@pytest.mark.timeout(600)
def test_two_ranks_build_what_one_does_though_one_is_killed(place):
    done = build(place, "one", "trainer=cpu_seq")
    assert done.returncode == 0, done.stderr
    done = build(place, "two", *TWO, *FAULT)
    assert done.returncode == 1
    assert "rank 1 on " in done.stderr
    kept = len(list((place / "two").glob("shard-*.json")))
    assert kept >= 1
    done = search(place, "query", "two", "pneumonia")
    assert done.returncode == 2
    assert re.search(r"two is not whole: shard-\d+\.\w+ is not in the manifest.*search build", done.stderr)
    done = build(place, "two", *TWO)
    assert done.returncode == 0, done.stderr
    one, two = held(place, "one"), held(place, "two")
    assert sorted(one) == sorted(two) == [f"{row:02d}.png" for row in range(COUNT)]
    assert all(np.allclose(one[name], two[name], atol=2e-3) for name in one)  # of half precision
    asked = [search(place, "query", "one", "pneumonia", "--k", "5", "--ranks", str(size)) for size in (1, 2)]
    tables = [re.findall(r"\d\d\.png.*", done.stdout) for done in asked]
    assert len(tables[0]) == 5
    assert tables[0] == tables[1]


@pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI")
def test_int8_builds_the_archive_of_the_same_model(place):
    done = build(place, "eight", "trainer=cpu_seq", "trainer.precision=int8", "callbacks.embeddings.dtype=float32")
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    vectors = held(place, "eight")
    exact = model().eval()
    images = torch.stack([torch.from_numpy(Phantom(images=COUNT).image(row, 32)) for row in range(COUNT)])
    named = exact.fingerprint()
    quantize(exact)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu")):
        right = torch.cat([exact.embed_images(pair / 255) for pair in images[: COUNT - 1, None].split(2)]).numpy()
    assert Archive.open(place / "eight").model == named
    assert max(abs(vectors[f"{row:02d}.png"] - right[row]).max() for row in range(COUNT - 1)) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hits_at_one_two_and_three_ranks_are_the_same_bits(tmp_path, dtype):
    """Copies of a vector lie in every rank's part, and shards do not divide evenly."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((5 * UNIT + 321, 32))
    copies = np.sort(random.choice(len(vectors), 50, replace=False))
    vectors[copies] = vectors[copies[0]]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
    for part in np.split(vectors, [700, 700 + 2 * UNIT]):
        archive, source = begin(tmp_path, "0123456789abcdef", None, dtype, "/images")
        write_shard(tmp_path, archive.free(0, 1)[0], source, part, [str(row) for row in range(len(part))])
        Archive.read(tmp_path).settle()
    queries = np.concatenate([vectors[copies[:1]], vectors[5:40]]).astype(np.float32)
    alone, two, three = (ranks.start(tmp_path, queries, 20, size) for size in (1, 2, 3))
    assert alone.row[0].tolist() == copies[:20].tolist()
    for other in (two, three):
        assert np.array_equal(other.row, alone.row)
        assert other.score.tobytes() == alone.score.tobytes()


def test_a_rank_that_fails_is_named(tmp_path):
    with pytest.raises(OSError, match=r"the search on 2 ranks failed: rank \d failed: .*no archive"):
        ranks.start(Path(tmp_path / "none"), np.zeros((1, 4), np.float32), 3, 2)
