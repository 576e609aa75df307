"""How fast does BLIP-base write captions and answers against a plain loop of `generate`, one image at a time in fp32?

A contestant has a process of its own, in which it works only when it is its turn. The architecture is BLIP-base's;
weights are random, which changes no speed, and the end of a text is ruled out, so that all have the same length.

    python experiments/blip_speed/run.py [--rounds 3] [--images 32] [--only mpi]
    python experiments/blip_speed/run.py --gpu

Writes results.json (with --gpu, gpu.json) beside this file and renews the READMEs; `--only` measures one section,
beside what is kept. On a GPU mmpds is measured on all cores of the same machine too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import apart, chosen_device, conclude, interleaved, kept, rate, steady

from mmpds.world import reuse_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZE, PIECES, CAPTION, ANSWER = 384, 30523, 20, 5
VISION = {"patch_size": 16, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TEXT = {
    "vocab_size": 30524, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 512,
}  # fmt: skip
QUESTIONS = (
    "Is there evidence of pneumonia?", "Is there evidence of a pleural effusion on the left?", "Is this normal?",
    "Which side is affected?",
)  # fmt: skip
BATCH, GPU_BATCH = 16, 64
FEWER = 8  # by how much a turn of the slowest has fewer images
PAIRS = {
    "captions ÷ plain loop": ("captions", "mmpds", "plain", None),
    "captions, int8 ÷ plain loop": ("captions", "mmpds, int8", "plain", 5.0),
    "captions, int8 ÷ bfloat16": ("captions", "mmpds, int8", "mmpds", None),
    "answers ÷ plain loop": ("answers", "mmpds", "plain", 5.0),
    "answers, int8 ÷ plain loop": ("answers", "mmpds, int8", "plain", 5.0),
    "answers, int8 ÷ bfloat16": ("answers", "mmpds, int8", "mmpds", None),
    "2 MPI ranks ÷ 2 independent processes": ("mpi", "2 MPI ranks", "2 processes", 0.97),
}

GPU_PAIRS = {
    "captions ÷ plain loop": ("captions", "mmpds", "plain", 8.0),
    "answers ÷ plain loop": ("answers", "mmpds", "plain", 8.0),
    "captions, GPU ÷ all cores": ("captions", "mmpds", "mmpds on the CPU", None),
    "answers, GPU ÷ all cores": ("answers", "mmpds", "mmpds on the CPU", None),
}


def network(kind, length, device, half, int8=False):
    """BLIP-base with random weights and a made-up vocabulary of the published size."""
    from mmpds.models import wordpiece
    from mmpds.models.blip import Blip
    from mmpds.models.blip_vqa import BlipVqa
    from mmpds.models.int8 import quantize
    from mmpds.stages import has_bfloat16

    warnings.filterwarnings("ignore")
    reuse_memory()
    torch.manual_seed(0)
    model = (Blip if kind == "captions" else BlipVqa)(size=SIZE, vision=VISION, text=TEXT, longest=length).eval()
    letters = [letter for character in wordpiece.WRITABLE for letter in (character, f"##{character}")]
    words = sorted({word for text in QUESTIONS for word in text.lower().strip("?").split()})
    pieces = [*wordpiece.MARKS, *letters, *(word for word in words if word not in letters)]
    pieces += [f"unused{number}" for number in range(PIECES - 1 - len(pieces))]
    model.tokenizer = wordpiece.restored({"pieces": pieces, "length": 512})
    with torch.no_grad():  # no text ends early
        model.blip.text_decoder.cls.predictions.bias[model.tokenizer.sep_token_id] = -1e4
    if int8:
        quantize(model)
    return model.to(device, torch.bfloat16 if half and has_bfloat16(device) else torch.float32)


def pixels(images):
    """Images, float32 [N, 1, H, W] in [0, 1]."""
    return torch.rand(images, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def plain(kind, images, device):
    """Texts a second of transformers' own layers and `generate`, fp32: one image, one question at a time."""
    from transformers.models.blip.modeling_blip import BlipAttention
    from transformers.models.blip.modeling_blip_text import BlipTextAttention

    length = CAPTION if kind == "captions" else ANSWER
    model = network(kind, length, device, half=False)
    own = {"FusedAttention": BlipAttention, "MaskedAttention": BlipTextAttention}
    for module in model.blip.modules():
        module.__class__ = own.get(type(module).__name__, type(module))
    shown = pixels(images).to(device)
    scaled = ((shown - model.image_mean) / model.image_std).expand(-1, 3, -1, -1).contiguous()
    asked = [None] if kind == "captions" else QUESTIONS

    def run():
        for image in scaled.split(1):
            for question in asked:
                tokens = {} if question is None else model.tokenizer([question], return_tensors="pt").to(device)
                given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
                written = model.blip.generate(pixel_values=image, max_new_tokens=length, do_sample=False, **given)
                model.tokenizer.batch_decode(written, skip_special_tokens=True)

    return lambda: rate(run, images * len(asked))


