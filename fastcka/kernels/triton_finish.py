"""finish in Triton, of many layers at once: see csrc/cpu/finish.cpp for the formulas.

Of few examples a program takes a whole matrix; else there are three launches, a program a row and
layer: row sums, centre and pack, summary. float64 throughout, every sum in one fixed order.

A Gram matrix of rows less some common row c, "pivoted", is as good as one of rows less their mean:
its entries are k_ij − m_i − m_j + m, with m_i and m the means of its rows and of all, and its rows
sum to 0, the diagonal included.
"""

import torch
import triton
import triton.language as tl

from fastcka.kernels.triton_versions import FUSED

# Examples up to which a program takes a whole matrix: of 128 the registers do not hold it.
WHOLE = 64


@triton.jit
def _read_rows(k, rows, columns, n):
    """[rows, columns] of a symmetric matrix of which the lower triangle is there."""
    i, j = rows[:, None], columns[None, :]
    place = tl.where(j < i, i * n + j, j * n + i)
    return tl.load(k + place, (i < n) & (j < n), 0.0)


@triton.jit
def _row_sums(values, rows, columns):
    """Of each row without the diagonal, and the diagonal."""
    on_diagonal = rows[:, None] == columns[None, :]
    return tl.sum(tl.where(on_diagonal, 0.0, values), 1), tl.sum(
        tl.where(on_diagonal, values, 0.0), 1
    )


@triton.jit
def _recentred(values, hollow_of_rows, own_of_rows, hollow, own, exist, n):
    """Values, and sums of their rows and of all columns, of the matrix of rows less their mean."""
    count = n.to(tl.float64)
    means_of_rows = (hollow_of_rows + own_of_rows) / count
    means = (hollow + own) / count
    mean = tl.sum(means, 0) / count
    values = values - means_of_rows[:, None] - means[None, :] + mean
    own_of_rows = own_of_rows - 2 * means_of_rows + mean
    own = tl.where(exist, own - 2 * means + mean, 0.0)
    return values, -own_of_rows, own_of_rows, -own, own


@triton.jit
def _centre_and_pack(
    values,  # [rows, columns] of a Gram matrix of centred rows
    rows,
    columns,
    hollow_of_rows,
    own_of_rows,
    hollow,  # [columns]
    own,
    packed,
    n,
    BIASED: tl.constexpr,
):
    """Writes the packed rows. Returns what each adds to |centred|² and to |k without diagonal|²."""
    count = n.to(tl.float64)
    if BIASED:
        hollow_of_rows += own_of_rows
        hollow += own
        per_row = 1 / count
        grand = tl.sum(hollow, 0) / (count * count)
        start = rows * (rows + 1) // 2
        length = rows + 1
    else:
        per_row = 1 / (count - 2)
        grand = tl.sum(hollow, 0) / ((count - 1) * (count - 2))
        start = rows * (rows - 1) // 2
        length = rows
    centred = values - (hollow_of_rows[:, None] + hollow[None, :]) * per_row + grand
    i, j = rows[:, None], columns[None, :]
    # A number written out would be one of float32.
    root2 = tl.sqrt(tl.full((), 2.0, tl.float64))
    centred = tl.where(i == j, centred, root2 * centred)
    kept = (j < length[:, None]) & (i < n)
    centred = tl.where(kept, centred, 0.0)
    tl.store(packed + start[:, None] + j, centred, kept)
    below = tl.where((j < i) & (i < n), values, 0.0)
    return tl.sum(centred * centred, 1), 2 * tl.sum(below * below, 1)


@triton.jit
def _summarise(
    centred,  # |centred|²
    hollow,  # |k without diagonal|²
    own,  # the diagonal
    stats,  # [3] of gram; or [blocks], mean squares of sampled rows, where PIVOTED
    summary,
    n,
    blocks,
    PIVOTED: tl.constexpr,
    TOGETHER: tl.constexpr,  # blocks that are read at once
):
    count = n.to(tl.float64)
    if PIVOTED:
        spread = tl.sum(own, 0)
        norms = tl.zeros((TOGETHER,), tl.float64)
        for first in range(0, blocks, TOGETHER):
            block = first + tl.arange(0, TOGETHER)
            norms += tl.load(stats + block, block < blocks, 0.0)
        whole = count * tl.sum(norms, 0)
        whole = tl.where(whole > spread, whole, spread)  # of few rows; NaN where spread is
        common = whole - spread
    else:
        spread = tl.load(stats + 2)
        whole = tl.load(stats + 1)
        common = count * tl.load(stats)
    raw = hollow + tl.sum(own * own, 0) + common * common
    tl.store(summary, centred)
    tl.store(summary + 1, hollow)
    tl.store(summary + 2, spread)
    tl.store(summary + 3, whole)
    # As a ratio of roots: the square of the raw norm may leave float64 where its root does not.
    rms = tl.sqrt(centred / (count * (count - 1)))
    tl.store(summary + 4, tl.sqrt(raw) / count / rms)


