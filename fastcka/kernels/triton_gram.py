"""gram in Triton, of many layers at once: sample a common row, multiply, add up, centre.

1. `sample_kernel`: the mean of a few rows, the pivot. It is subtracted before any product of
   reduced precision, in place of the mean of all rows, which would cost a second reading.
   `decide_kernel`: which layers of 16-bit values go without, as it would gain them nothing.
2. `products_kernel`: one launch for the products of all layers, dealt out by `schedule`. Every
   program leaves what it added up in a slot of its own, in float32.
3. `add_up_kernel`: the sum of the slots, in float64, in their order.
4. `recentre_kernel`: from rows less the pivot to rows less their mean, exactly; where the matrices
   are finished at once, `triton_finish` does so.

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
    largest,  # [L] int32: the bits of the largest sampled magnitude; of less before
    norms,  # [L, blocks] float64: of each block, the mean of the sampled rows' squares
    pairs,  # [L, blocks, ROWS, ROWS] float64: of each block, the products of the sampled rows
    n,
    DTYPE: tl.constexpr,
    PIECE: tl.constexpr,  # unit of distances, strides and features, in values
    ROWS: tl.constexpr,  # that are sampled
    BLOCK: tl.constexpr,
    PADDING: tl.constexpr,
    DECIDED: tl.constexpr,  # whether `decide_kernel` follows and needs `pairs`
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
    place = layer * tl.num_programs(0) + block
    tl.store(norms + place, square)
    if DECIDED:
        for i in tl.static_range(ROWS):
            row = tl.load(x + i * n // ROWS * stride + columns, exist, 0.0).to(tl.float32)
            products = tl.sum(values * row[None, :], 1).to(tl.float64)
            tl.store(pairs + (place * ROWS + i) * ROWS + tl.arange(0, ROWS), products)


@triton.jit
def decide_kernel(
    norms,
    pairs,
    blocks,
    largest,  # 0 afterwards where values are multiplied as they are
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,  # blocks that are read at once
):
    """Whether a layer's 16-bit values may be multiplied without the pivot taken away.

    Their products are exact, so only sums are rounded, relative to what is added up: centring
    enlarges that by |K| over the root mean square of the centred K. From the sampled rows, for this
    batch alone: whoever meets these values decides alike.
    """
    layer = tl.program_id(0)
    norms += layer * blocks
    pairs += layer * blocks * ROWS * ROWS
    norm = tl.zeros((TOGETHER,), tl.float64)
    k = tl.zeros((TOGETHER, ROWS * ROWS), tl.float64)
    for first in range(0, blocks, TOGETHER):
        block = first + tl.arange(0, TOGETHER)
        exist = block < blocks
        norm += tl.load(norms + block, exist, 0.0)
        place = block[:, None] * (ROWS * ROWS) + tl.arange(0, ROWS * ROWS)[None, :]
        k += tl.load(pairs + place, exist[:, None], 0.0)
    k = tl.reshape(tl.sum(k, 0), (ROWS, ROWS))
    outside = tl.arange(0, ROWS)[:, None] != tl.arange(0, ROWS)[None, :]
    k = tl.where(outside, k, 0.0)
    rows = tl.sum(k, 1) / (ROWS - 2)
    columns = tl.sum(k, 0) / (ROWS - 2)
    total = tl.sum(columns, 0) / (ROWS - 1)
    k = tl.where(outside, k - rows[:, None] - columns[None, :] + total, 0.0)
    square = tl.sum(tl.sum(k * k, 1), 0) / (ROWS * (ROWS - 3))
    norm = tl.sum(norm, 0)
    # Nothing is scaled then: rows that were not sampled may be 2^45 times larger, and no more.
    exponent = tl.load(largest + layer) >> 23
    far_from_ends = (exponent > 127 - 16) & (exponent < 127 + 16)
    if far_from_ends & (norm * norm <= LIMIT * LIMIT * square):
        tl.store(largest + layer, 0)


@triton.jit
def products_kernel(
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
    DECIDED: tl.constexpr,  # whether `decide_kernel` may have left values as they are
    BY_TMA: tl.constexpr,  # read by the copy engine of sm_90 and newer
    BY_WIDENING: tl.constexpr,  # bfloat16 in float32, where there is no product of it
):
    program = tl.program_id(0)
    for s in range(tl.load(begins + program), tl.load(begins + program + 1)):
        entry = segments + s * FIELDS
        x = _pointer(base, tl.load(entry), DTYPE, PIECE)
        stride = tl.load(entry + 1) * PIECE
        features = tl.load(entry + 2).to(tl.int32) * PIECE
        pivot = pivots + tl.load(entry + 3) * 16
        bits = tl.load(largest + tl.load(entry + 4))
        scale = _scale(bits)
        row_a = tl.load(entry + 5).to(tl.int32)
        row_b = tl.load(entry + 6).to(tl.int32)
        start = tl.load(entry + 7).to(tl.int32)
        stop = tl.load(entry + 8).to(tl.int32)
        slot = partials + s * _products(KIND, A, B)

        if BY_TMA:
            of_a = tl.make_tensor_descriptor(x, [n, features], [stride, 1], [A, STEP])
            of_b = of_a
            if A != B:
                of_b = tl.make_tensor_descriptor(x, [n, features], [stride, 1], [B, STEP])
        else:
            of_a = x + row_a * stride, _offsets(row_a, n, stride, INDEX, A)
            of_b = x + row_b * stride, _offsets(row_b, n, stride, INDEX, B)
        # What is the same in all chunks is computed anew: it would take registers meanwhile.
        for chunk in tl.range(start, stop, CHUNK // STEP, disable_licm=True):
            end = tl.minimum(chunk + CHUNK // STEP, stop)
            sums = _zeros(KIND, A, B)
            centred_from = chunk
            if DECIDED:
                centred_from = tl.where(bits == 0, end, chunk)
                for step in range(chunk, centred_from):
                    a = _read(of_a, row_a, step, features, STEP, BY_TMA, BY_WIDENING)
                    b = a
                    if KIND != "square":
                        b = _read(of_b, row_b, step, features, STEP, BY_TMA, BY_WIDENING)
                    sums = _add(sums, a, b, KIND, PRECISION)
            for step in range(centred_from, end):
                common = tl.load(pivot + step * STEP + tl.arange(0, STEP))
                a = _read(of_a, row_a, step, features, STEP, BY_TMA, BY_WIDENING)
                a = _centred(a, common, scale, OPERAND, BY_WIDENING)
                b = a
                if KIND != "square":
                    b = _read(of_b, row_b, step, features, STEP, BY_TMA, BY_WIDENING)
                    b = _centred(b, common, scale, OPERAND, BY_WIDENING)
                sums = _add(sums, a, b, KIND, PRECISION)
            _keep(slot, sums, chunk > start, KIND, A, B)


@triton.jit
def _offsets(row, n, stride, INDEX: tl.constexpr, ROWS: tl.constexpr):
    """Of the rows of a block. Those that do not exist are read as the last, and never looked at."""
    return tl.minimum(tl.arange(0, ROWS), n - 1 - row).to(INDEX)[:, None] * stride.to(INDEX)


@triton.jit
def _read(
    x,
    row,
    step,
    features,
    STEP: tl.constexpr,
    BY_TMA: tl.constexpr,
    BY_WIDENING: tl.constexpr,
):
    """The rows of a block, STEP features: 0 beyond the last."""
    if BY_TMA:
        values = x.load([row, step * STEP])
    else:
        columns = step * STEP + tl.arange(0, STEP)
        exist = (columns < features)[None, :]
        values = tl.load(x[0] + (x[1] + columns[None, :]), exist, 0.0)
    if BY_WIDENING:
        values = values.to(tl.float32)
    return values


@triton.jit
def _zeros(KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """The sums of a tile: a aᵀ of a square; a bᵀ of a pair; a aᵀ, b aᵀ, b bᵀ of a triangle."""
    if KIND == "square":
        sums = (tl.zeros((A, A), tl.float32),)
    elif KIND == "pair":
        sums = (tl.zeros((A, B), tl.float32),)
    else:
        aa = tl.zeros((A, A), tl.float32)
        sums = (aa, tl.zeros((B, A), tl.float32), tl.zeros((B, B), tl.float32))
    return sums


@triton.jit
def _add(sums, a, b, KIND: tl.constexpr, PRECISION: tl.constexpr):
    if KIND == "triangle":
        aa = tl.dot(a, tl.trans(a), sums[0], input_precision=PRECISION)
        ba = tl.dot(b, tl.trans(a), sums[1], input_precision=PRECISION)
        bb = tl.dot(b, tl.trans(b), sums[2], input_precision=PRECISION)
        sums = (aa, ba, bb)
    else:  # of a square, b is a
        sums = (tl.dot(a, tl.trans(b), sums[0], input_precision=PRECISION),)
    return sums


@triton.jit
def _pointer(base, distance, DTYPE: tl.constexpr, PIECE: tl.constexpr):
    """A number until here: from a pointer some GPUs reach no further than 2^31 bytes."""
    step: tl.constexpr = PIECE * DTYPE.primitive_bitwidth // 8
    address = base + distance * step
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), step)


@triton.jit
def _centred(x, common, scale, OPERAND: tl.constexpr, BY_WIDENING: tl.constexpr):
    if x.dtype == OPERAND and tl.float32 != OPERAND:
        # Two values an instruction. The common row is rounded as values are: it may be any, and
        # near values of one type differ by a value of that type, exactly.
        zeros = tl.zeros_like(x)
        common = (common * scale).to(OPERAND)[None, :]
        x = tl.fma(x, scale.to(OPERAND) + zeros, zeros - common)
    else:
        x = (x.to(tl.float32) - common[None, :]) * scale
        if BY_WIDENING:  # to bfloat16 and back: rounded to nearest, ties to even
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
            x = bits.to(tl.float32, bitcast=True)
        else:
            x = x.to(OPERAND)
    return x


@triton.jit
def _scale(bits):
    """The power of two that takes the largest sampled value into [1, 2)."""
    exponent = bits >> 23
    scale = ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)
    return tl.where((bits == 0) | (exponent == 255), 1.0, scale)


@triton.jit
def _keep(slot, sums, again, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    if KIND == "pair":
        _keep_one(slot, sums[0], again, A, B)
    else:
        _keep_one(slot, sums[0], again, A, A)
    if KIND == "triangle":
        _keep_one(slot + A * A, sums[1], again, B, A)
        _keep_one(slot + A * A + B * A, sums[2], again, B, B)


@triton.jit
def _keep_one(slot, values, again, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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
def recentre_kernel(k, sums, n, COLUMNS: tl.constexpr):
    """From products of rows less a common row to those of rows less their mean.

    sums: of `row_sums_kernel`.
    """
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    sums += 2 * layer * n
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    means = tl.load(sums + 2 * columns, columns < n, 0.0)
    means = (means + tl.load(sums + 2 * columns + 1, columns < n, 0.0)) / n
    own = (tl.load(sums + 2 * row) + tl.load(sums + 2 * row + 1)) / n
    mean = tl.sum(means, 0) / n
    place = k + layer * n * n + row * n + columns
    values = tl.load(place, columns <= row, 0.0)
    tl.store(place, values - own - means + mean, columns <= row)
