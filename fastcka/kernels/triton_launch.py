"""Launching the Gram kernels in Triton: which tiles, which tables, in which order."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl

from fastcka.kernels import torch_gram
from fastcka.kernels.schedule import (
    CHUNK,
    MIDDLE,
    PAIR,
    SLIM,
    SMALL,
    TRIANGLE,
    WIDE,
    Tile,
    covering,
    deal,
)
from fastcka.kernels.triton_gram import (
    add_up_kernel,
    products_kernel,
    recentre_kernel,
    row_means_kernel,
    sample_kernel,
)

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# Features that a program of `sample_kernel` takes, and that every pivot is padded to.
BLOCK, PADDING = 1024, 256
# Side of the piece that a program of `add_up_kernel` takes.
SIDE = 32


class Setting(NamedTuple):
    """How a tile is multiplied: features a step, warps, loads in flight, programs a processor."""

    step: int
    warps: int
    stages: int
    programs: int = 1


class Target(NamedTuple):
    """What one kind of GPU can do.

    narrow: settings where activations and operands are the same 16-bit type; wide: elsewhere.
    """

    name: str
    triangles: bool  # three 128 × 128 sums fit the registers of a program
    pair: Tile
    float32: str  # how Triton multiplies it to float32's precision
    narrow: dict[Tile, Setting]
    wide: dict[Tile, Setting]


SM80 = Target(
    "sm_80",
    triangles=False,
    pair=PAIR,
    float32="tf32x3",
    narrow={SMALL: Setting(64, 4, 3, 2), MIDDLE: Setting(64, 8, 3), PAIR: Setting(64, 8, 3)},
    wide={SMALL: Setting(32, 4, 3, 2), MIDDLE: Setting(16, 8, 3), SLIM: Setting(32, 8, 3)},
)
_narrow = {SMALL: Setting(128, 4, 4, 2), MIDDLE: Setting(64, 8, 4), TRIANGLE: Setting(32, 8, 4)}
_wide = {SMALL: Setting(64, 4, 4, 2), MIDDLE: Setting(32, 8, 4), SLIM: Setting(32, 8, 3)}
SM90 = Target(
    "sm_90",
    triangles=True,
    pair=WIDE,
    float32="tf32x3",
    narrow=_narrow | {PAIR: Setting(64, 8, 3), WIDE: Setting(32, 8, 4)},
    wide=_wide,
)
SM100 = Target(
    "sm_100",
    triangles=True,
    pair=PAIR,  # 128 × 256 sums would leave the registers on their way to memory
    float32="tf32x3",
    narrow=_narrow | {PAIR: Setting(32, 8, 4)},
    wide=_wide,
)
GFX942 = Target(
    "gfx942",
    triangles=False,
    pair=PAIR,
    float32="ieee",
    narrow={SMALL: Setting(64, 4, 2, 2), MIDDLE: Setting(64, 8, 2), PAIR: Setting(64, 8, 2)},
    wide={SMALL: Setting(32, 4, 2, 2), MIDDLE: Setting(32, 8, 2), SLIM: Setting(32, 8, 2)},
)


def target_of(device: torch.device) -> Target:
    """The settings for a device; those of sm_90 where Triton's interpreter runs on a CPU."""
    if device.type == "cpu":
        return SM90
    if torch.version.hip:
        return GFX942
    return {9: SM90, 10: SM100}.get(torch.cuda.get_device_capability(device)[0], SM80)


def tiles(
    target: Target, n: int, dtype: torch.dtype, operand: torch.dtype, aligned: bool
) -> list[tuple[Tile, list[tuple[int, int]]]]:
    """The tiles of a Gram matrix, and where they are: as large as the registers allow."""
    if not _narrow_values(dtype, operand):
        return covering(n, False, SLIM)
    if not aligned:  # reading value by value takes registers
        return covering(n, False, PAIR)
    return covering(n, target.triangles, target.pair)


def products_constants(
    target: Target,
    tile: Tile,
    dtype: torch.dtype,
    operand: torch.dtype,
    *,
    aligned: bool = True,
    far: bool = False,
    interpreted: bool = False,
) -> tuple[dict, Setting]:
    """The constants of `products_kernel`, and how it is launched.

    aligned: distances, strides and features are multiples of 16 bytes. far: 256 rows lie further
    apart than 2^31 values.
    """
    setting = (target.narrow if _narrow_values(dtype, operand) else target.wide)[tile]
    constants = {
        "OPERAND": TYPES[operand],
        "PRECISION": target.float32 if operand == torch.float32 else "ieee",
        "PIECE": 16 // dtype.itemsize if aligned else 1,
        "INDEX": tl.int64 if far else tl.int32,
        "KIND": tile.kind,
        "A": tile.rows,
        "B": tile.columns,
        "STEP": setting.step,
        "CHUNK": CHUNK,
        # The interpreter multiplies the bits of bfloat16, not its values.
        "BY_WIDENING": interpreted and operand == torch.bfloat16,
    }
    return constants, setting


def _narrow_values(dtype: torch.dtype, operand: torch.dtype) -> bool:
    return dtype == operand != torch.float32


def sampled(n: int) -> int:
    """Rows of which the pivot is the mean: some three in a hundred, as each is read twice."""
    return 2 if n < 128 else 4 if n < 256 else 8


