"""The Gaussian Gram matrix, from the linear one: n² elementwise work, in torch on every device."""

import torch

from fastcka.kernels.operations import Gram


def rbf(linear: Gram, bandwidth: float = 1.0) -> Gram:
    """Turn the linear Gram matrix of a batch into the Gaussian one.

    exp(−d²/(2σ²)) with d²_ij = k_ii + k_jj − 2 k_ij and σ = bandwidth · √median(d²), the median
    taken over all n² entries, zeros of the diagonal included [Kornblith et al. 2019, their code].
    Where σ is 0 this is its limit: 1 for equal rows, else 0.

    Args:
        linear: of `gram`; only its lower triangle is read.
        bandwidth: multiple of the median distance, > 0.

    Returns:
        A `Gram` with the Gaussian matrix (both triangles) and the norms of `linear`, but for |c|²,
        which is 0: nothing was taken away from the Gaussian matrix.
    """
    d2 = squared_distances(linear.k)
    stats = linear.stats.clone()
    stats[0] = 0
    return Gram(gaussian(d2, bandwidth**2 * median(d2)), stats)


def squared_distances(k: torch.Tensor) -> torch.Tensor:
    lower = torch.tril(k, -1)
    diagonal = k.diagonal()
    d2 = (diagonal + diagonal[:, None] - 2 * (lower + lower.T)).clamp_min_(0)
    return d2.fill_diagonal_(0) if bool(torch.isfinite(diagonal).all()) else d2


def gaussian(d2: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return torch.where(variance > 0, torch.exp(-d2 / (2 * variance)), (d2 == 0).to(d2.dtype))


def median(values: torch.Tensor) -> torch.Tensor:
    """The mean of the two middle values of an even count; torch's own takes the lower."""
    flat = values.reshape(-1)
    low, high = (flat.numel() + 1) // 2, flat.numel() // 2 + 1
    return (flat.kthvalue(low).values + flat.kthvalue(high).values) / 2
