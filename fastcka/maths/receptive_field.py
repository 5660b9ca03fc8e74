"""Effective receptive fields: on which pixels the centre of a map depends, and how much."""

import numpy as np


def convolve(x, kernels):
    """A convolution with zeros around, as networks have it (no kernel is flipped).

    ``y[d, i, j] = sum_{c, a, b} kernels[d, c, a, b] x[c, i + a - r, j + b - r]``, size 2r + 1.

    Parameters
    ----------
    x : array [channels, height, width]
    kernels : array [outputs, channels, size, size]
        Of odd size.

    Returns
    -------
    array [outputs, height, width]

    Examples
    --------
    >>> convolve(np.eye(3)[None], np.ones((1, 1, 3, 3)))[0]
    array([[2., 2., 1.],
           [2., 3., 2.],
           [1., 2., 2.]])
    """
    size = kernels.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    y = np.zeros((len(kernels), *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = padded[:, i : i + size, j : j + size]
            y[:, i, j] = (kernels * window).sum(axis=(1, 2, 3))
    return y


def jacobian(function, shape):
    """The Jacobian of a linear (or affine) function, one entry of its input after the other.

    Parameters
    ----------
    function : from an array of `shape` to an array
    shape : tuple

    Returns
    -------
    array [*shape of the output, *shape]

    Examples
    --------
    >>> jacobian(lambda x: np.array([x.sum(), x[1]]), (2,))
    array([[1., 1.],
           [0., 1.]])
    """
    zero = function(np.zeros(shape))
    columns = []
    for place in np.ndindex(shape):
        x = np.zeros(shape)
        x[place] = 1
        columns.append(function(x) - zero)
    return np.stack(columns, axis=-1).reshape(*zero.shape, *shape)


def receptive_field(function, shape):
    """The mean of absolute derivatives of the centre cell, over its channels and the input's.

    ``R[h, w] = mean_{c, k} |d f(x)[c, rows // 2, columns // 2] / d x[k, h, w]|``; Luo et al. 2016,
    section 2, with the absolute value inside the mean as in Raghu et al. 2021, section 4.

    Parameters
    ----------
    function : linear, from an array [channels, height, width] to one of maps
    shape : (channels, height, width)

    Returns
    -------
    array [height, width]

    Examples
    --------
    >>> receptive_field(lambda x: convolve(x, np.ones((1, 1, 3, 3))), (1, 4, 4))
    array([[0., 0., 0., 0.],
           [0., 1., 1., 1.],
           [0., 1., 1., 1.],
           [0., 1., 1., 1.]])
    """
    all_of_it = jacobian(function, shape)
    _, rows, columns = all_of_it.shape[:3]
    return np.abs(all_of_it[:, rows // 2, columns // 2]).mean(axis=(0, 1))


def walk_variance(layers, size=3):
    """The variance along each axis of L uniform convolutions: that of a walk of L steps.

    ``L (size^2 - 1) / 12``: a step is uniform on ``size`` neighbours. Of kernels with independent
    entries of equal variance it is the variance of the mean square.

    Examples
    --------
    >>> walk_variance(6)
    4.0
    """
    return layers * (size**2 - 1) / 12


def mixing_share(alpha, layers, tokens):
    """What the centre has of its own patch after layers that mix all tokens evenly.

    The diagonal of ``((1 - alpha) I + alpha J / N)^L``, which is
    ``(1 - alpha)^L + (1 - (1 - alpha)^L) / N``.

    Examples
    --------
    >>> mixing_share(0.5, 2, 4)
    0.4375
    """
    kept = (1 - alpha) ** layers
    return kept + (1 - kept) / tokens
