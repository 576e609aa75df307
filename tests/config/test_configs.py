"""Every yaml composes, says what it is in its first comment, and every problem is told at once."""

import itertools
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from mmpds import check, console
from mmpds.world import World
from tests.conftest import ROOT

CONF = ROOT / "conf"
GROUPS = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml") if p.stem != "base") for group in console.GROUPS}


@pytest.fixture(autouse=True)
def composer():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides):
    cfg = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() for n in names])
def test_every_choice_composes_and_introduces_itself(group, name):
    cfg = composed(f"{group}={name}")
    assert console._first_comment(CONF / group / f"{name}.yaml")
    stack = [OmegaConf.to_container(cfg if group in ("experiment", "sweep") else cfg[group], resolve=False)]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if str(node.get("_target_", "")).startswith("mmpds."):
                module, _, attribute = node["_target_"].rpartition(".")
                __import__(module)
                assert hasattr(sys.modules[module], attribute), node["_target_"]
            stack += [value for key, value in node.items() if key != "hydra"]


@pytest.mark.parametrize(("experiment", "trainer"), list(itertools.product(GROUPS["experiment"], GROUPS["trainer"])))
def test_every_experiment_goes_with_every_trainer(experiment, trainer):
    cfg = composed(f"experiment={experiment}", f"trainer={trainer}")
    assert cfg.name == experiment
    assert "evaluate" in cfg.stages or get_class(cfg.model._target_)
    keys = {problem.key for problem in check.config_problems(cfg, World())}
    # without a GPU, a Slurm and data on this machine, that is all that may be wrong
    lacking = {"data.root", "data.predict_root", "data.predictions", "data.answers", "init_from", "checkpoint"}
    lacking |= {"callbacks.embeddings.archive"}
    if trainer.startswith("deepspeed"):
        lacking |= {"callbacks.ema"}  # told to be left out
    assert keys <= lacking | {"trainer", "trainer.accelerator", "trainer.launcher", "ranks"}


EVALUATE = ("experiment=evaluate_predictions", f"data.predictions={__file__}")


@pytest.mark.parametrize(
    ("overrides", "key", "cure"),
    [
        (["data=chest_xray"], "data.root", "data.root=PATH"),
        (["data=chest_xray", "data.root=/nowhere"], "data.root", "no such folder"),
        (["trainer=mpi_cpu", "ranks=3"], "data.batch_size", "give a multiple, such as 33"),
        (
            ["trainer=mpi_cpu", "ranks=2", "+trainer.devices=4"],
            "trainer.devices",
            "4 x 1 = 4, but there are 2 ranks",
        ),
        (["trainer=cpu", "ranks=4"], "ranks", "use trainer=mpi_cpu"),
        (["resume=last", "run_dir=/nowhere"], "resume", "resume=auto"),
        (["resume=/nowhere/last.ckpt"], "resume", "no such checkpoint"),
        (["stages=[test]"], "checkpoint", "give checkpoint=PATH"),
        (["stages=[tset]"], "stages", "did you mean test?"),
        (["stages=[predict]", "init_from=imagenet"], "data.predict_root", "folder of images"),
        (["init_from=resnet"], "init_from", "densenet121-res224-all"),
        (["model.threshold.rule=yuden"], "model.threshold.rule", "did you mean youden?"),
        (["data.rebalance=equal"], "data.rebalance", "equal_normal"),
        (["data.fractions=[0.5,0.5,0.5]"], "data.fractions", "add up to 1"),
        (["data.size=8"], "data.size", "32 or more"),
        (["trainer.threads=0"], "trainer.threads", "above zero"),
        (["experiment=evaluate_predictions"], "data.predictions", "data.predictions=FILE"),
        ([*EVALUATE, "data.predictions=/nowhere.csv"], "data.predictions", "no such file"),
        ([*EVALUATE, "data.predictions=/"], "data.predictions", "is a folder; give the path of a file"),
        ([*EVALUATE, "data.labels=/nowhere.csv"], "data.labels", "no such file"),
        ([*EVALUATE, "data.fit_fraction=1"], "data.fit_fraction", "below 1"),
        ([*EVALUATE, "stages=[evaluate,test]"], "stages", "give stages=[evaluate]"),
        ([*EVALUATE, "stages=[test]"], "stages", "give stages=[evaluate]"),
        ([*EVALUATE, "checkpoint=best.ckpt"], "checkpoint", "leave it out"),
        ([*EVALUATE, "model.threshold.rule=yuden"], "model.threshold.rule", "did you mean youden?"),
        ([*EVALUATE, "trainer=mpi_cpu"], "trainer", "use trainer=cpu"),
        ([*EVALUATE, "trainer.threads=0"], "trainer.threads", "above zero"),
        (["experiment=demo", "stages=[evaluate]"], "data", "data=predictions"),
        (["model=none"], "model", "model=densenet121"),
        (["experiment=evaluate_answers"], "data.answers", "data.answers=FILE"),
        (["experiment=evaluate_answers", "data.answers=/nowhere"], "data.answers", "no such file"),
        (["experiment=blip_vqa_phantom", "model.lora_rank=4"], "model.lora_rank", "model.pretrained=FOLDER"),
        (["model=clip_vqa"], "stages", "train model=clip, then give stages=[test]"),
        (["model=clip_vqa", "stages=[test]"], "checkpoint", "or model.pretrained=FOLDER"),
        (["model=clip_vqa", "stages=[test]", "model.candidates=yes"], "model.candidates", "model.candidates=[yes,no]"),
        (["experiment=blip_vqa_phantom", "data.size=32"], "data.size", "give data.size=64"),
    ],
)
def test_problems_name_the_key_and_the_cure(overrides, key, cure):
    problems = check.config_problems(composed(*overrides), World())
    assert [cure in problem.cure for problem in problems if problem.key == key] == [True]