def ours(kind, images, device, int8=False):
    """Texts a second of the test step: batches, each image seen once, bfloat16 where the hardware has it, or int8."""
    model = network(kind, CAPTION if kind == "captions" else ANSWER, device, half=True, int8=int8)
    shown = pixels(images)
    size = GPU_BATCH if device == "cuda" else BATCH
    asked = 1 if kind == "captions" else len(QUESTIONS)

    def run():
        with torch.inference_mode():
            for start in range(0, images, size):
                index = torch.arange(start, min(start + size, images))
                batch = {"image": shown[index].to(device, model.dtype), "index": index}
                if kind == "answers":
                    batch |= {"question": [list(QUESTIONS)] * len(index), "asked": [[0] * asked] * len(index)}
                model.test_step(batch, 0)

    return lambda: rate(run, images * asked)


def mpi(images, rounds):
    """Images a second of `stages=[test]` over two ranks, and of two runs of half the images side by side."""
    base = [
        sys.executable, str(ROOT / "train.py"), "model=blip_caption", "data=phantom", "stages=[test]", "bootstrap=0",
        f"model.size={SIZE}", f"data.size={SIZE}", "model.stem=patch", "model.width=768", "model.longest=20",
        *(f"model.vision.{name}={value}" for name, value in VISION.items()),
        *(f"model.text.{name}={value}" for name, value in TEXT.items() if name != "vocab_size"),
        "model.text.vocab_size=1024", "report=false", "data.fractions=[0.02,0.02,0.96]",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        from mmpds.models import wordpiece
        from mmpds.models.blip import Blip

        torch.manual_seed(0)
        model = Blip(size=SIZE, vision=VISION, text=TEXT | {"vocab_size": 1024}, longest=CAPTION)
        model.tokenizer = wordpiece.learn(list(QUESTIONS), 1024, 512)
        with torch.no_grad():
            model.blip.text_decoder.cls.predictions.bias[model.tokenizer.sep_token_id] = -1e4
        model.save_pretrained(Path(folder) / "blip")
        del model
        base.append(f"model.pretrained={folder}/blip")
        turn = iter(range(10**6))

        def start(count, *more):
            run_dir = f"{folder}/run{next(turn)}"
            sizes = [f"data.source.images={count}", f"run_dir={run_dir}", f"data.cache_dir={folder}/cache"]
            command = [*base, *sizes, *more]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ)), run_dir

        def ranks():
            return steady([start(images, "trainer=mpi_cpu", "ranks=2", f"data.batch_size={2 * BATCH}")])

        def processes():
            alone = ("trainer=cpu_seq", f"data.batch_size={BATCH}")
            return steady([start(images // 2, *alone), start(images // 2, *alone)])

        return interleaved({"2 MPI ranks": ranks, "2 processes": processes}, rounds)


def main():
    """Measure, print, and keep the whole measurement in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--only", choices=["captions", "answers", "mpi"])
    parser.add_argument("--gpu", action="store_true", help="captions and answers on one GPU")
    arguments = parser.parse_args()
    device = chosen_device(parser, arguments)
    count = (8 if arguments.gpu else 1) * arguments.images
    rates = dict(kept(HERE).get("rates", {})) if arguments.only else {}
    for kind in ("captions", "answers"):
        if arguments.only in (None, kind):
            builders = {
                "mmpds": partial(ours, kind, count, device),
                "plain": partial(plain, kind, max(1, arguments.images // FEWER), device),
            }  # fmt: skip
            if not arguments.gpu:
                builders["mmpds, int8"] = partial(ours, kind, count, device, int8=True)
            else:
                builders["mmpds on the CPU"] = partial(ours, kind, arguments.images, "cpu")
            rates[kind] = apart(builders, arguments.rounds)
    if arguments.only in (None, "mpi") and not arguments.gpu:
        rates["mpi"] = mpi(6 * arguments.images, arguments.rounds)
    title = (
        f"BLIP-base with random weights, {SIZE} px, captions of {CAPTION} tokens, {len(QUESTIONS)} questions an image "
        f"with answers of {ANSWER}, batches of {f'{GPU_BATCH}, on the CPU ' * arguments.gpu}{BATCH} images"
    )
    pairs, sections = (GPU_PAIRS, ("captions", "answers")) if arguments.gpu else (PAIRS, ("captions", "answers", "mpi"))
    return conclude(HERE, title, rates, pairs, sections, unit="texts/s", gpu=arguments.gpu)


if __name__ == "__main__":
    sys.exit(main())
