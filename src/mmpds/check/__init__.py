"""Every configuration problem at once, each with its key, its value and the cure, before anything heavy loads.

The library itself checks its arguments too; this is where a user of the command line learns of all of them
in half a second instead of one by one, minutes into a job on a cluster.
"""

from mmpds.check.arguments import argument_problems
from mmpds.check.config import config_problems
from mmpds.check.data import ATTRIBUTES, BAD_IMAGE, REBALANCE, SPLIT
from mmpds.check.model import CALIBRATIONS, CLASS_WEIGHTS, HEAT_MAPS, LOSSES, RULES
from mmpds.check.problem import Problem, nearest
from mmpds.check.stages import STAGES

__all__ = [
    "ATTRIBUTES",
    "BAD_IMAGE",
    "CALIBRATIONS",
    "CLASS_WEIGHTS",
    "HEAT_MAPS",
    "LOSSES",
    "REBALANCE",
    "RULES",
    "SPLIT",
    "STAGES",
    "Problem",
    "argument_problems",
    "config_problems",
    "nearest",
]
