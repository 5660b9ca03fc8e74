"""What is said of layers by their depth: tenths, thirds, and whether values rise with it."""

from collections.abc import Callable

import numpy as np

TENTHS = 10


def shares(count: int) -> np.ndarray:
    """The depth of each of so many layers: of its middle, between 0 and 1.

    >>> shares(4)
    array([0.125, 0.375, 0.625, 0.875])
    """
    return (np.arange(count) + 0.5) / count


def by_tenths(values: np.ndarray, reduce: Callable) -> np.ndarray:
    """What `reduce` makes of the values of each tenth of the depth; NaN where there are none.

    >>> by_tenths(np.arange(20.0), np.max)[:3]
    array([1., 3., 5.])
    """
    tenth = (TENTHS * shares(len(values))).astype(int)
    seen = np.isfinite(values)
    parts = [values[(tenth == number) & seen] for number in range(TENTHS)]
    return np.array([reduce(part) if len(part) else np.nan for part in parts])


def low_less_high(values: np.ndarray) -> float:
    """The mean of the lowest third less that of the highest; NaN where one of them has no value.

    >>> low_less_high(np.array([0.9, 0.5, 0.2]))
    0.7
    """
    low, high = _ends(values)
    return float(low.mean() - high.mean()) if len(low) and len(high) else np.nan


def low_and_high_stderr(stderr: np.ndarray) -> float:
    """The most that `low_less_high` may err by, from the standard errors of its values.

    All are of the same images, so they err together: errors of means are no more than means of
    errors.
    """
    low, high = _ends(stderr)
    return float(low.mean() + high.mean()) if len(low) and len(high) else np.nan


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    third = len(values) // 3
    low, high = values[:third], values[len(values) - third :]
    return low[np.isfinite(low)], high[np.isfinite(high)]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: 1 where y never falls as x rises; NaN where one of them is all the same.

    >>> round(rank_correlation(np.arange(4.0), np.array([1.0, 2.0, 3.0, 9.0])), 9)
    1.0
    """
    seen = np.isfinite(x) & np.isfinite(y)
    if len(np.unique(x[seen])) < 2 or len(np.unique(y[seen])) < 2:
        return np.nan
    return float(np.corrcoef(_ranks(x[seen]), _ranks(y[seen]))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on; equal values share the mean of their ranks. Without scipy, which loads for long.

    >>> _ranks(np.array([5.0, 7.0, 5.0]))
    array([1.5, 3. , 1.5])
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
