"""The generator from the command line: where prompts come from, what is refused, a sweep over trainers."""

import csv
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mmpds.data.phantom import Phantom
from mmpds.data.prompt_sets import STUDY
from mmpds.data.provenance import read_png
from mmpds.results import read
from mmpds.world import cores
from tests.conftest import ROOT
from tests.distributed.test_generation import TINY, TOLERANCE
from tests.distributed.test_stages import run

GENERATE = (
    "experiment=generate", "checkpoint=trained/checkpoints/best.ckpt", "model.sampling.steps=2",
    "trainer.precision=32-true", "trainer.threads=1", "report=false",
)  # fmt: skip
ALONE = (*GENERATE, "trainer=cpu_seq")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    run(folder, *TINY, "run_dir=trained")
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """An empty folder in which the commands find the checkpoint."""
    (tmp_path / "trained").symlink_to(trained / "trained")
    return tmp_path


def manifest(run_dir):
    """Id → prompt of the images that are there."""
    table = pd.read_csv(run_dir / "images" / "manifest.csv", keep_default_na=False)
    found = {row.id: read_png(run_dir / "images" / row.file).texts["prompt"] for row in table.itertuples()}
    assert table["prompt"].tolist() == list(found.values())
    return found


CAPTIONS = dict(zip(Phantom(images=2000).table["id"][:3], Phantom(images=2000).table["caption"][:3], strict=True))


@pytest.mark.parametrize(
    ("prompts", "made"),
    [
        (
            ['data.prompts=["Chest X-ray. Large left pleural effusion."]'],
            {"prompt-00000": "Chest X-ray. Large left pleural effusion."},
        ),
        (["data.prompts=['One, two.', Three]"], {"prompt-00000": "One, two.", "prompt-00001": "Three"}),
        (["data.prompts=mine.txt"], {"line-00001": "Normal.", "line-00002": "Größeres Herz, 2 = 1 + 1"}),
        (["data.prompts=phantom", "data.count=3"], CAPTIONS),
        (["data.count=1", "data.images_per_prompt=2"], {"study-0-0": STUDY[0], "study-0-1": STUDY[0]}),
    ],
    ids=["one", "list", "file", "phantom", "images_per_prompt"],
)  # fmt: skip
def test_prompts_of_every_kind(place, prompts, made):
    (place / "mine.txt").write_text("Normal.\r\nGrößeres Herz, 2 = 1 + 1\r\n", encoding="utf-8")
    run(place, *ALONE, *prompts, "run_dir=out")
    assert manifest(place / "out") == made
    assert (place / "out" / "contact_sheet.png").exists()
    seeds = pd.read_csv(place / "out" / "images" / "manifest.csv")["seed"]
    assert seeds.nunique() == len(made)


