"""Weights & Biases, told metrics, timing and a few images, and nothing of the machine, the user or a patient."""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from mmpds.data.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.loggers import WandbLogger

    from mmpds.data.module import Images


def logged_in() -> bool:
    """Whether W&B knows a key for its server: in WANDB_API_KEY or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(save_dir: str, project: str, name: str | None = None) -> WandbLogger:
    """A logger that is online for a user who is logged in and offline otherwise (WANDB_MODE overrules).

    W&B's own collection of host name, user, command line, environment and installed packages is off.

    Args:
        save_dir: where W&B keeps its files; created.
        project: W&B's project.
        name: the run's name; None lets W&B make one.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE")
    settings = wandb.Settings(
        console="off", silent=True, save_code=False, disable_git=True, host="", username="", email="",
        x_disable_meta=True, x_disable_machine_info=True, x_disable_stats=True, x_save_requirements=False,
    )  # fmt: skip
    Path(save_dir).mkdir(parents=True, exist_ok=True)  # W&B falls back to /tmp where it is missing
    offline = mode in ("offline", "dryrun") if mode else not logged_in()
    return WandbLogger(name=name, save_dir=save_dir, project=project, offline=offline, settings=settings)


def log_samples(loggers: Sequence[object], images: Images, count: int) -> None:
    """Send a contact sheet of the first `count` images, with their findings, to the loggers that take images."""
    if count and any(hasattr(logger, "log_image") for logger in loggers):
        rows = [int(row) for row in images.rows[:count]]
        log_images(loggers, "test/images", contact_sheet(images.source, rows, size=min(images.size, 160), columns=4))


def log_images(loggers: Sequence[object], name: str, image: Any) -> None:
    """Send an image (a PIL image, or a file's path) to the loggers that take images."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [image])


def finish(exit_code: int) -> None:
    """Close W&B's run, if there is one, so that its files are complete even after a failure."""
    if (wandb := sys.modules.get("wandb")) and wandb.run is not None:
        wandb.finish(exit_code=exit_code)
