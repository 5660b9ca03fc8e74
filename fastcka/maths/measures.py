"""Measures beside CKA of the same examples: distances, neighbours, spectra."""

import numpy as np

from fastcka.maths.finish import double_centre
from fastcka.maths.gram import linear, subtract_mean_row


def squared_distances(x):
    """Squared Euclidean distances of all pairs of examples.

    Parameters
    ----------
    x : array [n, p]

    Returns
    -------
    array [n, n]

    Examples
    --------
    >>> squared_distances([[0, 0], [3, 4]])
    array([[ 0., 25.],
           [25.,  0.]])
    """
    x = np.asarray(x, dtype=np.float64)
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def rsa(x, y, by="cosine"):
    """Representational similarity analysis: how alike are the distances within two layers?

    The squared distances of all pairs of examples, compared by their cosine (Kriegeskorte et al.
    2008; the cosine as in Diedrichsen et al. 2020) or by Pearson's correlation.

    Parameters
    ----------
    x : array [n, p]
    y : array [n, q]
    by : {"cosine", "correlation"}

    Returns
    -------
    float

    Examples
    --------
    >>> rsa([[0], [1], [3]], [[0], [2], [6]])
    1.0
    """
    d, e = (_below_diagonal(squared_distances(z)) for z in (x, y))
    if by == "correlation":
        d, e = d - d.mean(), e - e.mean()
    return float(d @ e / np.sqrt((d @ d) * (e @ e)))


def cosines(x):
    """Cosines of all pairs of centred examples; [n, n]."""
    k = linear(x)
    length = np.sqrt(np.diag(k))
    return k / np.outer(length, length)


def neighbours(x, k):
    """Which examples are the k nearest of which, by cosine; [n, n] of 0 and 1, itself left out.

    Examples
    --------
    >>> neighbours([[1, 0], [2, 0], [-1, 1], [-2, -1]], 1)[0]
    array([0., 1., 0., 0.])
    """
    c = cosines(x)
    np.fill_diagonal(c, -np.inf)
    near = np.zeros_like(c)
    for i, row in enumerate(c):
        near[i, np.argsort(-row, kind="stable")[:k]] = 1
    return near


def mutual_knn(x, y, k):
    """The share of nearest neighbours that two layers have in common (Huh et al. 2024).

    By chance it is k / (n - 1).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(9, 3))
    >>> mutual_knn(x, 2 * x, 3)
    1.0
    """
    return float((neighbours(x, k) * neighbours(y, k)).sum() / (k * len(x)))


def cknna(x, y, k):
    """CKA of the pairs that are nearest neighbours in both layers (Huh et al. 2024).

    ``A(x, y) / sqrt(A(x, x) A(y, y))`` with ``A(x, y) = sum_ij a_ij (c_ij - mean_l c_il)
    (d_ij - mean_l d_il)``: cosines c and d, and a_ij = 1 where j is among the k nearest of i in
    both.
    """

    def near(z):
        c = cosines(z)
        return neighbours(z, k) * (c - c.mean(axis=1, keepdims=True))

    a, b = near(x), near(y)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def procrustes(x, y):
    """How much of a layer is left when it is turned to lie on another: ``|X^T Y|_* / (|X| |Y|)``.

    Centred rows, Frobenius norms, and the sum of singular values of the product: the largest
    ``tr(X^T Y Q)`` over all rotations Q (Schonemann 1966). 1 minus it is half the squared distance
    of the normalised layers, orthogonal Procrustes.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> round(procrustes(x, 3 * x[:, ::-1] - 1), 12)
    1.0
    """
    x, y = subtract_mean_row(x), subtract_mean_row(y)
    left = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return float(left / np.sqrt((x**2).sum() * (y**2).sum()))


def participation_ratio(x, gram=linear):
    """``(sum of eigenvalues)^2 / sum of their squares`` of the covariance; n - 1 at most.

    Examples
    --------
    >>> participation_ratio([[1, 0], [-1, 0], [0, 1], [0, -1]])
    2.0
    """
    values = _spectrum(x, gram)
    return float(values.sum() ** 2 / (values**2).sum())


def effective_rank(x, gram=linear):
    """``exp(entropy)`` of the eigenvalues of the covariance, as shares.

    Roy & Vetterli (2007) take singular values of the rows; these are their squares.

    Examples
    --------
    >>> round(effective_rank([[1, 0], [-1, 0], [0, 1], [0, -1]]), 12)
    2.0
    """
    share = _spectrum(x, gram)
    share = share[share > 1e-14 * share.sum()] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _below_diagonal(values):
    return values[np.tril_indices(len(values), -1)]


def _spectrum(x, gram):
    return np.clip(np.linalg.eigvalsh(double_centre(gram(x))), 0, None)
