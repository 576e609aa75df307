"""What does BLIP answer and write about phantom radiographs, and what of that is hallucinated?

    python experiments/blip_phantom/run.py

Trains CLIP from scratch (the one of experiments/clip_phantom), BLIP that answers from CLIP's vision tower, and BLIP
that writes captions from the answering one's; tests both BLIPs on patients that none of the three has seen. Runs that
have finished are not run again. Writes results.json beside this file and renews the READMEs.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished, publish, texts, training_time

from mmpds import results
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parents[1] / "runs"
RUNS = STUDIES / "blip_phantom_study"
BEST = "checkpoints/best.ckpt"


def main():
    """Train, test, keep."""
    clip, vqa = STUDIES / "clip_phantom_study/clip", RUNS / "vqa"
    runs = {"CLIP": finished(clip, "experiment=clip_phantom", "trainer=cpu_seq", "stages=[fit]")}
    runs["answers"] = finished(vqa, "experiment=blip_vqa_phantom", f"init_from={clip / BEST}", "report=false")
    runs["captions"] = finished(
        RUNS / "caption", "experiment=blip_caption_phantom", f"init_from={vqa / BEST}", "report=false"
    )
    trained = "; ".join(f"{name}: {training_time(run)}" for name, run in runs.items())
    parts = [f"**{name.capitalize()}.** {texts(run)}" for name, run in runs.items() if name != "CLIP"]
    record = {
        "command": "python experiments/blip_phantom/run.py", "hardware": results.hardware([], cores()),
        "versions": results.versions(), "git_commit": results.git_commit(),
        **{
            key: {name: run[key] for name, run in runs.items()}
            for key in ("metrics", "intervals", "counts", "warnings", "timing", "energy", "memory")
        },
        "markdown": f"Training took: {trained}.\n\n" + "\n".join(parts) + "\nBelow each value its 95 % interval, by "
        "patient; below a kind of question its number.\n",
    }  # fmt: skip
    print(record["markdown"])
    publish(HERE, record)


if __name__ == "__main__":
    main()
