"""The Gaussian Gram matrix, from the linear one: n² elementwise work, in torch on every device."""

import torch

from fastcka.kernels.operations import Gram
from fastcka.options import check_bandwidth

# Equal rows: k_ii + k_jj − 2 k_ij is not 0 but the rounding of the three, some tens of eps at most.
EQUAL = 64.0


def rbf(linear: Gram, bandwidth: float = 1.0, eps: float = torch.finfo(torch.float64).eps) -> Gram:
    """Turn the linear Gram matrix of a batch into the Gaussian one.

    exp(−d²/(2σ²)) with d²_ij = k_ii + k_jj − 2 k_ij and σ = bandwidth · √median(d²), the median
    taken over all n² entries, zeros of the diagonal included [Kornblith et al. 2019, their code].
    Where σ is 0 this is its limit: 1 for equal rows, else 0.

    Args:
        linear: of `gram`; only its lower triangle is read.
        bandwidth: multiple of the median distance, > 0.
        eps: of the type in which the products were added up; rows nearer to each other than its
            rounding count as equal.

    Returns:
        A `Gram` with the Gaussian matrix (both triangles) and the norms of `linear`, but for |c|²,
        which is 0: nothing was taken away from the Gaussian matrix.

    Raises:
        ValueError: the bandwidth is no positive number.
    """
    check_bandwidth(bandwidth)
    lower = torch.tril(linear.k, -1)
    norms = linear.k.diagonal()
    d2 = squared_distances(lower + lower.T + torch.diag(norms), norms, norms, eps)
    stats = linear.stats.clone()
    stats[0] = 0
    return Gram(gaussian(d2, bandwidth**2 * median(d2)), stats)


def squared_distances(
    k: torch.Tensor, norms: torch.Tensor, other_norms: torch.Tensor, eps: float
) -> torch.Tensor:
    """‖x_i − x_j‖² from a block of the Gram matrix and the squared norms of rows and columns."""
    sums = norms[:, None] + other_norms
    d2 = sums - 2 * k
    return torch.where(d2 <= EQUAL * eps * sums, 0.0, d2)


def gaussian(d2: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return torch.where(variance == 0, (d2 == 0).to(d2.dtype), torch.exp(-d2 / (2 * variance)))


def median(values: torch.Tensor) -> torch.Tensor:
    """The mean of the two middle values of an even count; torch's own takes the lower."""
    flat = values.reshape(-1)
    low, high = (flat.numel() + 1) // 2, flat.numel() // 2 + 1
    return (flat.kthvalue(low).values + flat.kthvalue(high).values) / 2
