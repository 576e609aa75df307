"""One run on one rank: build → fit, test, predict → results.json. `python -m mmpds.run RUN_DIR` is a rank."""

from __future__ import annotations

import logging
import os
import resource
import sys
import sysconfig
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds import results
from mmpds.console import print_results, say
from mmpds.world import World, adopt, cap_threads, cores, threads

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from omegaconf import DictConfig

    from mmpds.data.module import ImageData

OURS = ("launcher", "threads", "channels_last", "compile")
"""Keys of the trainer group that are not arguments of lightning.pytorch.Trainer."""


def run(cfg: DictConfig, world: World) -> int:
    """Run all stages; on rank 0, write results.json whatever happens.

    Returns:
        The exit status: 0 finished, 1 failed, 130 interrupted.
    """
    run_dir = Path(cfg.run_dir)
    record = results.read(run_dir)
    record |= {"world_size": world.size, "threads_per_rank": threads(cfg, world.local_size)}
    status, record["status"] = 0, "finished"
    try:
        record |= Run(cfg, world, record.get("started", time.time())).stages()
    except KeyboardInterrupt:
        status, record["status"], record["error"] = 130, "interrupted", "interrupted"
    except BaseException as error:  # Lightning ends interrupted runs with SystemExit and exceptions of its own
        if type(error).__name__ in ("SIGTERMException", "_TunerExitException"):
            status, record["status"], record["error"] = 143, "interrupted", "terminated (SIGTERM)"
        else:
            status, record["status"], record["error"] = 1, "failed", describe(error)
            (run_dir / "logs").mkdir(exist_ok=True)
            (run_dir / "logs" / f"traceback-rank{world.rank}.txt").write_text(traceback.format_exc())
    if world.rank == 0:
        try:
            results.write(run_dir, record)
        except OSError as error:
            status, record["error"] = 1, record["error"] or describe(error)
        if status == 0:
            print_results(record, run_dir)
    if status:
        who = f"rank {world.rank} " if world.size > 1 else "the run "
        say(f"mmpds: {who}{record['status']}: {record['error']}")
        if world.size > 1:  # peers may wait for this rank in a collective: leave without their consent
            sys.stdout.flush()
            os._exit(status)
    return status


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


STDLIB = sysconfig.get_path("stdlib")
QUIET = (
    ".*does not have many workers.*",  # loader processes are data.workers' business
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's, of torch
    ".*dataloader is not resumable.*",  # the data module's state says where to go on
    ".*sync_dist=True.*",  # metrics are gathered by torchmetrics before they are logged
    ".*threshold falls back to.*",  # every epoch; what counts is what the last one left, in results.json
)