FILES = {
    "empty line.txt": b"Normal.\n\nNormal.\n",
    "empty.txt": b"",
    "latin.txt": "Größe\n".encode("latin-1"),
}
REFUSED = {  # before anything is computed: every argument, and all that the message has to say
    "data.prompts='empty line.txt'": ("data.prompts=empty line.txt: line 2 is empty", "leave the line out"),
    "data.prompts=empty.txt": ("data.prompts=empty.txt: the file is empty",),
    "data.prompts=latin.txt": ("data.prompts=latin.txt: line 1 is not UTF-8",),
    "data.prompts=missing.txt": ("data.prompts=missing.txt: no such set and no such file", "text file's path"),
    "data.prompts=studdy": ("did you mean study?",),
    "data.prompts=[Normal.,'']": ("data.prompts: prompt 1 (from 0) is empty",),
    "data.prompts=[]": ("data.prompts=[]: there is nothing to generate",),
    "data.prompts=[1,2]": ("0 is 1, 1 is 2", "put each prompt in quotes"),
    "data.prompts=vqa_rad": ("data.root: prompts=vqa_rad needs the folder",),
    "data.root=nowhere": ("data.root=nowhere: no such folder",),
    "data.count=7": ("data.count=7: there are 6 prompts",),
    "data.count=0": ("data.count=0: give a whole number from 1 up",),
    "data.images_per_prompt=0": ("data.images_per_prompt=0: give a whole number from 1 up",),
    "data.batch_size=0": ("data.batch_size=0: give a whole number above zero",),
    "data.schedule=dynamc": ("data.schedule=dynamc: did you mean dynamic",),
    "stages=[fit]": ("stages=['fit']: prompts have no images to fit or test: give stages=[predict]",),
    "model=densenet121": ("prompts are for a generator: give model=diffusion",),
    "model.sampling.scheduler=ddmi": ("model.sampling.scheduler=ddmi: did you mean", "ddim"),
    "model.sampling.steps=0": ("model.sampling.steps=0: give a whole number above zero",),
    "model.sampling.size=-4": ("model.sampling.size=-4: give pixels a side",),
    "checkpoint=gone.ckpt": ("checkpoint=gone.ckpt: no such checkpoint",),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_wrong_setting_is_told_at_once_and_leaves_nothing(place, wrong):
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    before = set(place.iterdir())
    plain = [argument for argument in GENERATE if "sampling" not in argument]  # not every model has it
    said = run(place, *plain, "trainer=mpi_cpu", "ranks=2", wrong, check=2)
    for text in REFUSED[wrong]:
        assert said.count(text) == 1, said
    assert "Traceback" not in said
    assert set(place.iterdir()) == before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("data.prompts=long.txt", ("data.prompts: 1 prompt", "tokens", "shorten")),
        ("model.sampling.size=33", ("sampling.size=33: this model makes multiples of 4 pixels a side",)),
        ("checkpoint=broken.ckpt", ("checkpoint=broken.ckpt cannot be read",)),
    ],
    ids=["too long", "size", "broken checkpoint"],
)
def test_what_the_weights_decide_ends_in_one_sentence(place, wrong, told):
    (place / "long.txt").write_text("Normal.\n" + "pneumonia " * 60 + "\n")
    (place / "broken.ckpt").write_bytes(b"no checkpoint")
    said = run(place, *ALONE, wrong, "run_dir=out", check=1)
    assert "Traceback" not in said
    assert said.count("mmpds: ") == 1
    for text in told:
        assert text in said
    assert not list((place / "out").rglob("*.png"))
    assert read(place / "out")["status"] == "failed"


def test_a_run_directory_may_be_a_number(place):
    run(place, *ALONE, "data.count=1", "run_dir=7")
    assert manifest(place / "7") == {"study-0": STUDY[0]}


@pytest.fixture(scope="module")
def swept(trained):
    """A sweep over all trainers on a machine without a GPU; its folder and the finished process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "SLURM_"))}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    sweep = ("trainer=cpu_seq,cpu,mpi_cpu,gpu,mpi_gpu", "data.prompts=study", "data.batch_size=2")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *GENERATE, *sweep], cwd=trained, env=environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (trained / "sweeps").iterdir()
    return folder, done


RAN = ("cpu_seq", "cpu", "mpi_cpu")


def test_a_sweep_over_trainers_skips_gpus_and_tells_the_speed_ups(swept):
    folder, done = swept
    with (folder / "summary.csv").open(newline="") as file:
        statuses = {row["job"]: row["status"] for row in csv.DictReader(file)}
    assert statuses == {f"trainer={name}": "finished" if name in RAN else "skipped"
                        for name in (*RAN, "gpu", "mpi_gpu")}  # fmt: skip
    assert done.stderr.count("mmpds: skipped: trainer.accelerator=gpu: no GPU here") == 2
    text = (folder / "summary.md").read_text()
    heads = ("stage s", "images/s", "speed-up", "speed-up, whole command", "efficiency", "J/image", "utilisation",
             "start-up", "build", "load", "warm-up", "steady", "whole command")  # fmt: skip
    for head in heads:
        assert f"| {head} |" in text
    assert "trainer=mpi_gpu: skipped" in text
    with (folder / "scaling.csv").open(newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert float(rows["trainer=cpu_seq"]["speedup_steady"]) == 1
    assert float(rows["trainer=cpu"]["speedup_command"]) > 0
    assert int(rows["trainer=mpi_cpu"]["ranks"]) == cores()


def test_all_jobs_of_a_sweep_make_the_same_images(swept):
    folder, _ = swept
    reference = {path.name: read_png(path) for path in (folder / "trainer=cpu_seq" / "images").glob("*.png")}
    assert len(reference) == len(STUDY)
    for name in RAN[1:]:
        found = {path.name: read_png(path) for path in (folder / f"trainer={name}" / "images").glob("*.png")}
        assert found.keys() == reference.keys()
        for file, png in found.items():
            assert png.texts == reference[file].texts
            assert np.abs(png.pixels / 255 - reference[file].pixels / 255).max() <= TOLERANCE + 1e-9
