"""Where a detector looks in one image: `python -m mmpds.gradcam CHECKPOINT IMAGE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpds import results

SMALLEST = 32
"""Pixels a side below which the network's last map would be empty."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the finding's probability and write the image beside its heat map.

    Returns:
        The exit status: 0, or 2 where the checkpoint, the image or an option cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m mmpds.gradcam", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.ckpt")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a radiograph in any common format")
    parser.add_argument("--finding", help="what to explain; left out: the most probable finding")
    parser.add_argument("--size", type=int, help="pixels a side; left out: what the checkpoint's run was trained on")
    parser.add_argument("--out", type=Path, default=Path("overlay.png"), help="the picture (overlay.png)")
    given = parser.parse_args(arguments)
    try:
        print(explain(given.checkpoint, given.image, given.finding, given.size, given.out))  # noqa: T201
    except (ValueError, OSError) as error:
        print(f"mmpds.gradcam: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def explain(checkpoint: Path, image: Path, finding: str | None, size: int | None, out: Path) -> str:
    """Write the heat map of one finding in one image over it; returns what the model says of the finding.

    Args:
        checkpoint: of a detector.
        image: file in any format that training reads.
        finding: one of the checkpoint's; None for the most probable.
        size: pixels a side; None for those of the run that the checkpoint lies in.
        out: the picture's file, its format told by the suffix.

    Raises:
        ValueError: something cannot be used; the text names all of it and the cures.
        OSError: the picture cannot be written.
    """
    wrong = [f"there is no file {path}" for path in (checkpoint, image) if not path.is_file()]
    size = size or _trained_size(checkpoint)
    if size is None and not wrong:
        wrong.append(f"no {results.CONFIG} tells the image size beside {checkpoint.parent}; give --size")
    elif size is not None and size < SMALLEST:
        wrong.append(f"--size {size}: give {SMALLEST} or more")
    if out.suffix.lower() not in SUFFIXES:
        wrong.append(f"--out {out}: choose a suffix of {', '.join(SUFFIXES)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    assert size is not None

    import torch

    from mmpds.callbacks.heat_maps import heat_maps, overlay
    from mmpds.data.images import BadImage, read_grey, resize
    from mmpds.data.transforms import to_image
    from mmpds.models.densenet import DenseNet121

    try:
        model = DenseNet121.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    except Exception as error:  # whatever a damaged file raises
        reason = type(error).__name__  # torch's text advises to trust the file
        wrong.append(f"{checkpoint} is no checkpoint of this model; give a run's checkpoints/best.ckpt ({reason})")
    else:
        if finding and finding not in model.findings:
            wrong.append(f"--finding {finding}: this checkpoint knows {', '.join(model.findings)}")
    try:
        pixels = resize(read_grey(image), size)
    except BadImage as error:
        wrong.append(f"{image}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))

    tensor = to_image(pixels).unsqueeze(0)
    with torch.inference_mode():
        prob = model.calibration.calibrate(model(tensor).sigmoid())
    column = model.findings.index(finding) if finding else int(prob.argmax())
    heat = heat_maps(model, tensor, [column])[0]
    overlay(pixels, heat).save(out)
    said = f"{model.findings[column]}: probability {float(prob[0, column]):.3f}"
    if model.threshold.fitted:
        flagged = bool(model.threshold.decide(prob)[0, column])
        said += f", {'' if flagged else 'not '}flagged (threshold {float(model.threshold.value[column]):.3f})"
    return f"{said}{'' if heat.any() else ', and nothing speaks for it'}; {out}"


def _trained_size(checkpoint: Path) -> int | None:
    """The image size in the configuration of the run that a checkpoint lies in; None where there is none."""
    from omegaconf import OmegaConf

    config = checkpoint.parent.parent / results.CONFIG
    size = OmegaConf.select(OmegaConf.load(config), "data.size") if config.is_file() else None
    return None if size is None else int(size)


if __name__ == "__main__":
    sys.exit(main())
