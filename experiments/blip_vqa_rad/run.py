"""What does BLIP, from scratch, answer on VQA-RAD's official split of questions, and which recipe is best?

    python experiments/blip_vqa_rad/run.py PATH [--trainer cpu] [--jobs 1]    the folder of the public release

Trains every recipe listed here, `--jobs` at a time, and tests all; the best is chosen by its accuracy on validation
questions alone. Beside them stands a linear model of the questions' words, which sees no image. Runs that have finished
are not run again. Writes results.json beside this file and renews the READMEs.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from measure import finished, named, publish, texts
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mmpds.console import figure, table
from mmpds.data.vqa_rad import read_questions
from mmpds.stored_answers import read_answers
from mmpds.sweep import markdown
from mmpds.tasks.text import judge
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parents[1] / "runs"
RUNS = STUDIES / "blip_vqa_rad_study"
CLIP = STUDIES / "clip_phantom_study/clip/checkpoints/best.ckpt"
AVERAGE = "+callbacks.ema={_target_:mmpds.callbacks.ema.EMA,decay:0.99}"
# name: changes of experiment=blip_vqa_rad
RECIPES = {
    "as it is": [],
    "from CLIP's tower of phantoms, average of the weights": [AVERAGE, f"init_from={CLIP}"],
    "half the width, average": [
        AVERAGE, "model.width=96", "model.vision.intermediate_size=384", "model.text.intermediate_size=384",
    ],
    "stronger dropout, smoothed labels, average": [
        AVERAGE, "model.text.hidden_dropout_prob=0.3", "model.text.label_smoothing=0.1",
    ],
}  # fmt: skip
WORDS = "no image: logistic regression on the words of the question, validation questions learnt too"
BASELINE = "Bilinear attention from scratch, as Nguyen et al. (MICCAI 2019) report it"
LITERATURE = {"closed": 0.665, "open": 0.276}


def main():
    """Train, test, choose, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--trainer", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if not CLIP.is_file():
        parser.error(f"{CLIP}: no such file; experiments/clip_phantom/run.py makes one")

    def run(name):
        folder = RUNS / name.replace(" ", "-").replace(",", "").replace("'", "")
        return finished(
            folder, "experiment=blip_vqa_rad", f"data.root={given.root.resolve()}", f"trainer={given.trainer}",
            f"trainer.threads={max(1, cores() // given.jobs)}", "report=false", *RECIPES[name],
        )  # fmt: skip

    with ThreadPoolExecutor(given.jobs) as pool:
        records = dict(zip(RECIPES, pool.map(run, RECIPES), strict=True))
    chosen = max(records, key=lambda name: records[name]["metrics"]["val/accuracy"])
    (words := RUNS / "words.json").write_text(json.dumps(answers_by_words(given.root)))
    judged = vars(judge(read_answers(words, given.root)[0], np.empty((0, 0)), (), 1000, 0))
    beside = {key: {f"test/{name}": value for name, value in judged[key].items()} for key in ("metrics", "intervals")}

    def cell(record, name):
        return figure(record, f"test/{name}", "<br>")

    rows = [
        [
            name + " **(chosen)**" * (name == chosen), f"{record['metrics']['val/accuracy']:.3f}",
            *(cell(record, f"accuracy/{kind}") for kind in ("closed", "open")),
            *(cell(record, f"accuracy_{without}/closed") for without in ("blank", "shuffled", "majority")),
            f"{record['timing']['fit_s'] / 60:.1f}",
        ]
        for name, record in records.items()
    ]  # fmt: skip
    # without an image there is nothing to leave blank or to exchange
    rows.append([WORDS, "–", *(cell(beside, f"accuracy/{kind}") for kind in ("closed", "open")), "–", "–", "–", "–"])
    best = records[chosen]
    title = (
        f"{best['counts']['test/questions/closed']} closed and {best['counts']['test/questions/open']} open questions "
        f"of the official test part; {named(best['hardware'])}"
    )
    heads = ["recipe", "validation accuracy", "closed", "open", "closed, image blank", "closed, another's image",
             "closed, majority answer", "minutes"]  # fmt: skip
    table(title, heads, [[text.replace("<br>", "  ") for text in row] for row in rows])
    literature = (
        f"{BASELINE}: {LITERATURE['closed']} on closed and {LITERATURE['open']} on open questions; it chooses among "
        "the answers of the whole data set."
    )
    chosen_one = f"**The chosen one.** {texts(best)}"
    parts = [f"{title}.\n\n{markdown(heads, rows)}\n{literature}\n", chosen_one]
    record = {
        "command": "python experiments/blip_vqa_rad/run.py PATH", "title": title, "hardware": best["hardware"],
        "chosen": chosen, "literature": LITERATURE,
        **{key: {name: each[key] for name, each in records.items()} for key in ("metrics", "intervals", "timing")},
        "words": beside,
        **{key: best[key] for key in ("counts", "warnings", "versions", "git_commit")},
        "markdown": "\n".join(parts) + "\nBelow each value its 95 % interval, by image.\n",
    }  # fmt: skip
    publish(HERE, record)


def answers_by_words(root):
    """What a linear model of the words of training's questions answers to each test question: qid -> answer."""
    asked = {split: [q for q in read_questions(root) if q["split"] == split] for split in ("train", "test")}
    model = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1000))
    model.fit([q["question"] for q in asked["train"]], [q["answer"].lower() for q in asked["train"]])
    found = model.predict([q["question"] for q in asked["test"]])
    return {str(q["qid"]): answer for q, answer in zip(asked["test"], found, strict=True)}


if __name__ == "__main__":
    main()
