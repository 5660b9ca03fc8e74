"""What CKA would be by chance: the images of one model in random order, over and over."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastcka.kernels import hsic_pairs

PERMUTATIONS = 200


def permuted_products(
    a: torch.Tensor,
    b: torch.Tensor,
    n: int,
    estimator: str,
    count: int,
    number: int,
    backend: str | None = None,
) -> torch.Tensor:
    """⟨a_i, P b_j Pᵀ⟩ for `count` random orders P of the n examples of batch `number`.

    One order is for all layers at once, so that the largest of all cells has a null distribution
    too [Gröger et al. 2026]. A centred Gram matrix stays centred in any order: nothing but the
    places of its entries changes.

    Args:
        a, b: packed triangles [L, m] and [M, m] of the layers of two models.

    Returns:
        [count, L, M] float64.

    Cost: as `count` times `hsic_pairs`, and reading the smaller stack in random order as often.

    >>> from fastcka.kernels import gram_finish
    >>> a, b = (gram_finish([torch.randn(8, 3)]).packed for _ in range(2))
    >>> permuted_products(a, b, 8, "unbiased", 5, 0).shape
    torch.Size([5, 1, 1])
    """
    out = a.new_empty(count, a.shape[0], b.shape[0])
    for k, places in enumerate(_places(n, estimator, count, number)):
        places = places.to(a.device)
        if a.shape[0] < b.shape[0]:
            out[k] = hsic_pairs(a.index_select(1, places), b, backend=backend)
        else:
            out[k] = hsic_pairs(a, b.index_select(1, places), backend=backend)
    return out


def _places(n: int, estimator: str, count: int, number: int) -> Iterator[torch.Tensor]:
    """Where the entries of a packed triangle come from, in each order; of (n, number) alone."""
    offset = -1 if estimator == "unbiased" else 0  # without the diagonal, or with it
    rows, columns = np.tril_indices(n, offset)
    random = np.random.default_rng((n, number))
    for _ in range(count):
        order = random.permutation(n)
        one, other = order[rows], order[columns]
        high, low = np.maximum(one, other), np.minimum(one, other)
        # Row i begins behind the i rows above it: of 0, 1, …, i − 1 entries, or one more each.
        starts = high * (high - 1) // 2 if offset else high * (high + 1) // 2
        yield torch.from_numpy(starts + low)


def p_values(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + number of `null` >= `observed`) / (1 + K), elementwise; null [K, ...]; NaN stays NaN.

    Exact for exchangeable examples: at most a share α of independent pairs has p <= α [Phipson &
    Smyth 2010].
    """
    exceed = (null >= observed).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + exceed) / (1 + len(null)))


def calibrated(observed: np.ndarray, null: np.ndarray, level: float) -> np.ndarray:
    """(s − τ) / (1 − τ) where s > τ, else 0; elementwise, null [K, ...] [Gröger et al. 2026].

    τ is the ⌈(1 − level)(K + 1)⌉-th smallest of the K values by chance and the observed one.
    """
    together = np.sort(np.concatenate([null, observed[None]]), axis=0)
    tau = together[int(np.ceil((1 - level) * len(together))) - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(observed > tau, (observed - tau) / (1 - tau), observed * 0)


def p_value_of(
    statistic: Callable[[np.ndarray], float], observed: np.ndarray, null: np.ndarray
) -> float:
    """The p-value of a number that is made of all cells, such as the largest."""
    values = np.array([statistic(one) for one in null])
    return float(p_values(np.asarray(statistic(observed)), values))
