"""Each meter is read in its own unit and counts once; no failure of a meter reaches the run."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpds.callbacks import energy
from mmpds.callbacks.energy import Energy, combine

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def stage(callback, device, work=lambda: None):
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))
    callback.setup(trainer, None, "fit")
    work()
    callback.teardown(trainer, None, "fit")


@pytest.fixture
def powercap(tmp_path):
    """Two packages of 10 J range, a part of the first, and the whole platform, which holds them again."""
    for zone, name in {"0": "package-0", "1": "package-1", "0:0": "core", "2": "psys"}.items():
        folder = tmp_path / f"intel-rapl:{zone}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("9000000\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    return tmp_path


def test_rapl_counts_packages_once_and_wraps_around(powercap):
    def work():
        (powercap / "intel-rapl:0" / "energy_uj").write_text("9500000")
        (powercap / "intel-rapl:1" / "energy_uj").write_text("1000000")
        (powercap / "intel-rapl:0:0" / "energy_uj").write_text("9400000")
        (powercap / "intel-rapl:2" / "energy_uj").write_text("9900000")

    callback = Energy(powercap)
    stage(callback, CPU, work)
    stage(callback, CPU)  # a second stage that uses nothing
    summary = json.loads(json.dumps(callback.summary()))
    assert summary["method"] == "rapl"
    assert summary["joules"] == pytest.approx(0.5 + 2.0)


def test_rapl_is_read_often_enough_to_see_every_wrap(powercap, monkeypatch):
    now = 0.0
    monkeypatch.setattr("mmpds.callbacks.energy.monotonic", lambda: now)
    callback = Energy(powercap)

    def work():
        nonlocal now
        for joules in (3, 6, 9, 2, 5, 8, 1, 4):  # of a range of 10 J, from 9 J on: three wraps in 25 J
            (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{joules * 1_000_000}")
            now += 61
            callback.on_test_batch_end()

    stage(callback, CPU, work)
    assert callback.summary()["joules"] == pytest.approx(25)


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_unreadable_rapl_becomes_an_estimate(powercap, file, monkeypatch):
    (powercap / "intel-rapl:1" / file).unlink()  # in the field: readable by root alone
    monkeypatch.setattr(energy, "_watts_per_core", lambda: 10.0)
    seconds = iter([(1.0, 1.0, 0.0, 0.0, 9.0), (2.0, 1.0, 0.5, 0.5, 99.0)])
    monkeypatch.setattr(energy.os, "times", lambda: next(seconds))
    callback = Energy(powercap)
    stage(callback, CPU)
    assert callback.summary()["method"] == "estimate"
    assert callback.summary()["joules"] == pytest.approx(10.0 * (4.0 - 2.0))


def test_codecarbon_knows_a_power_and_keeps_quiet(capfd):
    level = logging.getLogger("codecarbon").level
    watts = energy._watts_per_core()
    assert watts is not None
    assert 0.5 < watts < 500
    assert capfd.readouterr().err == ""
    assert logging.getLogger("codecarbon").level in (level, logging.INFO)


def test_estimate_without_a_known_power_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon.core.cpu", None)
    callback = Energy(tmp_path)
    stage(callback, CPU, lambda: sum(range(10**6)))
    assert callback.summary() == {"joules": None, "method": "unavailable", "meters": {}}


@pytest.fixture
def nvml(monkeypatch):
    """Two GPUs, of which the second runs; counters in mJ."""
    counters = {"GPU-a": 100, "GPU-b": 5000}
    fake = SimpleNamespace(
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=counters.__getitem__,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = {None: "a", 0: "a", 1: "b"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=properties[device.index])
    )
    return counters


def test_nvml_reads_the_gpu_of_this_rank_alone(nvml, powercap):
    callback = Energy(powercap)
    stage(callback, GPU, lambda: nvml.update({"GPU-a": 900, "GPU-b": 7500}))
    assert callback.summary() == {"joules": 2.5, "method": "nvml", "meters": {"GPU-b": 2.5}}


def test_failing_driver_costs_the_figure_and_not_the_run(nvml, powercap, caplog):
    callback = Energy(powercap)
    stage(callback, GPU, lambda: nvml.pop("GPU-b"))
    assert callback.summary()["method"] == "unavailable"
    assert "energy is unavailable" in caplog.text


def test_no_meter_for_this_device(powercap):
    callback = Energy(powercap)
    stage(callback, torch.device("meta"))
    assert callback.summary()["method"] == "unavailable"
    assert Energy().summary()["joules"] is None  # nothing ran


def test_a_stage_that_breaks_counts(nvml):
    callback = Energy()
    callback.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=GPU)), None, "fit")
    nvml["GPU-b"] += 1000
    callback.on_exception(None, None, KeyboardInterrupt())
    nvml["GPU-b"] += 1000
    callback.teardown(None, None, "fit")
    assert callback.summary()["joules"] == 1.0


def rank(method, **meters):
    return {"joules": sum(meters.values()) if meters else None, "method": method, "meters": meters}


def test_a_shared_meter_counts_once():
    section = combine([rank("rapl", a=3.0, b=1.0), rank("rapl", a=2.9, b=1.1), rank("rapl", c=4.0)], items=4)
    assert section == {
        "joules": pytest.approx(8.1),
        "joules_per_item": pytest.approx(8.1 / 4),
        "method": "rapl",
    }


@given(st.lists(st.sampled_from(["nvml", "rapl", "estimate", "unavailable"]), max_size=5))
def test_a_sum_is_known_as_well_as_its_worst_part(methods):
    section = combine([rank(m, **({f"m{i}": 1.0} if m != "unavailable" else {})) for i, m in enumerate(methods)], 2)
    if not methods or "unavailable" in methods:
        assert section == {"joules": None, "joules_per_item": None, "method": "unavailable"}
    else:
        assert section["joules"] == len(methods)
        assert (section["method"] == "estimate") == ("estimate" in methods)


def test_no_items():
    assert combine([rank("nvml", a=1.0)], 0)["joules_per_item"] is None
