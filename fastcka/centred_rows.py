"""Stored features, read centred, and their Gram matrix, formed: both a block at a time."""

import math
from collections.abc import Iterator

import torch

from fastcka import conditioning
from fastcka.kernels.gaussian import gaussian, squared_distances
from fastcka.kernels.precision import CHUNK, accumulator, full_precision_products

ROWS = 1024  # examples of a block; a block of the Gram matrix is 8 MiB
FEATURES = 2048  # of a block of centred features, which is 16 MiB


class CentredRows:
    """Features [n, p] minus their mean row; `gram_block` is a block of their linear Gram matrix.

    Args:
        x: [n, p], dense rows.
        precise: add up products in float64, also those of 16- and 32-bit values.
    """

    def __init__(self, x: torch.Tensor, precise: bool = False):
        self.x = x
        self.n, self.p = x.shape
        self.accumulator = torch.float64 if precise else accumulator(x.dtype)
        # Around the first row, so that the mean of equal rows is that row to the last bit.
        self.mean = torch.empty_like(x[0], dtype=torch.float64)
        for features in self.features():
            first = x[0, features].double()
            shift = sum((x[rows, features].double() - first).sum(0) for rows in self.blocks())
            self.mean[features] = first + shift / self.n
        self.diagonal = torch.cat(
            [
                sum(self.centred(rows, features).square().sum(1) for features in self.features())
                for rows in self.blocks()
            ]
        )
        spread, raw = float(self.diagonal.sum()), float(self.mean.square().sum()) * self.n
        limit = (conditioning.VALUES * torch.finfo(accumulator(x.dtype)).eps) ** 2
        self.is_constant = spread <= limit * (spread + raw)
        # A power of two: squares of float32 values as they are may leave the range of float32.
        rms = math.sqrt(spread / (self.n * self.p)) if 0 < spread < math.inf else 1.0
        self.scale = 2.0 ** -min(max(math.frexp(rms)[1], -500), 500)

    @property
    def eps(self) -> float:
        """Of the Gram matrix."""
        return torch.finfo(self.accumulator).eps

    def blocks(self) -> Iterator[slice]:
        return (slice(i, min(i + ROWS, self.n)) for i in range(0, self.n, ROWS))

    def pairs_of_blocks(self) -> Iterator[tuple[slice, slice]]:
        """On and below the diagonal."""
        return ((i, j) for i in self.blocks() for j in self.blocks() if j.start <= i.start)

    def features(self) -> Iterator[slice]:
        return (slice(k, min(k + FEATURES, self.p)) for k in range(0, self.p, FEATURES))

    def centred(self, rows: slice, features: slice) -> torch.Tensor:
        return self.x[rows, features].double() - self.mean[features]

    def gram_block(self, i: slice, j: slice) -> torch.Tensor:
        """Rows i, columns j, float64."""
        return self._scaled_gram_block(i, j) / self.scale**2

    def row_sums(self) -> torch.Tensor:
        """Of the Gram matrix without its diagonal: centred features add up to zero."""
        return -self.diagonal

    def _scaled_gram_block(self, i: slice, j: slice) -> torch.Tensor:
        k = self.x.new_zeros(i.stop - i.start, j.stop - j.start, dtype=torch.float64)
        for start in range(0, self.p, CHUNK):
            features = slice(start, start + CHUNK)
            left = self._scaled(i, features)
            right = left if i == j else self._scaled(j, features)
            with full_precision_products(self.x.device):
                k += left @ right.T
        return k

    def _scaled(self, rows: slice, features: slice) -> torch.Tensor:
        return (self.centred(rows, features) * self.scale).to(self.accumulator)


class GaussianRows(CentredRows):
    """The same, with the Gaussian Gram matrix."""

    eps = torch.finfo(torch.float64).eps

    def __init__(self, x: torch.Tensor, bandwidth: float):
        super().__init__(x)
        # In units of the spread: the Gaussian does not see them, and float32 holds them.
        self._squared_norms = self.diagonal * self.scale**2
        finite = bool(torch.isfinite(self.diagonal).all())
        self._variance = self.diagonal.new_tensor(math.nan)
        if finite:
            self._variance = bandwidth**2 * self.median_of_squared_distances()
        self.diagonal = torch.ones_like(self.diagonal)
        sums = torch.zeros_like(self.diagonal)
        for i, j in self.pairs_of_blocks():
            k = self.gram_block(i, j)
            sums[i] += k.sum(1)
            if i != j:
                sums[j] += k.sum(0)
        self._row_sums = sums - 1

    def gram_block(self, i: slice, j: slice) -> torch.Tensor:
        return gaussian(self._squared_distances(i, j), self._variance)

    def row_sums(self) -> torch.Tensor:
        return self._row_sums

    def _squared_distances(self, i: slice, j: slice) -> torch.Tensor:
        norms, eps = self._squared_norms, torch.finfo(self.accumulator).eps
        return squared_distances(self._scaled_gram_block(i, j), norms[i], norms[j], eps)

    def median_of_squared_distances(self) -> torch.Tensor:
        """Of all n², to float32, without holding them, in units of 1 / scale².

        The bits of non-negative floats are ordered as they are: the upper 16 bits are counted in
        one pass, and the lower 16 of those that share the median's upper ones in a second.
        """
        count = self.n * self.n
        upper = self._histogram(None)
        lower: dict[int, torch.Tensor] = {}
        middle = []
        for rank in ((count - 1) // 2, count // 2):
            prefix = int(torch.searchsorted(upper.cumsum(0), rank, right=True))
            if prefix not in lower:
                lower[prefix] = self._histogram(prefix)
            rank -= int(upper[:prefix].sum())
            suffix = int(torch.searchsorted(lower[prefix].cumsum(0), rank, right=True))
            middle.append((prefix << 16) | suffix)
        bits = torch.tensor(middle, dtype=torch.int32, device=self.x.device)
        return bits.view(torch.float32).double().mean()

    def _histogram(self, prefix: int | None) -> torch.Tensor:
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=self.x.device)
        for i, j in self.pairs_of_blocks():
            bits = self._squared_distances(i, j).float().view(torch.int32).reshape(-1)
            keys = bits >> 16 if prefix is None else bits[(bits >> 16) == prefix] & 0xFFFF
            counts += torch.bincount(keys, minlength=1 << 16) * (1 if i == j else 2)
        return counts
