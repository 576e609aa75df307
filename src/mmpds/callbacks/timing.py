"""What a run cost in seconds: stages, warm-up, throughput, step times, waits for data and communication."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmpds.callbacks.timing_section import STAGES

FETCHES = frozenset(  # what Lightning calls the fetch of a batch in its profiler
    (
        "[_TrainingEpochLoop].train_dataloader_next",
        "[_EvaluationLoop].test_next",
        "[_PredictionLoop].predict_next",
    )
)
EVENTS = 256  # CUDA event pairs kept before their times are read, which waits for the device once


@dataclass
class _Stage:
    """One stage of one rank. The steady state begins after the warm-up batches.

    cpu: seconds that this process's threads computed, of the whole stage.
    seconds: steady time from batch end to batch end, without validation and what lies between two epochs.
    step: milliseconds of each steady step, from the batch on the device to the end of its step.
    comm: seconds of communication of each steady step; None where they cannot be measured.
    """

    started: float
    total: float = 0.0
    batches: int = 0
    warmup: float = 0.0
    warmup_items: Tensor | int = 0
    items: Tensor | int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    wait: float = 0.0
    comm: array[float] | None = None
    step: array[float] = field(default_factory=lambda: array("d"))

    def summary(self) -> dict[str, Any]:
        warmup_items, items, steady = int(self.warmup_items), int(self.items), self.seconds
        comm = None if self.comm is None else list(self.comm)
        percentiles = np.percentile(self.step, (50, 95, 99)) if self.step else ()
        return {
            "total_s": self.total,
            "cpu_s": self.cpu,
            "warmup_s": self.warmup,
            "items_total": warmup_items + items,
            "items": items,
            "batches": len(self.step),
            "seconds": steady,
            "step_ms": dict(zip(("p50", "p95", "p99"), map(float, percentiles), strict=False)) or None,
            "data_wait_fraction": self.wait / steady if steady else None,
            "comm_fraction": sum(comm) / steady if steady and comm is not None else None,
            "comm_steps": comm,
        }


class Timing(Callback):
    """Measures every stage of a run on this rank; `timing_section.combine` makes one section of all ranks.

    Clock: `perf_counter`. On a GPU step times are those of CUDA events, and the host waits for the device
    only where the clock stops: at the end of the warm-up, before validation, at the end of an epoch and of a
    stage (and once in 256 steps, to read the events). Elsewhere host times would be those of launches.

    Waiting for data is the time inside the loader's `next`, which Lightning marks in its profiler; loggers,
    checkpoints and Lightning's own collectives between two steps are time, but not waiting.

    Communication is measured in DDP training on CPU: from the launch of a step's last gradient bucket, when
    the backward pass has nothing left to compute, to the end of its last all-reduce. That includes waiting
    for slower ranks, which `combine` tells apart. It is None where it cannot be told from computing (GPU,
    other strategies, evaluation).

    Args:
        warmup_steps: the first batches of each stage, reported apart and in no other figure; at least 1.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps={warmup_steps} must be at least 1: the first batch is never steady")
        self.warmup_steps = warmup_steps
        self._rank = 0
        self._stages: dict[str, _Stage] = {}
        self._device: torch.device | None = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._now: _Stage | None = None  # the stage that runs
        self._mark: float | None = None  # where the clock stands; None: it starts with the next fetch
        self._begin = self._fetch = self._bucket = 0.0  # when this step, fetch and last bucket began
        self._wait = self._comm = 0.0  # seconds of this step
        self._profiler: Any = None

    def summary(self) -> dict[str, Any]:
        """JSON-able figures of this rank: `rank` and, for each stage that ran, what `combine` reads."""
        return {"rank": self._rank} | {name: stage.summary() for name, stage in self._stages.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a stage; `validate` on its own is not timed."""
        if stage not in STAGES:
            return
        one = trainer.world_size == 1
        self._rank, self._device = trainer.global_rank, trainer.strategy.root_device
        stage = STAGES[STAGES.index(stage)]  # Lightning passes an enum, which no strict reader loads again
        self._now = self._stages[stage] = _Stage(perf_counter(), cpu=-process_time(), comm=array("d") if one else None)
        self._mark = None
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        if self._profiler is not profiler:
            self._listen(profiler)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End a stage."""
        if self._now is not None:
            self._pause()
            self._now.total = perf_counter() - self._now.started
            self._now.cpu += process_time()
            self._now = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured of a stage that breaks; Lightning calls no teardown then."""
        if self._now is not None:
            self._events.clear()  # the device may have failed
            self._now.total = perf_counter() - self._now.started
            self._now.cpu += process_time()
            self._now = None

    def _listen(self, profiler: Any) -> None:
        """Note when Lightning's profiler is told of a fetch: the only public mark around it."""
        self._profiler = profiler
        start, stop = profiler.start, profiler.stop
        # of some 80 actions a step two are ours: hand the others on only where somebody listens
        records = not isinstance(profiler, PassThroughProfiler)

        def started(action: str) -> None:
            if action in FETCHES:
                self._fetch = perf_counter()
                if self._mark is None:
                    self._mark = self._fetch
            if records:
                start(action)

        def stopped(action: str) -> None:
            if records:
                stop(action)
            if action in FETCHES:
                self._wait += perf_counter() - self._fetch

        profiler.start, profiler.stop = started, stopped

    def _end_batch(self, stage: _Stage, items: Tensor) -> None:
        stage.batches += 1
        steady = stage.batches > self.warmup_steps
        if not steady:
            self._synchronize()
            self._events.clear()
        now = perf_counter()
        elapsed = now - (self._begin if self._mark is None else self._mark)
        if steady:
            stage.seconds += elapsed
            stage.wait += self._wait
            stage.items = stage.items + items
            if stage.comm is not None:
                stage.comm.append(self._comm)
            if self._events:
                self._events[-1][1].record()
                if len(self._events) >= EVENTS:
                    self._read_events(stage)
            else:
                stage.step.append(1e3 * (now - self._begin))
        else:
            stage.warmup += elapsed
            stage.warmup_items = stage.warmup_items + items
        self._wait = self._comm = 0.0
        self._mark = now

    def _pause(self) -> None:
        """Stop the clock until the next fetch; work still on the device belongs to the steps before."""
        if self._now is not None and self._mark is not None:
            start = perf_counter()
            self._synchronize()
            if self._now.batches > self.warmup_steps:
                self._now.seconds += perf_counter() - start
            self._read_events(self._now)
        self._mark, self._wait = None, 0.0

    def _read_events(self, stage: _Stage) -> None:
        if self._events:
            self._events[-1][1].synchronize()
            stage.step.extend(start.elapsed_time(end) for start, end in self._events)
            self._events.clear()

    def _synchronize(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to DDP's all-reduce, where that is possible."""
        model = trainer.strategy.model
        if (
            isinstance(model, DistributedDataParallel)
            and trainer.world_size > 1
            and self._device == torch.device("cpu")
            and self._now is not None
        ):
            # a lambda, for DDP refuses a hook whose annotations are strings
            model.register_comm_hook(self, lambda state, bucket: _timed_allreduce(state, bucket))
            self._now.comm = array("d")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Backward returns when the last all-reduce has ended."""
        if self._bucket:
            self._comm += perf_counter() - self._bucket
            self._bucket = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """The batch is on the device."""
        if self._device is not None and self._device.type == "cuda":
            self._events.append((_event(), _event()))
        self._begin = perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """The step is done: on CPU truly, on a GPU launched."""
        if self._now is not None:
            self._end_batch(self._now, torch.count_nonzero(batch["index"] >= 0))

    on_test_batch_start = on_predict_batch_start = on_train_batch_start  # type: ignore[assignment]
    on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]

    def on_validation_start(self, *_: Any) -> None:
        """Validation is in `fit_s` and in no throughput."""
        self._pause()

    def on_train_epoch_start(self, *_: Any) -> None:
        """What lies between two epochs is in `fit_s` and in no throughput."""
        self._pause()


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _timed_allreduce(timing: Timing, bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's own averaging, bit for bit (gradients times 1/N, then their sum); notes each bucket's launch."""
    tensor = bucket.buffer().mul_(1.0 / dist.get_world_size())
    work = dist.all_reduce(tensor, async_op=True)
    timing._bucket = perf_counter()
    return work.get_future().then(lambda future: future.value()[0])
