"""Skip connections: how much a branch adds to what it is added to, and in which direction."""

import numpy as np


def norm_ratio(z, f):
    """``|z| / |f(z)|`` of each token (Raghu et al. 2021, section 5).

    Parameters
    ----------
    z, f : array [tokens, channels]
        The skip connection and its branch.

    Returns
    -------
    array [tokens]

    Examples
    --------
    >>> norm_ratio(np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]]))
    array([2.5])
    """
    return np.sqrt((z**2).sum(axis=1)) / np.sqrt((f**2).sum(axis=1))


def cosine(a, b):
    """``<a, b> / (|a| |b|)`` of each token.

    Parameters
    ----------
    a, b : array [tokens, channels]

    Returns
    -------
    array [tokens]

    Examples
    --------
    >>> cosine(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([0.6])
    """
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def of_quarter_turn(c):
    """The four measures of a branch ``f = c R z`` whose R turns every token by a right angle.

    ``1 / c``, and the cosines of z with z + f, of z with f, and of z + f with f:
    ``1 / sqrt(1 + c^2)``, ``0``, ``c / sqrt(1 + c^2)``.

    Examples
    --------
    >>> [round(float(value), 3) for value in of_quarter_turn(0.75)]
    [1.333, 0.8, 0.0, 0.6]
    """
    return 1 / c, 1 / np.sqrt(1 + c**2), 0.0, c / np.sqrt(1 + c**2)
