"""Weights & Biases is told what was measured and nothing of the machine, the user or a patient."""

import getpass
import os
import re
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmpds import tracking
from mmpds.data.contact_sheet import contact_sheet
from mmpds.data.phantom import Phantom
from mmpds.tracking import logged_in, wandb_logger
from tests.conftest import ROOT, TINY, results_of

PLANTED = {
    "MY_SECRET_TOKEN": "swordfish-4711", "AWS_SECRET_ACCESS_KEY": "mackerel-4712", "USER": "user-4713",
    "LOGNAME": "user-4713", "EMAIL": "user@example-4714.org", "GIT_AUTHOR_NAME": "author-4715",
}  # fmt: skip


def records(data):
    """The records of a .wandb file: a LevelDB log of protobuf messages, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    assert data[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:  # no part begins where its own header has no room
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))
            parts = []
    assert not parts, "the file ends in the middle of a record"


def text_of(path):
    """A file's text; of a picture, what its file says beside the pixels."""
    if path.suffix != ".png":
        return path.read_text()
    with Image.open(path) as picture:
        picture.load()
        return str(picture.info)


class Offline:
    """A run of train.py with logger=wandb, in a home where nobody is logged in."""

    def __init__(self, folder, *arguments):
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "OMPI_", "PMIX_", "NETRC"))}
        environment = inherited | {"PYTHONPATH": str(ROOT), "HOME": str(self.home), **PLANTED}
        command = [
            sys.executable, str(ROOT / "train.py"), "experiment=demo", *TINY, "trainer.max_epochs=1",
            "trainer.log_every_n_steps=1", "trainer.threads=1", "logger=wandb", "logger.wandb.project=control-4716",
            "run_dir=run", *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self):
        self.stdout, self.stderr = self.process.communicate(timeout=120)
        self.result = results_of(self.folder)
        (log,) = (self.folder / "run" / "logs" / "wandb").rglob("*.wandb")
        self.records = list(records(log.read_bytes()))
        self.files = [path for path in log.parent.rglob("*") if path.is_file() and path != log]
        self.told = "\n".join([*map(str, self.records), *map(text_of, self.files)])
        return self

    def kinds(self):
        return [record.WhichOneof("record_type") for record in self.records]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that ends well and one that fails in its third step, at the same time."""
    fault = ["+callbacks.fault._target_=tests.distributed.faults.Fault", "+callbacks.fault.action=raise"]
    started = {
        "well": Offline(tmp_path_factory.mktemp("well")),
        "failing": Offline(tmp_path_factory.mktemp("failing"), *fault, "+callbacks.fault.step=3"),
    }
    return {name: run.wait() for name, run in started.items()}


@pytest.fixture
def well(runs):
    assert runs["well"].process.returncode == 0, runs["well"].stderr
    return runs["well"]


def test_an_offline_run_is_told_every_metric(well):
    assert well.result["status"] == "finished"
    logged = {
        "/".join(item.nested_key) or item.key
        for record in well.records if record.WhichOneof("record_type") == "history"
        for item in record.history.item
    }  # fmt: skip
    defined = {name for name, value in well.result["metrics"].items() if isinstance(value, float)}
    assert {"train/loss", "test/auroc/macro", "val/auroc/macro"} < logged
    assert defined <= logged
    assert {"timing.fit_s", "energy.joules"} < logged


def test_what_is_told_can_be_found(well):
    # in the run's own record, its configuration and its history: the searches below would find a leak in any
    for word in ("control-4716", "demo", "growth_rate", "Cardiomegaly", "train/loss", "test/auroc/macro"):
        assert re.search(rf"\b{re.escape(word)}\b", well.told), word


def test_nothing_is_told_of_the_environment_the_user_or_the_machine(well):
    words = {*PLANTED.values(), socket.gethostname(), getpass.getuser(), os.uname().release}
    found = {word for word in words if re.search(rf"\b{re.escape(word)}\b", well.told)}
    assert found == set()
    paths = {str(well.folder), str(well.home), str(ROOT), sys.prefix}
    assert {path for path in paths if path in well.told} == set()
    assert not {"environment", "stats", "output", "output_raw"} & set(well.kinds())
    assert {path.suffix for path in well.files} <= {".log", ".png", ".json", ".yaml"}
    assert not {"wandb-metadata.json", "output.log"} & {path.name for path in well.files}


def test_nothing_is_told_of_a_patient_or_an_image(well):
    table = (well.folder / "run" / "predictions.csv").read_text()
    assert "patient-0-" in table
    assert "phantom-0-" in table
    assert "patient-0-" not in well.told
    assert "phantom-0-" not in well.told


@pytest.mark.parametrize(("name", "status", "code"), [("well", "finished", 0), ("failing", "failed", 1)])
def test_wandbs_run_ends_as_the_run_does(runs, name, status, code):
    run = runs[name]
    assert run.process.returncode == code, run.stderr
    assert run.result["status"] == status
    assert [record.exit.exit_code for record in run.records if record.WhichOneof("record_type") == "exit"] == [code]
    assert "train/loss" in run.told


def test_a_failing_runs_cause_stays_on_the_machine(runs):
    assert "the planted fault" in runs["failing"].result["error"]
    assert "the planted fault" not in runs["failing"].told


# who is logged in


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A home without a netrc, and no W&B variable."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_netrc(home, text):
    (home / ".netrc").write_text(text)
    (home / ".netrc").chmod(0o600)


def test_nobody_is_logged_in(nobody):
    assert not logged_in()


def test_a_key_in_the_environment_logs_in(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert logged_in()


@pytest.mark.parametrize(
    ("host", "server", "expected"),
    [
        ("api.wandb.ai", None, True),
        ("github.com", None, False),
        ("wandb.clinic.org", None, False),
        ("wandb.clinic.org", "https://wandb.clinic.org:8080", True),
        ("api.wandb.ai", "https://wandb.clinic.org", False),
    ],
)
def test_a_netrc_logs_in_to_the_server_it_names(nobody, monkeypatch, host, server, expected):
    write_netrc(nobody, f"machine {host}\n  login user\n  password {'k' * 40}\n")
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert logged_in() is expected


def test_a_damaged_netrc_logs_nobody_in(nobody):
    write_netrc(nobody, "machine\n")
    assert not logged_in()


@pytest.mark.parametrize(
    ("key", "mode", "offline"),
    [
        (None, None, True), ("k" * 40, None, False), ("k" * 40, "offline", True), (None, "online", False),
        (None, "disabled", False),
    ],
)  # fmt: skip
def test_only_who_is_logged_in_is_online_unless_told_otherwise(nobody, monkeypatch, key, mode, offline):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    logger = wandb_logger(str(nobody / "logs"), project="mmpds")  # starts no run yet
    assert logger._offline is offline
    assert (nobody / "logs").is_dir()


class Takes:
    def log_image(self, key, images):
        self.got = key, images


def test_loggers_that_take_images_get_one_sheet_of_the_first():
    source, takes = Phantom(images=30), [Takes(), Takes()]
    images = SimpleNamespace(source=source, rows=np.arange(5, 30), size=32)
    tracking.log_samples([object(), *takes], images, count=6)
    for logger in takes:
        key, (sheet,) = logger.got
        assert key == "test/images"
        assert sheet.tobytes() == contact_sheet(source, range(5, 11), size=32, columns=4).tobytes()


def test_without_such_a_logger_no_image_is_read():
    tracking.log_samples([object()], SimpleNamespace(rows=np.arange(3)), 16)


def test_finishing_without_wandb_does_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tracking.finish(1)
    assert "wandb" not in sys.modules
