"""Gram matrices: how alike are two examples within one layer."""

import numpy as np


def subtract_mean_row(x):
    """Subtract from every example the mean over the examples, in float64.

    Parameters
    ----------
    x : array [n, p]
        One row per example. Any real dtype; the values are taken as they arrive.

    Returns
    -------
    array [n, p], float64

    Examples
    --------
    >>> subtract_mean_row([[1, 5], [3, 5]])
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    x = _as_rows(x)
    # The first row goes first: equal rows become exactly 0, which a rounded mean need not leave.
    x = x - x[0]
    return x - x.mean(axis=0)


def linear(x):
    """Linear Gram matrix of the centred examples.

    ``k_ij = <x_i - m, x_j - m>`` with ``m`` the mean row (Kornblith et al. 2019, with the features
    centred as they ask).

    Parameters
    ----------
    x : array [n, p]

    Returns
    -------
    array [n, n], float64

    Examples
    --------
    >>> linear([[0, 7], [2, 7]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    # In exact arithmetic HSIC does not see a row common to all examples (README, section 5). Its
    # digits do: an offset c puts |c|^2 into every entry, and whatever survives the centring of such
    # a Gram matrix is known only to eps * |c|^2. Hence the subtraction comes before the product.
    x = subtract_mean_row(x)
    return x @ x.T


def rbf(x, bandwidth=1.0):
    """Gaussian Gram matrix with a bandwidth relative to the median distance.

    ``k_ij = exp(-d_ij^2 / (2 sigma^2))`` with ``sigma = bandwidth * sqrt(median(d^2))``, a fraction
    of the median distance as in Kornblith et al. 2019. The median runs over all n^2 squared
    distances, the n zeros of the diagonal included; an even count averages the two middle ones.

    Parameters
    ----------
    x : array [n, p]
    bandwidth : float
        Multiple of the median distance. Where sigma is 0, the limit: 1 for equal rows, else 0.

    Returns
    -------
    array [n, n], float64

    Examples
    --------
    The squared distances are 0, 4, 4, 0; their median is 2, so the entry is exp(-4 / 4).

    >>> rbf([[0], [2]]).round(4)
    array([[1.    , 0.3679],
           [0.3679, 1.    ]])
    """
    # Explicit differences: |x_i|^2 + |x_j|^2 - 2 <x_i, x_j> would cancel for near neighbours.
    x = _as_rows(x)
    squared = np.array([np.sum((x - row) ** 2, axis=1) for row in x])
    sigma_squared = bandwidth**2 * np.median(squared)
    if sigma_squared == 0:
        return np.where(squared == 0, 1.0, 0.0)
    return np.exp(-squared / (2 * sigma_squared))


def _as_rows(x):
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"x must be [n, p] with one row per example, got shape {x.shape}")
    return x
