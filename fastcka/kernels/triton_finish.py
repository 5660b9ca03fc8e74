"""finish in Triton, of many layers at once: see csrc/cpu/finish.cpp for the formulas.

Three launches, a program a row and layer: row sums, centre and pack, summary. float64 throughout,
and every sum in one fixed order.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def row_sums_kernel(
    k,  # [L, n, n]; of each only the lower triangle is read
    diagonal,
    row_sums,
    n,
    diagonal_stride,
    row_sums_stride,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    k += layer * n * n
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    place = tl.where(columns < row, row * n + columns, columns * n + row)
    values = tl.load(k + place, (columns < n) & (columns != row), 0.0)
    tl.store(row_sums + layer * row_sums_stride + row, tl.sum(values, 0))
    own = tl.load(k + row * n + row)
    tl.store(diagonal + layer * diagonal_stride + row, own)


@triton.jit
def centre_and_pack_kernel(
    k,
    diagonal,
    row_sums,
    packed,
    squares,  # [L, n, 2]: of each row, what it adds to |centred|² and to |k without diagonal|²
    n,
    diagonal_stride,
    row_sums_stride,
    packed_stride,
    BIASED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    diagonal += layer * diagonal_stride
    row_sums += layer * row_sums_stride
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    sums = tl.load(row_sums + columns, columns < n, 0.0)
    own = tl.load(row_sums + row)
    count = n.to(tl.float64)
    if BIASED:
        sums += tl.load(diagonal + columns, columns < n, 0.0)
        own += tl.load(diagonal + row)
        per_row = 1 / count
        grand = tl.sum(sums, 0) / (count * count)
        start = row * (row + 1) // 2
        length = row + 1
    else:
        per_row = 1 / (count - 2)
        grand = tl.sum(sums, 0) / ((count - 1) * (count - 2))
        start = row * (row - 1) // 2
        length = row
    values = tl.load(k + layer * n * n + row * n + columns, columns <= row, 0.0)
    centred = values - (own + sums) * per_row + grand
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
    stats,  # [L, 3], of gram
    summary,
    n,
    diagonal_stride,
    summary_stride,
    COLUMNS: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, COLUMNS)
    squares += layer * n * 2
    centred = tl.sum(tl.load(squares + 2 * rows, rows < n, 0.0), 0)
    hollow = tl.sum(tl.load(squares + 2 * rows + 1, rows < n, 0.0), 0)
    own = tl.load(diagonal + layer * diagonal_stride + rows, rows < n, 0.0)
    count = n.to(tl.float64)
    common = count * tl.load(stats + 3 * layer)
    raw = hollow + tl.sum(own * own, 0) + common * common
    summary += layer * summary_stride
    tl.store(summary, centred)
    tl.store(summary + 1, hollow)
    tl.store(summary + 2, tl.load(stats + 3 * layer + 2))
    tl.store(summary + 3, tl.load(stats + 3 * layer + 1))
    # As a ratio of roots: the square of the raw norm may leave float64 where its root does not.
    rms = tl.sqrt(centred / (count * (count - 1)))
    tl.store(summary + 4, tl.sqrt(raw) / count / rms)


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    views = [part[None] for part in (k, stats, packed, diagonal, row_sums, summary)]
    finish_all(*views, estimator)


def finish_all(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    """finish of layers [L, ...]."""
    layers, n, _ = k.shape
    k = k.contiguous()
    squares = k.new_empty(layers, n, 2)
    columns = triton.next_power_of_2(n)
    strides = diagonal.stride(0), row_sums.stride(0)
    with torch.cuda.device_of(k):
        row_sums_kernel[(n, layers)](k, diagonal, row_sums, n, *strides, COLUMNS=columns)
        centre_and_pack_kernel[(n, layers)](
            k,
            diagonal,
            row_sums,
            packed,
            squares,
            n,
            *strides,
            packed.stride(0),
            BIASED=estimator == "biased",
            COLUMNS=columns,
        )
        summary_kernel[(layers,)](
            squares,
            diagonal,
            stats,
            summary,
            n,
            diagonal.stride(0),
            summary.stride(0),
            COLUMNS=columns,
        )
