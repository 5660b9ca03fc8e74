"""How far a token resembles its own patch of the image, for linear networks on white noise."""

import math

import numpy as np


def population_cka(a, b):
    """CKA of ``A z`` and ``B z`` for infinitely many white ``z``: that of their covariances.

    ``|A B^T|_F^2 / (|A A^T|_F |B B^T|_F)``.

    Parameters
    ----------
    a : array [p, k]
    b : array [q, k]

    Examples
    --------
    >>> population_cka([[1, 0]], [[1, 1]])
    0.5
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    own = np.linalg.norm(a @ a.T) * np.linalg.norm(b @ b.T)
    return float(np.linalg.norm(a @ b.T) ** 2 / own)


def own_patch(w):
    """CKA between ``W x`` and the white patch ``x`` itself: ``|W|_F^2 / (sqrt(D) |W W^T|_F)``.

    ``sqrt(d / D)`` where the rows of ``W [d, D]`` are orthonormal.

    Examples
    --------
    >>> own_patch(np.eye(4)[:1])
    0.5
    """
    w = np.asarray(w, dtype=np.float64)
    return float(np.linalg.norm(w) ** 2 / (math.sqrt(w.shape[1]) * np.linalg.norm(w @ w.T)))


def own_patch_of_random(d, width):
    """What ``own_patch`` tends to for independent Gaussian entries: ``sqrt(d / (D + d + 1))``.

    Examples
    --------
    >>> own_patch_of_random(4, 4)
    0.6666666666666666
    """
    return math.sqrt(d / (width + d + 1))


def mixed(alpha, tokens):
    """CKA of ``(1 - alpha) x_t + alpha mean(x)`` with its own patch, and with each other one.

    ``(1 - alpha + alpha/N)^2 / v`` and ``(alpha/N)^2 / v``, where
    ``v = (1 - alpha)^2 + 2 alpha (1 - alpha)/N + alpha^2/N``; times ``own_patch`` of what embeds
    the patches (README, section 19).

    Returns
    -------
    (own, other)

    Examples
    --------
    >>> mixed(0, 16), mixed(1, 16)
    ((1.0, 0.0), (0.0625, 0.0625))
    """
    v = (1 - alpha) ** 2 + 2 * alpha * (1 - alpha) / tokens + alpha**2 / tokens
    return (1 - alpha + alpha / tokens) ** 2 / v, (alpha / tokens) ** 2 / v
