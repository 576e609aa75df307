"""The two recipes of a container start from the same base and take the same steps, which test_build.py takes."""

import re

from tests.conftest import ROOT

CONTAINERS = ROOT / "containers"
RELEASE = "bookworm"


def test_apptainer_is_told_what_docker_is():
    docker, apptainer = ((CONTAINERS / name).read_text() for name in ("Dockerfile", "mmpds.def"))
    (base,) = set(re.findall(r"^FROM (\S+:\S+)", docker, re.MULTILINE))
    assert re.fullmatch(rf"debian:{RELEASE}-\d{{8}}-slim", base)
    assert f"From: {base}\n" in apptainer
    for step in re.findall(r"(?:sh containers|\.venv/bin/uv).*", docker):
        assert f"    {step}\n" in apptainer
