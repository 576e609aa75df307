"""What is wrong with the overrides themselves, before they are composed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpds.check.config import config_problems
from mmpds.check.problem import Problem, nearest
from mmpds.world import World


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
