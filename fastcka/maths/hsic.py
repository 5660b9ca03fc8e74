"""The Hilbert-Schmidt independence criterion, by every route that must give the same number.

``k_x`` and ``k_y`` are the Gram matrices K and L of the same n examples, in the same order.
"""

from itertools import permutations

import numpy as np

from fastcka.maths.finish import double_centre, u_centre
from fastcka.maths.gram import subtract_mean_row


def biased(k_x, k_y):
    """Biased HSIC.

    ``tr(K H L H) / (n-1)^2`` (Gretton et al. 2005).

    Parameters
    ----------
    k_x, k_y : array [n, n]
        Symmetric, n > 1.

    Returns
    -------
    float

    Examples
    --------
    ``tr(H) / (n-1)^2`` is ``1 / (n-1)``.

    >>> round(biased(np.eye(5), np.eye(5)), 12)
    0.25
    """
    k_x, k_y, n = _read(k_x, k_y, at_least=2)
    return float(np.trace(k_x @ double_centre(k_y)) / (n - 1) ** 2)


def unbiased_by_tuples(k_x, k_y):
    """Unbiased HSIC_1 by its definition, in n^4 steps.

    The mean of ``k_ij (l_ij + l_qr - 2 l_iq)`` over all ordered tuples (i, j, q, r) of distinct
    indices (the U-statistic of Song et al. 2012).

    Parameters
    ----------
    k_x, k_y : array [n, n]
        Symmetric, n >= 4. The diagonals are not read.

    Returns
    -------
    float

    Examples
    --------
    One linked pair among four: 4 of the 24 tuples begin with it, and each contributes 1.

    >>> k = np.zeros((4, 4))
    >>> k[0, 1] = k[1, 0] = 1
    >>> round(unbiased_by_tuples(k, k), 12) == round(4 / 24, 12)
    True
    """
    k_x, k_y, n = _read(k_x, k_y, at_least=4)
    terms = [
        k_x[i, j] * (k_y[i, j] + k_y[q, r] - 2 * k_y[i, q])
        for i, j, q, r in permutations(range(n), 4)
    ]
    return float(np.mean(terms))


def unbiased_by_song(k_x, k_y):
    """Unbiased HSIC_1 in three terms.

    ``(tr(K L) + (1^T K 1)(1^T L 1) / ((n-1)(n-2)) - 2 / (n-2) 1^T K L 1) / (n (n-3))`` with the
    diagonals of K and L set to zero (Song et al. 2012).

    Parameters
    ----------
    k_x, k_y : array [n, n]
        Symmetric, n >= 4. The diagonals are not read.

    Returns
    -------
    float

    Examples
    --------
    >>> k = np.zeros((4, 4))
    >>> k[0, 1] = k[1, 0] = 6
    >>> round(unbiased_by_song(k, k), 12)
    6.0
    """
    k_x, k_y, n = _read(k_x, k_y, at_least=4)
    k_x = k_x - np.diag(np.diag(k_x))
    k_y = k_y - np.diag(np.diag(k_y))
    ones = np.ones(n)
    # The three terms are large and nearly cancel where the row sums of K and L are large.
    pairs = np.trace(k_x @ k_y)
    totals = (ones @ k_x @ ones) * (ones @ k_y @ ones) / ((n - 1) * (n - 2))
    chains = 2 / (n - 2) * (ones @ k_x @ k_y @ ones)
    return float((pairs + totals - chains) / (n * (n - 3)))


def unbiased_by_centring(k_x, k_y):
    """Unbiased HSIC_1 as an inner product.

    ``<U(K), U(L)> / (n (n-3))`` with ``U`` the U-centring of Székely & Rizzo 2014.

    Parameters
    ----------
    k_x, k_y : array [n, n]
        Symmetric, n >= 4. The diagonals are not read.

    Returns
    -------
    float

    Examples
    --------
    >>> k = np.zeros((4, 4))
    >>> k[0, 1] = k[1, 0] = 6
    >>> round(unbiased_by_centring(k, k), 12)
    6.0
    """
    k_x, k_y, n = _read(k_x, k_y, at_least=4)
    return float(np.sum(u_centre(k_x) * u_centre(k_y)) / (n * (n - 3)))


def biased_in_feature_space(x, y):
    """Biased HSIC of linear Gram matrices, without forming them.

    ``|X^T Y|_F^2 / (n-1)^2`` on mean-centred features (Kornblith et al. 2019).

    Parameters
    ----------
    x : array [n, p]
    y : array [n, q]

    Returns
    -------
    float

    Examples
    --------
    >>> biased_in_feature_space([[-1], [1]], [[-2], [2]])
    16.0
    """
    n = _count(x, at_least=2)
    x, y = subtract_mean_row(x), subtract_mean_row(y)
    return float(np.sum((x.T @ y) ** 2) / (n - 1) ** 2)


def unbiased_in_feature_space(x, y):
    """Unbiased HSIC_1 of linear Gram matrices, without forming them.

    ``(|X^T Y|_F^2 - n / (n-2) sum_i k_ii l_ii + (sum_i k_ii)(sum_i l_ii) / ((n-1)(n-2)))
    / (n (n-3))`` on mean-centred features, with ``k_ii = |x_i|^2`` and ``l_ii = |y_i|^2``: the
    three terms of Song et al. 2012 when the rows of K and L, diagonal included, sum to zero
    (README, section 6).

    Parameters
    ----------
    x : array [n, p]
    y : array [n, q]

    Returns
    -------
    float

    Examples
    --------
    Two ways to split four examples in halves.

    >>> round(unbiased_in_feature_space([[0], [0], [6], [6]], [[0], [6], [0], [6]]), 12)
    -108.0
    """
    n = _count(x, at_least=4)
    # The form holds for centred features alone: with a common row left in, it is simply wrong.
    x, y = subtract_mean_row(x), subtract_mean_row(y)
    k_diagonal = np.sum(x**2, axis=1)
    l_diagonal = np.sum(y**2, axis=1)
    pairs = np.sum((x.T @ y) ** 2)
    own = n / (n - 2) * np.sum(k_diagonal * l_diagonal)
    totals = k_diagonal.sum() * l_diagonal.sum() / ((n - 1) * (n - 2))
    return float((pairs - own + totals) / (n * (n - 3)))


def _read(k_x, k_y, at_least):
    """Return both Gram matrices in float64, and n."""
    k_x, k_y = np.asarray(k_x, dtype=np.float64), np.asarray(k_y, dtype=np.float64)
    n = _count(k_x, at_least)
    if k_x.shape != (n, n) or k_y.shape != (n, n):
        raise ValueError(
            f"Gram matrices of the same examples share one shape [n, n], got {k_x.shape} "
            f"and {k_y.shape}"
        )
    return k_x, k_y, n


def _count(rows, at_least):
    # Below 4 the unbiased estimate has no degree of freedom left, below 2 the biased one has none.
    n = len(rows)
    if n < at_least:
        raise ValueError(f"this HSIC needs at least {at_least} examples, got n={n}")
    return n
