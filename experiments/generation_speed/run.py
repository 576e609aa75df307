"""How fast does mmpds generate against diffusers as it comes, a hand-tuned loop and over MPI? One run, interleaved.

Stable Diffusion 1.5's architecture with random weights: speed does not depend on what they know. A contestant has a
process of its own, in which it works only when it is its turn; ratios are of two turns of one round.

    python experiments/generation_speed/run.py [--rounds 5] [--size 256] [--steps 4] [--only inference|mpi]
    python experiments/generation_speed/run.py --gpu --size 512 --steps 20

Writes results.json (with --gpu, gpu.json) beside this file and renews the READMEs; --only renews one section on the
same hardware. It takes 13 GB of memory.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import apart, chosen_device, conclude, interleaved, kept, of_peak, operations, rate, steady

from mmpds.models.sampling import generators, initial_noise
from mmpds.sweep import markdown
from mmpds.world import reuse_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/diffusion_sd15.yaml"))
BATCH = 8
PLAIN = 2  # images of a turn of the slowest
GPU_BATCHES = 8  # of a turn on a GPU; mmpds warms up in the first
GUIDANCE = 7.5
PROMPTS = [f"chest radiograph, {text}" for text in (
    "no finding", "left pleural effusion", "right upper lobe pneumonia", "a nodule in the left lung",
    "cardiomegaly", "bilateral infiltrates", "right pneumothorax", "atelectasis at the left base",
)]  # fmt: skip
# name: (section, numerator, denominator, target)
PAIRS = {
    "inference ÷ diffusers pipeline as it comes": ("inference", "mmpds", "plain", 4.0),
    "inference ÷ hand-tuned diffusers pipeline": ("inference", "mmpds", "tuned", 1.0),
    "2 MPI ranks ÷ 2 independent processes": ("mpi", "2 MPI ranks", "2 processes", 0.97),
    "2 MPI ranks ÷ 1 thread": ("mpi", "2 MPI ranks", "1 thread", None),
}
GPU_PAIRS = {
    "mmpds ÷ plain bfloat16 pipeline": ("inference", "mmpds", "plain", 1.5),
    "mmpds ÷ hand-tuned diffusers pipeline": ("inference", "mmpds", "tuned", 1.0),
}
# over MPI, where costs of start and communication show most where a call is short
SMALL = OmegaConf.merge(MODEL, {
    "unet": {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 1},
    "text_encoder": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vae": {"block_out_channels": [32, 64, 64, 64]},
})  # fmt: skip
SMALL_STEPS, SMALL_TURNS = 10, 8


def generator(size, steps, config):
    """A model with the same random weights in every process."""
    from mmpds.models import vocabulary
    from mmpds.models.diffusion import Diffusion

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    parts = {name: config[name] for name in ("unet", "text_encoder", "vae", "noise")}
    how = {"scheduler": "ddim", "steps": steps, "guidance_scale": GUIDANCE}
    model = Diffusion(**parts, size=size, sampling=how)
    text = config["text_encoder"]
    model.tokenizer = vocabulary.learn(PROMPTS, text["vocab_size"], text["max_position_embeddings"])
    return model.eval().requires_grad_(False)


class Diffusers:
    """The diffusers pipeline as it comes (float32; on a GPU bfloat16), or tuned by hand (bfloat16, channels-last)."""

    def __init__(self, size, steps, device, tuned):
        from diffusers import StableDiffusionPipeline

        from mmpds.models.sampling import make_scheduler

        model = generator(size, steps, MODEL)
        self.pipeline = StableDiffusionPipeline(
            model.vae, model.text_encoder, model.tokenizer, model.unet, make_scheduler("ddim", model.noise.config),
            None, None, requires_safety_checker=False,
        )  # fmt: skip
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(device)
        if tuned or device == "cuda":
            self.pipeline.to(torch.bfloat16)
        if tuned:
            for part in (self.pipeline.unet, self.pipeline.vae):
                part.to(memory_format=torch.channels_last)
            reuse_memory()
        self.call = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": GUIDANCE}

    def images(self, first, last):
        # in float32 as ours: some versions of torch draw other numbers in bfloat16
        random = generators([seed % len(PROMPTS) for seed in range(first, last)])
        unet = self.pipeline.unet
        side = self.call["height"] // self.pipeline.vae_scale_factor
        noise = initial_noise(random, (unet.config.in_channels, side, side)).to(unet.device, unet.dtype)
        prompts = [PROMPTS[place % len(PROMPTS)] for place in range(first, last)]
        return self.pipeline(prompts, latents=noise, output_type="pt", **self.call).images.float().cpu()


class Ours:
    """mmpds as a user gets it: the prompts' DataModule, our model, Lightning's predict loop."""

    def __init__(self, size, steps, device, folder, precision):
        import lightning.pytorch as pl

        from mmpds.callbacks.timing import Timing
        from mmpds.data.prompts import PromptData

        model = generator(size, steps, MODEL)
        if precision == "bf16-true":
            model.to(torch.bfloat16)
        model.to(memory_format=torch.channels_last)
        reuse_memory()
        self.data = PromptData(PROMPTS * turns(device), batch_size=BATCH)
        self.data.table["seed"] = list(range(len(PROMPTS))) * turns(device)  # the pipelines' own
        self.model, self.timing = model, Timing(warmup_steps=1)
        self.trainer = pl.Trainer(
            callbacks=[self.timing] if device == "cuda" else [],
            accelerator=device, devices=1, precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            default_root_dir=folder,
        )  # fmt: skip

    def images(self):
        return torch.cat([output["image"].cpu() for output in self.trainer.predict(self.model, self.data)])


def turns(device):
    """How often all prompts are drawn in a turn of a fast one."""
    return GPU_BATCHES if device == "cuda" else 1


def pipeline_rate(size, steps, device, folder, tuned=False):
    """Images a second of a diffusers pipeline; the first call builds it, so that one is built at a time."""
    made = cache(lambda: Diffusers(size, steps, device, tuned))
    count, batch = (len(PROMPTS) * turns(device), BATCH) if tuned else (PLAIN, 1)

    def loop():
        return torch.cat([made().images(first, first + batch) for first in range(0, count, batch)])

    return partial(kept_rate, made, loop, count, f"{folder}/{'tuned' if tuned else 'plain'}.pt")


def our_rate(size, steps, device, folder, precision=None):
    """Images a second of Lightning's predict loop."""
    from mmpds.stages import has_bfloat16

    precision = precision or ("bf16-true" if has_bfloat16(device) else "32-true")

    @cache
    def made():
        ours = Ours(size, steps, device, folder, precision)
        if device == "cuda":
            Path(folder, "operations.json").write_text(json.dumps(operations(ours.images) / len(ours.data.table)))
        return ours

    def steady_rate():
        from mmpds.callbacks.timing_section import combine

        torch.save(made().images(), f"{folder}/mmpds.pt")
        return combine([made().timing.summary()])["predict_items_per_s"]

    if device == "cuda":  # a call takes the weights there and back, which a run does once
        return steady_rate
    return partial(kept_rate, made, lambda: made().images(), len(PROMPTS), f"{folder}/mmpds.pt")


