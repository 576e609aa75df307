"""Images of VQA-RAD's questions and answers, with a generator of no use."""

import json

import pandas as pd

from mmpds.data.prompt_sets import read_prompts
from mmpds.data.vqa_rad import RELEASE
from mmpds.results import read
from tests.distributed.test_generation import TINY
from tests.distributed.test_stages import run


def test_vqa_rad_has_a_prompt_of_each_row(real_data):
    rows = json.loads((real_data / "vqa_rad" / RELEASE).read_text(encoding="utf-8"))
    found = dict(read_prompts("vqa_rad", str(real_data / "vqa_rad")))
    assert len(found) == len(rows) == 2248
    for row in rows:
        prompt = found[f"vqa_rad-{row['qid']}"]
        assert prompt.split() == f"{row['question']} {row['answer']}".split()
        assert prompt == prompt.strip()


def test_images_of_the_first_rows(real_data, tmp_path):
    run(tmp_path, *TINY, "run_dir=trained")
    root = str(real_data / "vqa_rad")
    run(
        tmp_path, "experiment=generate", "checkpoint=trained/checkpoints/best.ckpt", "data.prompts=vqa_rad",
        f"data.root={root}", "data.count=4", "model.sampling.steps=2", "trainer=cpu_seq", "trainer.precision=32-true",
        "trainer.threads=1", "report=false", "run_dir=out",
    )  # fmt: skip
    assert read(tmp_path / "out")["counts"]["predict/images"] == 4
    table = pd.read_csv(tmp_path / "out" / "images" / "manifest.csv")
    assert list(zip(table["id"], table["prompt"], strict=True)) == read_prompts("vqa_rad", root)[:4]
    assert len(list((tmp_path / "out" / "images").glob("vqa_rad-*.png"))) == 4
