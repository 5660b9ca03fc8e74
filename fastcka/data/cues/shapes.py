"""Eight silhouettes of area 1, as functions that are negative inside.

Equal areas, so that no count of coloured pixels tells one from another. Each combines distances to
lines and circles: the larger of two is what both cover, the smaller what either covers. Sums,
products and square roots alone, which IEEE 754 fixes to the bit.
"""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

Array = np.ndarray


def _disc(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - 1 / sqrt(pi)


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.5, 0.5)


def _triangle(x: Array, y: Array) -> Array:
    inner = 1 / sqrt(3 * sqrt(3))  # radius of the circle within
    return np.maximum(-y, 0.5 * y + sqrt(0.75) * np.abs(x)) - inner


def _star(x: Array, y: Array) -> Array:
    """Two triangles, six points."""
    inner = 0.5 / sqrt(sqrt(3))
    side = sqrt(0.75) * np.abs(x)
    return np.minimum(np.maximum(-y, 0.5 * y + side), np.maximum(y, side - 0.5 * y)) - inner


def _ring(x: Array, y: Array) -> Array:
    outer = 1 / sqrt(pi * (1 - 0.55**2))
    return np.abs(np.sqrt(x * x + y * y) - 0.775 * outer) - 0.225 * outer


def _cross(x: Array, y: Array) -> Array:
    length = 1 / sqrt(4 * (2 * 0.36 - 0.36**2))
    return np.minimum(_box(x, y, length, 0.36 * length), _box(x, y, 0.36 * length, length))


def _corner(x: Array, y: Array) -> Array:
    """An L: a square without a quarter."""
    return np.maximum(_box(x, y, 1 / sqrt(3), 1 / sqrt(3)), np.minimum(x, y))


def _crescent(x: Array, y: Array) -> Array:
    outer = 0.7746996250819509  # where the area is 1
    bite = np.sqrt((x - 0.5 * outer) ** 2 + y * y)
    return np.maximum(np.sqrt(x * x + y * y) - outer, 0.75 * outer - bite)


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "corner": _corner,
    "crescent": _crescent,
}
# Of the circle around the origin that holds every shape: the triangle's.
RADIUS = 2 / sqrt(3 * sqrt(3))
