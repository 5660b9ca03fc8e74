"""What a single example does to CKA: the difference that leaving it out makes."""

import math

import numpy as np

from fastcka.maths.cka import gram_of, minibatch_of_grams
from fastcka.maths.finish import double_centre, u_centre


def influence(xs, ys, weighting="pairs", estimator="unbiased", gram="linear", bandwidth=1.0):
    """Minibatch CKA less what it is without one example, for every example.

    ``CKA - CKA(without example i)``, all other things as they are: the other examples stay in
    their batches, and an RBF Gram matrix keeps the bandwidth that it has with the example. A batch
    of 4 is left out altogether without one of them.

    Parameters
    ----------
    xs : sequence of arrays [n_b, p]
    ys : sequence of arrays [n_b, q]
        The same examples, batch by batch, each of at least 4.
    weighting, estimator, gram, bandwidth
        As in ``cka.minibatch``.

    Returns
    -------
    array [sum of n_b]
        In the order of the examples. NaN where nothing is left without the example.

    Examples
    --------
    Layers that are one but for the last example: without it CKA is 1.

    >>> x = [[0], [1], [2], [3], [4], [5]]
    >>> y = [[0], [1], [2], [3], [4], [0]]
    >>> influence([x], [y]).round(3)
    array([ 0.368,  0.277, -0.034,  0.164,  0.277, -1.245])
    """
    pairs = zip(xs, ys, strict=True)
    grams = [(gram_of(x, gram, bandwidth), gram_of(y, gram, bandwidth)) for x, y in pairs]
    whole = minibatch_of_grams(grams, weighting, estimator)
    found = []
    for place, (k_x, k_y) in enumerate(grams):
        for i in range(len(k_x)):
            rest = np.delete(np.arange(len(k_x)), i)
            smaller = k_x[np.ix_(rest, rest)], k_y[np.ix_(rest, rest)]
            without = [*grams[:place], smaller, *grams[place + 1 :]]
            is_left = any(len(k) >= 4 for k, _ in without)
            less = minibatch_of_grams(without, weighting, estimator) if is_left else math.nan
            found.append(whole - less)
    return np.array(found)


def product_without(k_x, k_y, estimator):
    """Inner products of centred Gram matrices, of which one example was left out, in closed form.

    ``<U(K), U(L)> - 2 c_i (n-2) / (n-3)`` with ``c_i = sum_j u_ij v_ij`` for the unbiased
    estimator; ``<C, D> - 2 e_i n / (n-1) + f_i (n / (n-1))^2`` with ``C = HKH``, ``D = HLH``,
    ``e_i = sum_j c_ij d_ij`` and ``f_i = c_ii d_ii`` for the biased one (README, section 16).

    Parameters
    ----------
    k_x, k_y : array [n, n]
        Symmetric, n > 4.
    estimator : {"unbiased", "biased"}

    Returns
    -------
    array [n]

    Examples
    --------
    Without the first of five, one linked pair among four is left: entries 2 and -1, as in
    ``finish.u_centre``.

    >>> k = np.zeros((5, 5))
    >>> k[1, 2] = k[2, 1] = 6
    >>> product_without(k, k, "unbiased").round(9)[0]
    np.float64(24.0)
    """
    n = len(k_x)
    if estimator == "unbiased":
        both = u_centre(k_x) * u_centre(k_y)
        return both.sum() - 2 * both.sum(axis=1) * (n - 2) / (n - 3)
    both = double_centre(k_x) * double_centre(k_y)
    scale = n / (n - 1)
    return both.sum() - 2 * both.sum(axis=1) * scale + np.diagonal(both) * scale**2
