"""How fast does CLIP's ViT-B/32 embed images against a plain loop, and what does decoding them cost?

A contestant has a process of its own, in which it works only when it is its turn. Weights are random: they change no
speed.

    python experiments/embedding_speed/run.py [--rounds 5] [--images 384]
    python experiments/embedding_speed/run.py --gpu --images 1024 --batch 128

Writes results.json (with --gpu, gpu.json) beside this file and renews the READMEs.
"""

import argparse
import json
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import apart, chosen_device, conclude, of_peak, operations, rate

from mmpds.models.int8 import quantize
from mmpds.world import cores, reuse_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "patch_size": 32, "num_channels": 3,
}  # fmt: skip
TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
SIZE, FILE_SIZE = 224, 512
PLAIN_BATCH = 8
PAIRS = {
    "embedding ÷ plain transformers loop": ("embedding", "mmpds", "plain", None),
    "embedding, int8 ÷ plain transformers loop": ("embedding", "mmpds, int8", "plain", 3.0),
    "embedding, int8 ÷ bfloat16": ("embedding", "mmpds, int8", "mmpds", None),
    "embedding ÷ hand-tuned loop": ("embedding", "mmpds", "tuned", 0.97),
    "files decoded and embedded ÷ slower of loader and model": ("decoding", "both", "slower alone", 0.8),
}


def ours(folder, batch, device):
    """As a user gets it: images of a folder, decoded anew each time, ViT-B/32, a trainer."""
    import lightning.pytorch as pl

    from mmpds.callbacks.timing import Timing
    from mmpds.callbacks.timing_section import combine
    from mmpds.data.module import ImageData
    from mmpds.data.phantom import Phantom
    from mmpds.models import vocabulary
    from mmpds.models.clip import Clip
    from mmpds.stages import has_bfloat16

    warnings.filterwarnings("ignore")
    reuse_memory()
    torch.manual_seed(0)
    data = ImageData(Phantom, predict_root=folder, size=SIZE, batch_size=batch, cache_dir=None)
    data.setup("predict")
    model = Clip(["Pneumonia"], size=SIZE, vision=VISION, text=TEXT).eval()
    model.tokenizer = vocabulary.learn(model.findings, vocabulary.SMALLEST, 77)
    half = has_bfloat16(device)
    trainer = partial(
        pl.Trainer, accelerator=device, devices=1, precision="bf16-mixed" if half else "32-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    return data, model, trainer, Timing, combine, half


def loaded(data):
    """All images of the folder, float32 [N, 1, H, W]."""
    return torch.cat([batch["image"] for batch in data.eval_dataloader("predict")])


def our_embedding(folder, batch, device, compute_only=True, int8=False):
    """Images a second of `stages=[predict]`: of images in memory, or with the files decoded and resized in turn."""
    data, model, trainer, timing_of, combine, _ = ours(folder, batch, device)
    if int8:
        quantize(model)
    if compute_only:
        memory = loaded(data)
        source = data.images["predict"].source
        pixels = (memory[:, 0] * 255).round().to(torch.uint8).numpy()
        source.image = lambda row, size: pixels[row]
        if device == "cuda":
            some = memory[:batch].to(device)
            cost = operations(lambda: model.to(device).embed_images(some))
            Path(folder, "operations.json").write_text(json.dumps(cost / len(some)))

    def measure():
        timing = timing_of(warmup_steps=1)
        trainer(callbacks=[timing]).predict(model, data, return_predictions=False)
        return combine([timing.summary()])["predict_items_per_s"]

    return measure


def loop(folder, batch, device, tuned=False):
    """Images a second of transformers' CLIPModel over tensors in memory: fp32 and batches of 8, or tuned."""
    from transformers import CLIPModel

    data, model, *_, half = ours(folder, batch, device)
    images = loaded(data)
    theirs: CLIPModel = model.clip.to(device)
    images = ((images - model.image_mean) / model.image_std).expand(-1, 3, -1, -1).contiguous()
    size = batch if tuned else PLAIN_BATCH
    if tuned:
        dtype = torch.bfloat16 if half else torch.float32
        theirs, images = theirs.to(dtype), images.to(dtype)

    def run():
        with torch.inference_mode():
            for start in range(0, len(images), size):
                pixels = images[start : start + size].to(device)
                features = theirs.get_image_features(pixel_values=pixels).pooler_output
                torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()

    return lambda: rate(run, len(images))


def loading(folder, batch, device):
    """Images a second of the loader alone."""
    data, *_ = ours(folder, batch, device)

    def run():
        for _ in data.eval_dataloader("predict"):
            pass

    return lambda: rate(run, len(data.images["predict"]))


def write_files(folder, count):
    """Photographs, so to speak: JPEG of the phantom."""
    from mmpds.data.phantom import Phantom

    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(partial(write_file, Phantom(images=count), folder), range(count), chunksize=16))


def write_file(phantom, folder, row):
    """One of them."""
    Image.fromarray(phantom.image(row, FILE_SIZE)).save(Path(folder) / f"{row:05d}.jpg", quality=90)


def main():
    """Measure, print, and keep the whole measurement in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--gpu", action="store_true", help="the embedding on one GPU")
    arguments = parser.parse_args()
    device = chosen_device(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_files(folder, arguments.images)
        of = folder, arguments.batch, device
        builders = {"mmpds": our_embedding, "plain": loop, "tuned": partial(loop, tuned=True)}
        if not arguments.gpu:
            builders["mmpds, int8"] = partial(our_embedding, int8=True)
        rates = {"embedding": apart(builders, arguments.rounds, *of)}
        sections = ("embedding",) if arguments.gpu else ("embedding", "decoding")
        title = f"CLIP ViT-B/32 with random weights, {SIZE} px, batches of {arguments.batch} (plain: {PLAIN_BATCH})"
        if arguments.gpu:
            cost = json.loads(Path(folder, "operations.json").read_text())
            remarks = f"mmpds, with images in the host's memory: {of_peak(rates['embedding']['mmpds'], cost)}."
            return conclude(HERE, title, rates, PAIRS, sections, remarks, gpu=True)
        builders = {"loader": loading, "model": our_embedding, "both": partial(our_embedding, compute_only=False)}
        rates["decoding"] = apart(builders, arguments.rounds, *of)
    slower = [min(pair) for pair in zip(rates["decoding"]["loader"], rates["decoding"]["model"], strict=True)]
    rates["decoding"]["slower alone"] = slower
    title += f"; files: JPEG of {FILE_SIZE} px"
    return conclude(HERE, title, rates, PAIRS, sections)


if __name__ == "__main__":
    sys.exit(main())
