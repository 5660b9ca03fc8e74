"""Accuracies of probes along the depth of a network, and how far they are above chance."""

from collections.abc import Sequence

import numpy as np

from fastcka.experiments.runner.probing import Accuracies


def above_chance(accuracy: np.ndarray | float, classes: int) -> np.ndarray | float:
    """As a share of what there is to gain: 0 is guessing, 1 is always right.

    >>> round(above_chance(0.55, 10), 9)
    0.5
    """
    return (accuracy - 1 / classes) / (1 - 1 / classes)


def of_gain(difference: np.ndarray | float, classes: int) -> np.ndarray | float:
    """A difference or an error of accuracies on that scale.

    >>> round(of_gain(0.09, 10), 9)
    0.1
    """
    return difference / (1 - 1 / classes)


def depths(count: int) -> np.ndarray:
    """Of each of so many blocks, the share of the blocks that an image has passed behind it.

    >>> depths(4)
    array([0.25, 0.5 , 0.75, 1.  ])
    """
    return (np.arange(count) + 1) / count


def curve(found: Accuracies, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and standard error of probes, in this order."""
    return tuple(
        np.array([np.asarray(table[name]).item() for name in names])
        for table in (found.accuracy, found.stderr)
    )


def at(depth: float, y: np.ndarray) -> float:
    """The value of a curve at a depth, between blocks in proportion.

    >>> at(0.5, np.array([0.0, 1.0, 1.0])), at(0.1, np.array([0.2, 1.0]))
    (0.5, 0.2)
    """
    return float(np.interp(depth, depths(len(y)), y))
