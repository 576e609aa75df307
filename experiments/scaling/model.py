"""A model of the time of a whole command on p ranks, and the serial fraction of its steady state."""

import statistics
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Time:
    """T(p, n) = start + rank (p - 1) + n (serial + shared / p), in seconds; p ranks, n items, nothing negative.

    Attributes:
        start: of every command.
        rank: more for each rank beyond the first.
        serial: an item's, whatever the number of ranks: communication, and what only one rank does.
        shared: an item's that the ranks divide.
    """

    start: float
    rank: float
    serial: float
    shared: float

    def __call__(self, ranks, items):
        """Seconds."""
        return self.start + self.rank * (ranks - 1) + items * (self.serial + self.shared / ranks)


def fitted(observed):
    """The model whose relative errors have the least sum of squares.

    Args:
        observed: triples of ranks, items and seconds.

    Raises:
        ValueError: they cannot tell its terms apart: it takes two numbers of items for each of two numbers of ranks.
    """
    ranks, items, seconds = np.array(observed, dtype=float).T
    if (
        min((len({n for p, n, _ in observed if p == rank}) for rank in set(ranks)), default=0) < 2
        or len(set(ranks)) < 2
    ):
        raise ValueError("give two numbers of items for each of two or more numbers of ranks")
    terms = np.stack([np.ones_like(ranks), ranks - 1, items, items / ranks], axis=1)
    return Time(*map(float, nnls(terms / seconds[:, None], np.ones_like(seconds))[0]))


def predicted(rounds, places):
    """What the fit of each round says of every place, a pair of ranks and items: median, least and most.

    Args:
        rounds: the observations of each round.
        places: the pairs.
    """
    models = [fitted(observed) for observed in rounds]
    found = []
    for ranks, items in places:
        seconds = [model(ranks, items) for model in models]
        speedup = [model(1, items) / model(ranks, items) for model in models]
        found.append({"ranks": ranks, "items": items, "seconds": spread(seconds), "speedup": spread(speedup)})
    return found


def spread(values):
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def serial_fraction(speedup, processors):
    """The serial fraction that Amdahl's law needs for a measured speed-up (Karp and Flatt 1990).

    Below 0 where the speed-up is more than linear.
    """
    return (1 / speedup - 1 / processors) / (1 - 1 / processors)
