"""What a run cost in joules, and how that is known."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
METHODS = ("nvml", "rapl", "estimate", "unavailable")
"""From the best to the worst; several ranks are known as well as the worst of them."""
APART_S = 60.0
"""Between two readings of counters that begin anew."""

Meters = dict[str, float]


class Energy(Callback):
    """Joules of every stage, from setup to teardown. Never breaks a run: what cannot be read is unavailable.

    One method a run, so that one word means one thing on every machine:

    - `nvml`: a run on GPUs; the boards' own energy counters (`nvmlDeviceGetTotalEnergyConsumption`). CPU and
      memory of the node are not in it, even where RAPL could be read: few clusters allow that, and a
      figure that holds the CPU on one machine only cannot be compared.
    - `rapl`: a run on CPU; the counters of the CPU packages (/sys/class/powercap). They begin anew after minutes, some
      after four of a busy package, and are read every minute.
    - `estimate`: a run on CPU without readable counters; the CPU's thermal design power from CodeCarbon's
      table times the share of the CPU that this process and its ended children used, as CodeCarbon models a
      process. That is linear in CPU time, so two readings replace CodeCarbon's thread and its slow start.
    - `unavailable`: neither. A GPU without a counter is not estimated: nothing here knows its load.

    Counters are the whole device's: whatever else ran on it is in them.

    Each rank reads the meters that it sees, under names unique in a cluster; `combine` counts each once.

    Args:
        powercap: folder of the kernel's energy counters.
    """

    def __init__(self, powercap: str | Path = POWERCAP) -> None:
        self.powercap = Path(powercap)
        self._used: Meters = {}
        self._before: Meters | None = None
        self._read_at = 0.0
        self._ranges: Meters = {}
        self._method: str | None = None
        self._read: Callable[[], Meters] = dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the meters before a stage."""
        if self._method is None:
            self._method, self._read = self._choose(trainer.strategy.root_device)
        self._open()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read them after it."""
        self._close()

    def on_train_batch_end(self, *_: Any) -> None:
        """Read counters that may begin anew more than once in a stage."""
        self._keep_up()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """The same."""
        self._keep_up()

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """The same."""
        self._keep_up()

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """The same."""
        self._keep_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A stage that breaks has used its energy too."""
        self._close()

    def summary(self) -> dict[str, Any]:
        """JSON-able: `joules` of this rank (None if unknown), `method`, and `meters` for `combine`."""
        method = self._method or "unavailable"
        meters = dict(self._used)
        if method == "estimate" and meters:
            watts = _watts_per_core()
            meters = {name: watts * seconds for name, seconds in meters.items()} if watts else {}
        if not meters:
            return {"joules": None, "method": "unavailable", "meters": {}}
        return {"joules": sum(meters.values()), "method": method, "meters": meters}

    def _choose(self, device: torch.device) -> tuple[str, Callable[[], Meters]]:
        host = socket.gethostname()
        if device.type == "cuda":
            return "nvml", lambda: _nvml(device)
        if device.type == "cpu":
            try:
                if counters := _rapl(self.powercap, host):
                    self._ranges = _rapl(self.powercap, host, "max_energy_range_uj")
                    if self._ranges.keys() == counters.keys():
                        return "rapl", lambda: _rapl(self.powercap, host)
            except (OSError, ValueError) as error:
                log.info("no RAPL counters: %s", error)
            # CPU seconds here, joules in `summary`: looking the CPU up takes a second or two
            return "estimate", lambda: {f"{host}/{os.getpid()}": sum(os.times()[:4])}
        return "unavailable", dict

    def _keep_up(self) -> None:
        if self._method == "rapl" and self._before is not None and monotonic() - self._read_at > APART_S:
            self._close()
            self._open()

    def _open(self) -> None:
        self._before, self._read_at = self._sample(), monotonic()

    def _sample(self) -> Meters | None:
        try:
            return self._read()
        except Exception as error:
            # a driver's failure must cost the figure, not the run
            log.warning("energy is unavailable: %s", error)
            self._method, self._read, self._used = "unavailable", dict, {}
            return None

    def _close(self) -> None:
        before, after = self._before, self._sample()
        self._before = None
        if before is None or after is None:
            return
        for name in after.keys() & before.keys():
            used = after[name] - before[name]
            if used < 0:  # the counter began anew
                used += self._ranges.get(name, 0.0)
            self._used[name] = self._used.get(name, 0.0) + used


def combine(per_rank: Sequence[dict[str, Any]], items: int) -> dict[str, Any]:
    """The `energy` section of results.json from every rank's `Energy.summary()`.

    A meter that several ranks read counts once, at its largest reading. If a rank could read nothing, the
    sum would be too small and is None; if methods differ, the worst is named.

    Args:
        per_rank: the summaries.
        items: how many items all measured stages processed.
    """
    method = max((rank["method"] for rank in per_rank), key=METHODS.index, default="unavailable")
    meters: Meters = {}
    for rank in per_rank:
        for name, joules in rank["meters"].items():
            meters[name] = max(joules, meters.get(name, 0.0))
    joules = None if method == "unavailable" else sum(meters.values())
    return {
        "joules": joules,
        "joules_per_item": joules / items if joules is not None and items > 0 else None,
        "method": method,
    }


def _nvml(device: torch.device) -> Meters:
    import pynvml

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {uuid: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}  # from mJ
    finally:
        pynvml.nvmlShutdown()


def _rapl(powercap: Path, host: str, file: str = "energy_uj") -> Meters:
    """Joules a CPU package; its parts (intel-rapl:0:1) are in it, and `psys` holds the packages again."""
    meters = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip() if zone.name.count(":") == 1 else ""
        if name.startswith("package"):
            meters[f"{host}/{name}"] = int((zone / file).read_text()) / 1e6  # from µJ
    return meters


def _watts_per_core() -> float | None:
    """Thermal design power of this machine over its logical CPUs; takes one to two seconds."""
    try:
        from codecarbon.core.cpu import TDP
        from codecarbon.core.util import count_physical_cpus

        chatter = logging.getLogger("codecarbon")
        level = chatter.level
        chatter.setLevel(logging.ERROR)
        try:
            watts = TDP().tdp  # type: ignore[no-untyped-call]
            sockets = count_physical_cpus()  # type: ignore[no-untyped-call]
            return float(watts) * sockets / (os.cpu_count() or 1) if watts else None
        finally:
            chatter.setLevel(level)
    except Exception as error:
        # CodeCarbon asks the operating system in many ways; none of them may cost the run's results
        log.warning("energy is unavailable: %s", error)
        return None