def gram_all(
    rows: Sequence[torch.Tensor],
    operands: Sequence[torch.dtype],
    k: torch.Tensor,
    stats: torch.Tensor,
) -> None:
    """The Gram matrices [L, n, n] and statistics [L, 3] of layers of the same examples."""
    groups: dict[tuple, list[int]] = {}
    for layer, (x, operand) in enumerate(zip(rows, operands, strict=True)):
        if x.dtype == torch.float64:  # no tensor core multiplies it faster than BLAS
            torch_gram.gram(x, operand, k[layer], stats[layer])
            continue
        stride = x.stride(0) if len(x) > 1 else x.shape[1]
        bits = x.data_ptr() | stride * x.itemsize | x.shape[1] * x.itemsize
        far = 256 * stride >= 2**31
        groups.setdefault((x.dtype, operand, bits % 16 == 0, far), []).append(layer)
    for (_, operand, aligned, far), members in groups.items():
        batch = _Batch([rows[layer] for layer in members], operand, aligned, far)
        alone = len(members) == len(rows)
        some = k if alone else k.new_empty(len(members), *k.shape[1:])
        with torch.cuda.device_of(k):
            norms = batch.multiply(some)
        some_stats = _statistics(some, norms)
        if alone:
            stats.copy_(some_stats)
        else:
            places = _to_device(members, k.device)
            k[places] = some
            stats[places] = some_stats


def _statistics(k: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|c|², Σ|x_i|², Σ|x_i − c|²; the first two follow from the sampled rows alone."""
    n = k.shape[1]
    spread = k.diagonal(dim1=1, dim2=2).sum(1)
    whole = torch.maximum(n * norms.sum(1), spread)
    return torch.stack([(whole - spread) / n, whole, spread], 1)


class _Batch:
    """Layers that one launch of each kernel can take."""

    def __init__(self, rows: list[torch.Tensor], operand: torch.dtype, aligned: bool, far: bool):
        self.rows, self.operand, self.aligned, self.far = rows, operand, aligned, far
        self.n, self.device, self.dtype = len(rows[0]), rows[0].device, rows[0].dtype
        self.target = target_of(self.device)
        padded = [-(-x.shape[1] // PADDING) * PADDING for x in rows]
        self.starts = [sum(padded[:layer]) for layer in range(len(rows) + 1)]
        new = rows[0].new_empty
        self.pivots = new(self.starts[-1], dtype=torch.float32)
        self.largest = torch.zeros(len(rows), dtype=torch.int32, device=self.device)

    def multiply(self, k: torch.Tensor) -> torch.Tensor:
        """Fill the lower triangles of k [L, n, n]; returns the sampled norms."""
        norms = self._sample()
        layers, n = len(self.rows), self.n
        for tile, places in tiles(self.target, n, self.dtype, self.operand, self.aligned):
            self._products(tile, places, k)
        means = k.new_empty(layers, n)
        columns = 1 << (n - 1).bit_length()
        row_means_kernel[(n, layers)](k, means, n, COLUMNS=columns)
        recentre_kernel[(n, layers)](k, means, n, COLUMNS=columns)
        return norms

    def _address(self, layer: int, piece: int) -> list[int]:
        """Distance, stride and features in pieces, and where its pivot is."""
        x = self.rows[layer]
        away = (x.data_ptr() - self.rows[0].data_ptr()) // x.itemsize
        values = [away, x.stride(0), x.shape[1]]
        return [value // piece for value in values] + [self.starts[layer] // 16]

    def _sample(self) -> torch.Tensor:
        blocks = max(-(-x.shape[1] // BLOCK) for x in self.rows)
        norms = self.pivots.new_empty(len(self.rows), blocks, dtype=torch.float64)
        piece = 16 // self.dtype.itemsize if self.aligned else 1
        table = [self._address(layer, piece) for layer in range(len(self.rows))]
        sample_kernel[(blocks, len(self.rows))](
            self.rows[0],
            _to_device(table, self.device),
            self.pivots,
            self.largest,
            norms,
            self.n,
            PIECE=piece,
            ROWS=sampled(self.n),
            BLOCK=BLOCK,
            PADDING=PADDING,
        )
        return norms

    def _products(self, tile: Tile, places: list[tuple[int, int]], k: torch.Tensor) -> None:
        interpreted = self.device.type == "cpu"
        constants, setting = products_constants(
            self.target,
            tile,
            self.dtype,
            self.operand,
            aligned=self.aligned,
            far=self.far,
            interpreted=interpreted,
        )
        works = [(layer, *place) for layer in range(len(self.rows)) for place in places]
        steps = [-(-self.rows[layer].shape[1] // setting.step) for layer, _, _ in works]
        segments, begins = deal(steps, setting.programs * _processors(self.device))
        table = []
        for work, start, stop in segments:
            layer, row_a, row_b = works[work]
            address = self._address(layer, constants["PIECE"])
            table.append([*address, layer, row_a, row_b, start, stop])
        slots = [[] for _ in works]
        for slot, segment in enumerate(segments):
            slots[segment.work].append(slot)
        ends = [[*work, mine[0], mine[-1] + 1] for work, mine in zip(works, slots, strict=True)]
        partials = self.pivots.new_empty(len(segments), tile.products)
        products_kernel[(len(begins) - 1,)](
            self.rows[0],
            _to_device(table, self.device),
            _to_device(begins, self.device),
            self.pivots,
            self.largest,
            partials,
            self.n,
            **constants,
            num_warps=setting.warps,
            num_stages=setting.stages,
        )
        add_up_kernel[(tile.products // SIDE**2, len(works))](
            _to_device(ends, self.device),
            partials,
            self.largest,
            k,
            self.n,
            KIND=tile.kind,
            A=tile.rows,
            B=tile.columns,
            SIDE=SIDE,
        )


# Tables that a CUDA graph copies to the GPU at every replay, from where they lie now.
_held: list[torch.Tensor] = []


def _to_device(values: list, device: torch.device) -> torch.Tensor:
    """A table of whole numbers on the device, without waiting for it."""
    table = torch.tensor(values, dtype=torch.int64, device="cpu")
    if device.type == "cpu":
        return table
    table = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _held.append(table)
    return table.to(device, non_blocking=True)


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
