"""What CKA would be by chance: the images of one model in random order, over and over."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from fastcka.kernels import hsic_pairs, packed_place

PERMUTATIONS = 200
# Relative difference up to which two values are equal.
TIES = 1e-12


def permuted_products(
    packed: Mapping[str, torch.Tensor],
    pairs: Sequence[tuple[str, str]],
    n: int,
    estimator: str,
    count: int,
    number: int,
    backend: str | None = None,
) -> dict[tuple[str, str], torch.Tensor]:
    """⟨a_i, P b_j Pᵀ⟩ for `count` random orders P of the n examples of batch `number`.

    One order is for all layers at once, so that the largest of all cells has a null distribution
    too [Gröger et al. 2026]. A centred Gram matrix stays centred in any order: nothing but the
    places of its entries changes. Of a model with itself the cells below the diagonal stand for
    those above, as in CKA.

    Args:
        packed: triangles [L, m] of the layers of each model.
        pairs: of models.

    Returns:
        [count, L, M] float64 of each pair.

    Cost: as `count` times `hsic_pairs`, and reading each second stack in random order as often.

    >>> from fastcka.kernels import gram_finish
    >>> packed = {name: gram_finish([torch.randn(8, 3)]).packed for name in "ab"}
    >>> found = permuted_products(packed, [("a", "b")], 8, "unbiased", 5, 0)
    >>> found["a", "b"].shape
    torch.Size([5, 1, 1])
    """
    out = {
        (a, b): packed[a].new_empty(count, packed[a].shape[0], packed[b].shape[0]) for a, b in pairs
    }
    seconds = dict.fromkeys(b for _, b in pairs)
    for k, places in enumerate(_places(n, estimator, count, number)):
        for b in seconds:
            moved = packed[b].index_select(1, places.to(packed[b].device))
            for a in (one for one, other in pairs if other == b):
                products = hsic_pairs(packed[a], moved, backend=backend)
                out[a, b][k] = products.tril() + products.tril(-1).T if a == b else products
    return out


def _places(n: int, estimator: str, count: int, number: int) -> Iterator[torch.Tensor]:
    """Where the entries of a packed triangle come from, in each order; of (n, number) alone."""
    offset = -1 if estimator == "unbiased" else 0  # without the diagonal, or with it
    rows, columns = np.tril_indices(n, offset)
    random = np.random.default_rng((n, number))
    for _ in range(count):
        order = random.permutation(n)
        yield torch.from_numpy(packed_place(order[rows], order[columns], estimator))


def p_values(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + number of `null` >= `observed`) / (1 + K), elementwise; null [K, ...]; NaN stays NaN.

    Exact for exchangeable examples: at most a share α of independent pairs has p <= α [Phipson &
    Smyth 2010].
    """
    # Orders that change nothing are added up in another order, and may fall short by a rounding.
    exceed = (null >= observed - TIES * np.abs(observed)).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + exceed) / (1 + len(null)))


def calibrated(observed: np.ndarray, null: np.ndarray, level: float) -> np.ndarray:
    """(s − τ) / (1 − τ) where s > τ, else 0; elementwise, null [K, ...] [Gröger et al. 2026].

    τ is the ⌈(1 − level)(K + 1)⌉-th smallest of the K values by chance and the observed one.

    Raises:
        ValueError: so few values by chance that τ is the largest of them, and all scores 0.
    """
    if level * (len(null) + 1) < 1:
        raise ValueError(
            f"`level` {level} needs {int(np.ceil(1 / level)) - 1} permutations or more, but there "
            f"are {len(null)}: measure with a larger `calibrate`"
        )
    together = np.sort(np.concatenate([null, observed[None]]), axis=0)
    tau = together[int(np.ceil((1 - level) * len(together))) - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(observed > tau, (observed - tau) / (1 - tau), 0.0)
    return np.where(np.isnan(observed), np.nan, score)


def p_value_of(
    statistic: Callable[[np.ndarray], float], observed: np.ndarray, null: np.ndarray
) -> float:
    """The p-value of a number that is made of all cells, such as the largest."""
    values = np.array([statistic(one) for one in null])
    return float(p_values(np.asarray(statistic(observed)), values))