def kept_rate(build, loop, count, path):
    """Items a second; the images are kept for `differences`."""
    build()
    return rate(lambda: torch.save(loop(), path), count)


def differences(folder):
    """PSNR in dB and SSIM (Wang et al. 2004) of each contestant's images against plain's of the same seeds.

    Both relative to the range of plain's images: of random weights they are pale.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    folder, found = Path(folder), {}
    plain = torch.load(folder / "plain.pt")
    span = float(plain.max() - plain.min())
    for path in sorted(folder.glob("*.pt")):
        if path.stem != "plain":
            images = torch.load(path)[: len(plain)]
            found[path.stem] = {
                "psnr": float(peak_signal_noise_ratio(images, plain, data_range=span)),
                "ssim": float(structural_similarity_index_measure(images, plain, data_range=span)),
            }
    return found


def mpi(size, rounds, folder):
    """A small generator from the command line: one thread, 2 MPI ranks, 2 independent processes at once.

    Each core makes the same number of images, so that all are timed over about the same span.
    """
    model = generator(size, SMALL_STEPS, OmegaConf.to_container(SMALL))
    model.save_pretrained(f"{folder}/model")
    Path(folder, "prompts.txt").write_text("\n".join(PROMPTS))
    command = [
        sys.executable, "train.py", "experiment=generate", f"model.pretrained={folder}/model",
        f"data.prompts={folder}/prompts.txt", "data.batch_size=4", "model.sampling.scheduler=ddim",
        f"model.sampling.steps={SMALL_STEPS}", f"model.sampling.size={size}",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}

    def start(name, *overrides, busy=1):
        run_dir = f"{tempfile.mkdtemp(dir=folder)}/{name}"  # an older one's images would be continued
        run = [*command, f"data.images_per_prompt={SMALL_TURNS * busy}", f"run_dir={run_dir}", *overrides]
        return subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL), run_dir

    contestants = {
        "1 thread": lambda: steady([start("seq", "trainer=cpu_seq")]),
        "2 MPI ranks": lambda: steady([start("mpi", "trainer=mpi_cpu", "ranks=2", busy=2)]),
        "2 processes": lambda: steady([start("one", "trainer=cpu_seq"), start("two", "trainer=cpu_seq")]),
    }
    return interleaved(contestants, rounds)


def main():
    """Measure, print, and keep the whole measurement in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", choices=["inference", "mpi"])
    parser.add_argument("--gpu", action="store_true", help="the inference on one GPU")
    arguments = parser.parse_args()
    device, rates, price = chosen_device(parser, arguments), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only in (None, "inference"):
            builders = {"plain": pipeline_rate, "tuned": partial(pipeline_rate, tuned=True), "mmpds": our_rate}
            rates["inference"] = apart(builders, arguments.rounds, arguments.size, arguments.steps, device, folder)
            price = differences(folder)
            cost = Path(folder, "operations.json")
            used = of_peak(rates["inference"]["mmpds"], json.loads(cost.read_text())) if arguments.gpu else ""
        if arguments.only in (None, "mpi") and not arguments.gpu:
            rates["mpi"] = mpi(arguments.size, arguments.rounds, folder)
    if arguments.only and (old := kept(HERE)):
        rates, price = old["images_per_s"] | rates, price or old["differences"]  # a ratio compares within a section
    title = (
        f"Stable Diffusion 1.5's architecture, {arguments.size} px, {arguments.steps} steps of DDIM, guidance "
        f"{GUIDANCE}, batches of {BATCH}" + ("" if arguments.gpu else f"; over MPI a small one, {SMALL_STEPS} steps")
    )
    rows = [[name, f"{each['psnr']:.1f} dB", f"{each['ssim']:.4f}"] for name, each in price.items()]
    remarks = markdown(["images against plain's", "PSNR", "SSIM"], rows)
    if arguments.gpu:
        return conclude(
            HERE, title, rates, GPU_PAIRS, ("inference",), f"{remarks}\nmmpds: {used}.", gpu=True, differences=price
        )
    return conclude(HERE, title, rates, PAIRS, ("inference", "mpi"), remarks, differences=price)


if __name__ == "__main__":
    sys.exit(main())
