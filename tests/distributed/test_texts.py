"""Models that write, from training to their texts, through the command; the same texts at any number of ranks."""

import pandas as pd
import pytest
from PIL import Image

from mmpds.data.phantom import Phantom
from mmpds.results import read
from tests.distributed.test_stages import run

SMALL = (
    "data.size=32", "data.batch_size=6", "data.source.images=60", "data.fractions=[0.6,0.1,0.3]",
    "data.cache_dir=cache",
    "model.size=32", "model.width=24", "model.vision.num_hidden_layers=1", "model.vision.num_attention_heads=2",
    "model.text.num_hidden_layers=1", "model.text.num_attention_heads=2", "bootstrap=20", "report=false",
    "trainer.max_epochs=2", "trainer.precision=32-true", "trainer.threads=1",
)  # fmt: skip
ASKED = "Is there evidence of pneumonia?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run of each kind, and a plain folder of images."""
    folder = tmp_path_factory.mktemp("texts")
    for kind in ("vqa", "caption"):
        run(folder, f"experiment=blip_{kind}_phantom", *SMALL, f"run_dir={kind}")
    (folder / "plain").mkdir()
    for row in range(5):
        Image.fromarray(Phantom(images=5, seed=3).image(row, 40)).save(folder / "plain" / f"{row}.png")
    return folder


CLIP = (
    "data.size=32", "data.batch_size=6", "data.source.images=60", "data.fractions=[0.6,0.1,0.3]",
    "data.cache_dir=cache", "bootstrap=20", "report=false", "trainer.precision=32-true", "trainer.threads=1",
)  # fmt: skip


def test_clip_s_answers_at_two_ranks_are_those_of_one(train, place):
    small = [text for text in SMALL if not text.startswith(("model.width", "data.size"))]
    fitted = ("stages=[fit]", "data.size=32", "model.vision.hidden_size=24", "model.text.hidden_size=24")
    run(place, "experiment=clip_phantom", *small, *fitted, "run_dir=clip")
    of = ["model=clip_vqa", "data=phantom", *CLIP, "stages=[test]", f"checkpoint={place}/clip/checkpoints/best.ckpt"]
    train(*of, "trainer=cpu_seq", f"run_dir={place}/clip-1", check=0)
    train(*of, "trainer=mpi_cpu", "ranks=2", f"run_dir={place}/clip-2", check=0)
    assert (place / "clip-2" / "texts.csv").read_text() == (place / "clip-1" / "texts.csv").read_text()


@pytest.mark.parametrize("kind", ["vqa", "caption"])
def test_texts_at_three_ranks_are_those_of_one(train, place, kind):
    of = [
        f"experiment=blip_{kind}_phantom",
        *SMALL,
        "stages=[test]",
        f"checkpoint={place / kind}/checkpoints/best.ckpt",
    ]
    found = {}
    for ranks in (1, 3):
        folder = place / f"{kind}-{ranks}"
        trainer = ["trainer=cpu_seq"] if ranks == 1 else ["trainer=mpi_cpu", f"ranks={ranks}"]
        train(*of, *trainer, f"run_dir={folder}", f"data.cache_dir={place}/cache", check=0)
        assert read(folder)["world_size"] == ranks
        found[ranks] = (folder / "texts.csv").read_text(), read(folder)["metrics"], read(folder)["intervals"]
    assert found[3] == found[1]
    texts = pd.read_csv(place / f"{kind}-1" / "texts.csv", keep_default_na=False)
    assert texts["id"].nunique() == read(place / f"{kind}-1")["counts"]["test/items"] > 10


@pytest.mark.parametrize(("kind", "ask"), [("vqa", [f"data.ask=[{ASKED},Is it normal?]"]), ("caption", [])])
def test_a_folder_of_images_is_asked_or_described(place, kind, ask):
    run(place, f"experiment=blip_{kind}_phantom", *SMALL, "stages=[predict]", "data.predict_root=plain", *ask,
        f"checkpoint={kind}/checkpoints/best.ckpt", f"run_dir={kind}-of-folder")  # fmt: skip
    texts = pd.read_csv(place / f"{kind}-of-folder" / "texts.csv", keep_default_na=False)
    assert texts["id"].tolist() == [f"{row}.png" for row in range(5) for _ in range(2 if ask else 1)]
    if ask:
        assert texts["question"].tolist() == 5 * [ASKED, "Is it normal?"]


def test_a_test_that_ends_early_judges_what_was_written(train, place):
    of = ["experiment=blip_caption_phantom", *SMALL, f"checkpoint={place}/caption/checkpoints/best.ckpt"]
    train(*of, "stages=[test]", "trainer=cpu_seq", "+trainer.limit_test_batches=1", f"run_dir={place}/early", check=0)
    assert len(pd.read_csv(place / "early" / "texts.csv")) == 6
    assert read(place / "early")["counts"]["test/items"] == 6
