"""What stands beside CKA, from the same Gram matrices: distances, neighbours, spectra.

Each is taken within a batch of n examples and averaged over the batches, n to n. Unlike HSIC_1 they
depend on n: compare numbers of equal n alone. Distances and cosines are those of the rows less the
mean row of the batch; of a Gaussian Gram matrix, of the points that it stands for.
"""

from collections.abc import Callable, Sequence

import torch

from fastcka.gram_stack import GramStack

# Of each example within its batch.
NEIGHBOURS = 10


def grams(stack: GramStack) -> torch.Tensor:
    """The Gram matrices [L, n, n] of the centred examples, recovered from their packed triangles.

    k_ij = u_ij + (r_i + r_j)/(n−2) − s/((n−1)(n−2)) after U-centring, and k_ij = c_ij + m_i + m_j −
    mean(m) with m_i = (r_i + k_ii)/n after H k H; r are the row sums without the diagonal.

    >>> stack = GramStack(["x"], 4)
    >>> stack.put(0, torch.tensor([[0.0], [1.0], [2.0], [5.0]]))
    >>> grams(stack)[0, 0]
    tensor([ 4.,  2.,  0., -6.], dtype=torch.float64)
    """
    n, unbiased = stack.n, stack.estimator == "unbiased"
    rows, columns = torch.tril_indices(n, n, -1 if unbiased else 0, device=stack.packed.device)
    centred = stack.packed.new_zeros(len(stack.layers), n, n)
    values = torch.where(rows == columns, stack.packed, stack.packed / 2**0.5)
    centred[:, rows, columns] = centred[:, columns, rows] = values
    if unbiased:
        sums = stack.row_sums / (n - 2)
        total = sums.sum(1)[:, None, None] / (n - 1)
    else:
        sums = (stack.row_sums + stack.diagonal) / n
        total = sums.mean(1)[:, None, None]
    k = centred + sums[:, :, None] + sums[:, None, :] - total
    k.diagonal(dim1=1, dim2=2).copy_(stack.diagonal)
    return k


def _distances(k: torch.Tensor) -> torch.Tensor:
    """Squared, of all pairs: [L, n(n−1)/2]."""
    n = k.shape[1]
    rows, columns = torch.tril_indices(n, n, -1, device=k.device)
    norms = k.diagonal(dim1=1, dim2=2)
    return norms[:, rows] + norms[:, columns] - 2 * k[:, rows, columns]


def rsa_cosine(k: torch.Tensor) -> torch.Tensor:
    """[L, m] whose inner products are the cosines of the squared distances of all pairs."""
    return _unit(_distances(k))


def rsa_correlation(k: torch.Tensor) -> torch.Tensor:
    """[L, m] whose inner products are Pearson's correlations of the squared distances."""
    d = _distances(k)
    return _unit(d - d.mean(1, keepdim=True))


def mutual_knn(k: torch.Tensor) -> torch.Tensor:
    """[L, n²] whose inner products are shares of common nearest neighbours [Huh et al. 2024]."""
    near = _near(_cosines(k))
    return near.flatten(1) / (NEIGHBOURS * k.shape[1]) ** 0.5


def cknna(k: torch.Tensor) -> torch.Tensor:
    """[L, n²] whose inner products are CKA among common nearest neighbours [Huh et al. 2024]."""
    c = _cosines(k)
    return _unit((_near(c) * (c - c.mean(2, keepdim=True))).flatten(1))


def procrustes(k: torch.Tensor) -> torch.Tensor:
    """[L, n²], the roots of the centred Gram matrices, of unit norm: see `between`."""
    finite, k = _finite(_centred(k))
    values, vectors = torch.linalg.eigh(k)
    root = (vectors * values.clamp(min=0).sqrt()[:, None, :]) @ vectors.mT
    return _unit(torch.where(finite[:, None, None], root, torch.nan).flatten(1))


def between(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[L, M] from what each layer gives: the inner products; of roots the sums of singular values.

    ‖K^½ L^½‖_* = ‖XᵀY‖_*, what is left of two centred, normalised layers when one is turned to lie
    on the other [Schönemann 1966].
    """
    if name != "procrustes":
        return a @ b.T
    n = round(a.shape[1] ** 0.5)
    finite, roots = _finite(b.view(-1, n, n))
    found = a.new_empty(len(a), len(b))
    for i, root in enumerate(a.view(-1, n, n)):
        if not torch.isfinite(root).all():
            found[i] = torch.nan
        else:
            found[i] = torch.linalg.svdvals(root @ roots).sum(1).masked_fill(~finite, torch.nan)
    return found


def participation_ratio(k: torch.Tensor) -> torch.Tensor:
    """(Σλ)²/Σλ² of the centred Gram matrix, [L]."""
    k = _centred(k)
    return k.diagonal(dim1=1, dim2=2).sum(1) ** 2 / k.square().sum((1, 2))


def effective_rank(k: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the eigenvalues' shares, [L]; NaN stays NaN."""
    finite, k = _finite(_centred(k))
    share = torch.linalg.eigvalsh(k).clamp(min=0)
    share = share / share.sum(1, keepdim=True)
    rank = torch.exp(-torch.special.xlogy(share, share).sum(1))
    return torch.where(finite, rank, torch.nan)


def _finite(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which matrices are finite, [L], and all of them, 0 in place of the others."""
    finite = torch.isfinite(k).all(2).all(1)
    return finite, torch.where(finite[:, None, None], k, 0.0)


def _centred(k: torch.Tensor) -> torch.Tensor:
    """H k H: a linear Gram matrix is that already, but for rounding; a Gaussian one is not."""
    k = k - k.mean(1, keepdim=True)
    return k - k.mean(2, keepdim=True)


def _cosines(k: torch.Tensor) -> torch.Tensor:
    length = k.diagonal(dim1=1, dim2=2).sqrt()
    return k / (length[:, :, None] * length[:, None, :])


def _near(cosines: torch.Tensor) -> torch.Tensor:
    """1 where an example of the column is among the nearest of that of the row; NaN stays NaN."""
    c = cosines.clone()
    c.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    near = torch.zeros_like(c).scatter_(2, c.topk(NEIGHBOURS, dim=2).indices, 1.0)
    return torch.where(torch.isfinite(cosines).all(2).all(1)[:, None, None], near, torch.nan)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


# Of a pair of layers, by what each layer gives to `between`. Of a layer: what it gives.
OF_PAIRS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rsa_cosine": rsa_cosine,
    "rsa_correlation": rsa_correlation,
    "mutual_knn": mutual_knn,
    "cknna": cknna,
    "procrustes": procrustes,
}
OF_LAYERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "participation_ratio": participation_ratio,
    "effective_rank": effective_rank,
}
NEED_NEIGHBOURS = ("mutual_knn", "cknna")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"`also` must be a list of names, but is {names!r}")
    names = tuple(names)
    known = [*OF_PAIRS, *OF_LAYERS]
    for name in names:
        if name not in known:
            raise ValueError(f"`also` must name {', '.join(known)}, but names {name!r}")
    return tuple(dict.fromkeys(names))


def defined_for(name: str, n: int) -> bool:
    """Whether a batch of n examples is large enough."""
    return n > NEIGHBOURS or name not in NEED_NEIGHBOURS
