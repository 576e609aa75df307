"""Each prompt's image is made once, marked and listed, whatever was there before and whatever goes wrong."""

import errno
import json
import os
import subprocess
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mmpds.callbacks.images import GeneratedImages
from mmpds.data.provenance import read_png


class Generator(pl.LightningModule):
    """Draws a gradient that prompt and seed decide; the prompts tell what goes wrong.

    `overflow`: infinite where the arithmetic is half precision; `broken`: never finite; `flat`: constant.
    """

    def __init__(self, channels=1, side=16):
        super().__init__()
        self.channels, self.side = channels, side
        self.weight = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.weight.weight)
        self.drawn = []

    def fingerprint(self):
        return f"toy{self.channels}"

    def generate(self, prompts, seeds):
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            assert isinstance(seed, int)
            self.drawn.append(prompt)
            ramp = torch.linspace(0, 1, self.channels * self.side**2).view(self.channels, self.side, self.side)
            image = (ramp + seed % 97 / 97) / 2
            # autocast and half-precision weights make this product one of half precision
            unit = self.weight(torch.ones(1, 1, dtype=self.weight.weight.dtype))
            if "flat" in prompt:
                image = torch.full_like(image, 0.5)
            if "broken" in prompt or ("overflow" in prompt and unit.dtype != torch.float32):
                image[0, 3, 3] = torch.nan if seed % 2 else torch.inf
            images.append(image.float())
        return torch.stack(images)

    def predict_step(self, batch):
        return {"image": self.generate(batch["prompt"], batch["seed"].tolist()), "index": batch["index"]}


class Prompts(pl.LightningDataModule):
    def __init__(self, prompts, seed=5, batch_size=2):
        super().__init__()
        ids = [f"item-{number}" for number in range(len(prompts))]
        self.table = pd.DataFrame({"id": ids, "prompt": prompts, "seed": np.arange(len(prompts)) + seed})
        self.missing, self.batch_size = None, batch_size

    def predict_dataloader(self):
        rows = [{"prompt": self.table["prompt"][row], "seed": self.table["seed"][row], "index": row}
                for row in self.missing.tolist()]  # fmt: skip
        return DataLoader(rows, batch_size=self.batch_size)


def predict(folder, prompts, model=None, precision="32-true", **data):
    model, callback = model or Generator(), GeneratedImages(str(folder))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, precision=precision,
    )  # fmt: skip
    trainer.predict(model, Prompts(prompts, **data), return_predictions=False)
    return callback, model


def manifest(folder):
    return pd.read_csv(folder / "manifest.csv", keep_default_na=False).set_index("id")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


@pytest.mark.parametrize(("channels", "mode", "shape"), [(1, "L", (16, 16)), (3, "RGB", (16, 16, 3))])
def test_images_are_rounded_marked_and_listed(folder, channels, mode, shape):
    prompts = ["Pneumonia", "=Größe?", "two\nlines"]
    callback, model = predict(folder, prompts, Generator(channels))
    table = manifest(folder)
    for row, prompt in enumerate(prompts):
        path = folder / f"item-{row}.png"
        with Image.open(path) as image:
            assert image.mode == mode
        png = read_png(path)
        assert png.pixels.shape == shape
        exact = model.generate([prompt], [5 + row])[0].permute(1, 2, 0).numpy().reshape(shape)
        assert np.abs(png.pixels / 255 - exact).max() <= 0.5 / 255 + 1e-6
        texts = {name: png.texts[name] for name in ("prompt", "seed", "model")}
        assert texts == {"prompt": prompt, "seed": str(5 + row), "model": f"toy{channels}"}
    assert table.index.tolist() == ["item-0", "item-1", "item-2"]
    assert table["prompt"].tolist() == ["Pneumonia", "'=Größe?", "two\nlines"]
    assert table["file"].tolist() == [f"item-{row}.png" for row in range(3)]
    assert table[["width", "height", "status", "rank", "retried"]].drop_duplicates().to_numpy().tolist() == [
        [16, 16, "made", 0, 0]
    ]
    assert (table["seconds"] > 0).all()
    assert callback.summary() == {
        "metrics": {}, "intervals": {}, "warnings": [],
        "counts": {"predict/images": 3, "predict/already_made": 0, "predict/retried": 0, "predict/failed": 0},
    }  # fmt: skip
    assert json.loads(json.dumps(callback.summary())) == callback.summary()