def test_predictions_in_a_file_are_all_that_their_evaluation_needs():
    assert check.config_problems(composed(*EVALUATE), World()) == []


def test_a_gpu_trainer_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (problem,) = check.config_problems(composed("trainer=gpu"), World())
    assert problem.cure == "no GPU here; use trainer=cpu or trainer=mpi_cpu"
    assert problem.lacking


def test_int8_says_where_it_is_for(monkeypatch):
    def cures(*overrides):
        cfg = composed("trainer.precision=int8", *overrides)
        return [problem.cure for problem in check.config_problems(cfg, World()) if problem.key.startswith("trainer.")]

    monkeypatch.setattr("mmpds.check.trainer.has_vnni", lambda: True)
    known = ("stages=[test]", f"checkpoint={__file__}")
    assert cures("model=clip", *known) == cures("model=blip_vqa", *known) == []
    assert [cure[:17] for cure in cures("experiment=demo")] == ["it trains nothing", "it speeds up CLIP"]
    assert ["it is for CPUs" in cure for cure in cures("model=clip", "trainer=gpu", *known)] == [False, True]
    assert ["not compiled" in cure for cure in cures("model=clip", "trainer.compile=true", *known)] == [True]
    monkeypatch.setattr("mmpds.check.trainer.has_vnni", lambda: False)
    assert "VNNI" in cures("model=clip", *known)[0]


def test_deepspeed_says_what_it_lacks_and_cannot_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("mmpds.check.trainer.find_spec", lambda name: None)
    (problem,) = check.config_problems(composed("trainer=deepspeed"), World())
    assert "pip install 'mmpds[deepspeed]'" in problem.cure
    assert problem.lacking
    monkeypatch.setattr("mmpds.check.trainer.find_spec", lambda name: name)
    assert check.config_problems(composed("trainer=deepspeed_zero3"), World()) == []
    (tmp_path / "best.ckpt").touch()
    wrong = ("trainer.strategy.stage=4", "callbacks=ema", f"resume={tmp_path}/best.ckpt")
    problems = check.config_problems(composed("trainer=deepspeed", *wrong), World())
    assert {problem.key for problem in problems} == {"trainer.strategy.stage", "callbacks.ema", "resume"}


def test_a_launcher_that_the_machine_lacks_is_no_mistake_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for trainer, lacks in (("slurm_gpu", "no srun here"), ("mpi_cpu", "no mpirun here")):
        (problem,) = check.config_problems(composed(f"trainer={trainer}"), World())
        assert (lacks in problem.cure, problem.lacking) == (True, True)
        started = World(0, 1, 0, 1, "mpi")
        assert check.config_problems(composed(f"trainer={trainer}"), started) == []
    (problem,) = check.config_problems(composed("trainer=mpi_cpu", "mpirun=/nowhere/mpirun"), World())
    assert not problem.lacking


