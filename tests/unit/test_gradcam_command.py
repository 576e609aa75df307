"""One image explained from the command line; what is wrong, in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmpds.gradcam import main
from mmpds.models.densenet import DenseNet121


@pytest.fixture
def run(tmp_path):
    """A run directory with a tiny detector, and an image."""
    torch.manual_seed(0)
    model = DenseNet121(["Nodule", "Effusion"], growth_rate=4, block_config=[1, 1, 1, 1], init_features=8,
                        threshold={"rule": "fixed", "fixed": 0.0})  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    checkpoint = {
        "state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.4", "hparams_name": "kwargs",
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "config.yaml").write_text("data: {size: 64}\n")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path


def call(run, *options, checkpoint="checkpoints/best.ckpt", image="image.png"):
    return main([str(run / checkpoint), str(run / image), *options])


def test_it_says_the_probability_and_writes_the_picture(run, capsys):
    out = run / "o.png"
    assert call(run, "--finding", "Effusion", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert said.startswith("Effusion: probability 0.")
    assert ", flagged (threshold 0.000)" in said
    first = out.read_bytes()
    assert Image.open(out).size == (384, 192)
    assert call(run, "--finding", "Nodule", "--out", str(out)) == 0
    assert out.read_bytes() != first


def test_without_a_finding_it_takes_the_most_probable(run, capsys):
    prob = {}
    for finding in ("Nodule", "Effusion"):
        call(run, "--finding", finding, "--out", str(run / "o.png"))
        prob[finding] = float(capsys.readouterr().out.split()[2].rstrip(","))
    call(run, "--out", str(run / "o.png"))
    assert capsys.readouterr().out.startswith(max(prob, key=prob.get))


def test_the_size_is_that_of_the_run_unless_given(run, capsys):
    said = []
    for options in ([], ["--size", "64"], ["--size", "96"]):
        call(run, "--finding", "Nodule", "--out", str(run / "o.png"), *options)
        said.append((capsys.readouterr().out, (run / "o.png").read_bytes()))
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": "none.png", "checkpoint": "none.ckpt"}, ["none.png", "none.ckpt"]),
        ({"checkpoint": "image.png"}, ["give --size"]),
        (
            {"image": "config.yaml", "checkpoint": "image.png", "options": ("--size", "64")},
            ["config.yaml: not an image", "image.png is no checkpoint"],
        ),
        ({"image": "config.yaml"}, ["config.yaml: not an image"]),
        ({"options": ("--finding", "Noodle")}, ["Noodle", "Nodule, Effusion"]),
        ({"options": ("--size", "8", "--out", "o.doc")}, ["--size 8", "--out o.doc"]),
        ({"options": ("--out", "/nowhere/o.png")}, ["/nowhere/o.png"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line_without_a_traceback(run, capsys, options, named):
    extra = options.pop("options", ())
    assert call(run, *extra, **options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mmpds.gradcam: ")
    assert said.err.count("\n") == 1
    for text in named:
        assert text in said.err


def test_a_file_that_is_no_checkpoint_is_named(run, capsys):
    (run / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    assert call(run) == 2
    assert "best.ckpt is no checkpoint" in capsys.readouterr().err
