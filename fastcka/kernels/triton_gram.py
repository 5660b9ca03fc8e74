"""gram in Triton, of many layers at once: sample a common row, multiply, add up, centre.

1. `sample_kernel`: the mean of a few rows, the pivot. It is subtracted before any product of
   reduced precision, in place of the mean of all rows, which would cost a second reading.
2. `products_kernel`: one launch for the products of all layers, dealt out by `schedule`. Every
   program leaves what it added up in a slot of its own, in float32.
3. `add_up_kernel`: the sum of the slots, in float64, in their order.
4. `row_means_kernel`, `recentre_kernel`: from rows less the pivot to rows less their mean, exactly.

Nothing here waits for the GPU, and the order of every sum is fixed.
"""

import triton
import triton.language as tl

# A segment in the table of `products_kernel`: int64 each.
FIELDS = tl.constexpr(9)


@triton.jit
def sample_kernel(
    base,  # address of an activation; where the others lie is told as distances from it
    layers,  # [L, 4] int64: distance, stride of rows, features, and place in `pivots` by 16
    pivots,  # float32: of each layer, its features and zeros up to a whole number of steps
    largest,  # [L] int32: the bits of the largest sampled magnitude, 0 before
    norms,  # [L, blocks] float64: of each block, the mean of the sampled rows' squares
    n,
    DTYPE: tl.constexpr,
    PIECE: tl.constexpr,  # unit of distances, strides and features, in values
    ROWS: tl.constexpr,  # that are sampled
    BLOCK: tl.constexpr,
    PADDING: tl.constexpr,
):
    block = tl.program_id(0)
    layer = tl.program_id(1)
    x = _pointer(base, tl.load(layers + 4 * layer), DTYPE, PIECE)
    stride = tl.load(layers + 4 * layer + 1) * PIECE
    features = tl.load(layers + 4 * layer + 2) * PIECE
    pivots += tl.load(layers + 4 * layer + 3) * 16

    columns = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS) * n // ROWS
    exist = columns < features
    values = tl.load(x + rows[:, None] * stride + columns[None, :], exist[None, :], 0.0)
    values = values.to(tl.float32)
    # Around the first row, so that the pivot of equal rows is that row to the last bit.
    first = tl.load(x + columns, exist, 0.0).to(tl.float32)
    pivot = first + tl.sum(values - first[None, :], 0) / ROWS
    padded = (features + PADDING - 1) // PADDING * PADDING
    tl.store(pivots + columns, pivot, columns < padded)
    # Bits of positive numbers are ordered as the numbers are.
    magnitude = tl.max(tl.max(tl.abs(values), 1), 0)
    tl.atomic_max(largest + layer, magnitude.to(tl.int32, bitcast=True))
    wide = values.to(tl.float64)
    square = tl.sum(tl.sum(wide * wide, 1), 0) / ROWS
    tl.store(norms + layer * tl.num_programs(0) + block, square)


