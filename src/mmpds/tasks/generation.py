"""A generator's stages: images with their manifest, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmpds import tracking
from mmpds.callbacks.images import MANIFEST, SHEET
from mmpds.callbacks.quality import Quality
from mmpds.evaluation import Sections

if TYPE_CHECKING:
    from mmpds.stages import Run


class Task:
    """See `mmpds.tasks.Task`; the model is a generator of images from prompts.

    Args:
        run: whose data, model and callbacks these are.
    """

    inference_precision = "bf16-true"  # autocast would turn the weights to bfloat16 anew in each step
    artifacts = {"manifest": f"images/{MANIFEST}", "contact_sheet": SHEET}

    def __init__(self, run: Run) -> None:
        self.run = run
        if run.cfg.checkpoint:  # what the configuration says of sampling holds for it too, and its size for the data
            run.model.sampling |= {name: v for name, v in run.cfg.model.sampling.items() if v is not None}
            run.data.size = run.model.sampling["size"] or run.model.size

    def needs_validation(self) -> bool:
        """There is nothing to fit."""
        return False

    def validated(self) -> None:
        """The loss has been logged."""

    def tested(self, found: Sections) -> None:
        """Add how good the images of the test captions are."""
        if "quality" in self.run.callbacks and self.run.world.rank == 0:
            judged = self.run.callbacks["quality"].summary()
            for section in ("metrics", "intervals", "counts"):
                found[section] |= {f"test/{name}": value for name, value in judged[section].items()}
            found["warnings"] += judged["warnings"]
            found["extractor"] = judged["extractor"]

    def predicted(self, found: Sections) -> None:
        """Add how many images were made.

        Raises:
            ValueError: not one could be.
        """
        made = self.run.callbacks["images"].summary()
        if made["counts"]["predict/failed"] and not made["counts"]["predict/images"]:
            raise ValueError(f"no image was made: {'; '.join(made['warnings'])}: are the weights finite?")
        found["counts"] |= made["counts"]
        found["warnings"] += made["warnings"]

    def keep(self, found: Sections) -> None:
        """Send the contact sheet to the loggers that take images."""
        if (sheet := self.run.run_dir / SHEET).exists() and self.run.cfg.log_images:
            tracking.log_images(self.run.trainer.loggers, "predict/images", str(sheet))


def quality(classifier: str | None, replicates: int, seed: int) -> Quality:
    """The callback `Quality` with the detector of a checkpoint.

    Args:
        classifier: file of a checkpoint of DenseNet121; None for none.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    if classifier is None:
        return Quality(None, "", replicates, seed)
    from mmpds.models.densenet import DenseNet121

    try:
        model = DenseNet121.load_from_checkpoint(classifier, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        cure = "give the best.ckpt of a run of model=densenet121"
        raise ValueError(f"callbacks.quality.classifier={classifier}: {cure} ({error})") from error
    path = Path(classifier).resolve()
    name = f"densenet121 features of {path.parents[1].name}/{path.name}"
    return Quality(model, name, replicates, seed)
