"""The schema of results.json and the files a run directory must hold: write, read, tabulate."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

SCHEMA = 1
FILE = "results.json"
CONFIG = "config.yaml"
PACKAGES = (
    "mmpds",
    "torch",
    "lightning",
    "torchmetrics",
    "torchvision",
    "torchxrayvision",
    "mpi4py",
    "numpy",
)
UNTRAINED = (
    "stages",
    "init_from",
    "data.workers",
    "data.cache_dir",
    "data.on_bad_image",
    "data.predict_root",
    "data.test_root",
)
"""Settings of a training that may be others when it is gone on with."""


def save_config(cfg: DictConfig, run_dir: Path, command: list[str], started: float) -> None:
    """Write the resolved configuration and a results.json that says `interrupted` until someone knows better.

    A run that is killed outright can write nothing any more; what is on disk then is already the truth.
    """
    from omegaconf import OmegaConf

    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    overrides = [argument for argument in command if "=" in argument and not argument.startswith("-")]
    write(
        run_dir,
        {
            "schema": SCHEMA,
            "experiment": cfg.name or "train",
            "run_id": run_dir.name,
            "status": "interrupted",
            "error": None,
            "command": shlex.join(["python", "train.py", *command]),
            "overrides": overrides,
            "started": started,
            "git_commit": git_commit(),
            "seed": cfg.seed,
            "versions": versions(),
        },
    )


def write(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Write results.json atomically; NaN and infinities become null, for JSON knows neither."""
    write_text(run_dir / FILE, json.dumps(_finite(dict(content)), indent=2) + "\n")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well: what has the name is never half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the temporary name would tell a user nothing
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step, on the disk when it returns."""
    with whole(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(run_dir: Path) -> dict[str, Any]:
    """The results.json of a run directory; {} where there is none."""
    path = Path(run_dir) / FILE
    return dict(json.loads(path.read_text())) if path.exists() else {}


def status(run_dir: Path) -> str | None:
    """finished, failed, interrupted, skipped (this machine lacks what it needs), or None without a results.json."""
    return read(run_dir).get("status")


def mark(run_dir: Path, status: str, error: str) -> None:
    """Set the status of a run that cannot do it itself any more; a full disk must not hide the error."""
    with contextlib.suppress(OSError):
        write(run_dir, read(run_dir) | {"status": status, "error": error})


def add_timing(run_dir: Path, name: str, seconds: float) -> None:
    """Add a time that only who started the run could take; nothing where the run came to no timing."""
    if (record := read(run_dir)).get("timing"):
        with contextlib.suppress(OSError):
            write(run_dir, record | {"timing": record["timing"] | {name: seconds}})


def newest_checkpoint(folder: Path, cfg: DictConfig) -> Path | None:
    """The last.ckpt of the newest run below `folder` that has one and makes the same, however long it trains."""
    found = sorted(folder.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in found if not changed(path.parents[1], cfg, but=UNTRAINED)), None)


def newest_unfinished(folder: Path, cfg: DictConfig) -> Path | None:
    """The newest run below `folder` that has not finished and makes the same: on any trainer, with any report."""
    for path in sorted(folder.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if status(path.parent) != "finished" and not changed(path.parent, cfg):
            return path.parent
    return None


def changed(run_dir: Path, cfg: DictConfig, but: Sequence[str] = ()) -> list[str]:
    """The settings that decide what is made and that a run directory's own configuration, if any, states otherwise."""
    from omegaconf import OmegaConf

    if not (run_dir / CONFIG).is_file():
        return []
    before, now = _decisive(OmegaConf.load(run_dir / CONFIG)), _decisive(cfg)
    names = sorted((before.keys() | now.keys()) - set(but))
    return [f"{name}={before.get(name)}, now {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _decisive(cfg: Any) -> dict[str, Any]:
    """By dotted name what decides the result; not the trainer, nor how prompts are handed out."""
    from omegaconf import OmegaConf

    keys = ["stages", "seed", "checkpoint", "init_from", "data", "model"]

    def leaves(node: Any, name: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {name: node}
        return {k: v for key, below in node.items() for k, v in leaves(below, f"{name}.{key}".lstrip(".")).items()}

    found = leaves(OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True), "")
    spared = ("data.batch_size", "data.schedule") if "data.prompts" in found else ()
    if root := found.get("data.root"):
        found["data.root"] = str(Path(str(root)).resolve())
    return {name: value for name, value in found.items() if name not in spared}


def git_commit() -> str | None:
    """Commit of the source, with `-dirty` when it was changed; None outside a checkout."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip() or None  # fmt: skip
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hardware(gpu_names: list[str], cores: int) -> dict[str, Any]:
    """CPU model, usable cores, GPUs and memory in bytes of this node."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores, "gpu": gpu_names, "memory_bytes": memory}


def flatten(result: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table: the run's name, status, error and every scalar figure, with dotted names."""
    row: dict[str, Any] = {"run": result.get("run_id"), "status": result.get("status")}
    for section in ("metrics", "timing", "energy", "memory"):
        for name, value in (result.get(section) or {}).items():
            if isinstance(value, int | float | str) or value is None:
                row[name if section == "metrics" else f"{section}.{name}"] = value
    row["error"] = result.get("error")
    return row


def inert(cell: Any) -> Any:
    """A text that a spreadsheet would run as a formula (CWE-1236), quoted; whatever else, as it is."""
    runs = isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{cell}" if runs else cell


def as_written(text: str) -> str:
    """A text as it was before `inert` quoted it."""
    return text[1:] if text[:1] == "'" and inert(text[1:]) == text else text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