@triton.jit
def finish_kernel(
    k,  # [L, n, n]; of each only the lower triangle is read
    stats,
    packed,
    diagonal,
    row_sums,
    summary,
    n,
    blocks,
    packed_stride,
    diagonal_stride,
    row_sums_stride,
    summary_stride,
    BIASED: tl.constexpr,
    PIVOTED: tl.constexpr,  # whether k is of rows less a common row other than their mean
    COLUMNS: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    exist = columns < n
    values = _read_rows(k + layer * n * n, columns, columns, n)
    hollow, own = _row_sums(values, columns, columns)
    if PIVOTED:
        values, _, _, hollow, own = _recentred(values, hollow, own, hollow, own, exist, n)
    tl.store(diagonal + layer * diagonal_stride + columns, own, exist)
    tl.store(row_sums + layer * row_sums_stride + columns, hollow, exist)
    packed += layer * packed_stride
    centred, squares = _centre_and_pack(
        values, columns, columns, hollow, own, hollow, own, packed, n, BIASED
    )
    centred, squares = tl.sum(centred, 0), tl.sum(squares, 0)
    summary += layer * summary_stride
    stats += layer * blocks
    _summarise(centred, squares, own, stats, summary, n, blocks, PIVOTED, COLUMNS)


@triton.jit
def row_sums_kernel(
    k,
    sums,  # [L, n, 2]: of each row without the diagonal, and the diagonal
    n,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    layer = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    hollow, own = _row_sums(_read_rows(k + layer * n * n, rows, columns, n), rows, columns)
    sums += 2 * (layer * n + rows)
    tl.store(sums, hollow)
    tl.store(sums + 1, own)


@triton.jit
def centre_and_pack_kernel(
    k,
    sums,
    packed,
    diagonal,
    row_sums,
    squares,  # [L, n, 2]: of each row, what it adds to |centred|² and to |k without diagonal|²
    n,
    packed_stride,
    diagonal_stride,
    row_sums_stride,
    BIASED: tl.constexpr,
    PIVOTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    layer = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    exist = columns < n
    place = k + (layer * n + rows[:, None]) * n + columns[None, :]
    values = tl.load(place, columns[None, :] <= rows[:, None], 0.0)
    sums += 2 * layer * n
    hollow = tl.load(sums + 2 * columns, exist, 0.0)
    own = tl.load(sums + 2 * columns + 1, exist, 0.0)
    hollow_here = tl.load(sums + 2 * rows)
    own_here = tl.load(sums + 2 * rows + 1)
    if PIVOTED:
        values, hollow_here, own_here, hollow, own = _recentred(
            values, hollow_here, own_here, hollow, own, exist, n
        )
    tl.store(diagonal + layer * diagonal_stride + rows, own_here)
    tl.store(row_sums + layer * row_sums_stride + rows, hollow_here)
    packed += layer * packed_stride
    centred, below = _centre_and_pack(
        values, rows, columns, hollow_here, own_here, hollow, own, packed, n, BIASED
    )
    squares += (layer * n + rows) * 2
    tl.store(squares, centred)
    tl.store(squares + 1, below)


@triton.jit
def summary_kernel(
    squares,
    diagonal,
    stats,
    summary,
    n,
    blocks,
    diagonal_stride,
    summary_stride,
    PIVOTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, COLUMNS)
    squares += layer * n * 2
    centred = tl.sum(tl.load(squares + 2 * rows, rows < n, 0.0), 0)
    hollow = tl.sum(tl.load(squares + 2 * rows + 1, rows < n, 0.0), 0)
    own = tl.load(diagonal + layer * diagonal_stride + rows, rows < n, 0.0)
    stats += layer * blocks
    summary += layer * summary_stride
    _summarise(centred, hollow, own, stats, summary, n, blocks, PIVOTED, COLUMNS)


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    views = [part[None] for part in (k, stats, packed, diagonal, row_sums, summary)]
    finish_all(*views, estimator)


def finish_all(
    k, stats, packed, diagonal, row_sums, summary, estimator: str, pivoted: bool = False
) -> None:
    """finish of layers [L, ...].

    Args:
        pivoted: k is what `gpu_gram.Batch.multiply` leaves, and stats what it returns.
    """
    layers, n, _ = k.shape
    k, stats = k.contiguous(), stats.contiguous()
    blocks = stats.shape[1]
    strides = packed.stride(0), diagonal.stride(0), row_sums.stride(0)
    columns = triton.next_power_of_2(n)
    constants = {"PIVOTED": pivoted, "COLUMNS": columns} | FUSED
    biased = estimator == "biased"
    with torch.cuda.device_of(k):
        if n <= WHOLE:
            out = packed, diagonal, row_sums, summary
            strides = *strides, summary.stride(0)
            finish_kernel[(layers,)](
                k, stats, *out, n, blocks, *strides, BIASED=biased, **constants, num_warps=16
            )
            return
        sums, squares = k.new_empty(2, layers, n, 2)
        row_sums_kernel[(n, layers)](k, sums, n, COLUMNS=columns, **FUSED)
        centre_and_pack_kernel[(n, layers)](
            k, sums, packed, diagonal, row_sums, squares, n, *strides, BIASED=biased, **constants
        )
        strides = diagonal.stride(0), summary.stride(0)
        summary_kernel[(layers,)](
            squares, diagonal, stats, summary, n, blocks, *strides, **constants
        )
