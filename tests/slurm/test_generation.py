"""Images of prompts by MPI ranks on two nodes: each once, the same bytes as one process makes."""

import pytest

from tests.distributed.test_generation import GENERATE, assert_whole, files, trained  # noqa: F401 - a fixture
from tests.distributed.test_stages import run
from tests.slurm.cluster import NODES, PATIENCE_S
from tests.slurm.test_training import MPI, output, submit, wait_until

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
WHERE = ("+callbacks.hold._target_=tests.slurm.faults.Hold", "+callbacks.hold.folder=hold")


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_two_nodes_make_the_images_of_one_process(cluster, checkout, trained, tmp_path, schedule):  # noqa: F811
    place = checkout(tmp_path)
    for name in ("trained", "prompts.txt"):
        (place / name).symlink_to(trained / name)
    job = submit(cluster, place, *MPI, *GENERATE, *WHERE, f"data.schedule={schedule}", "run_dir=two")
    wait_until(cluster, place, job, "COMPLETED")
    _, result = assert_whole(place / "two")
    assert result["world_size"] == 2
    assert sorted(path.read_text() for path in (place / "hold").glob("rank?")) == list(NODES)
    assert "Traceback" not in output(place)
    if not (trained / "one").exists():
        run(trained, *GENERATE, "trainer=cpu_seq", "run_dir=one")
    assert files(place / "two") == files(trained / "one")
