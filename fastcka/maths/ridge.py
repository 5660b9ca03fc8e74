"""The few-shot probe: regularised least squares to targets of ±1, normal equations written out."""

import math

import numpy as np

EPS = 1e-5
BIAS = 100.0


def scores(x, labels, classes, lam, x_new):
    """Scores of new examples by a probe that was fitted to others.

    Columns are standardised by mean and standard deviation + 1e-5 of the examples fitted, a column
    of 100 is put beside them, and ``W = (A^T A + lam I)^-1 A^T Y`` with ``Y = 2 onehot - 1``
    (README, section 19).

    Parameters
    ----------
    x : array [n, p]
    labels : array [n] of int, 0 to classes - 1
    classes : int
    lam : float, above 0
    x_new : array [m, p]

    Returns
    -------
    array [m, classes]

    Examples
    --------
    >>> scores([[0.0], [1.0]], [0, 1], 2, 1e-9, [[0.0], [1.0], [0.75]]).round(3)
    array([[ 1. , -1. ],
           [-1. ,  1. ],
           [-0.5,  0.5]])
    """
    x = np.asarray(x, dtype=np.float64)
    mean, sd = x.mean(axis=0), x.std(axis=0)
    a = np.column_stack([(x - mean) / (sd + EPS), np.full(len(x), BIAS)])
    a_new = np.column_stack([(x_new - mean) / (sd + EPS), np.full(len(x_new), BIAS)])
    y = targets(labels, classes)
    return a_new @ np.linalg.solve(a.T @ a + lam * np.eye(a.shape[1]), a.T @ y)


def targets(labels, classes):
    """``2 onehot - 1``.

    >>> targets([1, 0], 2)
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    return 2.0 * np.eye(classes)[np.asarray(labels)] - 1.0


def accuracy_at(separation):
    """``Phi(d / 2)``: the best accuracy for two equally frequent classes, ``d`` sd apart.

    Examples
    --------
    >>> [round(accuracy_at(d), 3) for d in (0, 1, 2, 3)]
    [0.5, 0.691, 0.841, 0.933]
    """
    return (1 + math.erf(separation / 2 / math.sqrt(2))) / 2


def separation_of_the_mean(separations):
    """Separation in the mean of N independent tokens: the sum of theirs, over ``sqrt(N)``.

    Examples
    --------
    One token of 4 knows the label, or all do:

    >>> separation_of_the_mean([3, 0, 0, 0]), separation_of_the_mean([3, 3, 3, 3])
    (1.5, 6.0)
    """
    return sum(separations) / math.sqrt(len(separations))
