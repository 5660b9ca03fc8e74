"""Inner products of centred Gram matrices of stored features, exact, with bounded memory.

Three routes to ⟨U(K), U(L)⟩, by the sizes:

    feature space   where one side has fewer features than examples: through XᵀY, in float64
    one batch       up to ONE_BATCH examples: the kernels
    row blocks      else: blocks of K and L, centred as they come

Where a route has lost digits to examples that dominate, row blocks in float64 do it over.
No route holds an n × n matrix for n > ONE_BATCH. The derivations are in maths/README.md.
"""

import math
from typing import NamedTuple

import torch

from fastcka import conditioning
from fastcka.centred_rows import CentredRows, GaussianRows
from fastcka.gram_stack import GramStack
from fastcka.kernels import hsic_pairs

ONE_BATCH = 2048  # examples; two float64 matrices of 32 MiB


class InnerProducts(NamedTuple):
    """⟨U(K), U(L)⟩, ⟨U(K), U(K)⟩, ⟨U(L), U(L)⟩, and whether x and y are constant."""

    n: int
    xy: float
    xx: float
    yy: float
    x_constant: bool
    y_constant: bool


class _Sum(NamedTuple):
    value: float
    rounding: float  # what rounding alone may leave of it
    lost_digits: bool


def linear(x: torch.Tensor, y: torch.Tensor, estimator: str) -> InnerProducts:
    """x [n, p], y [n, q] -> the inner products of their linear Gram matrices."""
    n, p, q = x.shape[0], x.shape[1], y.shape[1]
    if n <= ONE_BATCH and min(p, q) >= n:
        products, lost_digits = _one_batch(x, y, estimator, "linear", None)
        if not lost_digits:
            return products
    else:
        a = CentredRows(x)
        b = a if y is x else CentredRows(y)
        sums = {}
        if max(p, q) >= n:
            sums = _row_blocks(a if p >= n else None, b if q >= n else None, estimator)
        # One side with few features is enough for the mixed term.
        for name, first, second in (("xy", a, b), ("xx", a, a), ("yy", b, b)):
            if name not in sums:
                sums[name] = _feature_space(first, second, estimator)
        lost = [
            sums[own].lost_digits and not side.is_constant for own, side in (("xx", a), ("yy", b))
        ]
        if not any(lost):
            return _gathered(a, b, sums)
    a = CentredRows(x, precise=True)
    b = a if y is x else CentredRows(y, precise=True)
    return _gathered(a, b, _row_blocks(a, b, estimator))


def gaussian(x: torch.Tensor, y: torch.Tensor, estimator: str, bandwidth: float) -> InnerProducts:
    """x [n, p], y [n, q] -> the inner products of their Gaussian Gram matrices."""
    if x.shape[0] <= ONE_BATCH:
        return _one_batch(x, y, estimator, "rbf", bandwidth)[0]
    a = GaussianRows(x, bandwidth)
    b = a if y is x else GaussianRows(y, bandwidth)
    return _gathered(a, b, _row_blocks(a, b, estimator))


def _gathered(a: CentredRows, b: CentredRows, sums: dict[str, _Sum]) -> InnerProducts:
    values = (sums[name].value for name in ("xy", "xx", "yy"))
    constant = (
        side.is_constant or sums[own].value <= sums[own].rounding
        for own, side in (("xx", a), ("yy", b))
    )
    return InnerProducts(a.n, *values, *constant)


def _one_batch(x, y, estimator, gram, bandwidth) -> tuple[InnerProducts, bool]:
    """The products, and whether they have lost digits."""
    sides = [x] if y is x else [x, y]
    stack = GramStack(
        ["x", "y"][: len(sides)],
        x.shape[0],
        estimator=estimator,
        gram=gram,
        bandwidth=bandwidth,
        device=x.device,
    )
    stack.put_all(sides)
    h = hsic_pairs(stack.packed).cpu()
    sums = stack.summary[:, :4].cpu()
    constant = conditioning.is_constant(sums, stack.eps)
    lost_digits = bool(conditioning.has_lost_digits(sums, stack.eps).any())
    last = len(sides) - 1
    values = (float(h[i, j]) for i, j in ((0, last), (0, 0), (last, last)))
    return InnerProducts(stack.n, *values, bool(constant[0]), bool(constant[last])), lost_digits


def _row_blocks(a: CentredRows | None, b: CentredRows | None, estimator: str) -> dict[str, _Sum]:
    """Inner products of those that are given, each block of K and L formed once."""
    sides = {"x": a} if b is a else {name: s for name, s in (("x", a), ("y", b)) if s is not None}
    names = [first + second for first in sides for second in sides if first <= second]
    sums = dict.fromkeys(names, 0.0)
    squares = dict.fromkeys(sides, 0.0)
    offsets = {name: _offsets(side, estimator) for name, side in sides.items()}
    for i, j in next(iter(sides.values())).pairs_of_blocks():
        times = 1 if i == j else 2
        centred = {}
        for name, side in sides.items():
            k = side.gram_block(i, j)
            squares[name] += times * float(k.square().sum())
            per_row, grand = offsets[name]
            k = k - per_row[i, None] - per_row[j] + grand
            if i == j and estimator == "unbiased":
                k.fill_diagonal_(0)
            centred[name] = k
        for name in names:
            sums[name] += times * float((centred[name[0]] * centred[name[1]]).sum())
    found = {}
    for name, value in sums.items():
        side = sides[name[0]]
        hollow = squares[name[0]] - float(side.diagonal.square().sum())
        in_float32 = side.eps > torch.finfo(torch.float64).eps
        lost_digits = in_float32 and hollow > conditioning.DIGITS_LOST**2 * value
        found[name] = _Sum(value, (conditioning.PRODUCTS * side.eps) ** 2 * hollow, lost_digits)
    if b is a:
        found |= {"xy": found["xx"], "yy": found["xx"]}
    return found


def _offsets(side: CentredRows, estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    n, sums = side.n, side.row_sums()
    if estimator == "biased":
        sums = sums + side.diagonal
        return sums / n, sums.sum() / n**2
    return sums / (n - 2), sums.sum() / ((n - 1) * (n - 2))


def _feature_space(a: CentredRows, b: CentredRows, estimator: str) -> _Sum:
    """‖XᵀY‖² and the terms of the diagonal, in float64 on centred features."""
    n = a.n
    cross = math.fsum(
        float(_cross_block(a, b, i, j).square().sum()) for i in a.features() for j in b.features()
    )
    if estimator == "biased":
        return _Sum(cross, 0.0, lost_digits=False)
    k, l_ = a.diagonal, b.diagonal
    own = float(k @ l_) * n / (n - 2)
    totals = float(k.sum()) * float(l_.sum()) / ((n - 1) * (n - 2))
    value = cross - own + totals
    rounding = conditioning.PRODUCTS * torch.finfo(torch.float64).eps * (cross + own + totals)
    # A million times its rounding: six digits and more. Row blocks subtract before they square.
    return _Sum(value, rounding, lost_digits=value < 1e6 * rounding)


def _cross_block(a: CentredRows, b: CentredRows, i: slice, j: slice) -> torch.Tensor:
    return sum(a.centred(rows, i).T @ b.centred(rows, j) for rows in a.blocks())
