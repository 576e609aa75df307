"""The generator under ranks really started: the same images, each once, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from mmpds.data.provenance import read_png
from mmpds.results import read
from tests.conftest import ROOT
from tests.distributed.test_failures import last_line, small_disk  # noqa: F401 - a fixture
from tests.distributed.test_stages import run

TINY = (
    "experiment=diffusion_phantom", "stages=[fit]", "data.source.images=60", "data.batch_size=6", "data.cache_dir=null",
    "model.unet.block_out_channels=[32,32,64]", "model.size=32", "model.sampling.steps=2", "trainer.max_epochs=1",
    "trainer=cpu_seq", "trainer.precision=32-true", "report=false",
)  # fmt: skip
PROMPTS = (
    "Chest X-ray. Large left pleural effusion.",
    "Chest X-ray. Small right pneumothorax.",
    "Chest X-ray. Röntgen: Kardiomegalie.",
    "Chest X-ray, nodule in the left upper zone.",
    "Normal chest X-ray.",
    "=2+3",
    "No finding.",
)
IDS = [f"line-{number:05d}" for number in range(1, 8)]
TOLERANCE = 1 / 255
"""The rounding that other batch shapes bring, of pixels in [0, 1]."""
GENERATE = (
    "experiment=generate", "checkpoint=trained/checkpoints/best.ckpt", "data.prompts=prompts.txt", "data.batch_size=2",
    "model.sampling.steps=4", "trainer.precision=32-true", "trainer.threads=1", "report=false",
)  # fmt: skip
FAULT = ("+callbacks.fault._target_=tests.distributed.generation_faults.Once", "+callbacks.fault.marker=struck")


def mpi(ranks, schedule="static"):
    return ("trainer=mpi_cpu", f"ranks={ranks}", f"data.schedule={schedule}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory of a generator of no use, and the file of the prompts."""
    folder = tmp_path_factory.mktemp("generator")
    run(folder, *TINY, "run_dir=trained")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """An empty folder in which the commands find the checkpoint and the prompts."""
    (tmp_path / "trained").symlink_to(trained / "trained")
    (tmp_path / "prompts.txt").write_bytes((trained / "prompts.txt").read_bytes())
    return tmp_path


def files(run_dir):
    return {path.name: path.read_bytes() for path in (run_dir / "images").glob("*.png")}


def assert_alike(run_dir, other):
    """The same images up to rounding, with the same marks; returns the largest difference of any pixel."""
    largest = 0.0
    for name in IDS:
        one, two = (read_png(folder / "images" / f"{name}.png") for folder in (run_dir, other))
        assert one.texts == two.texts
        largest = max(largest, np.abs(one.pixels / 255 - two.pixels / 255).max())
    assert largest <= TOLERANCE + 1e-9
    return largest


def assert_whole(run_dir):
    """Every prompt has one image, one line of the manifest, and nothing else lies there."""
    assert sorted(path.name for path in (run_dir / "images").iterdir()) == [*(f"{i}.png" for i in IDS), "manifest.csv"]
    table = pd.read_csv(run_dir / "images" / "manifest.csv")
    assert table["id"].tolist() == IDS
    assert (table["status"] == "made").all()
    result = read(run_dir)
    assert result["status"] == "finished"
    assert result["counts"]["predict/images"] == 7
    return table, result


@pytest.fixture(scope="module")
def alone(trained):
    """Images of one rank, two a batch; the reference of all others."""
    run(trained, *GENERATE, "trainer=cpu_seq", "run_dir=alone")
    assert_whole(trained / "alone")
    return trained / "alone"


def test_the_images_are_images_and_say_what_they_are(alone):
    found = [read_png(alone / "images" / f"{name}.png") for name in IDS]
    assert [png.texts["prompt"] for png in found] == list(PROMPTS)
    assert len({png.texts["model"] for png in found}) == 1
    assert len({png.texts["seed"] for png in found}) == 7
    assert all(png.pixels.shape == (32, 32) and png.pixels.dtype == np.uint8 for png in found)
    assert len({png.pixels.tobytes() for png in found}) == 7
    table = pd.read_csv(alone / "images" / "manifest.csv", keep_default_na=False)
    assert table["prompt"].tolist() == ["'=2+3" if text == "=2+3" else text for text in PROMPTS]


