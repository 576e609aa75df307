"""What does CLIP learn from VQA-RAD's few images and their questions and answers, and what not?

    python experiments/clip_vqa_rad/run.py PATH    the folder of the public release

Trains unless the run is there, then asks it the closed questions of held-out images. Writes results.json beside this
file and renews the READMEs.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished, publish

from mmpds import results
from mmpds.console import figure, ranged, table
from mmpds.metrics.intervals import evaluate
from mmpds.models.clip import Clip
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
RUN = HERE.parents[1] / "runs" / "clip_vqa_rad_study"
ORGANS = ("Head", "Chest", "Abdomen")
# of the release's question types, those with questions enough; coarse ones first
KINDS = {"MODALITY": "modality", "PLANE": "plane", "SIZE": "size of an organ", "ABN": "is anything abnormal",
         "PRES": "presence of a finding"}  # fmt: skip
WORDS = ("enlarged", "mass", "lesion", "fracture", "pneumothorax", "effusion")


def closed_questions(data):
    """The yes-or-no questions of the test images, each with the image's row."""
    rows = {name: row for row, name in enumerate(data.images["test"].table["id"])}
    asked = data.source.questions
    asked = asked[asked["answer"].str.lower().isin(["yes", "no"]) & asked["image_name"].isin(rows)]
    return asked.assign(row=asked["image_name"].map(rows), yes=asked["answer"].str.lower() == "yes")


@torch.inference_mode()
def answered(run_dir):
    """AUROC of yes against no by kind of question, with the image asked and with the mean training image for all.

    A question is a sentence with either answer: what counts is to which of both the image is nearer.
    """
    data = instantiate(OmegaConf.load(run_dir / results.CONFIG).data, _convert_="all")
    data.setup("fit")
    model = Clip.load_from_checkpoint(run_dir / "checkpoints/best.ckpt", map_location="cpu", weights_only=True).eval()
    image = {
        split: torch.cat([model.embed_images(batch["image"]) for batch in data.eval_dataloader(split)])
        for split in ("train", "test")
    }
    asked = closed_questions(data)
    yes, no = (model.embed_texts([f"{text} {answer}" for text in asked["question"]]) for answer in ("yes", "no"))
    seen = image["test"][asked["row"].tolist()]
    blind = torch.nn.functional.normalize(image["train"].mean(0), dim=0)
    kinds = {shown: asked["question_type"].to_numpy() == kind for kind, shown in KINDS.items()}
    kinds |= {f"names “{word}”": asked["question"].str.lower().str.contains(word).to_numpy() for word in WORDS}
    label = np.stack([np.where(of, asked["yes"], np.nan) for of in kinds.values()], axis=1)
    return {
        name: evaluate(
            (model.scale * ((each * (yes - no)).sum(1))).sigmoid()[:, None].expand(-1, len(kinds)).numpy(), label,
            np.full(len(kinds), 0.5), list(kinds), group=asked["image_name"].to_numpy(),
        )
        for name, each in (("image", seen), ("blind", blind))
    }  # fmt: skip


def main(root):
    """Train, ask, keep."""
    run = finished(RUN, "experiment=clip_vqa_rad", "trainer=cpu_seq", f"data.root={Path(root).resolve()}")
    found = answered(RUN)

    def cell(name):
        return figure(run, f"test/{name}", "<br>")

    organs = [
        [organ, str(run["counts"][f"test/items/{organ}"]), cell(f"top1_recall/{organ}"), cell(f"auroc/{organ}")]
        for organ in ORGANS
    ]
    organs.append(["all", str(sum(int(row[1]) for row in organs)), cell("top1_accuracy"), cell("auroc/macro")])
    retrieved = [
        [shown, *(text for k in (1, 5, 10) for text in (cell(f"{way}/recall@{k}"), cell(f"{way}/recall_chance@{k}")))]
        for shown, way in (("image to text", "image_to_text"), ("text to image", "text_to_image"))
    ]
    seen, blind = found["image"], found["blind"]
    closed = [
        [
            kind,
            *(str(seen.counts[f"{count}/{kind}"]) for count in ("labelled", "positives")),
            *(
                ranged(each.metrics.get(f"auroc/{kind}"), each.intervals.get(f"auroc/{kind}"), "<br>")
                for each in (seen, blind)
            ),
        ]
        for kind in (name.removeprefix("labelled/") for name in seen.counts if name.startswith("labelled/"))
    ]
    title = (
        f"{run['counts']['test/items']} held-out images; trained on images of its own for "
        f"{run['timing']['fit_s'] / 60:.0f} minutes on one core of {run['hardware']['cpu']}"
    )
    shown = (
        (title, ["organ, told by sentences", "images", "recognised", "ROC-AUC"], organs),
        ("Retrieval among them", ["", *(n for k in (1, 5, 10) for n in (f"recall@{k}", "chance"))], retrieved),
        (
            f"Closed questions of these images: ROC-AUC of yes against no, {seen.counts['items']} questions",
            ["question", "asked", "yes", "of the image", "of the mean training image"],
            closed,
        ),
    )
    for heading, heads, rows in shown:
        table(heading, heads, [[text.replace("<br>", "  ") for text in row] for row in rows])
    text = "\n".join(f"{heading}:\n\n{markdown(heads, rows)}" for heading, heads, rows in shown)
    record = {
        "command": "python experiments/clip_vqa_rad/run.py PATH", "title": title, "hardware": run["hardware"],
        **{name: run[name] for name in ("metrics", "intervals", "counts", "warnings", "versions", "git_commit")},
        "timing": run["timing"],
        "closed_questions": {name: vars(each) for name, each in found.items()},
        "markdown": f"{text}\nBelow each value its 95 % interval, by image.\n",
    }  # fmt: skip
    publish(HERE, record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give the folder that holds VQA-RAD's public JSON and its folder of images")
    main(sys.argv[1])
