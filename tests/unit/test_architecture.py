"""Arrows between the rooms of the house point one way."""

import ast

import pytest

from tests.conftest import ROOT

SRC = ROOT / "src" / "mmpds"
FORBIDDEN = {
    "data": ("models", "callbacks", "run", "stages", "launch", "metrics", "search"),
    "models": ("data.module", "callbacks", "run", "launch", "search"),
    "metrics": ("data", "models", "callbacks", "run", "launch", "search"),
    "callbacks": ("models", "run", "launch"),
    "search": ("data.module", "callbacks", "run", "stages", "metrics"),
}
KNOWS_HYDRA = {"stages.py", "check/arguments.py", "sweep.py"}


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_point_one_way(room):
    for path in (SRC / room).glob("*.py"):
        for name in imports(path):
            assert not any(f"{name}.".startswith(f"mmpds.{other}.") for other in FORBIDDEN[room]), (
                path.name,
                name,
            )


def test_mpi_is_imported_inside_functions_only():
    for path in SRC.rglob("*.py"):
        assert not any(name.startswith("mpi4py") for name in imports(path, top_level_only=True)), path


def test_hydra_stays_at_the_door():
    for path in SRC.rglob("*.py"):
        if path.relative_to(SRC).as_posix() not in KNOWS_HYDRA:
            assert not any(name.startswith(("hydra", "mmpds.conf")) for name in imports(path)), path


def test_data_workers_need_no_torch():
    for path in (SRC / "data").glob("*.py"):
        if path.name not in ("module.py", "transforms.py", "batch.py", "prompts.py", "questions.py"):
            # the schedule's counter is shared by ranks that have torch loaded anyway
            found = imports(path, top_level_only=path.name == "schedule.py")
            assert not any(name.split(".")[0] in ("torch", "lightning") for name in found), path
