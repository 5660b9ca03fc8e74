"""hsic_pairs in Triton: one product over the packed triangles, in float64.

The result is small and the sum long, so programs share the sum: each takes a run of entries of a
tile of pairs, and what they leave is added up in their order.
"""

import torch
import triton
import triton.language as tl

from fastcka.kernels.triton_versions import FUSED

# Pairs of a tile, entries a step, and the shortest run worth a program of its own.
TILE, STEP, RUN = 32, 32, 2048
# Partial results: 64 MB of 465 × 465 pairs.
MOST_RUNS = 32


@triton.jit
def hsic_kernel(
    a,
    b,
    partials,  # [runs, L, M] float64
    rows_a,
    rows_b,
    length,
    a_stride,
    b_stride,
    run,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    start = tl.program_id(2).to(tl.int64) * run
    # Rows that do not exist are read as the last: their products are not stored.
    a += tl.minimum(row, rows_a - 1).to(tl.int64)[:, None] * a_stride
    b += tl.minimum(column, rows_b - 1).to(tl.int64)[:, None] * b_stride
    total = tl.zeros((TILE, TILE), tl.float64)
    for k in range(start, tl.minimum(start + run, length), STEP):
        entries = k + tl.arange(0, STEP)
        exist = (entries < length)[None, :]
        x = tl.load(a + entries[None, :], exist, 0.0)
        y = tl.load(b + entries[None, :], exist, 0.0)
        total = tl.dot(x, tl.trans(y), total, out_dtype=tl.float64)
    place = tl.program_id(2).to(tl.int64) * rows_a + row[:, None]
    to = partials + place * rows_b + column[None, :]
    tl.store(to, total, (row < rows_a)[:, None] & (column < rows_b)[None, :])


def hsic_pairs(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    length = a.shape[1]
    runs = max(1, min(MOST_RUNS, length // RUN))
    run = -(-length // runs // STEP) * STEP
    runs = -(-length // run)
    partials = a.new_empty(runs, len(a), len(b))
    grid = (triton.cdiv(len(a), TILE), triton.cdiv(len(b), TILE), runs)
    with torch.cuda.device_of(a):
        hsic_kernel[grid](
            a,
            b,
            partials,
            len(a),
            len(b),
            length,
            a.stride(0),
            b.stride(0),
            run,
            TILE=TILE,
            STEP=STEP,
            **FUSED,
        )
    torch.sum(partials, 0, out=out)
    if a is b:
        out.copy_((out + out.T) / 2)  # the same bits on both sides
