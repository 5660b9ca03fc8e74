"""The ratio that CKA is, and how far it may be off: the delete-one-block jackknife."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """HSICs added up over batches, each times its batch's weight."""

    ab: np.ndarray  # [L, M]
    aa: np.ndarray  # [L]
    bb: np.ndarray  # [M]


def ratio(sums: Sums) -> np.ndarray:
    """h_ab / √(h_aa h_bb), [L, M]: see `cosine`."""
    return cosine(sums.ab, sums.aa[:, None], sums.bb)


def cosine(ab: np.ndarray, aa: np.ndarray, bb: np.ndarray) -> np.ndarray:
    """ab / √(aa · bb), elementwise; 1 where the three are equal, NaN where aa or bb is not > 0.

    The powers of two are taken out before the product, which would leave the range of float64 for
    activations near the ends of that of float32.
    """
    mantissa_a, exponent_a = _even_frexp(aa)
    mantissa_b, exponent_b = _even_frexp(bb)
    exponent = (exponent_a + exponent_b) // 2
    return np.ldexp(ab, -exponent) / np.sqrt(mantissa_a * mantissa_b)


def _even_frexp(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mantissa, exponent = np.frexp(np.where(h > 0, h, np.nan))
    odd = exponent % 2
    return mantissa * 2.0**odd, exponent - odd


def standard_error(blocks: Sequence[Sums]) -> np.ndarray:
    """√((k−1)/k Σ_j (θ_(j) − θ̄)²), θ_(j) the ratio without block j; NaN for one block.

    [Efron & Stein 1981]. Memory: a few [L, M].
    """
    k = len(blocks)
    total = add(blocks)
    mean = np.zeros_like(total.ab)
    squares = np.zeros_like(total.ab)
    if k < 2:
        return np.full_like(total.ab, np.nan)
    for count, block in enumerate(blocks, 1):
        theta = ratio(Sums(*(t - b for t, b in zip(total, block, strict=True))))
        step = theta - mean
        mean += step / count
        squares += step * (theta - mean)
    return np.sqrt((k - 1) / k * squares)


def add(blocks: Iterable[Sums]) -> Sums:
    return Sums(*(sum(parts) for parts in zip(*blocks, strict=True)))
