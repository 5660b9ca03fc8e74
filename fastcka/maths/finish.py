"""From a Gram matrix to the vector whose inner products are HSICs, and back."""

import numpy as np


def double_centre(k):
    """Centre the rows and the columns of a Gram matrix.

    ``H K H`` with ``H = I - 1 1^T / n`` (Gretton et al. 2005).

    Parameters
    ----------
    k : array [n, n]
        Symmetric.

    Returns
    -------
    array [n, n]
        Rows and columns sum to zero, the diagonal included.

    Examples
    --------
    >>> double_centre(np.eye(2))
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    n = len(k)
    h = np.eye(n) - 1.0 / n
    return h @ k @ h


def u_centre(k):
    """Centre a Gram matrix without its diagonal.

    ``u_ij = k_ij - r_i / (n-2) - r_j / (n-2) + s / ((n-1)(n-2))`` off the diagonal and 0 on it,
    with ``r`` the row sums and ``s`` the total of K without its diagonal (Székely & Rizzo 2014).

    Parameters
    ----------
    k : array [n, n]
        Symmetric, n > 2. The diagonal is not read.

    Returns
    -------
    array [n, n]
        Zero diagonal; rows and columns sum to zero.

    Examples
    --------
    One linked pair among four examples. The pair that shares no example with it comes out linked as
    strongly: with n = 4 there are only two degrees of freedom.

    >>> k = np.zeros((4, 4))
    >>> k[0, 1] = k[1, 0] = 6
    >>> u_centre(k).round(12)
    array([[ 0.,  2., -1., -1.],
           [ 2.,  0., -1., -1.],
           [-1., -1.,  0.,  2.],
           [-1., -1.,  2.,  0.]])
    """
    n = len(k)
    hollow = np.array(k, dtype=np.float64)
    np.fill_diagonal(hollow, 0.0)
    row_sums = hollow.sum(axis=1)
    total = row_sums.sum()
    u = (
        hollow
        - row_sums[:, None] / (n - 2)
        - row_sums[None, :] / (n - 2)
        + total / ((n - 1) * (n - 2))
    )
    np.fill_diagonal(u, 0.0)
    return u


def pack(k, estimator):
    """Centre a Gram matrix and lay its lower triangle out as a vector.

    ``pack(K) . pack(L)`` is the sum over all n^2 entries of the product of the centred matrices:
    ``<U(K), U(L)>`` for the unbiased estimator, ``<HKH, HLH>`` for the biased one.

    Parameters
    ----------
    k : array [n, n]
        Symmetric.
    estimator : {"unbiased", "biased"}

    Returns
    -------
    array [n (n-1) / 2] for "unbiased": the strict lower triangle of ``u_centre(k)``, row by row
    array [n (n+1) / 2] for "biased": the lower triangle of ``double_centre(k)`` with its diagonal

    Examples
    --------
    >>> k = np.zeros((4, 4))
    >>> k[0, 1] = k[1, 0] = 6
    >>> pack(k, "unbiased").round(3)  # entries 10, 20, 21, 30, 31, 32
    array([ 2.828, -1.414, -1.414, -1.414, -1.414,  2.828])
    """
    rows, columns, scale = _lower_triangle(len(k), estimator)
    centred = u_centre(k) if estimator == "unbiased" else double_centre(k)
    return centred[rows, columns] * scale


def unpack_gram(packed, diagonal, row_sums, estimator):
    """Recover the Gram matrix that was packed.

    Centring forgets exactly the row sums (and U-centring the diagonal); with these at hand it is
    undone: ``k_ij = u_ij + (r_i + r_j) / (n-2) - s / ((n-1)(n-2))`` for the unbiased estimator and
    ``k_ij = c_ij + m_i + m_j - mean(m)`` for the biased one, with ``m_i = (r_i + k_ii) / n``.

    Parameters
    ----------
    packed : array
        What ``pack(k, estimator)`` returned.
    diagonal : array [n]
    row_sums : array [n]
        Row sums of K without its diagonal, for both estimators.
    estimator : {"unbiased", "biased"}

    Returns
    -------
    array [n, n]

    Examples
    --------
    >>> k = np.array([[9, 1, 2], [1, 8, 3], [2, 3, 7]])
    >>> unpack_gram(pack(k, "biased"), [9, 8, 7], [3, 4, 5], "biased").round(12)
    array([[9., 1., 2.],
           [1., 8., 3.],
           [2., 3., 7.]])
    """
    diagonal = np.asarray(diagonal, dtype=np.float64)
    row_sums = np.asarray(row_sums, dtype=np.float64)
    n = len(diagonal)
    rows, columns, scale = _lower_triangle(n, estimator)
    centred = np.zeros((n, n))
    centred[rows, columns] = centred[columns, rows] = packed / scale

    if estimator == "unbiased":
        k = (
            centred
            + (row_sums[:, None] + row_sums[None, :]) / (n - 2)
            - row_sums.sum() / ((n - 1) * (n - 2))
        )
    else:
        means = (row_sums + diagonal) / n
        k = centred + means[:, None] + means[None, :] - means.mean()
    np.fill_diagonal(k, diagonal)
    return k


def _lower_triangle(n, estimator):
    """Return rows, columns and scale of each packed entry, row by row."""
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f"estimator must be 'unbiased' or 'biased', got {estimator!r}")
    # The U-centred diagonal is zero, so it is not stored.
    rows, columns = np.tril_indices(n, k=-1 if estimator == "unbiased" else 0)
    # An entry off the diagonal stands for two in the sum, one on it for itself alone.
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))
