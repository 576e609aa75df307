"""What the framework costs beside a bare PyTorch loop of the same model, precision, layout and memory settings."""

import importlib.util
from pathlib import Path

import torch
from measure import apart, rate
from torch.nn import functional as F

from mmpds.world import reuse_memory

SIZE = 224
TRAINING, INFERENCE = (32, 5), (8, 24)  # items of a batch, and batches of a turn, of which the first warms up
PAIRS = {
    "training ÷ bare loop": ("training", "mmpds", "bare loop", 0.97),
    "inference ÷ bare loop": ("inference", "mmpds", "bare loop", 0.97),
}


def ours(folder, batch):
    """The DataModule, model and trainer of the throughput study, as a user gets them."""
    path = Path(__file__).resolve().parents[1] / "throughput" / "run.py"
    spec = importlib.util.spec_from_file_location("throughput_study", path)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    reuse_memory()
    return study.Ours(SIZE, folder, batch)


def training(folder):
    """Images a second of mmpds."""
    made = ours(folder, TRAINING[0])
    return lambda: made.fit(TRAINING[1])["fit_items_per_s"]


def bare_training(folder):
    """Images a second of a loop over batches in memory."""
    made = ours(folder, TRAINING[0])
    model, batches = made.model.train(), made.batches("train", TRAINING[1])[1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def loop():
        for image, label in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=made.bfloat16):
                loss = F.binary_cross_entropy_with_logits(model(image), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return lambda: rate(loop, len(batches) * TRAINING[0])


def inference(folder):
    """Images a second of mmpds."""
    made = ours(folder, INFERENCE[0])
    return lambda: made.test(INFERENCE[1])


def bare_inference(folder):
    """Images a second of a loop over batches in memory."""
    made = ours(folder, INFERENCE[0])
    model, batches = made.model.eval(), made.batches("test", INFERENCE[1])[1:]

    def loop():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=made.bfloat16):
            for image, _ in batches:
                model(image).sigmoid().numpy()

    return lambda: rate(loop, len(batches) * INFERENCE[0])


def measured(folder, rounds):
    """Section -> contestant -> images a second of each round."""
    return {
        "training": apart({"mmpds": training, "bare loop": bare_training}, rounds, folder),
        "inference": apart({"mmpds": inference, "bare loop": bare_inference}, rounds, folder),
    }