@triton.jit
def products_kernel(  # noqa: C901 - one branch a tile, all decided when it is compiled
    base,
    segments,  # [S, FIELDS] int64: as in `layers`, layer, rows of the blocks, steps from and to
    begins,  # [programs + 1] int64
    pivots,
    largest,
    partials,  # [S, products of a tile] float32
    n,
    DTYPE: tl.constexpr,
    OPERAND: tl.constexpr,  # type of what is multiplied
    PRECISION: tl.constexpr,  # of float32 products
    PIECE: tl.constexpr,
    INDEX: tl.constexpr,  # int64 where 256 rows and more lie beyond 2^31 values
    KIND: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
    BY_WIDENING: tl.constexpr,  # bfloat16 in float32, where there is no product of it
):
    program = tl.program_id(0)
    for s in range(tl.load(begins + program), tl.load(begins + program + 1)):
        entry = segments + s * FIELDS
        x = _pointer(base, tl.load(entry), DTYPE, PIECE)
        stride = tl.load(entry + 1) * PIECE
        features = tl.load(entry + 2).to(tl.int32) * PIECE
        pivot = pivots + tl.load(entry + 3) * 16
        scale = _scale(tl.load(largest + tl.load(entry + 4)))
        row_a = tl.load(entry + 5)
        row_b = tl.load(entry + 6)
        start = tl.load(entry + 7).to(tl.int32)
        stop = tl.load(entry + 8).to(tl.int32)
        slot = partials + s * _products(KIND, A, B)

        # Rows that do not exist are read as the last: their products are never looked at.
        within = stride.to(INDEX)
        from_a = tl.minimum(tl.arange(0, A), n - 1 - row_a).to(INDEX)[:, None] * within
        from_b = tl.minimum(tl.arange(0, B), n - 1 - row_b).to(INDEX)[:, None] * within
        x_a = x + row_a * stride
        x_b = x + row_b * stride
        for chunk in range(start, stop, CHUNK // STEP):
            if KIND != "pair":
                aa = tl.zeros((A, A), tl.float32)
            if KIND == "pair":
                ab = tl.zeros((A, B), tl.float32)
            if KIND == "triangle":
                ba = tl.zeros((B, A), tl.float32)
                bb = tl.zeros((B, B), tl.float32)
            for step in range(chunk, tl.minimum(chunk + CHUNK // STEP, stop)):
                columns = step * STEP + tl.arange(0, STEP)
                common = tl.load(pivot + columns)
                exist = (columns < features)[None, :]
                a = tl.load(x_a + (from_a + columns[None, :]), exist, 0.0)
                a = _centred(a, common, scale, OPERAND, BY_WIDENING)
                if KIND != "pair":
                    aa = tl.dot(a, tl.trans(a), aa, input_precision=PRECISION)
                if KIND != "square":
                    b = tl.load(x_b + (from_b + columns[None, :]), exist, 0.0)
                    b = _centred(b, common, scale, OPERAND, BY_WIDENING)
                if KIND == "pair":
                    ab = tl.dot(a, tl.trans(b), ab, input_precision=PRECISION)
                if KIND == "triangle":
                    ba = tl.dot(b, tl.trans(a), ba, input_precision=PRECISION)
                    bb = tl.dot(b, tl.trans(b), bb, input_precision=PRECISION)
            again = chunk > start
            if KIND != "pair":
                _keep(slot, aa, again, A, A)
            if KIND == "pair":
                _keep(slot, ab, again, A, B)
            if KIND == "triangle":
                _keep(slot + A * A, ba, again, B, A)
                _keep(slot + A * A + B * A, bb, again, B, B)


@triton.jit
def _pointer(base, distance, DTYPE: tl.constexpr, PIECE: tl.constexpr):
    """A number until here: from a pointer some GPUs reach no further than 2^31 bytes."""
    step: tl.constexpr = PIECE * DTYPE.primitive_bitwidth // 8
    address = base + distance * step
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), step)


@triton.jit
def _centred(x, common, scale, OPERAND: tl.constexpr, BY_WIDENING: tl.constexpr):
    x = (x.to(tl.float32) - common[None, :]) * scale
    if BY_WIDENING:  # to bfloat16 and back: rounded to nearest, ties to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True)
    return x.to(OPERAND)


@triton.jit
def _scale(bits):
    """The power of two that takes the largest sampled value into [1, 2)."""
    exponent = bits >> 23
    scale = ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)
    return tl.where((bits == 0) | (exponent == 255), 1.0, scale)


@triton.jit
def _keep(slot, values, again, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    places = slot + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if again:  # by the memory: there are no registers left to add it up in, and nobody else adds
        tl.atomic_add(places, values, sem="relaxed")
    else:
        tl.store(places, values)


@triton.constexpr_function
def _products(KIND, A, B):
    return {"square": A * A, "pair": A * B, "triangle": A * A + A * B + B * B}[KIND]


@triton.jit
def add_up_kernel(
    works,  # [W, 5] int64: layer, row of the first block, of the second, first slot, last slot + 1
    partials,
    largest,
    k,  # [L, n, n] float64: the lower triangle
    n,
    KIND: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    SIDE: tl.constexpr,  # of the piece that a program adds up
):
    work = works + 5 * tl.program_id(0)
    layer = tl.load(work)
    first = tl.load(work + 1)
    second = tl.load(work + 2)
    # Which product of the tile, and which piece of it.
    part = tl.program_id(1)
    offset = 0
    rows = first
    columns = second
    width = B
    if KIND == "square":
        columns = first
        width = A
    if KIND == "triangle":
        pieces: tl.constexpr = (A // SIDE) * (A // SIDE)
        offset = part // pieces * (A * A)
        rows = tl.where(part // pieces > 0, second, first)
        columns = tl.where(part // pieces > 1, second, first)
        part = part % pieces
    row = part // (width // SIDE) * SIDE + tl.arange(0, SIDE)[:, None]
    column = part % (width // SIDE) * SIDE + tl.arange(0, SIDE)[None, :]
    wanted = (rows + row < n) & (columns + column <= rows + row)
    total = tl.zeros((SIDE, SIDE), tl.float64)
    for slot in range(tl.load(work + 3), tl.load(work + 4)):
        values = partials + slot * _products(KIND, A, B) + offset + row * width + column
        total += tl.load(values, wanted, 0.0).to(tl.float64)
    scale = _scale(tl.load(largest + layer)).to(tl.float64)
    total = total / scale / scale
    to = k + layer * n * n + (rows + row) * n + columns + column
    tl.store(to, total, wanted)


@triton.jit
def row_means_kernel(k, means, n, COLUMNS: tl.constexpr):
    """Of the whole symmetric matrix, of which only the lower triangle is there."""
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    k += layer * n * n
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    place = tl.where(columns <= row, row * n + columns, columns * n + row)
    values = tl.load(k + place, columns < n, 0.0)
    tl.store(means + layer * n + row, tl.sum(values, 0) / n)


@triton.jit
def recentre_kernel(k, means, n, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    others = tl.load(means + layer * n + columns, columns < n, 0.0)
    own = tl.load(means + layer * n + row)
    mean = tl.sum(others, 0) / n
    place = k + layer * n * n + row * n + columns
    values = tl.load(place, columns <= row, 0.0)
    tl.store(place, values - own - others + mean, columns <= row)