def test_the_sheet_shows_them_beside_the_folder_and_is_marked(folder):
    predict(folder, [f"prompt {number}" for number in range(70)], batch_size=16)
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv"] + [".png"] * 70
    sheet = read_png(folder.parent / "contact_sheet.png")
    assert sheet.texts["model"] == "toy1"
    assert "Synthetic" in sheet.texts
    for number, there in ((0, True), (63, True), (64, False)):
        large = read_png(folder / f"item-{number}.png").pixels.repeat(14, axis=0).repeat(14, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet.pixels, (1, 28))[:, :, 0]
        found = np.argwhere((windows == large[0, :28]).all(axis=-1))
        tiles = [sheet.pixels[top : top + 224, left : left + 224] for top, left in found]
        assert any(np.array_equal(tile, large) for tile in tiles) == there


def test_equal_runs_leave_equal_files(tmp_path):
    for name in ("one", "two"):
        predict(tmp_path / name / "images", ["a", "b", "c"], batch_size=2 if name == "one" else 3)
    for path in ("images/item-0.png", "images/item-2.png", "contact_sheet.png"):
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_run_started_again_makes_what_is_missing_and_nothing_twice(folder):
    prompts = [f"prompt {number}" for number in range(5)]
    predict(folder, prompts)
    whole = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    (folder / "item-1.png").unlink()
    (folder / "item-3.png").write_bytes(whole["item-3.png"][:-30])  # a kill, a full disk
    (folder / ".item-1.png.part").write_bytes(b"half")
    (folder / "manifest.csv").unlink()
    callback, model = predict(folder, prompts)
    assert model.drawn == ["prompt 1", "prompt 3"]
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == whole
    assert not list(folder.glob(".*"))
    table = manifest(folder)
    assert table["status"].tolist() == ["made"] * 5
    assert table["width"].tolist() == [16] * 5
    assert table["rank"].astype(str).tolist() == ["", "0", "", "0", ""]
    assert (
        callback.summary()["counts"] | {"predict/images": 5, "predict/already_made": 3}
        == (callback.summary()["counts"])
    )


def test_a_finished_run_started_again_draws_nothing_and_still_lists_all(folder):
    predict(folder, ["a", "flat", "c"])
    (folder / "manifest.csv").unlink()
    callback, model = predict(folder, ["a", "flat", "c"])
    assert model.drawn == []
    assert manifest(folder)["status"].tolist() == ["made"] * 3
    summary = callback.summary()
    assert (summary["counts"]["predict/images"], summary["counts"]["predict/already_made"]) == (3, 3)
    assert summary["warnings"] == ["1 images are of one value all over: item-1"]


