"""Layers in a row that fall into two groups: how alike they are within and across, and where."""

import numpy as np


def sides(cka: np.ndarray, place: int) -> tuple[float, float, float]:
    """Mean CKA of two layers before a place, of two from it on, and of one of each.

    NaN where there are no two.

    >>> cka = np.array([[1, 0.9, 0.2], [0.9, 1, 0.3], [0.2, 0.3, 1]])
    >>> [round(mean, 9) for mean in sides(cka, 2)]
    [0.9, nan, 0.25]
    """
    before, across, after = _of_kind(cka, place)
    return tuple(float(some.mean()) if len(some) else np.nan for some in (before, after, across))


def across_to_within(cka: np.ndarray, place: int) -> float:
    """Mean CKA of a layer before a place with one from it on, as a share of that within the sides.

    >>> round(across_to_within(np.array([[1, 0.9, 0.2], [0.9, 1, 0.25], [0.2, 0.25, 1]]), 2), 9)
    0.25
    """
    *both, across = sides(cka, place)
    known = [mean for mean in both if np.isfinite(mean)]
    within = np.mean(known) if known else np.nan
    return float(across / within) if within > 0 else np.nan


def best_split(cka: np.ndarray) -> int:
    """The place at which a row of layers falls into two groups; 0 where there is none.

    Of all places, that at which the squares of what CKA of two layers differs from the mean of its
    kind (both before, both from it on, one of each) add up to the least; two layers and more are on
    either side.

    >>> best_split(np.kron(np.eye(2), np.ones((3, 3))))
    3
    """
    rest = {}
    for place in range(2, len(cka) - 1):
        kinds = _of_kind(cka, place)
        if all(map(len, kinds)):
            rest[place] = sum(((values - values.mean()) ** 2).sum() for values in kinds)
    return min(rest, key=rest.get, default=0)


def _of_kind(cka: np.ndarray, place: int) -> list[np.ndarray]:
    """CKA of all pairs of different layers: both before a place, one of each, both from it on."""
    row, column = np.triu_indices(len(cka), 1)
    kind = (row >= place).astype(int) + (column >= place)
    values = cka[row, column]
    return [values[(kind == number) & np.isfinite(values)] for number in range(3)]
