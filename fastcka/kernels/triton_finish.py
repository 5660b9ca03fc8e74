"""finish in Triton, of many layers at once: see csrc/cpu/finish.cpp for the formulas.

Three launches, a program a row and layer: row sums, centre and pack, summary. float64 throughout,
and every sum in one fixed order. A Gram matrix of rows less some common row c is as good as one of
rows less their mean: its entries are k_ij − m_i − m_j + m, with m_i and m the means of its rows and
of all, and its rows sum to 0, the diagonal included.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def row_sums_kernel(
    k,  # [L, n, n]; of each only the lower triangle is read
    sums,  # [L, n, 2]: of each row without the diagonal, and the diagonal
    n,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    k += layer * n * n
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    place = tl.where(columns < row, row * n + columns, columns * n + row)
    values = tl.load(k + place, (columns < n) & (columns != row), 0.0)
    sums += 2 * (layer * n + row)
    tl.store(sums, tl.sum(values, 0))
    tl.store(sums + 1, tl.load(k + row * n + row))


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
    PIVOTED: tl.constexpr,  # whether k is of rows less a common row other than their mean
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    sums += 2 * layer * n
    hollow = tl.load(sums + 2 * columns, columns < n, 0.0)
    own = tl.load(sums + 2 * columns + 1, columns < n, 0.0)
    count = n.to(tl.float64)
    values = tl.load(k + layer * n * n + row * n + columns, columns <= row, 0.0)
    if PIVOTED:
        means = (hollow + own) / count
        mean = tl.sum(means, 0) / count
        mine = (tl.load(sums + 2 * row) + tl.load(sums + 2 * row + 1)) / count
        values = tl.where(columns <= row, values - means - mine + mean, 0.0)
        own = tl.where(columns < n, own - 2 * means + mean, 0.0)
        hollow = -own
    hollow_here = tl.sum(tl.where(columns == row, hollow, 0.0), 0)
    own_here = tl.sum(tl.where(columns == row, own, 0.0), 0)
    tl.store(diagonal + layer * diagonal_stride + row, own_here)
    tl.store(row_sums + layer * row_sums_stride + row, hollow_here)

    if BIASED:
        hollow += own
        hollow_here += own_here
        per_row = 1 / count
        grand = tl.sum(hollow, 0) / (count * count)
        start = row * (row + 1) // 2
        length = row + 1
    else:
        per_row = 1 / (count - 2)
        grand = tl.sum(hollow, 0) / ((count - 1) * (count - 2))
        start = row * (row - 1) // 2
        length = row
    centred = values - (hollow_here + hollow) * per_row + grand
    # A number written out would be one of float32.
    root2 = tl.sqrt(tl.full((), 2.0, tl.float64))
    centred = tl.where(columns == row, centred, root2 * centred)
    centred = tl.where(columns < length, centred, 0.0)
    tl.store(packed + layer * packed_stride + start + columns, centred, columns < length)
    below = tl.where(columns < row, values, 0.0)
    place = squares + (layer * n + row) * 2
    tl.store(place, tl.sum(centred * centred, 0))
    tl.store(place + 1, 2 * tl.sum(below * below, 0))


@triton.jit
def summary_kernel(
    squares,
    diagonal,
    stats,  # of gram: [L, 3] of k; or [L, blocks]: mean squares of sampled rows, where PIVOTED
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
    count = n.to(tl.float64)
    stats += layer * blocks
    if PIVOTED:
        spread = tl.sum(own, 0)
        norms = tl.zeros((COLUMNS,), tl.float64)
        for first in range(0, blocks, COLUMNS):
            norms += tl.load(stats + first + rows, first + rows < blocks, 0.0)
        whole = count * tl.sum(norms, 0)
        whole = tl.where(whole > spread, whole, spread)  # of few rows; NaN where spread is
        common = whole - spread
    else:
        spread = tl.load(stats + 2)
        whole = tl.load(stats + 1)
        common = count * tl.load(stats)
    raw = hollow + tl.sum(own * own, 0) + common * common
    summary += layer * summary_stride
    tl.store(summary, centred)
    tl.store(summary + 1, hollow)
    tl.store(summary + 2, spread)
    tl.store(summary + 3, whole)
    # As a ratio of roots: the square of the raw norm may leave float64 where its root does not.
    rms = tl.sqrt(centred / (count * (count - 1)))
    tl.store(summary + 4, tl.sqrt(raw) / count / rms)


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
    sums, squares = k.new_empty(layers, n, 2), k.new_empty(layers, n, 2)
    columns = triton.next_power_of_2(n)
    with torch.cuda.device_of(k):
        row_sums_kernel[(n, layers)](k, sums, n, COLUMNS=columns)
        centre_and_pack_kernel[(n, layers)](
            k,
            sums,
            packed,
            diagonal,
            row_sums,
            squares,
            n,
            packed.stride(0),
            diagonal.stride(0),
            row_sums.stride(0),
            BIASED=estimator == "biased",
            PIVOTED=pivoted,
            COLUMNS=columns,
        )
        summary_kernel[(layers,)](
            squares,
            diagonal,
            stats,
            summary,
            n,
            stats.shape[1],
            diagonal.stride(0),
            summary.stride(0),
            PIVOTED=pivoted,
            COLUMNS=columns,
        )
