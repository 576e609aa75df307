"""Callbacks that do not suit the model, and what a test of robustness may be asked for."""

import pytest
from hydra import compose, initialize_config_dir

from mmpds.check.callbacks import callback_problems
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def composer():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def problems(*overrides):
    return callback_problems(compose("train", ["experiment=demo", *overrides]))


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


@pytest.mark.parametrize(
    ("overrides", "keys", "cure"),
    [
        (["model=diffusion", "callbacks=robustness"], ["best.monitor", "robustness"], "callbacks=diffusion"),
        (["model=diffusion", "callbacks=ema"], ["best.monitor"], "callbacks=diffusion"),
        (["model=blip_caption", "callbacks=ema"], ["texts", "best.monitor"], "callbacks=captions"),
        (["model=blip_vqa", "callbacks=none"], ["texts"], "callbacks=answers"),
        (["model=densenet121", "callbacks=captions"], ["predictions"], "callbacks=default"),
        (["model=clip", "callbacks=gradcam"], ["gradcam"], "model=densenet121"),
        (["callbacks.timing=null"], ["timing"], "leave it"),
    ],
)  # fmt: skip
def test_callbacks_of_another_kind_of_model_are_told_before_it_trains(overrides, keys, cure):
    found = problems(*overrides)
    assert [problem.key for problem in found] == [f"callbacks.{key}" for key in keys]
    assert all(cure in problem.cure for problem in found[:1])


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_recipe_has_callbacks_that_suit_it(name):
    assert callback_problems(compose("train", [f"experiment={name}"])) == []


@pytest.mark.parametrize("limit", ["limit_test_batches=8", "limit_predict_batches=1", "fast_dev_run=true"])
def test_a_detector_is_judged_on_whole_splits(limit):
    (problem,) = problems(f"+trainer.{limit}")
    assert problem.key == f"trainer.{limit.partition('=')[0]}"
    assert (
        problems("+trainer.limit_test_batches=1.0", "+trainer.limit_val_batches=2", "+trainer.fast_dev_run=false") == []
    )
