"""How far attention heads look, and attention whose distance is known."""

import itertools
import math

import numpy as np


def coordinates(rows, cols, patch):
    """Centres of the cells of a grid in pixels, row by row.

    Parameters
    ----------
    rows, cols : int
    patch : float
        Side of a cell.

    Returns
    -------
    array [rows * cols, 2]

    Examples
    --------
    >>> coordinates(1, 2, 16)
    array([[ 8.,  8.],
           [ 8., 24.]])
    """
    cells = itertools.product(range(rows), range(cols))
    return np.array([[(row + 0.5) * patch, (col + 0.5) * patch] for row, col in cells])


def attention_distance(attention, queries, keys=None, renormalize=False):
    """Mean over queries of the distance to the keys, weighted by attention.

    ``1/N sum_i sum_j a_ij |x_i - y_j|`` (README, section 17). Rows and columns of tokens without a
    place are cut before.

    Parameters
    ----------
    attention : array [queries, keys]
    queries, keys : array [., 2]
        Their places; keys are the queries if None.
    renormalize : bool
        Divide each row by its sum.

    Returns
    -------
    float

    Examples
    --------
    A query that looks at itself and one that looks 16 pixels away.

    >>> attention_distance([[1, 0], [1, 0]], coordinates(1, 2, 16))
    8.0
    """
    keys = queries if keys is None else keys
    total = 0.0
    for a_i, x in zip(np.asarray(attention, dtype=np.float64), queries, strict=True):
        row = sum(a * math.dist(x, y) for a, y in zip(a_i, keys, strict=True))
        total += row / a_i.sum() if renormalize else row
    return float(total / len(queries))


def uniform_distance(rows, cols, patch, itself=True):
    """Mean attention distance of uniform attention over a grid, by the double sum.

    Parameters
    ----------
    rows, cols : int
    patch : float
    itself : bool
        Whether a query attends to itself as to the others, or not at all.

    Returns
    -------
    float

    Examples
    --------
    >>> round(uniform_distance(7, 7, 32), 6), round(uniform_distance(7, 7, 32, itself=False), 6)
    (115.502894, 117.909204)
    """
    places = coordinates(rows, cols, patch)
    pairs = len(places) * (len(places) if itself else len(places) - 1)
    return float(sum(math.dist(x, y) for x in places for y in places) / pairs)


def mixed(n, alpha):
    """Attention to itself, and to all alike: ``(1 - alpha) I + alpha J / n``.

    Examples
    --------
    >>> mixed(2, 0.5)
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    return (1 - alpha) * np.eye(n) + alpha * np.full((n, n), 1 / n)


def windowed(rows, cols, reach):
    """Uniform attention to the cells at most `reach` rows and columns away.

    Examples
    --------
    >>> windowed(1, 3, 1)[0]
    array([0.5, 0.5, 0. ])
    """
    cells = list(itertools.product(range(rows), range(cols)))
    near = [[max(abs(r - s), abs(c - d)) <= reach for s, d in cells] for r, c in cells]
    return np.array(near) / np.sum(near, axis=1, keepdims=True)


def shifted(rows, cols, down, right):
    """All attention to the cell so many rows and columns away, or the last within the grid.

    Examples
    --------
    >>> shifted(1, 3, 0, 1)
    array([[0., 1., 0.],
           [0., 0., 1.],
           [0., 0., 1.]])
    """
    attention = np.zeros((rows * cols, rows * cols))
    for r, c in itertools.product(range(rows), range(cols)):
        s, d = min(max(r + down, 0), rows - 1), min(max(c + right, 0), cols - 1)
        attention[r * cols + c, s * cols + d] = 1
    return attention


def cka_of_white_tokens(a_x, a_y):
    """Population CKA of two heads over the same tokens, independent and white.

    ``|A B^T|^2 / (|A A^T| |B B^T|)`` (README, section 17).

    Parameters
    ----------
    a_x, a_y : array [queries, keys]

    Returns
    -------
    float

    Examples
    --------
    Attention to itself beside uniform attention: ``1 / sqrt(n)``.

    >>> cka_of_white_tokens(mixed(49, 0), mixed(49, 1)).round(4)
    np.float64(0.1429)
    """
    own = np.linalg.norm(a_x @ a_x.T) * np.linalg.norm(a_y @ a_y.T)
    return np.linalg.norm(a_x @ a_y.T) ** 2 / own
