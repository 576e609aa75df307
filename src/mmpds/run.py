"""One run on one rank, and its end, whatever it is, in results.json. `python -m mmpds.run RUN_DIR` is a rank."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mmpds import results
from mmpds.console import print_results, say
from mmpds.world import World, adopt, cap_threads, reuse_memory, threads

if TYPE_CHECKING:
    from omegaconf import DictConfig

STDLIB = sysconfig.get_path("stdlib")
INTERRUPTED = {"KeyboardInterrupt": (130, "interrupted"), "SIGTERMException": (143, "terminated (SIGTERM)")}


def run(cfg: DictConfig, world: World) -> int:
    """Run all stages; on rank 0, write results.json whatever happens.

    Returns:
        The exit status: 0 finished, 1 failed, 130 or 143 interrupted.
    """
    run_dir = Path(cfg.run_dir)
    record = results.read(run_dir)
    record |= {"world_size": world.size, "threads_per_rank": threads(cfg, world)}
    code, record["status"] = 0, "finished"
    if cfg.trainer.accelerator == "cpu":
        reuse_memory()
    try:
        started = record.get("started", time.time())
        if "answers" in cfg.data:
            from mmpds.stored_answers import evaluate_answers

            record |= evaluate_answers(cfg, started)
        elif "evaluate" in cfg.stages:
            from mmpds.evaluation import evaluate_stored

            record |= evaluate_stored(cfg, started)
        else:
            from mmpds.stages import Run  # from here on torch is loaded

            record |= Run(cfg, world, started).stages()
    except BaseException as error:  # Lightning turns interruptions into exceptions of many kinds
        # on Ctrl-C Lightning exits; its SIGTERMException is an exit too, and its own cause
        cause = error.__context__ if type(error) is SystemExit else error
        if type(cause).__name__ in INTERRUPTED:
            code, record["error"] = INTERRUPTED[type(cause).__name__]
            record["status"] = "interrupted"
        else:
            code, record["status"], record["error"] = 1, "failed", describe(error)
            _keep_traceback(run_dir / "logs" / f"traceback-rank{world.rank}.txt")
    if world.rank == 0:
        try:
            results.write(run_dir, record)
        except OSError as error:
            code, record["status"], record["error"] = 1, "failed", record["error"] or describe(error)
        if cfg.report:
            _report(run_dir)
        if code == 0:
            print_results(record, run_dir)
    if "mmpds.tracking" in sys.modules:
        sys.modules["mmpds.tracking"].finish(code)
    if code:
        who = f"rank {world.rank}" if world.size > 1 else "the run"
        say(f"mmpds: {who} {record['status']}: {record['error']}")
    if world.size > 1:
        leave(code)
    return code


def _report(run_dir: Path) -> None:
    """Write report.html; whatever keeps it from being written is no reason to lose the run."""
    try:
        from mmpds import report

        report.write(run_dir)
    except Exception as error:
        say(f"mmpds: no report: {describe(error)}")


def leave(code: int) -> None:
    """End a rank among others at once.

    After a failure its peers may wait for it in a collective; after success the threads of its process group
    can still abort it while Python takes its modules down.
    """
    if code == 0 and "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()  # else mpirun takes the exit for a crash
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe(error: BaseException) -> str:
    """What went wrong and where, in one line."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__  # Hydra wraps what the called class said
    text = " ".join(str(error).split()) or type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _library(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    named = text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
    return named + place


def _library(filename: str) -> bool:
    """Whether a file is Python's or an installed package's: a user looks for a mistake elsewhere first."""
    package = filename.rpartition("site-packages/")[2]
    return not package.startswith("mmpds/") if package != filename else filename.startswith((STDLIB, "<"))


def _keep_traceback(path: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(traceback.format_exc())
    except OSError as error:  # such as the full disk that ended the run
        say(f"mmpds: no traceback kept: {error}")


def main(run_dir: str) -> int:
    """A rank that the launcher started: the configuration is in the run directory."""
    from omegaconf import OmegaConf

    from mmpds.launch import rendezvous

    cfg = cast("DictConfig", OmegaConf.load(Path(run_dir) / results.CONFIG))
    cfg.run_dir = run_dir
    world = adopt(os.environ, alone=True)
    rendezvous(world, os.environ)
    cap_threads(threads(cfg, world), os.environ)
    return run(cfg, world)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
