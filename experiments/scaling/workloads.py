"""What the study runs: one entry a workload, as overrides of train.py."""

from dataclasses import dataclass

QUIET = ("report=false", "bootstrap=10", "callbacks=none", "+callbacks.energy={_target_:mmpds.callbacks.energy.Energy}")
ONE_STEP = ("stages=[fit]", "trainer=cpu_seq", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "report=false",
            "bootstrap=10")  # fmt: skip


def filled(text, values):
    """An override whose names in braces are filled in; other braces are Hydra's."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


@dataclass(frozen=True)
class Workload:
    """A workload at any size.

    Attributes:
        title: what it is, for tables.
        items: of one core in a run; a few seconds' worth on a slow one.
        batch: items of a step of one rank.
        overrides: of train.py; `{items}`, `{batch}` (over all ranks), `{batches}` (items over batch), `{images}`,
            `{share}` (the items' of the images), `{rest}` (the others') and `{checkpoint}` are filled in.
        prepare: overrides of the run of one step that makes the checkpoint, whose weights speed does not depend on;
            () where none is needed.
        joint: whether a step is of all ranks together: under strong scaling its batch is then divided among them.
        own_batch: whether `{batch}` is one rank's at any number of ranks.
        independent: the least that all ranks together should reach of as many independent processes.
        images: phantoms in the cache that all runs share, of which each takes its part.
    """

    title: str
    items: int
    batch: int
    overrides: tuple[str, ...]
    prepare: tuple[str, ...] = ()
    joint: bool = False
    own_batch: bool = False
    independent: float | None = None
    images: int = 6000

    def command(self, items, ranks, checkpoint, weak=False):
        """The overrides of a run of so many items, in all, on so many ranks."""
        batch = self.batch * (ranks if not self.own_batch and (weak or not self.joint) else 1)
        share = items / self.images
        values = {
            "items": items, "batch": batch, "batches": items // batch, "images": self.images, "checkpoint": checkpoint,
            "share": f"{share:.6f}", "rest": f"{0.98 - share:.6f}",
        }  # fmt: skip
        return [filled(text, values) for text in self.overrides]


EVALUATED = ("data.source.images={images}", "data.fractions=[{rest},0.02,{share}]")
WORKLOADS = {
    "generation": Workload(
        "Generation, diffusion on pixels, 64 px, 10 steps", 32, 4,
        ("experiment=generate", "checkpoint={checkpoint}", "data.prompts=phantom", "data.count={items}",
         "data.batch_size={batch}", "model.sampling.steps=10", "report=false"),
        ("experiment=diffusion_phantom", "data.source.images=200", "data.cache_dir=null"),
        own_batch=True, independent=0.95,
    ),
    "detection_training": Workload(
        "Training of DenseNet-121, 64 px", 320, 32,
        ("experiment=demo", "stages=[fit]", "trainer.max_epochs=1", "+trainer.limit_train_batches={batches}",
         "data.source.images={images}", "data.fractions=[0.97,0.01,0.02]", "data.batch_size={batch}", *QUIET),
        joint=True, independent=0.90,
    ),
    "detection_inference": Workload(
        "Inference of DenseNet-121, 64 px", 960, 8,
        ("experiment=demo", "stages=[test]", "checkpoint={checkpoint}", "data.batch_size={batch}", *EVALUATED, *QUIET),
        ("experiment=demo", "callbacks=default", "data.source.images={images}", "data.source.seed=1"), independent=0.95,
    ),
    "clip_embedding": Workload(
        "Embedding of images by CLIP, 64 px", 960, 16,
        ("experiment=clip_phantom", "stages=[test]", "checkpoint={checkpoint}", "data.batch_size={batch}", *EVALUATED,
         *QUIET),
        ("experiment=clip_phantom", "callbacks=default", "data.source.images={images}", "data.source.seed=1",
         "data.batch_size=32"),
        independent=0.95,
    ),
    "blip_captioning": Workload(
        "Captions of at most 20 tokens by BLIP, 64 px", 480, 16,
        ("experiment=blip_caption_phantom", "stages=[test]", "checkpoint={checkpoint}", "data.batch_size={batch}",
         "model.longest=20", *EVALUATED, "report=false", "bootstrap=10"),
        ("experiment=blip_caption_phantom", "data.source.images={images}", "data.source.seed=1",
         "data.batch_size=32"), independent=0.95,
    ),
}  # fmt: skip