@pytest.mark.parametrize(("ranks", "schedule"), [(2, "static"), (3, "dynamic")])
def test_every_number_of_ranks_makes_the_same_bytes(train, place, alone, ranks, schedule):
    train(*GENERATE, *mpi(ranks, schedule), "run_dir=out", check=0)
    table, result = assert_whole(place / "out")
    assert files(place / "out") == files(alone)
    assert result["world_size"] == ranks
    if schedule == "static":  # of four batches of two
        assert table["rank"].tolist() == [row // 2 % ranks for row in range(7)]
    assert set(table["rank"]) <= set(range(ranks))
    assert result["timing"]["items_total"] == 7


def test_another_batch_size_differs_by_rounding_alone(trained, alone):
    run(trained, *GENERATE, "trainer=cpu", "data.batch_size=7", "run_dir=seven")
    assert_whole(trained / "seven")
    assert_alike(trained / "seven", alone)


def test_more_ranks_than_batches(train, place, alone):
    run(place, *GENERATE, "trainer=cpu_seq", "data.batch_size=4", "run_dir=one")
    done = train(*GENERATE, *mpi(3), "data.batch_size=4", "run_dir=out", check=0)
    warning = "7 items in 2 batches on 3 ranks: 1 rank has nothing to do"
    assert warning in done.stdout
    table, result = assert_whole(place / "out")
    assert result["warnings"] == [warning]
    assert table["rank"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert files(place / "out") == files(place / "one")
    assert_alike(place / "out", alone)


def kill_half_way(folder, *arguments):
    """Runs a command whose ranks all stop before their second batch, and kills it with all that it started."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_"))}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    started = psutil.Process(process.pid)
    end = time.monotonic() + 90
    try:
        while not (ready := len(list(folder.glob("struck-*"))) == 2) and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        assert ready
    finally:
        for one in [started, *started.children(recursive=True)]:
            one.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("given", [False, True], ids=["no run_dir", "run_dir"])
def test_killed_and_started_again_by_the_same_command(train, place, alone, given):
    command = (*GENERATE, *mpi(2, "static" if given else "dynamic"), *FAULT, "+callbacks.fault.action=wait",
               *(["run_dir=out"] if given else []))  # fmt: skip
    kill_half_way(place, *command)
    (config,) = (place / "out" if given else place / "runs").rglob("config.yaml")
    run_dir = config.parent
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "images").glob("*.png")}
    assert len(before) == 4, "one batch of each rank"
    assert read(run_dir)["status"] == "interrupted"
    # what a kill in the midst of a write leaves
    (run_dir / "images" / f".{IDS[6]}.png.part").write_bytes(b"half of")

    train(*command, check=0)
    table, result = assert_whole(run_dir)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert result["counts"]["predict/already_made"] == 4
    assert table["rank"].isna().sum() == 4
    assert_alike(run_dir, alone)
    assert list(place.rglob("results.json")) == [run_dir / "results.json"]

    # once more, now that it has finished
    if given:
        written = (run_dir / "results.json").stat().st_mtime_ns
        done = train(*command, check=0)
        assert done.stderr.strip() == "mmpds: out is finished already"
        assert (run_dir / "results.json").stat().st_mtime_ns == written
    else:
        run(place, *GENERATE, "trainer=cpu_seq")
        other = {path.parent for path in (place / "runs").rglob("results.json")} - {run_dir}
        assert len(other) == 1
        assert_whole(other.pop())


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_rank_that_dies_is_named_and_the_same_command_completes(train, place, alone, schedule):
    command = (*GENERATE, *mpi(2, schedule), *FAULT, "+callbacks.fault.action=kill", "+callbacks.fault.rank=1")
    began = time.monotonic()
    done = train(*command, check=1, timeout=90)
    assert time.monotonic() - began < 60
    last = last_line(done)
    assert last.startswith("mmpds: rank 1 on ")
    assert "SIGKILL" in last
    (run_dir,) = (place / "runs" / "generate").iterdir()
    assert read(run_dir)["error"] == last.removeprefix("mmpds: ")
    kept = len(files(run_dir))
    assert 2 <= kept < 7
    # with a smaller batch, as after a run that was killed for its memory
    train(*(argument for argument in command if "batch_size" not in argument), "data.batch_size=1", check=0)
    assert [path.name for path in (place / "runs" / "generate").iterdir()] == [run_dir.name]
    _, result = assert_whole(run_dir)
    assert result["counts"]["predict/already_made"] == kept
    assert_alike(run_dir, alone)


def test_a_disk_that_fills_says_so_and_the_images_are_whole(train, place, small_disk):  # noqa: F811
    done = train(*GENERATE, "trainer=cpu_seq", "run_dir=disk/run", check=1, before=small_disk(place / "disk", "28k"))
    assert "no space left" in last_line(done)
    assert "start the run again" in last_line(done)
    images = sorted((place / "disk-after" / "run" / "images").iterdir())
    assert 0 < len(images) < 7
    assert all(read_png(path) for path in images)


@pytest.fixture
def finished(place, alone):
    """A finished run that must not be touched."""
    (place / "out" / "images").mkdir(parents=True)
    for path in (alone / "config.yaml", alone / "results.json", *(alone / "images").iterdir()):
        (place / "out" / path.relative_to(alone)).write_bytes(path.read_bytes())
    config = place / "out" / "config.yaml"
    config.write_text(config.read_text().replace("alone", "out"))
    return place / "out"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_another_seed_prompt_or_model_in_the_same_folder_is_refused(place, finished, status):
    result = json.loads((finished / "results.json").read_text())
    (finished / "results.json").write_text(json.dumps(result | {"status": status}))
    before = contents(finished)
    checkpoint = torch.load(place / "trained" / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["unet.conv_out.bias"] += 1
    torch.save(checkpoint, place / "other.ckpt")
    (place / "other.txt").write_text("Normal.\n")
    base = (*GENERATE, "trainer=cpu_seq", "run_dir=out")
    for other, told in {
        "seed=2": "seed=1, now 2",
        "data.prompts=other.txt": "data.prompts=prompts.txt, now other.txt",
        "checkpoint=other.ckpt": "now other.ckpt",
        "model.sampling.steps=3": "model.sampling.steps=4, now 3",
    }.items():
        said = run(place, *base, other, check=2)
        assert told in said
        assert "run_dir=out: holds images of other settings" in said
        assert "give another run_dir" in said
        assert contents(finished) == before
    # the same file, edited meanwhile
    (place / "prompts.txt").write_text("\n".join(["Something else.", *PROMPTS[1:]]), encoding="utf-8")
    said = run(place, *base, check=2 if status == "finished" else 1)
    assert ("prompts.txt was written later" if status == "finished" else "holds images of another run") in said
    assert "Traceback" not in said
    images = {path: content for path, content in before.items() if path.parent.name == "images"}
    assert {path: path.read_bytes() for path in images} == images


POISON = ("+callbacks.fault._target_=tests.distributed.generation_faults.Poison",)


def test_weights_that_are_no_numbers_fail_the_run(place):
    checkpoint = torch.load(place / "trained" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if name.startswith("unet.conv_out"):
            weight.fill_(torch.nan)
    torch.save(checkpoint, place / "no_numbers.ckpt")
    said = run(place, *GENERATE, "trainer=cpu_seq", "checkpoint=no_numbers.ckpt", "run_dir=out", check=1)
    assert "Traceback" not in said
    assert "mmpds: the run failed: no image was made: 7 images could not be made: their pixels are not finite" in said
    assert "line-00001" in said
    table = pd.read_csv(place / "out" / "images" / "manifest.csv")
    assert table["status"].tolist() == ["failed"] * 7
    assert table["retried"].tolist() == [1] * 7
    assert files(place / "out") == {}
    assert read(place / "out")["status"] == "failed"


def test_one_image_that_fails_is_a_warning(place, alone):
    said = run(place, *GENERATE, "trainer=cpu_seq", *POISON, "+callbacks.fault.word=pneumothorax", "run_dir=out")
    result = read(place / "out")
    counts = {name: result["counts"][f"predict/{name}"] for name in ("images", "failed", "retried", "already_made")}
    assert counts == {"images": 6, "failed": 1, "retried": 1, "already_made": 0}
    (warning,) = result["warnings"]
    assert warning in said
    assert "line-00002" in warning
    table = pd.read_csv(place / "out" / "images" / "manifest.csv")
    assert table["status"].tolist() == ["made", "failed", *["made"] * 5]
    other = files(alone)
    assert files(place / "out") == {name: other[name] for name in other if name != "line-00002.png"}


def test_a_limit_would_leave_ranks_waiting(place):
    said = run(place, *GENERATE, *mpi(2), "+trainer.limit_predict_batches=1", check=2)
    assert "trainer.limit_predict_batches=1" in said
    assert "use data.count instead" in said
