"""Inner products of centred Gram matrices of stored features, exact, with bounded memory.

Three routes to ⟨U(K), U(L)⟩, by the sizes:

    feature space   where one side has fewer features than examples: through XᵀY, in float64
    one batch       up to ONE_BATCH examples: the kernels
    row blocks      else: blocks of K and L, centred as they come

No route holds an n × n matrix for n > ONE_BATCH. The derivations are in maths/README.md.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastcka import conditioning
from fastcka.gram_stack import GramStack
from fastcka.kernels import hsic_pairs
from fastcka.kernels.precision import full_precision_products
from fastcka.kernels.rbf import gaussian as gaussian_of

ONE_BATCH = 2048  # examples; two float64 matrices of 32 MiB
ROWS = 1024  # examples of a block; a block of K is 8 MiB
FEATURES = 2048  # of a block in feature space; a block of XᵀY is 32 MiB
CHUNK = 16_384  # features whose products are added up in float32


class InnerProducts(NamedTuple):
    """⟨U(K), U(L)⟩, ⟨U(K), U(K)⟩, ⟨U(L), U(L)⟩, and whether x and y are constant."""

    n: int
    xy: float
    xx: float
    yy: float
    x_constant: bool
    y_constant: bool


def linear(x: torch.Tensor, y: torch.Tensor, estimator: str) -> InnerProducts:
    """x [n, p], y [n, q] -> the inner products of their linear Gram matrices."""
    n, p, q = x.shape[0], x.shape[1], y.shape[1]
    if n <= ONE_BATCH and min(p, q) >= n:
        return _one_batch(x, y, estimator, "linear", None)
    a = _Rows(x)
    b = a if y is x else _Rows(y)
    blocks = {}
    if max(p, q) >= n:
        blocks = _row_blocks(a if p >= n else None, b if q >= n else None, estimator)
    # One side with few features is enough for the mixed term.
    xy = blocks.get("xy") or _feature_space(a, b, estimator)
    xx = blocks.get("xx") or (xy if b is a else _feature_space(a, a, estimator))
    yy = blocks.get("yy") or (xx if b is a else _feature_space(b, b, estimator))
    x_constant = xx.is_rounding() or a.constant
    y_constant = yy.is_rounding() or b.constant
    return InnerProducts(n, xy.value, xx.value, yy.value, x_constant, y_constant)


def gaussian(x: torch.Tensor, y: torch.Tensor, estimator: str, bandwidth: float) -> InnerProducts:
    """x [n, p], y [n, q] -> the inner products of their Gaussian Gram matrices."""
    n = x.shape[0]
    if n <= ONE_BATCH:
        return _one_batch(x, y, estimator, "rbf", bandwidth)
    a = _GaussianRows(x, bandwidth)
    b = a if y is x else _GaussianRows(y, bandwidth)
    found = _row_blocks(a, b, estimator)
    xy, xx, yy = (found[name] for name in ("xy", "xx", "yy"))
    x_constant = xx.is_rounding() or a.constant
    y_constant = yy.is_rounding() or b.constant
    return InnerProducts(n, xy.value, xx.value, yy.value, x_constant, y_constant)


def _one_batch(x, y, estimator, gram, bandwidth) -> InnerProducts:
    sides = [x] if y is x else [x, y]
    stack = GramStack(
        ["x", "y"][: len(sides)],
        x.shape[0],
        estimator=estimator,
        gram=gram,
        bandwidth=bandwidth,
        device=x.device,
    )
    for row, side in enumerate(sides):
        stack.put(row, side)
    h = hsic_pairs(stack.packed).cpu()
    constant = conditioning.is_constant(stack.summary[:, :4].cpu(), stack.eps)
    first, last = 0, len(sides) - 1
    return InnerProducts(
        stack.n,
        float(h[first, last]),
        float(h[first, first]),
        float(h[last, last]),
        bool(constant[first]),
        bool(constant[last]),
    )


class _Sum(NamedTuple):
    value: float
    rounding: float  # the value that rounding alone may leave

    def is_rounding(self) -> bool:
        return self.value <= self.rounding


class _Rows:
    """Features [n, p] whose rows are read centred, a block at a time."""

    def __init__(self, x: torch.Tensor):
        self.x = x
        self.n, self.p = x.shape
        self.accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.eps = torch.finfo(self.accumulator).eps
        # Around the first row, so that the mean of equal rows is that row to the last bit.
        first = x[0].double()
        self.mean = first + sum((rows.double() - first).sum(0) for rows in x.split(ROWS)) / self.n
        self.diagonal = torch.cat([self.centred(i).square().sum(1) for i in self.blocks()])
        spread, raw = float(self.diagonal.sum()), float(self.mean.square().sum()) * self.n
        self.constant = spread <= (conditioning.VALUES * self.eps) ** 2 * (spread + raw)
        # A power of two: squares of float32 values as they are may leave the range of float32.
        rms = math.sqrt(spread / (self.n * self.p)) if 0 < spread < math.inf else 1.0
        self.scale = 2.0 ** -math.frexp(rms)[1]

    def blocks(self) -> Iterator[slice]:
        return (slice(i, min(i + ROWS, self.n)) for i in range(0, self.n, ROWS))

    def centred(self, rows: slice, features: slice = slice(None)) -> torch.Tensor:
        return self.x[rows, features].double() - self.mean[features]

    def gram_block(self, i: slice, j: slice) -> torch.Tensor:
        """Rows i, columns j of K, float64."""
        k = torch.zeros(
            i.stop - i.start, j.stop - j.start, dtype=torch.float64, device=self.x.device
        )
        for start in range(0, self.p, CHUNK):
            features = slice(start, start + CHUNK)
            left = self._scaled(i, features)
            right = left if i == j else self._scaled(j, features)
            with full_precision_products(self.x.device):
                k += left @ right.T
        return k / self.scale**2

    def _scaled(self, rows: slice, features: slice) -> torch.Tensor:
        centred = self.centred(rows, features)
        return (centred * self.scale).to(self.accumulator)

    def row_sums(self) -> torch.Tensor:
        """Of K without its diagonal: the rows of K sum to zero, for the features are centred."""
        return -self.diagonal


class _GaussianRows(_Rows):
    """The same, with the Gaussian Gram matrix."""

    def __init__(self, x: torch.Tensor, bandwidth: float):
        super().__init__(x)
        self._squared_norms = self.diagonal * self.scale**2
        self._variance = bandwidth**2 * self._median()
        self.diagonal = torch.ones_like(self.diagonal)
        sums = torch.zeros_like(self.diagonal)
        for i, j in _pairs_of_blocks(self):
            k = self.gram_block(i, j)
            sums[i] += k.sum(1)
            if i != j:
                sums[j] += k.sum(0)
        self._row_sums = sums - 1

    def gram_block(self, i: slice, j: slice) -> torch.Tensor:
        return gaussian_of(self._squared_distances(i, j), self._variance)

    def row_sums(self) -> torch.Tensor:
        return self._row_sums

    def _squared_distances(self, i: slice, j: slice) -> torch.Tensor:
        # In units of the spread: the Gaussian does not see them, and float32 holds them.
        k = super().gram_block(i, j) * self.scale**2
        norms = self._squared_norms
        d2 = (norms[i, None] + norms[j] - 2 * k).clamp_min_(0)
        return d2.fill_diagonal_(0) if i == j else d2

    def _median(self) -> torch.Tensor:
        """Of all squared distances, to float32, without holding them.

        The bits of non-negative floats are ordered as they are: the upper 16 bits are counted in
        one pass, and the lower 16 of those that share the median's upper ones in a second.
        """
        count = self.n * self.n
        ranks = ((count - 1) // 2, count // 2)
        upper = self._histogram(None)
        low, high = (self._value_at(upper, rank) for rank in ranks)
        return (low + high) / 2

    def _value_at(self, upper: torch.Tensor, rank: int) -> torch.Tensor:
        prefix = int(torch.searchsorted(upper.cumsum(0), rank, right=True))
        rank -= int(upper[:prefix].sum())
        lower = self._histogram(prefix)
        suffix = int(torch.searchsorted(lower.cumsum(0), rank, right=True))
        bits = torch.tensor((prefix << 16) | suffix, dtype=torch.int32, device=self.x.device)
        return bits.view(torch.float32).double()

    def _histogram(self, prefix: int | None) -> torch.Tensor:
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=self.x.device)
        for i, j in _pairs_of_blocks(self):
            bits = self._squared_distances(i, j).float().view(torch.int32).reshape(-1)
            keys = bits >> 16 if prefix is None else bits[(bits >> 16) == prefix] & 0xFFFF
            counts += torch.bincount(keys, minlength=1 << 16) * (1 if i == j else 2)
        return counts


def _pairs_of_blocks(rows: _Rows) -> Iterator[tuple[slice, slice]]:
    return ((i, j) for i in rows.blocks() for j in rows.blocks() if j.start <= i.start)


def _row_blocks(a: _Rows | None, b: _Rows | None, estimator: str) -> dict[str, _Sum]:
    """Inner products of those that are given, each block of K and L formed once."""
    sides = {"x": a} if b is a else {name: s for name, s in (("x", a), ("y", b)) if s is not None}
    names = [first + second for first in sides for second in sides if first <= second]
    sums = dict.fromkeys(names, 0.0)
    hollow = dict.fromkeys(sides, 0.0)
    offsets = {name: _offsets(side, estimator) for name, side in sides.items()}
    for i, j in _pairs_of_blocks(next(iter(sides.values()))):
        times = 1 if i == j else 2
        centred = {}
        for name, side in sides.items():
            k = side.gram_block(i, j)
            hollow[name] += times * float(k.square().sum())
            per_row, grand = offsets[name]
            k = k - per_row[i, None] - per_row[j] + grand
            if i == j and estimator == "unbiased":
                k.fill_diagonal_(0)
            centred[name] = k
        for name in names:
            sums[name] += times * float((centred[name[0]] * centred[name[1]]).sum())
    found = {}
    for name, value in sums.items():
        first = name[0]
        squares = hollow[first] - float(sides[first].diagonal.square().sum())
        floor = (conditioning.PRODUCTS * sides[first].eps) ** 2 * squares
        found[name] = _Sum(value, floor)
    if b is a:
        found |= {"xy": found["xx"], "yy": found["xx"]}
    return found


def _offsets(side: _Rows, estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    n, sums = side.n, side.row_sums()
    if estimator == "biased":
        sums = sums + side.diagonal
        return sums / n, sums.sum() / n**2
    return sums / (n - 2), sums.sum() / ((n - 1) * (n - 2))


def _feature_space(a: _Rows, b: _Rows, estimator: str) -> _Sum:
    """‖XᵀY‖² and the terms of the diagonal, in float64 on centred features."""
    n = a.n
    cross = math.fsum(
        float(_cross_block(a, b, i, j).square().sum())
        for i in range(0, a.p, FEATURES)
        for j in range(0, b.p, FEATURES)
    )
    if estimator == "biased":
        return _Sum(cross, 0.0)
    k, l_ = a.diagonal, b.diagonal
    own = float(k @ l_) * n / (n - 2)
    totals = float(k.sum()) * float(l_.sum()) / ((n - 1) * (n - 2))
    rounding = conditioning.PRODUCTS * torch.finfo(torch.float64).eps * (cross + own + totals)
    return _Sum(cross - own + totals, rounding)


def _cross_block(a: _Rows, b: _Rows, i: int, j: int) -> torch.Tensor:
    left, right = slice(i, i + FEATURES), slice(j, j + FEATURES)
    return sum(a.centred(rows, left).T @ b.centred(rows, right) for rows in a.blocks())