def test_torchrun_without_a_name_needs_a_run_directory(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    two = World(0, 2, 0, 2, "torchrun")
    (problem,) = check.config_problems(composed("trainer=mpi_cpu"), two)
    assert (problem.key, "--rdzv-id" in problem.cure) == ("run_dir", True)
    assert check.config_problems(composed("trainer=mpi_cpu", "run_dir=here"), two) == []


def test_more_ranks_than_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert not check.config_problems(composed("trainer=mpi_gpu"), World())
    (problem,) = check.config_problems(composed("trainer=mpi_gpu", "ranks=4"), World())
    assert (problem.key, "2 GPUs" in problem.cure, problem.lacking) == ("ranks", True, True)


def train(*arguments):
    """The finished process, and the CPU seconds that it took: other tests may run beside it."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    after = os.times()
    return done, sum(after[2:4]) - sum(before[2:4])


def test_all_problems_at_once_with_status_2_and_no_traceback():
    done, _ = train(
        "experiment=dmeo",
        "trainer=gpux",
        "data.sizee=3",
        "nonsense=1",
        "data.batch_size=0",
        "data.root=/nope",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "mmpds: 6 problems in the configuration" in done.stderr
    for fragment in (
        "experiment=dmeo: no such experiment; did you mean demo?", "trainer=gpux: no such trainer",
        "data.sizee=3: no such key; did you mean data.size",
        "nonsense=1: no such key", "data.batch_size=0: give", "data.root=/nope: no such folder",
    ):  # fmt: skip
        assert fragment in done.stderr


def test_help_lists_everything_quickly():
    train("--help")  # the first call pays for the disk
    done, seconds = train("--help")
    assert done.returncode == 0
    for names in GROUPS.values():
        assert all(name in done.stdout for name in names)
    assert seconds < 1.0


def test_printing_the_configuration_is_quick():
    train("--cfg", "job")
    done, seconds = train("experiment=demo", "--cfg", "job")
    assert done.returncode == 0
    assert "max_epochs: 5" in done.stdout
    assert seconds < 1.5


def test_choices_are_those_of_the_libraries():
    from mmpds.callbacks import heat_maps
    from mmpds.metrics import calibration

    assert check.CALIBRATIONS == calibration.METHODS
    assert tuple(heat_maps.METHODS) == check.HEAT_MAPS


def test_weights_that_saw_another_split_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed("experiment=demo"), resolve=False))
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()

    def wrong(*overrides):
        cfg = composed("experiment=demo", *overrides)
        return [problem.key for problem in check.config_problems(cfg, World())]

    for start in ((f"init_from={checkpoint}",), (f"checkpoint={checkpoint}", "stages=[test]")):
        assert wrong(*start) == []
        assert wrong(*start, "data.split_seed=7") == ["data.split_seed"]
        assert wrong(*start, "data.split_seed=7", "data.source.seed=3") == []
        assert wrong(*start, "data.source.images=300") == ["data.source.images"], "the first phantoms are the same"
    assert wrong(f"init_from={checkpoint}", "data.findings=[Effusion]") == ["data.findings"], (
        "patients are split by them"
    )
    assert wrong(f"init_from={checkpoint}", "stages=[fit]", "data.split_seed=7") == ["data.split_seed"]
    assert wrong(f"init_from={checkpoint}", "stages=[test]", "data.split_seed=7") == ["data.split_seed"]
    test = (f"checkpoint={checkpoint}", "stages=[test]")
    assert wrong(*test, "data.findings=[Effusion]") == [], "a checkpoint brings its own"
    assert wrong(f"checkpoint={checkpoint}", "stages=[predict]", "data.split_seed=7", f"data.predict_root={ROOT}") == []


def test_a_training_of_other_settings_is_not_gone_on_with(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed("experiment=demo"), resolve=False))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()

    def wrong(*overrides):
        cfg = composed("experiment=demo", f"run_dir={tmp_path}", *overrides)
        return check.config_problems(cfg, World())

    for resume in ("resume=last", "resume=auto"):
        assert wrong(resume, "trainer.max_epochs=9", "trainer=cpu_seq", "data.workers=3", "data.cache_dir=/tmp/x") == []
        (problem,) = wrong(resume, "data.split_seed=7")
        assert problem.key == "resume"
        assert "data.split_seed=0, now 7" in problem.cure
        assert f"resume={tmp_path / 'checkpoints' / 'last.ckpt'}" in problem.cure


def test_an_archive_needs_its_folder_and_a_model_of_images_and_texts():
    wrong = ("stages=[predict]", "callbacks=embeddings", "callbacks.embeddings.dtype=float8")
    found = {problem.key: problem.cure for problem in check.config_problems(composed(*wrong), World())}
    assert "model=clip" in found["callbacks.embeddings"]
    assert "archive" in found["callbacks.embeddings.archive"]
    assert "float16" in found["callbacks.embeddings.dtype"]
    known = ("experiment=embed", f"checkpoint={__file__}", f"data.predict_root={ROOT}")
    right = composed(*known, r"callbacks.embeddings.archive='/tmp/an [archive], (mine)=\'1\''")
    assert right.callbacks.embeddings.archive == "/tmp/an [archive], (mine)='1'"
    assert not check.config_problems(right, World())
