"""The operations as the rest of the package calls them: checks, allocates, dispatches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcka.kernels import dispatch
from fastcka.kernels.layout import as_rows
from fastcka.options import ESTIMATORS, check_choice

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERANDS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class Gram(NamedTuple):
    """The Gram matrix of a batch, and what centring took away; float64.

    k: [n, n], the lower triangle. stats: [3], |c|², Σ|x_i|², Σ|x_i − c|².
    """

    k: torch.Tensor
    stats: torch.Tensor


class Finished(NamedTuple):
    """A centred, packed Gram matrix, and what it takes to recover the Gram matrix from it; float64.

    packed: [packed_length(n, estimator)], the lower triangle row by row. diagonal: [n], of k.
    row_sums: [n], of k without its diagonal. summary: [5], |centred|², |k without diagonal|²,
    Σ|x_i − c|², Σ|x_i|², and the conditioning, |raw k| / rms(centred).
    """

    packed: torch.Tensor
    diagonal: torch.Tensor
    row_sums: torch.Tensor
    summary: torch.Tensor


def gram(
    x: torch.Tensor, *, operand: str | torch.dtype | None = None, backend: str | None = None
) -> Gram:
    """Multiply the centred rows of a batch of activations with each other.

    k = (x − c)(x − c)ᵀ with c the mean row. Centred HSIC does not see c, but its digits do: c, or a
    row near it, is subtracted before any product of reduced precision; by Triton not from 16-bit
    values where sums lose no more than rounding centred ones may.

    Args:
        x: [n, ...], float16, bfloat16, float32 or float64; read in place where rows are dense.
        operand: type of the values that are multiplied, "fp32", "fp16" or "bf16"; None is fp32 on
            a CPU, and on a GPU the type of 16-bit activations. float64 activations are multiplied
            in float64.
        backend: "native", "triton" or "torch"; None picks, see `fastcka info`.

    Returns:
        `Gram` on the device of x; only the lower triangle of k is defined.

    Raises:
        TypeError: x is no floating tensor of those types, or float64 with an operand of 16 bits.
        ValueError: x has fewer than two dimensions, or no rows or features; unknown operand.
        RuntimeError: the backend asked for cannot run here.

    Precision: products of 16- and 32-bit values are added up in float32 over 16,384 features at
    most, then in float64.
    Cost: n²p flop on the triangle, n·p values read once, 8n² bytes written.

    >>> k, stats = gram(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> k.tril()
    tensor([[ 1.,  0.],
            [-1.,  1.]], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return Gram(*torch.ops.fastcka.gram(x, _name_of(operand), backend))
    check_activations(x, "x")
    rows = as_rows(x)
    operand = resolve_operand(operand_dtype(operand), rows)
    k = torch.empty(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device)
    stats = torch.empty(3, dtype=torch.float64, device=rows.device)
    version = dispatch.choose("gram", rows.device, rows.dtype, len(rows), backend)
    version(rows, operand, k, stats)
    return Gram(k, stats)


def finish(
    batch: Gram,
    *,
    estimator: str = "unbiased",
    into: Finished | None = None,
    backend: str | None = None,
) -> Finished:
    """Centre a Gram matrix and pack its triangle, so that one inner product is ⟨U(K), U(L)⟩.

    unbiased: the off-diagonal entries k_ij − (r_i + r_j)/(n−2) + s/((n−1)(n−2)), r and s the row
    sums and the total without the diagonal, times √2 [Székely & Rizzo 2014].
    biased: H k H, its off-diagonal entries times √2 [Gretton et al. 2005].

    Args:
        batch: of `gram` or `rbf`; only the lower triangle is read.
        estimator: "unbiased" (n >= 4) or "biased" (n >= 2).
        into: tensors to write to, for example rows of larger ones; None allocates.
        backend: as in `gram`.

    Returns:
        `Finished`. Where an entry is inf or NaN, so are the norms in the summary.

    Raises:
        TypeError: the matrix is not float64.
        ValueError: the estimator is unknown, or n too small for it.

    Precision: float64. Cost: about 3n²/2 values read or written.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> finish(gram(x)).packed.shape
    torch.Size([6])
    """
    if torch.compiler.is_compiling():
        return _copied(torch.ops.fastcka.finish(*batch, estimator, backend), into)
    check_float64(batch.k, "batch.k")
    n = batch.k.shape[0]
    length = packed_length(n, estimator)
    if into is None:
        into = Finished(*(batch.k.new_empty(size) for size in (length, n, n, 5)))
    version = dispatch.choose("finish", batch.k.device, batch.k.dtype, n, backend)
    version(*batch, *into, estimator)
    return into


def gram_finish(
    layers: Sequence[torch.Tensor],
    *,
    estimator: str = "unbiased",
    operand: str | torch.dtype | None = None,
    into: Finished | None = None,
    backend: str | None = None,
) -> Finished:
    """`gram` and `finish` of layers of the same examples, without the matrices between them.

    Args:
        layers: activations x [n, ...] each, as `gram` takes them.
        estimator, backend: as in `finish`.
        operand: as in `gram`, for every layer.
        into: tensors [L, ...] to write to; None allocates.

    Returns:
        `Finished` with a row a layer: packed [L, m], diagonal and row_sums [L, n], summary [L, 5].

    Raises:
        As `gram` and `finish`. ValueError: there are no layers, or they differ in examples.
        RuntimeError: they are on different devices.

    Precision and cost: those of the two. Layers of fewer than 4,096 features are dealt out where
    there is one for each thread, so that a call costs some microseconds a layer; so the last digits
    of a layer may depend on its company.

    >>> gram_finish([torch.eye(4), torch.rand(4, 9)]).packed.shape
    torch.Size([2, 6])
    """
    if isinstance(layers, torch.Tensor):
        raise TypeError("`layers` must be a list of tensors, one a layer, but is a tensor")
    layers = list(layers)
    if torch.compiler.is_compiling():
        name = _name_of(operand)
        return _copied(torch.ops.fastcka.gram_finish(layers, estimator, name, backend), into)
    for index, x in enumerate(layers):
        check_activations(x, f"layers[{index}]")
    rows = [as_rows(x) for x in layers]
    sizes = {len(x) for x in rows}
    if len(sizes) != 1:
        raise ValueError(
            f"`layers` must hold the same examples, but have {sorted(sizes)} of them"
            if sizes
            else "`layers` is empty; give the activations of one layer or more"
        )
    devices = sorted({str(x.device) for x in rows})
    if len(devices) > 1:
        raise RuntimeError(f"`layers` must be on one device, but are on {' and '.join(devices)}")
    first, n = rows[0], len(rows[0])
    length = packed_length(n, estimator)
    operand = operand_dtype(operand)
    operands = [resolve_operand(operand, x) for x in rows]
    if into is None:
        shape = {"dtype": torch.float64, "device": first.device}
        into = Finished(*(torch.empty(len(rows), size, **shape) for size in (length, n, n, 5)))
    # By the type of the first: each version takes layers of any.
    version = dispatch.choose("gram_finish", first.device, first.dtype, n, backend)
    version(rows, operands, *into, estimator)
    return into


def hsic_pairs(
    a: torch.Tensor, b: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Take the inner products of all layers of one stack with all layers of another.

    out_ij = ⟨a_i, b_j⟩; of packed triangles, n(n−3)·HSIC_1 (unbiased) or (n−1)²·HSIC (biased).

    Args:
        a: [L, m] float64. b: [M, m] float64; None compares a with itself.
        backend: as in `gram`.

    Returns:
        [L, M] float64.

    Raises:
        TypeError: a stack is not float64. ValueError: its rows are not dense, or those of the two
            differ in length. RuntimeError: they are on different devices.

    Cost: 2·L·M·m flop.

    >>> hsic_pairs(torch.eye(2, dtype=torch.float64))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return torch.ops.fastcka.hsic_pairs(a, b, backend)
    b = a if b is None else b
    check_float64(a, "a")
    check_float64(b, "b")
    for name, stack in (("a", a), ("b", b)):
        if stack.shape[1] > 1 and stack.stride(1) != 1:
            raise ValueError(f"`{name}` must be dense along its rows; use {name}.contiguous()")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"`a` has rows of {a.shape[1]} entries and `b` of {b.shape[1]}: give stacks of the "
            "same examples and estimator"
        )
    if b.device != a.device:
        raise RuntimeError(f"`a` is on {a.device} and `b` on {b.device}; move one to the other")
    out = a.new_empty(a.shape[0], b.shape[0])
    if not (out.numel() and a.shape[1]):  # nothing for a kernel to do
        return out.zero_()
    n = math.isqrt(2 * a.shape[1])  # or one more or less: a row is half of a matrix
    dispatch.choose("hsic_pairs", a.device, a.dtype, n, backend)(a, b, out)
    return out


def packed_length(n: int, estimator: str) -> int:
    """Entries of a packed row: n(n−1)/2 unbiased, n(n+1)/2 biased."""
    check_choice("estimator", estimator, ESTIMATORS)
    smallest = 4 if estimator == "unbiased" else 2
    if n < smallest:
        raise ValueError(f"{estimator} HSIC needs at least {smallest} examples, but there are {n}")
    return n * (n - 1) // 2 if estimator == "unbiased" else n * (n + 1) // 2


def packed_place(rows, columns, estimator: str):
    """Where entries of a symmetric matrix lie in its packed row; of whole numbers or arrays.

    >>> [packed_place(row, column, "unbiased") for row, column in ((1, 0), (2, 0), (1, 2))]
    [0, 1, 2]
    """
    high = (rows + columns + abs(rows - columns)) // 2
    # Row i begins behind the i rows above it: of 0, 1, …, i − 1 entries, or one more each.
    starts = high * (high - 1) // 2 if estimator == "unbiased" else high * (high + 1) // 2
    return starts + rows + columns - high


def check_activations(x: torch.Tensor, name: str) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, but is {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"`{name}` must be float16, bfloat16, float32 or float64, but is {x.dtype}; "
            f"convert it, for example with `{name}.float()`"
        )
    if x.layout != torch.strided:
        raise TypeError(f"`{name}` must be a dense tensor, but is {x.layout}; use .to_dense()")
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` must have one row an example, [n, ...], but has shape {list(x.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(f"`{name}` is empty: its shape is {list(x.shape)}")


def check_float64(x: torch.Tensor, name: str) -> None:
    came = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
    if came != torch.float64:
        raise TypeError(f"`{name}` must be a tensor of float64, but is {came}")


def resolve_operand(operand: torch.dtype | None, x: torch.Tensor) -> torch.dtype:
    if operand is None:
        return x.dtype if x.is_cuda or x.dtype == torch.float64 else torch.float32
    if x.dtype == torch.float64:
        if operand != torch.float32:
            raise TypeError(
                f"float64 activations are multiplied in float64, not in {operand}; "
                "convert them to float32 first"
            )
        return torch.float64
    return operand


def operand_dtype(operand: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that an `operand` argument names: "fp32", "fp16", "bf16", a dtype, or None."""
    if operand is None or (isinstance(operand, torch.dtype) and operand in OPERANDS.values()):
        return operand
    if isinstance(operand, str) and operand in OPERANDS:
        return OPERANDS[operand]
    raise ValueError(f"`operand` must be 'fp32', 'fp16' or 'bf16', but is {operand!r}")


def _name_of(operand: str | torch.dtype | None) -> str | None:
    """As operators take it."""
    return next((name for name, dtype in OPERANDS.items() if dtype == operand), operand)


def _copied(parts: tuple[torch.Tensor, ...], into: Finished | None) -> Finished:
    """What an operator returns, where it is wanted."""
    if into is None:
        return Finished(*parts)
    for to, part in zip(into, parts, strict=True):
        to.copy_(part)
    return into
