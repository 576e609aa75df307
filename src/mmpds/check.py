"""Every configuration problem at once, each with its key, its value and the cure, before anything heavy loads.

The library itself checks its arguments too; this is where a user of the command line learns of all of them
in half a second instead of one by one, minutes into a job on a cluster.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds.results import CONFIG
from mmpds.world import World, gpus, ranks

if TYPE_CHECKING:
    from omegaconf import DictConfig

STAGES = ("fit", "test", "predict", "evaluate")
REBALANCE = ("none", "balanced", "equal_normal")
BAD_IMAGE = ("auto", "skip", "error")
SPLIT = ("own", "official")
ATTRIBUTES = ("sex", "age_band", "view")
CLASS_WEIGHTS = ("none", "balanced")
CALIBRATIONS = ("none", "temperature", "isotonic")
HEAT_MAPS = ("gradcam", "gradcam++", "hirescam", "layercam")
LOSSES = ("bce", "focal")
RULES = (
    "fixed",
    "paper",
    "f1",
    "youden",
    "sensitivity@specificity",
    "specificity@sensitivity",
    "class_specific",
)


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a run from starting: the offending key, its value, and the cure."""

    key: str
    value: object
    cure: str

    def __str__(self) -> str:
        return f"{self.key}{'=' if self.value != '' else ''}{self.value}: {self.cure}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names a user may have meant, the closest first; all of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    siblings = [other for other in known if other.rpartition(".")[0] == name.rpartition(".")[0]]
    return "did you mean " + " or ".join(close) + "?" if close else "choose from " + ", ".join(siblings or known)


