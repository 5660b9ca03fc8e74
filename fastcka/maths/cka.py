"""Centred kernel alignment: HSIC between two layers over the HSICs of each with itself."""

import math

import numpy as np

from fastcka.maths import hsic
from fastcka.maths.gram import linear, rbf

_HSIC = {"unbiased": hsic.unbiased_by_centring, "biased": hsic.biased}
_NORMALISER = {"unbiased": lambda n: n * (n - 3), "biased": lambda n: (n - 1) ** 2}


def from_hsic(h_xy, h_xx, h_yy):
    """CKA of three HSICs.

    ``h_xy / sqrt(h_xx h_yy)`` (Cortes et al. 2012, Kornblith et al. 2019).

    Parameters
    ----------
    h_xy, h_xx, h_yy : float

    Returns
    -------
    float
        NaN where a layer has no HSIC with itself: nothing is like or unlike a constant layer.

    Examples
    --------
    >>> from_hsic(3.0, 4.0, 9.0)
    0.5
    >>> from_hsic(0.0, 0.0, 9.0)
    nan
    """
    if h_xx == 0 or h_yy == 0:
        return math.nan
    # One square root of the product, not a product of two: then h / sqrt(h h) is exactly 1. Nothing
    # is added, clipped or made positive: below 0 is an honest estimate for unrelated layers.
    return h_xy / math.sqrt(h_xx * h_yy)


def cka(x, y, estimator="unbiased", gram="linear", bandwidth=1.0):
    """CKA of two layers on the same n examples.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` (Kornblith et al. 2019).

    Parameters
    ----------
    x : array [n, p]
    y : array [n, q]
        Rows in the same order as in `x`.
    estimator : {"unbiased", "biased"}
    gram : {"linear", "rbf"}
    bandwidth : float
        Of the RBF Gram matrix, as a multiple of the median distance.

    Returns
    -------
    float

    Examples
    --------
    Two uncorrelated ways to split four examples in halves: the biased value is at its least, 0.
    The unbiased one may fall on either side of the truth, and here falls below zero.

    >>> x = [[0], [0], [1], [1]]
    >>> y = [[0], [1], [0], [1]]
    >>> cka(x, y, estimator="biased")
    0.0
    >>> round(cka(x, y), 12)
    -0.5
    >>> cka(x, x)
    1.0
    """
    _check(estimator, ("unbiased", "biased"), "estimator")
    k_x, k_y = gram_of(x, gram, bandwidth), gram_of(y, gram, bandwidth)
    return from_hsic(*_three_hsics(k_x, k_y, estimator))


def minibatch(xs, ys, weighting="pairs", estimator="unbiased", gram="linear", bandwidth=1.0):
    """CKA of two layers from batches of examples.

    ``sum_b w_b HSIC(K_b, L_b) / sqrt(sum_b w_b HSIC(K_b, K_b) sum_b w_b HSIC(L_b, L_b))``: sums
    over the batches first, one ratio at the end (Nguyen et al. 2021, with equal weights).

    Parameters
    ----------
    xs : sequence of arrays [n_b, p]
    ys : sequence of arrays [n_b, q]
        The same examples, batch by batch. Batches of fewer than 4 examples are left out.
    weighting : {"pairs", "equal"}
        "pairs" weighs a batch by the normaliser of its HSIC, n (n-3) or (n-1)^2; "equal" by 1.
    estimator : {"unbiased", "biased"}
    gram : {"linear", "rbf"}
    bandwidth : float
        Of the RBF Gram matrix: a multiple of the median distance, which each batch has anew.

    Returns
    -------
    float

    Examples
    --------
    A tail of one example changes nothing.

    >>> x = [[0], [1], [2], [4], [9]]
    >>> y = [[1], [0], [2], [4], [7]]
    >>> minibatch([x[:4], x[4:]], [y[:4], y[4:]]) == cka(x[:4], y[:4])
    True
    """
    batches = [(x, y) for x, y in zip(xs, ys, strict=True) if len(x) >= 4]
    grams = [(gram_of(x, gram, bandwidth), gram_of(y, gram, bandwidth)) for x, y in batches]
    return minibatch_of_grams(grams, weighting, estimator)


def minibatch_of_grams(grams, weighting="pairs", estimator="unbiased"):
    """``minibatch`` of Gram matrices that are there already.

    Parameters
    ----------
    grams : sequence of (array [n_b, n_b], array [n_b, n_b])
        Of the two layers, batch by batch. Batches of fewer than 4 examples are left out.
    weighting, estimator
        As in ``minibatch``.

    Returns
    -------
    float

    Examples
    --------
    >>> k = linear([[0], [1], [2], [4]])
    >>> minibatch_of_grams([(k, k), (2 * k, 2 * k)])
    1.0
    """
    _check(weighting, ("pairs", "equal"), "weighting")
    _check(estimator, ("unbiased", "biased"), "estimator")
    grams = [(k_x, k_y) for k_x, k_y in grams if len(k_x) >= 4]
    if not grams:
        raise ValueError("minibatch CKA needs a batch of at least 4 examples, got none")
    sums = np.zeros(3)
    for k_x, k_y in grams:
        weight = _NORMALISER[estimator](len(k_x)) if weighting == "pairs" else 1.0
        sums += weight * np.array(_three_hsics(k_x, k_y, estimator))
    return from_hsic(*sums.tolist())


def gram_of(x, gram="linear", bandwidth=1.0):
    """The Gram matrix of a layer, linear or RBF.

    Parameters
    ----------
    x : array [n, p]
    gram : {"linear", "rbf"}
    bandwidth : float
        Of the RBF Gram matrix, as a multiple of the median distance.

    Returns
    -------
    array [n, n]

    Examples
    --------
    >>> gram_of([[0], [2]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    _check(gram, ("linear", "rbf"), "gram")
    return linear(x) if gram == "linear" else rbf(x, bandwidth)


def population_linear(cov_xy, cov_xx, cov_yy):
    """Linear CKA of a population with known covariances.

    ``|S_xy|_F^2 / (|S_xx|_F |S_yy|_F)``, what the estimates tend to as n grows: HSIC is the squared
    norm of the cross-covariance (Gretton et al. 2005).

    Parameters
    ----------
    cov_xy : array [p, q]
    cov_xx : array [p, p]
    cov_yy : array [q, q]

    Returns
    -------
    float

    Examples
    --------
    With one feature on each side CKA is the squared correlation.

    >>> population_linear([[0.5]], [[1]], [[1]])
    0.25
    """
    h_xy = np.sum(np.square(cov_xy, dtype=np.float64))
    h_xx = np.sum(np.square(cov_xx, dtype=np.float64))
    h_yy = np.sum(np.square(cov_yy, dtype=np.float64))
    return from_hsic(float(h_xy), float(h_xx), float(h_yy))


def _three_hsics(k_x, k_y, estimator):
    """Return HSIC(K, L), HSIC(K, K), HSIC(L, L)."""
    h = _HSIC[estimator]
    return h(k_x, k_y), h(k_x, k_x), h(k_y, k_y)


def _check(value, allowed, argument):
    if value not in allowed:
        names = " or ".join(repr(name) for name in allowed)
        raise ValueError(f"{argument} must be {names}, got {value!r}")