@pytest.mark.parametrize(
    ("prompts", "again", "named"),
    [
        (["a", "other"], {}, r"item-1\.png \(prompt 'b', now 'other'\)"),
        (["a", "b"], {"seed": 6}, r"item-0\.png \(seed '5', now '6'\), item-1"),
        (["a", "b"], {"model": Generator(3)}, r"model 'toy1', now 'toy3'"),
    ],
)  # fmt: skip
def test_another_run_is_refused_and_its_images_are_kept(folder, prompts, again, named):
    predict(folder, ["a", "b"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=named):
        predict(folder, prompts, **again)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_an_item_that_overflows_is_made_once_more_in_float32(folder, precision):
    callback, model = predict(folder, ["a", "overflow", "c"], precision=precision)
    assert model.drawn.count("a") == model.drawn.count("c") == 1
    half = precision == "bf16-true"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16 if half else torch.float32}
    exact = Generator().generate(["overflow"], [6])[0, 0].numpy()
    png = read_png(folder / "item-1.png")
    assert np.abs(png.pixels / 255 - exact).max() <= 0.5 / 255 + 1e-6
    assert png.texts["retried"] == "float32"
    assert manifest(folder)["retried"].tolist() == [0, 1, 0]
    assert callback.summary()["counts"]["predict/retried"] == 1
    assert "1 images were made in float32" in callback.summary()["warnings"][0]
    (folder / "item-0.png").unlink()  # what an earlier leg retried is still told
    callback, _ = predict(folder, ["a", "overflow", "c"], precision=precision)
    assert manifest(folder)["retried"].tolist() == [0, 1, 0]


def test_an_item_that_stays_broken_is_told_and_the_others_are_made(folder):
    prompts = ["a", "broken", "c", "broken", "flat"]
    callback, model = predict(folder, prompts)
    assert model.drawn.count("broken") == 4  # each once more
    assert sorted(path.name for path in folder.glob("*.png")) == ["item-0.png", "item-2.png", "item-4.png"]
    table = manifest(folder)
    assert table["status"].tolist() == ["made", "failed", "made", "failed", "made"]
    assert table.loc["item-1", ["file", "width", "height"]].tolist() == ["", "", ""]
    summary = callback.summary()
    assert summary["counts"] == {
        "predict/images": 3, "predict/already_made": 0, "predict/retried": 2, "predict/failed": 2,
    }  # fmt: skip
    assert summary["warnings"] == [
        "2 images could not be made: their pixels are not finite, not even in float32: item-1, item-3",
        "1 images are of one value all over: item-4",
    ]
    _, model = predict(folder, prompts)
    assert model.drawn == ["broken"] * 4  # failed ones alone are tried again


def test_prompts_that_were_not_reached_are_told(folder):
    callback = GeneratedImages(str(folder))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_checkpointing=False, limit_predict_batches=1,
    )  # fmt: skip
    trainer.predict(Generator(), Prompts(["a", "b", "c"]), return_predictions=False)
    assert "1 of 3 prompts were not reached" in callback.summary()["warnings"][0]
    assert manifest(folder).index.tolist() == ["item-0", "item-1"]


@pytest.fixture
def tiny(tmp_path):
    """A real file system of 64 KiB; such a one can be mounted by root alone."""
    tmp_path = tmp_path / "tiny"
    tmp_path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_ends_the_run_in_one_sentence_and_leaves_whole_images(tiny):
    folder, prompts = tiny / "images", [f"prompt {number}" for number in range(20)]
    model = Generator(side=80)
    with pytest.raises(OSError, match=r"no space left; (\d+) whole images are kept") as raised:
        predict(folder, prompts, model)
    assert raised.value.errno == errno.ENOSPC
    assert str(folder) in str(raised.value)
    kept = list(folder.glob("*.png"))
    assert f"; {len(kept)} whole" in str(raised.value)
    assert 0 < len(kept) < 20
    assert all(read_png(path) for path in kept)
    assert sorted(folder.iterdir()) == sorted(kept)
    subprocess.run(["mount", "-o", "remount,size=1m", tiny], check=True)
    callback, again = predict(folder, prompts, Generator(side=80))
    assert len(again.drawn) == 20 - len(kept)
    assert manifest(folder)["status"].tolist() == ["made"] * 20
    assert callback.summary()["counts"]["predict/already_made"] == len(kept)


def test_no_room_for_a_file_leaves_no_half_of_it(folder, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if "item-2" in path.name:
            write(path, content[:50])
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left; 2 whole images are kept: make room"):
        predict(folder, ["a", "b", "c"])
    assert sorted(path.name for path in folder.iterdir()) == ["item-0.png", "item-1.png"]
