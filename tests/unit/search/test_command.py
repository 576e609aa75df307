"""`python -m mmpds.search query` on an archive of phantoms, of a CLIP of random weights."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmpds.data.phantom import Phantom
from mmpds.data.transforms import to_image
from mmpds.search.__main__ import main
from mmpds.search.archive import Archive, begin, write_shard
from tests.conftest import quiet_trainer
from tests.unit.models.test_clip import model

COUNT = 12


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with images, a checkpoint and an archive of both; and the model."""
    folder = tmp_path_factory.mktemp("house")
    images = folder / "images"
    images.mkdir()
    phantom, names = Phantom(images=COUNT), [f"{row:02d}.png" for row in range(COUNT)]
    pixels = [phantom.image(row, 32) for row in range(COUNT)]
    for name, grey in zip(names, pixels, strict=True):
        Image.fromarray(grey).save(images / name)
    clip = model()
    run = quiet_trainer(folder, max_epochs=1)
    run.strategy.connect(clip)
    run.save_checkpoint(folder / "clip.ckpt")
    with torch.inference_mode():
        vectors = clip.embed_images(torch.stack([to_image(grey) for grey in pixels])).numpy()
    archive, source = begin(folder / "archive", clip.fingerprint(), str(folder / "clip.ckpt"), "float32", str(images))
    write_shard(folder / "archive", archive.free(0, 1)[0], source, vectors, names)
    Archive.read(folder / "archive").settle()
    return folder, clip, vectors


def ask(house, *arguments):
    folder = house[0]
    return main(["query", str(folder / "archive"), *arguments, "--sheet", str(folder / "hits.html")])


def test_a_text_finds_the_images_next_to_it(house, capsys):
    folder, clip, vectors = house
    assert ask(house, "left pleural effusion", "enlarged heart", "--k", "3") == 0
    with torch.inference_mode():
        score = clip.embed_texts(["left pleural effusion", "enlarged heart"]).numpy() @ vectors.T
    printed = capsys.readouterr().out
    best = [f"{row:02d}.png" for row in np.argsort(-score, axis=1)[:, :3].ravel()]
    assert re.findall(r"(\d\d\.png)", printed) == best
    page = (folder / "hits.html").read_text()
    assert re.findall(r'class="id">(\d\d\.png)', page) == best
    assert page.count("data:image/webp;base64,") == 6
    assert not re.findall(r"(?:src|href|url)[=(]\s*[\"']?(?:https?:|//)", page)


def test_an_image_finds_itself(house, capsys):
    folder = house[0]
    assert ask(house, "--image", str(folder / "images" / "07.png"), "--k", "1") == 0
    assert re.search(r"07\.png +1 +1\.000", capsys.readouterr().out)


def test_more_hits_than_images_are_all_images(house, capsys):
    assert ask(house, "pneumonia", "--k", "50") == 0
    assert len(re.findall(r"\d\d\.png", capsys.readouterr().out)) == COUNT


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_tells_its_recall(house, capsys, kind):
    assert ask(house, "pneumonia", "--k", "3", "--index", kind) == 0
    assert re.search(rf"{kind} with recall@3 [01]\.\d+ of exact search, 1\.000 for 12", capsys.readouterr().out)


def test_what_is_asked_cannot_be_markup(house, capsys):
    assert ask(house, "<script>alert(1)</script> [bold]x", "--k", "1") == 0
    assert "[bold]x" in capsys.readouterr().out
    assert "<script>" not in (house[0] / "hits.html").read_text()


def test_an_image_that_is_gone_leaves_its_reason(house):
    folder = house[0]
    file = folder / "images" / "03.png"
    content = file.read_bytes()
    file.unlink()
    try:
        assert ask(house, "pneumonia", "--k", "12") == 0
    finally:
        file.write_bytes(content)
    assert (folder / "hits.html").read_text().count("no image: no such file") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing is asked for"),
        (["x", "--k", "0", "--ranks", "0"], "--k 0.*--ranks 0"),
        (["--image", "none.png"], "none.png: there is no such file"),
        (["x", "--index", "ivf", "--ranks", "2"], "--index ivf"),
        (["x", "--checkpoint", "none.ckpt"], "none.ckpt: there is no such file"),
        (["x", "--checkpoint", __file__], "no checkpoint of a CLIP"),
        (["--image", __file__], "--image .*test_command.py"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(house, capsys, arguments, told):
    assert ask(house, *arguments) == 2
    said = capsys.readouterr().err
    assert re.search(told, said)
    assert said.count("\n") == 1


def test_another_model_is_refused(house, capsys, tmp_path):
    other = model(width=8, stem="convolutions")
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.strategy.connect(other)
    run.save_checkpoint(tmp_path / "other.ckpt")
    assert ask(house, "x", "--checkpoint", str(tmp_path / "other.ckpt")) == 2
    said = capsys.readouterr().err
    assert house[1].fingerprint() in said
    assert other.fingerprint() in said


def test_weights_that_have_moved_are_asked_for(house, capsys):
    folder = house[0]
    (folder / "clip.ckpt").rename(folder / "moved.ckpt")
    try:
        assert ask(house, "x") == 2
        assert "no longer at" in capsys.readouterr().err
        assert ask(house, "x", "--checkpoint", str(folder / "moved.ckpt")) == 0
    finally:
        (folder / "moved.ckpt").rename(folder / "clip.ckpt")


def test_a_mistake_costs_no_torch():
    code = (
        "import sys; from mmpds.search.__main__ import main; s = main(['query', 'x']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "nothing is asked for" in done.stderr
