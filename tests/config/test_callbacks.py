"""What a test of robustness may be asked for on the command line."""

import pytest
from hydra import compose, initialize_config_dir

from mmpds.check.robustness import robustness_problems
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def composer():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def problems(*overrides):
    return robustness_problems(compose("train", ["experiment=demo", *overrides]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks=default"], ["callbacks=none"], ["callbacks=robustness"],
        ["callbacks=robustness", "callbacks.robustness=null"],
        ["callbacks=robustness", "callbacks.robustness.images=null"],
        ["callbacks=robustness", "callbacks.robustness.corruptions={rotation: [0, 9], jpeg: [none, 5], flip: null}"],
        ["callbacks=robustness", "callbacks.robustness.corruptions={rotation: [-0.5]}"],
    ],
)  # fmt: skip
def test_right_options_have_no_problem(overrides):
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    ("override", "key", "cure"),
    [
        ("images=0", "images", "number above zero, or null"), ("images=some", "images", "number above zero"),
        ("images=0.5", "images", "number above zero"), ("images=true", "images", "number above zero"),
        ("corruptions=rotation", "corruptions", "such as {rotation"),
        ("corruptions=[rotation]", "corruptions", "such as {rotation"),
        ("corruptions={blur: [3]}", "corruptions.blur", "choose from resolution, rotation, flip"),
        ("corruptions={rotation: 10}", "corruptions.rotation", "give a list"),
        ("corruptions={rotation: [10, 200]}", "corruptions.rotation", "from -180 to 180"),
        ("corruptions={flip: [sideways]}", "corruptions.flip", "choose from left_right, up_down"),
        ("corruptions={resolution: [8]}", "corruptions.resolution", "from 16 to 4096"),
        ("corruptions={jpeg: [0]}", "corruptions.jpeg", "from 1 to 100"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_with_their_cure(override, key, cure):
    (problem,) = problems("callbacks=robustness", f"callbacks.robustness.{override}")
    assert problem.key == f"callbacks.robustness.{key}"
    assert cure in problem.cure
    assert "\n" not in str(problem)


def test_all_at_once_each_with_its_value():
    wrong = "callbacks.robustness.corruptions={noise: [3, 0.1], blur: null, window: [0]}"
    found = problems("callbacks=robustness", "callbacks.robustness.images=-1", wrong)
    assert [(problem.key.rpartition(".")[2], problem.value) for problem in found] == [
        ("images", -1), ("noise", 3), ("blur", None), ("window", 0),
    ]  # fmt: skip


def test_a_generator_has_no_robustness_to_judge():
    (problem,) = problems("model=diffusion", "callbacks=robustness")
    assert problem.key == "callbacks.robustness"
    assert "callbacks=diffusion" in problem.cure
