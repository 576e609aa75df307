"""The Dockerfile built for real, without an engine: by buildah, on a Debian that debootstrap makes.

The registry of base images is not asked: debootstrap makes the same from Debian's packages. Python packages come from
uv's cache, which `make setup` has filled, as links; their hashes are checked all the same.
"""

import json
import os
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT, TINY

CONTAINERS = ROOT / "containers"
PROGRAMS = ("buildah", "debootstrap")
RELEASE = "bookworm"
CHECKS = ("tests/unit/test_world.py", "tests/unit/test_architecture.py")
pytestmark = pytest.mark.timeout(1200)


def lacking():
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install --no-install-recommends {' '.join(PROGRAMS)}"
    return "debootstrap wants root" if os.geteuid() else None


UV = """
cache-dir = "/var/cache/uv"
link-mode = "symlink"
offline = true
"""
"""What uv is told in the container: as in `make setup`, but for links to the packages in place of copies."""


class Builder:
    """buildah, without an engine, and with storage of its own."""

    def __init__(self, folder):
        self.storage = ("--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs")
        (folder / "uv.toml").write_text(UV)
        cache = subprocess.run([ROOT / ".venv/bin/uv", "cache", "dir"], capture_output=True, text=True, check=True)
        mounts = {
            cache.stdout.strip(): "/var/cache/uv",
            folder / "uv.toml": "/etc/uv/uv.toml",
            "/etc/ssl/certs": "/etc/ssl/certs",  # those of a mirror of PyPI's, too
        }
        self.runs = ("--isolation=chroot", *(f"--volume={here}:{there}" for here, there in mounts.items()))

    def __call__(self, command, *arguments):
        words = ["buildah", *map(str, self.storage), command, *map(str, arguments)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    if why := lacking():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    run = Builder(tmp_path_factory.mktemp("buildah"))
    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(buildah):
    """The finished image's name; its stage of tests has passed."""
    debian = buildah("from", "scratch")
    subprocess.run(["debootstrap", "--variant=minbase", RELEASE, buildah("mount", debian)], check=True, stdout=-3)
    buildah("commit", "--rm", debian, "localhost/base")
    stages = ("--skip-unused-stages=false",) if "--skip-unused-stages" in buildah("bud", "--help") else ()
    arguments = ("--build-arg=UV_COMPILE_BYTECODE=0", f"--build-arg=TESTS={' '.join(CHECKS)}")
    buildah(
        "bud", *buildah.runs, *stages, "--from=localhost/base", "--pull=never", *arguments,
        "--file", CONTAINERS / "Dockerfile", "--tag=mmpds", ROOT,
    )  # fmt: skip
    return "mmpds"


def test_the_image_trains_on_ranks_as_a_user(buildah, image):
    config = json.loads(buildah("inspect", "--type=image", image))["OCIv1"]["config"]
    assert config["User"] == "mmpds"
    container = buildah("from", "--pull=never", image)
    out = buildah(
        "run", *buildah.runs, container, "--", *config["Entrypoint"], "experiment=demo", *TINY, "trainer=mpi_cpu",
        "ranks=2", "run_dir=run",
    )  # fmt: skip
    assert "2 ranks" in out
    whose = buildah("run", *buildah.runs, container, "--", "stat", "--format=%U", "/work/run/results.json")
    assert whose == "mmpds"


def test_apptainer_is_told_what_docker_is():
    docker, apptainer = ((CONTAINERS / name).read_text() for name in ("Dockerfile", "mmpds.def"))
    (base,) = set(re.findall(r"^FROM (\S+:\S+)", docker, re.MULTILINE))
    assert re.fullmatch(rf"debian:{RELEASE}-\d{{8}}-slim", base)
    assert f"From: {base}\n" in apptainer
    for step in re.findall(r"(?:sh containers|\.venv).*", docker):
        assert f"    {step}\n" in apptainer
