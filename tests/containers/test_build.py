"""The Dockerfile's own steps, taken one by one in a Debian of their own, without an engine: mmdebstrap and chroot."""

import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import certifi
import pytest

from tests.conftest import ROOT, TINY
from tests.containers.test_recipes import CONTAINERS, RELEASE

CERTIFICATES = "/ca.crt"
FAST = "--dpkgopt=force-unsafe-io"  # what is built here need not outlive a crash
TRUST = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def stages():
    """Stage -> its base and its instructions, pairs of a keyword and what follows it."""
    found = {}
    for line in (CONTAINERS / "Dockerfile").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, name = rest.split(" AS ")
            found[name] = base, []
        else:
            found[name][1].append((word, rest))
    return found


class Build:
    """A folder that holds a Debian, and what Docker remembers from one instruction to the next."""

    def __init__(self, root):
        self.root, self.place, self.user, self.entry = root, "/", "root", []
        self.environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | dict.fromkeys(TRUST, CERTIFICATES)
        # Docker passes on the way to the network too
        self.environ |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}

    def take(self, instructions, **arguments):
        """Carry out a stage's instructions; an argument stands for an ARG's default."""
        for word, rest in instructions:
            match word:
                case "ARG" | "ENV":
                    name, value = rest.split("=", 1)
                    self.environ[name] = arguments.get(name, value)
                case "WORKDIR":
                    self.place = rest
                    (self.root / rest[1:]).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self.copy(*rest.split())
                case "RUN":
                    if mount := re.match(r"--mount=type=cache,target=(\S+) ", rest):
                        self.fill(mount[1])
                    self.run(rest[mount.end() :] if mount else rest)
                case "USER":
                    self.user = rest
                case "ENTRYPOINT":
                    self.entry = re.findall(r'"(.*?)"', rest)
                case _:
                    raise ValueError(f"{word}: an instruction that this test cannot carry out")

    def copy(self, *names):
        """What git knows of files and folders: what a build from a clean checkout is given."""
        *sources, target = names
        for source in sources:
            listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", source]
            found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
            assert found[:-1], f"COPY {source}: there is no such file"
            into = self.root / self.place[1:] / target
            for name in filter(lambda name: (ROOT / name).is_file(), found[:-1]):
                path = into / Path(name).relative_to(source) if (ROOT / source).is_dir() else into
                path = path / source if target.endswith("/") else path
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path)

    def fill(self, target):
        """Docker's cache holds what was downloaded before: here what uv has, by links where one disk has both."""
        uv = Path(sys.executable).with_name("uv")
        told = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True)
        mine, place = Path(told.stdout.strip()), self.root / target[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if mine.is_dir() and not place.exists() and mine.stat().st_dev == self.root.stat().st_dev:
            subprocess.run(["cp", "-al", mine, place], check=True)

    def run(self, command):
        """Run a command in the Debian, where it sees this machine's devices and nothing else of it."""
        mounts = "".join(f"mount --rbind /{name} {self.root / name}; " for name in ("proc", "sys", "dev"))
        home = {"HOME": "/root" if self.user == "root" else f"/home/{self.user}"}
        variables = [f"{name}={value}" for name, value in (self.environ | home).items()]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", f'{mounts}exec chroot "$@"', "sh",
             f"--userspec={self.user}:{self.user}", self.root, "env", "-i", *variables,
             "sh", "-c", f"cd {self.place} && {command}"],
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A fresh Debian of the Dockerfile's release, with this machine's way to the network."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a Debian of its own takes root, and a kernel that lets it mount")
    if not shutil.which("mmdebstrap"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no mmdebstrap here: apt-get install mmdebstrap")
    root = tmp_path_factory.mktemp("debian")
    # what is mounted in a namespace of its own is gone when that ends, however it ends
    subprocess.run(
        ["unshare", "--mount", "mmdebstrap", "--quiet", "--variant=apt", "--mode=root", FAST, RELEASE, root], check=True
    )
    shutil.copy(ssl.get_default_verify_paths().cafile or certifi.where(), root / CERTIFICATES[1:])
    for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf"):
        if Path(name).exists():
            shutil.copy(name, root / name[1:])
    yield Build(root)
    subprocess.run(["rm", "--one-file-system", "-rf", root], check=True)


@pytest.mark.timeout(1200)
def test_the_dockerfile_s_steps_make_a_program_that_runs_as_no_root(build):
    found = stages()
    assert set(found) == {"installed", "check", "mmpds"}
    build.take(found["installed"][1])
    installed = build.environ.copy(), build.place, build.user
    assert found["mmpds"][0] == found["check"][0] == "installed"
    build.take(found["mmpds"][1])
    assert build.user == "mmpds"
    told = build.run("id -u; " + " ".join([*build.entry, "experiment=demo", *TINY, "trainer=mpi_cpu", "ranks=2"]))
    assert told.startswith("1000\n")
    assert "Pneumonia" in told
    assert list((build.root / "work").rglob("results.json"))
    build.environ, build.place, build.user = installed
    build.take(found["check"][1], TESTS="tests/unit/models/test_densenet.py")
