"""A generator's checkpoint as a folder of diffusers: `python -m mmpds.export CHECKPOINT FOLDER`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from mmpds.console import say, say_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder and print the two lines of Python that load it.

    Returns:
        The exit status: 0, or 2 after one line about what is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m mmpds.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a generator's checkpoints/best.ckpt")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what to write; it may not hold anything yet")
    parser.add_argument("--pretrained", metavar="FOLDER", help="where the weights that it started from are now")
    given = parser.parse_args(arguments)
    try:
        with redirect_stdout(io.StringIO()):  # DeepSpeed, where it is installed, speaks as soon as diffusers finds it
            lines = export(given.checkpoint, given.folder, given.pretrained)
        say_out(lines)
    except (ValueError, OSError) as error:
        say(f"mmpds.export: {' '.join(str(error).split())}")
        return 2
    return 0


def export(checkpoint: Path, folder: Path, pretrained: str | None = None) -> str:
    """Write a generator's networks, tokenizer and scheduler; returns the Python that loads them.

    Args:
        checkpoint: of `mmpds.models.diffusion.Diffusion`.
        folder: new or empty.
        pretrained: the folder or hub id that its training started from; None: where it was then.

    Raises:
        ValueError: the checkpoint or the folder cannot be used; the text names both and the cures.
        OSError: the folder cannot be written.
    """
    wrong = [] if checkpoint.is_file() else [f"there is no file {checkpoint}"]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        wrong.append(f"{folder} exists and is no empty folder; name a new one")
    if wrong:
        raise ValueError("; ".join(wrong))

    from mmpds.models.diffusion import Diffusion

    try:
        moved = Diffusion.restated({"pretrained": pretrained})
        model = Diffusion.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True, **moved)
    except Exception as error:  # whatever a damaged file raises
        # of its own errors the model says the cure; torch's text advises to trust the file
        reason = error if isinstance(error, ValueError) else type(error).__name__
        cure = "give the checkpoints/best.ckpt of a run of model=diffusion"
        raise ValueError(f"{checkpoint} is no checkpoint of a generator; {cure} ({reason})") from error
    model.save_pretrained(folder)
    kind, trust = (
        ("DiffusionPipeline", ", trust_remote_code=True") if model.vae is None else ("StableDiffusionPipeline", "")
    )
    return f"from diffusers import {kind}\npipeline = {kind}.from_pretrained({str(folder)!r}{trust})"


if __name__ == "__main__":
    sys.exit(main())