class Run:
    """The objects of a run and its stages."""

    def __init__(self, cfg: DictConfig, world: World, started: float) -> None:
        """Import torch and build data, model, callbacks, loggers and trainer.

        Args:
            cfg: the composed configuration.
            world: this process among the ranks.
            started: when the user pressed enter, as time.time().
        """
        import lightning.pytorch as pl
        import torch
        from hydra.utils import instantiate

        for name in ("lightning.pytorch", "lightning.fabric"):  # after the import, which sets the level itself
            logging.getLogger(name).setLevel(logging.WARNING)
        for text in QUIET:
            warnings.filterwarnings("ignore", text)

        self.cfg, self.world, self.run_dir = cfg, world, Path(cfg.run_dir)
        self.timing: dict[str, float] = {"startup_s": time.time() - started}
        torch.set_num_threads(threads(cfg, world.local_size))
        pl.seed_everything(cfg.seed, verbose=False)
        began = time.perf_counter()
        self.data, self.model = self._data_and_model()
        self.callbacks = {name: instantiate(node) for name, node in (cfg.callbacks or {}).items() if node}
        if "fit" not in cfg.stages:
            self.callbacks = {n: c for n, c in self.callbacks.items() if n not in ("best", "last", "ema")}
        loggers = [instantiate(node) for node in (cfg.logger or {}).values() if node]
        self.trainer = self._trainer(loggers)
        self.timing["build_s"] = time.perf_counter() - began

    def _data_and_model(self) -> tuple[ImageData, pl.LightningModule]:
        from hydra.utils import get_class, instantiate
        from omegaconf import OmegaConf, open_dict

        cfg = self.cfg
        with open_dict(cfg):
            if OmegaConf.is_missing(cfg.data, "root"):
                cfg.data.root = None  # only another folder is tested or predicted
            if cfg.data.on_bad_image == "auto":
                cfg.data.on_bad_image = "error" if "test" in cfg.stages and "fit" not in cfg.stages else "skip"
        data = instantiate(cfg.data, _convert_="all")
        if cfg.checkpoint:
            stated = cfg.model.get("threshold", {}).get("rule") in ("fixed", "class_specific")
            threshold = {"threshold": OmegaConf.to_container(cfg.model.threshold)} if stated else {}
            kind = get_class(cfg.model._target_)
            model = kind.load_from_checkpoint(cfg.checkpoint, map_location="cpu", weights_only=True, **threshold)
            data.findings = model.findings  # another data set's labels, in the order of this model's outputs
        else:
            model = instantiate(cfg.model, findings=list(data.findings), _convert_="all")
            if cfg.init_from:
                model.load_weights(cfg.init_from)
        return data, model

    def _trainer(self, loggers: list[Any]) -> pl.Trainer:
        import torch
        from hydra.utils import instantiate
        from lightning.pytorch.callbacks import RichProgressBar

        trainer = {key: value for key, value in self.cfg.trainer.items() if key not in OURS}
        if trainer["precision"] == "auto":
            trainer["precision"] = "bf16-mixed" if has_bfloat16(trainer["accelerator"]) else "32-true"
        if self.world.size > 1:
            nodes = max(1, self.world.size // self.world.local_size)
            trainer |= {"devices": self.world.size // nodes, "num_nodes": nodes}
        if self.cfg.trainer.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if self.cfg.trainer.compile:
            self.model.compile()
        # mpirun gives its ranks a terminal of their own: whether a person looks on, the launcher says
        watched = os.environ.get("TTY_COMPATIBLE", str(int(sys.stdout.isatty()))) == "1"
        bar = [RichProgressBar(leave=False)] if watched else []
        return instantiate(
            trainer, logger=loggers, callbacks=[*self.callbacks.values(), *bar], default_root_dir=str(self.run_dir),
            enable_progress_bar=bool(bar), enable_checkpointing="best" in self.callbacks, _convert_="all",
        )  # fmt: skip

    def stages(self) -> dict[str, Any]:
        """Run the stages of the configuration; returns their part of results.json (complete on rank 0 only)."""
        from mmpds.callbacks.predictions import prediction_table, write_predictions

        cfg, tables = self.cfg, []
        evaluation: dict[str, Any] = {"metrics": {}, "intervals": {}, "counts": {}, "warnings": []}
        weights: str | None = None  # those the model has now
        if "fit" in cfg.stages:
            self.trainer.fit(self.model, self.data, ckpt_path=self._resume_path(), weights_only=True)
            evaluation["metrics"] |= {n: float(v) for n, v in self.trainer.callback_metrics.items() if "/" in n}
            best = getattr(self.callbacks.get("best"), "best_model_path", "")
            weights = best or None
        elif not cfg.checkpoint and not self.model.threshold.fitted and "test" in cfg.stages:
            self.trainer.validate(self.model, self.data, verbose=False)  # pretrained weights still need thresholds
        if "test" in cfg.stages:
            self.trainer.test(self.model, self.data, ckpt_path=weights, weights_only=True, verbose=False)
            if self.world.rank == 0:
                tables.append(self._judge(evaluation))
        if "predict" in cfg.stages:
            self.trainer.predict(
                self.model, self.data, ckpt_path=weights, weights_only=True, return_predictions=False
            )
            table, prob = self.data.images["predict"].table, self.callbacks["predictions"].prob
            tables.append(prediction_table("predict", table, self.model.findings, prob, self._decide(prob)))
        costs = self._costs()
        if self.world.rank == 0:
            if tables:
                write_predictions(self.run_dir / "predictions.csv", tables)
            if len(self.data.rejected):
                self.data.rejected.to_csv(self.run_dir / "rejected.csv", index=False)
                evaluation["counts"]["rejected"] = len(self.data.rejected)
                evaluation["warnings"].append(f"{len(self.data.rejected)} unreadable images left out: rejected.csv")
            for logger in self.trainer.loggers:
                logger.log_metrics({n: v for n, v in results.flatten(evaluation | costs).items() if isinstance(v, float)})
        for logger in self.trainer.loggers:
            logger.finalize("success")
        return evaluation | costs | {"artifacts": self._artifacts(), "error": None}

    def _resume_path(self) -> str | None:
        resume = self.cfg.resume
        last = self.run_dir / "checkpoints" / "last.ckpt"
        if resume in ("last", "auto"):
            return str(last) if last.exists() else None
        return str(resume) if resume else None

    def _decide(self, prob: Any) -> Any:
        import torch

        return self.model.threshold.decide(torch.from_numpy(prob)).numpy()

    def _judge(self, evaluation: dict[str, Any]) -> Any:
        """Add the test split's metrics with intervals to `evaluation`; returns its rows of predictions.csv."""
        import numpy as np

        from mmpds.callbacks.predictions import prediction_table
        from mmpds.metrics.collapse import collapse
        from mmpds.metrics.intervals import evaluate

        images, findings = self.data.images["test"], self.model.findings
        prob = self.callbacks["predictions"].prob
        label, decision = images.label.numpy(), self._decide(prob)
        judged = evaluate(
            prob, label, self.model.threshold.value.cpu().numpy(), findings, group=images.table["group"].to_numpy(),
            normal=images.table["normal"].to_numpy(dtype=bool), replicates=self.cfg.bootstrap, seed=self.cfg.seed,
        )  # fmt: skip
        for section in ("metrics", "intervals", "counts"):
            evaluation[section] |= {f"test/{name}": value for name, value in getattr(judged, section).items()}
        evaluation["warnings"] += [f"{finding}: {why}" for finding, why in self.model.threshold.unfit.items()]
        evaluation["warnings"] += [*judged.warnings, *collapse(prob, np.asarray(decision), label, findings)]
        return prediction_table("test", images.table, findings, prob, decision)

    def _costs(self) -> dict[str, Any]:
        """Timing, energy and memory of all ranks, and what they ran on."""
        import torch

        from mmpds.callbacks import energy, timing

        device = self.trainer.strategy.root_device
        mine = {
            "timing": self.callbacks["timing"].summary(),
            "energy": self.callbacks["energy"].summary() if "energy" in self.callbacks else None,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "load_s": self.data.load_s,
        }
        ranks: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [None] * self.world.size
            torch.distributed.all_gather_object(ranks, mine)
        self.timing["load_s"] = max(rank["load_s"] for rank in ranks)
        combined = self.timing | timing.combine([rank["timing"] for rank in ranks])
        joules = [rank["energy"] for rank in ranks if rank["energy"]]
        return {
            "timing": combined,
            "energy": energy.combine(joules, combined.get("items_total") or 0),
            "memory": {
                "peak_rss_bytes": max(rank["rss"] for rank in ranks),
                "peak_device_bytes": max(rank["device"] for rank in ranks),
            },
            "hardware": results.hardware([rank["gpu"] for rank in ranks if rank["gpu"]], cores()),
            "precision": self.trainer.precision,
        }

    def _artifacts(self) -> dict[str, str]:
        names = {"config": results.CONFIG, "predictions": "predictions.csv", "rejected": "rejected.csv",
                 "best": "checkpoints/best.ckpt", "last": "checkpoints/last.ckpt", "log": "logs/metrics.csv"}  # fmt: skip
        return {name: path for name, path in names.items() if (self.run_dir / path).exists()}


def has_bfloat16(accelerator: str) -> bool:
    """Whether the hardware computes in bfloat16, rather than emulating it."""
    if accelerator == "gpu":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in (" avx512_bf16", " amx_bf16", " bf16"))


def main(run_dir: str) -> int:
    """A rank that the launcher started: the configuration is in the run directory."""
    from omegaconf import OmegaConf

    from mmpds.launch import rendezvous

    cfg = OmegaConf.load(Path(run_dir) / results.CONFIG)
    cfg.run_dir = run_dir
    world = adopt(os.environ)
    rendezvous(world, os.environ)
    cap_threads(threads(cfg, world.local_size), os.environ)
    return run(cfg, world)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