def argument_problems(argv: Sequence[str], conf: Path) -> list[Problem]:
    """What is wrong with the overrides themselves: unknown groups' choices, unknown keys, bad syntax.

    If any is, the problems of what the sound overrides compose to are added, so that one reading mends all.
    Values of a sweep are each checked as a choice; the first one stands for the rest in the composition.
    """
    if any(argument in ("--hydra-help", "--version") for argument in argv):
        return []
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    problems: list[Problem] = []
    sound: list[str] = []
    for before, text in zip(["", *argv], argv, strict=False):
        if text.startswith("-") or (before.startswith("-") and before not in ("-m", "--multirun")):
            continue  # an option, or its value
        if "=" not in text and not text.startswith("~"):
            problems.append(Problem(text, "", "is no override; give key=value, such as experiment=demo"))
            continue
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            key, _, value = text.partition("=")
            problems.append(Problem(key, value, f"cannot be parsed: {str(error).splitlines()[0]}"))
            continue
        key = override.key_or_group
        swept = override.is_sweep_override()
        values = (
            list(override.sweep_string_iterator()) if swept and override.is_discrete_sweep() else [override.value()]
        )
        if (conf / key).is_dir() and not key.startswith("hydra"):
            known = {path.stem for path in (conf / key).glob("*.yaml")} - {"base"}
            bad = [
                v for v in map(str, values) if v not in known and not (v == "None" and key in ("experiment", "sweep"))
            ]
            problems += [Problem(key, value, f"no such {key}; {nearest(value, known)}") for value in bad]
            if bad:
                continue
        if not swept:
            sound.append(text)
        elif override.is_discrete_sweep():
            sound.append(f"{text.partition('=')[0]}={values[0]}")
    with initialize_config_dir(str(conf), version_base="1.3"):

        def fault(overrides: list[str]) -> str | None:
            try:
                compose("train", overrides, return_hydra_config=True)
            except HydraException as error:
                return str(error)
            return None

        if fault(sound):
            groups = [text for text in sound if (conf / text.lstrip("+~").split("=")[0]).is_dir()]
            if not fault(groups):
                keys = _keys(compose("train", groups))
                for text in [text for text in sound if text not in groups]:
                    if fault([*groups, text]):
                        key, _, value = text.lstrip("+~").partition("=")
                        exists = f"exists already: leave out the {text[0]}"
                        unknown = f"no such key; {nearest(key, keys)} (+{key}=… adds a new one)"
                        problems.append(Problem(key, value, exists if key in keys and text[0] in "+~" else unknown))
                        sound.remove(text)
            else:
                problems.append(Problem("overrides", " ".join(groups), str(fault(groups)).splitlines()[0]))
        if problems and not fault(sound):
            cfg = compose("train", sound, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            problems += config_problems(cfg, World())
    return problems


def _keys(cfg: Any, prefix: str = "") -> list[str]:
    found = []
    for key in cfg:
        name = f"{prefix}{key}"
        found.append(name)
        node = cfg._get_node(key)
        if hasattr(node, "keys") and not node._is_none() and not node._is_interpolation():
            found += _keys(node, f"{name}.")
    return found


def config_problems(cfg: DictConfig, world: World) -> list[Problem]:
    """What keeps a composed configuration from running in this world: the ranks adopted, or those to be started."""
    faults = _type_problems(cfg)
    wrong = {fault.key for fault in faults}  # what could not be counted with
    launched = world.launcher != "none"
    alone = {"ranks", "data.batch_size"} & wrong or "batch_size" not in cfg.data
    size = world.size if launched else 1 if alone else ranks(cfg)
    found = [*faults, *_model_problems(cfg)]
    if "evaluate" in cfg.stages or "predictions" in set(cfg.data):  # `in cfg.data` is false of ???
        return [*found, *_evaluation_problems(cfg, size)]
    found += _data_problems(cfg)
    if world.launcher == "torchrun" and not cfg.run_dir and os.environ.get("TORCHELASTIC_RUN_ID", "none") == "none":
        found.append(
            Problem("run_dir", None, "torchrun gave its ranks no name to share; give run_dir=PATH, or --rdzv-id=NAME")
        )
    if "stages" not in wrong:
        found += [*_stage_problems(cfg), *_start_problems(cfg)]
    if "ranks" not in wrong:
        found += _trainer_problems(cfg, size, launched)
    if not {"ranks", "data.batch_size"} & wrong and (batch := cfg.data.batch_size) % size:
        near = max(size, round(batch / size) * size)
        found.append(
            Problem("data.batch_size", batch, f"does not divide over {size} ranks; give a multiple, such as {near}")
        )
    return found


def _type_problems(cfg: DictConfig) -> list[Problem]:
    from omegaconf import ListConfig

    found = []
    if not isinstance(cfg.stages, ListConfig):
        found.append(Problem("stages", cfg.stages, f"give a list: stages=[{cfg.stages}]"))
    if cfg.ranks != "auto" and (not isinstance(cfg.ranks, int) or cfg.ranks < 1):
        found.append(Problem("ranks", cfg.ranks, "give a whole number above zero, or auto"))
    if not isinstance(cfg.bootstrap, int) or cfg.bootstrap < 0:
        found.append(Problem("bootstrap", cfg.bootstrap, "give a whole number; 0 for no intervals"))
    sizes = {f"data.{key}": cfg.data[key] for key in ("size", "batch_size") if key in cfg.data}
    found += [
        Problem(key, value, "give a whole number above zero")
        for key, value in sizes.items()
        if not isinstance(value, int) or value < 1
    ]
    shares = cfg.data.get("fractions")
    if "fractions" in cfg.data and (
        not isinstance(shares, ListConfig) or len(shares) != 3
        or not all(isinstance(share, int | float) and share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6
    ):  # fmt: skip
        found.append(Problem("data.fractions", shares, "give three shares (train, val, test) that add up to 1"))
    return found


def _exists(key: str, value: Any, what: str) -> list[Problem]:
    if value is None or Path(str(value)).exists():
        return []
    return [Problem(key, value, f"no such {what}; give the path of one that exists (this is {Path.cwd()})")]


def _stage_problems(cfg: DictConfig) -> list[Problem]:
    found = [Problem("stages", s, f"no such stage; {nearest(str(s), STAGES)}") for s in cfg.stages if s not in STAGES]
    if not cfg.stages:
        found.append(Problem("stages", "[]", "nothing to do; choose from " + ", ".join(STAGES)))
    found += _exists("checkpoint", cfg.checkpoint, "checkpoint")
    if cfg.init_from not in (None, "imagenet") and not str(cfg.init_from).startswith("densenet121-res224-"):
        found += _exists("init_from", cfg.init_from, "file, and no name such as imagenet or densenet121-res224-all")
    spared = cfg.model.get("freeze_epochs", 0) or cfg.model.get("backbone_learning_rate_factor", 1) != 1
    if "fit" in cfg.stages and spared and not cfg.init_from and cfg.resume in (None, "auto"):
        cure = "a backbone that is frozen or slow must know something: give FILE.ckpt, or a name such as imagenet"
        found.append(Problem("init_from", None, cure))
    if "fit" in cfg.stages and cfg.checkpoint:
        found.append(
            Problem(
                "checkpoint",
                cfg.checkpoint,
                "stages has fit: use init_from= to start from weights, resume= to go on",
            )
        )
    if "fit" not in cfg.stages and not cfg.checkpoint and not cfg.init_from:
        found.append(Problem("checkpoint", None, "stages has no fit: give checkpoint=PATH, or init_from=NAME"))
    if cfg.resume == "last":
        runs = Path(cfg.run_dir) if cfg.run_dir else Path("runs") / (cfg.name or "train")
        pattern = "checkpoints/last.ckpt" if cfg.run_dir else "*/checkpoints/last.ckpt"
        if not any(runs.glob(pattern)):
            found.append(
                Problem("resume", "last", f"no {runs / pattern}: nothing to go on with; resume=auto starts anew")
            )
    elif cfg.resume not in (None, "auto"):
        found += _exists("resume", cfg.resume, "checkpoint")
    if "predict" in cfg.stages and not cfg.data.get("predict_root"):
        found.append(Problem("data.predict_root", None, "stages has predict: give a folder of images"))
    return found


def _evaluation_problems(cfg: DictConfig, size: int) -> list[Problem]:
    """What keeps predictions that exist already from being evaluated."""
    from omegaconf import OmegaConf

    found, data = [], cfg.data
    if list(cfg.stages) != ["evaluate"]:
        cure = "evaluate stands alone, and predictions of a file have no images to fit or test: give stages=[evaluate]"
        found.append(Problem("stages", cfg.stages, cure))
    if "predictions" not in set(data):
        found.append(Problem("data", "", "stages has evaluate: give data=predictions data.predictions=FILE"))
    else:
        if OmegaConf.is_missing(data, "predictions") or data.predictions is None:
            cure = "give a run's predictions.csv, or a CSV of ids and probabilities: data.predictions=FILE"
            found.append(Problem("data.predictions", "???", cure))
        else:
            found += _file("data.predictions", data.predictions)
        found += _file("data.labels", data.labels)
        if not isinstance(share := data.fit_fraction, float) or not 0 < share < 1:
            found.append(Problem("data.fit_fraction", share, "give a share above 0 and below 1"))
    for key in ("checkpoint", "init_from", "resume"):
        if cfg[key] is not None:
            found.append(Problem(key, cfg[key], "evaluate has no model: leave it out"))
    if "wandb" in cfg.logger:
        found.append(Problem("logger", "wandb", "evaluate logs nothing but results.json: leave it out"))
    if cfg.trainer.launcher != "none" or size > 1:
        found.append(Problem("trainer", cfg.trainer.launcher, "evaluate is one process: use trainer=cpu"))
    return found + _thread_problems(cfg)


def _file(key: str, value: Any) -> list[Problem]:
    if value is None or Path(str(value)).is_file():
        return []
    return [Problem(key, value, f"no such file; give the path of one that exists (this is {Path.cwd()})")]


def _start_problems(cfg: DictConfig) -> list[Problem]:
    """Whether weights that training starts from have seen what it would be tested on."""
    from omegaconf import OmegaConf

    config = Path(str(cfg.init_from)).parent.parent / CONFIG
    if "fit" not in cfg.stages or not cfg.init_from or not config.is_file():
        return []
    before: Any = OmegaConf.to_container(OmegaConf.load(config)).get("data", {})  # type: ignore[union-attr]
    now: Any = OmegaConf.to_container(cfg.data, resolve=True)
    roots = [str(Path(str(data.get("root"))).resolve()) for data in (before, now)]
    if roots[0] != roots[1] or before.get("source") != now.get("source"):
        return []  # other images
    return [
        Problem(
            f"data.{key}",
            now.get(key),
            f"init_from was trained with {before[key]}: else it would be tested on patients that it knows",
        )
        for key in ("split", "split_seed", "fractions")
        if key in before and before[key] != now.get(key)
    ]


def _data_problems(cfg: DictConfig) -> list[Problem]:
    from omegaconf import OmegaConf

    data, found = cfg.data, []
    elsewhere = "fit" not in cfg.stages and (data.get("test_root") or data.get("predict_root"))
    if OmegaConf.is_missing(data, "root"):
        if not elsewhere:
            found.append(Problem("data.root", "???", "give the folder that holds the data set: data.root=PATH"))
    else:
        found += _exists("data.root", data.get("root"), "folder")
    for key in ("test_root", "predict_root"):
        found += _exists(f"data.{key}", data.get(key), "folder")
    for key, known in (("rebalance", REBALANCE), ("on_bad_image", BAD_IMAGE), ("split", SPLIT)):
        if data.get(key, known[0]) not in known:
            found.append(Problem(f"data.{key}", data[key], nearest(str(data[key]), known)))
    by = data.get("rebalance_by") or []
    if isinstance(by, str):
        found.append(Problem("data.rebalance_by", by, f"give a list: data.rebalance_by=[{by}]"))
    else:
        found += [
            Problem("data.rebalance_by", name, f"no such attribute; {nearest(str(name), ATTRIBUTES)}")
            for name in by
            if name not in ATTRIBUTES
        ]
    if isinstance(data.size, int) and 0 < data.size < 32:
        found.append(Problem("data.size", data.size, "DenseNet halves the image five times: give 32 or more"))
    return found


def _model_problems(cfg: DictConfig) -> list[Problem]:
    rule = cfg.model.get("threshold", {}).get("rule", "f1")
    found = []
    if (method := cfg.model.get("calibration", "none")) not in CALIBRATIONS:
        found.append(Problem("model.calibration", method, nearest(str(method), CALIBRATIONS)))
    if (by := cfg.model.get("threshold_by")) not in (None, *ATTRIBUTES):
        found.append(Problem("model.threshold_by", by, f"no such attribute; {nearest(str(by), ATTRIBUTES)}"))
    elif by and rule in ("fixed", "class_specific"):
        found.append(Problem("model.threshold_by", by, f"rule {rule} states its thresholds; choose a rule that fits"))
    method = ((cfg.callbacks or {}).get("gradcam") or {}).get("method", "gradcam")
    if method not in HEAT_MAPS:
        found.append(Problem("callbacks.gradcam.method", method, nearest(str(method), HEAT_MAPS)))
    if "_target_" not in cfg.model and "evaluate" not in cfg.stages:
        found.append(Problem("model", "none", "no model to fit or test; give model=densenet121, or stages=[evaluate]"))
    if rule not in RULES:
        found.append(Problem("model.threshold.rule", rule, f"no such rule; {nearest(str(rule), RULES)}"))
    if (weights := cfg.model.get("class_weights", "none")) not in CLASS_WEIGHTS:
        found.append(Problem("model.class_weights", weights, nearest(str(weights), CLASS_WEIGHTS)))
    if (loss := cfg.model.get("loss", "bce")) not in LOSSES:
        found.append(Problem("model.loss", loss, nearest(str(loss), LOSSES)))
    if not isinstance(epochs := cfg.model.get("freeze_epochs", 0), int) or epochs < 0:
        found.append(Problem("model.freeze_epochs", epochs, "give a whole number; 0 to train all from the start"))
    factor = cfg.model.get(key := "backbone_learning_rate_factor", 1.0)
    if not isinstance(factor, int | float) or not factor > 0:
        found.append(Problem(f"model.{key}", factor, "give a number above zero; model.freeze_epochs keeps it still"))
    return found


def _trainer_problems(cfg: DictConfig, world: int, launched: bool) -> list[Problem]:
    trainer, found = cfg.trainer, []
    choice = "trainer"
    if trainer.accelerator == "gpu" and not (here := gpus()):
        found.append(Problem(choice, trainer.accelerator, "no GPU here; use trainer=cpu or trainer=mpi_cpu"))
    elif trainer.accelerator == "gpu" and trainer.launcher == "mpi" and not launched and world > here:
        found.append(
            Problem(
                "ranks",
                world,
                f"this node has {here} GPUs: give ranks={here}, or start the ranks with mpirun or srun",
            )
        )
    if cfg.ranks != "auto" and launched and cfg.ranks != world:
        found.append(Problem("ranks", cfg.ranks, f"the launcher started {world}; leave ranks out, it says how many"))
    elif cfg.ranks not in ("auto", 1) and trainer.launcher == "none" and not launched:
        found.append(Problem("ranks", cfg.ranks, "this trainer is one process; use trainer=mpi_cpu or trainer=mpi_gpu"))
    if launched and trainer.launcher == "none" and world > 1:
        found.append(
            Problem(choice, "one process", f"{world} ranks were started; use trainer=mpi_cpu or trainer=mpi_gpu")
        )
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if trainer.launcher == "none" and (devices, nodes) != (1, 1):
        cure = "this trainer is one process; use trainer=mpi_cpu ranks=N or trainer=mpi_gpu ranks=N"
        found.append(Problem("trainer.devices", devices, cure))
    if isinstance(devices, int) and trainer.launcher != "none" and devices * nodes != world:
        product = f"devices x num_nodes = {devices} x {nodes} = {devices * nodes}"
        cure = f"{product}, but there are {world} ranks; leave both out"
        found.append(Problem("trainer.devices", devices, cure))
    found += _thread_problems(cfg)
    if cfg.mpirun != "auto" and trainer.launcher == "mpi":
        found += _exists("mpirun", cfg.mpirun, "program")
    return found


def _thread_problems(cfg: DictConfig) -> list[Problem]:
    threads = cfg.trainer.threads
    if threads == "auto" or (isinstance(threads, int) and threads > 0):
        return []
    return [Problem("trainer.threads", threads, "give a whole number above zero, or auto")]
