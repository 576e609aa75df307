"""The one entry of mmpds: python train.py experiment=NAME trainer=NAME [key=value ...]; -m sweeps."""

import os
import sys
import time
from pathlib import Path

from mmpds import launch, sweep
from mmpds.check import argument_problems
from mmpds.console import print_help, print_problems, say

STARTED = time.time()
CONF = Path(__file__).resolve().parent / "conf"


def main(argv: list[str]) -> int:
    """Check the arguments, let Hydra compose them, and start the run or the sweep; returns the exit status."""
    if {"--help", "-h"} & set(argv):
        return print_help(CONF)
    if {"--cfg", "-c", "--info", "-i"} & set(argv):  # Hydra refuses to show a sweep
        argv = [argument for argument in argv if argument not in ("-m", "--multirun")]
    if problems := argument_problems(argv, CONF):
        return print_problems(problems)
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    if (swept := sweep.Sweep.of(argv)) and (problems := swept.problems()):
        return print_problems(problems)
    status = 0

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def job(cfg: DictConfig) -> float | None:
        nonlocal status
        if swept is None:
            status = launch.start(cfg, command=argv, started=STARTED)
            return None
        return swept.run(cfg, HydraConfig.get())

    sys.argv[1:] = argv if swept is None else swept.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print with a traceback
    try:
        job()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        from mmpds.run import describe

        say(f"mmpds: {describe(error)}")
        status = 1
    told = 0 if swept is None else swept.finish()
    return status or told  # 130 of an interruption, which its job's failure must not hide


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
