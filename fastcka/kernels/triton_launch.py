"""Launching the Gram kernels in Triton: which tiles, which tables, in which order."""

from contextvars import copy_context
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastcka.kernels import gpu_gram
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
)
from fastcka.kernels.triton_finish import row_sums_kernel
from fastcka.kernels.triton_gram import (
    add_up_kernel,
    decide_kernel,
    products_kernel,
    recentre_kernel,
    sample_kernel,
)
from fastcka.kernels.triton_versions import FUSED, release

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# Side of the piece that a program of `add_up_kernel` takes.
SIDE = 32
# Blocks of features that a program of `decide_kernel` reads at once.
TOGETHER = 16
# |K| over the root mean square of the centred K, up to which values are multiplied as they are.
# Sums of CHUNK features are then off by 3e-7 times it where they grow evenly, by up to 5e-6 times
# it where one feature is most of them: by 2e-4 and 1e-3, which rounding centred values may cost.
LIMIT = {torch.float16: 40, torch.bfloat16: 200}
# Rows from which on that is asked: with fewer, memory is slower than taking the pivot away.
DECIDED = 129


class Setting(NamedTuple):
    """How a tile is multiplied: features a step, warps, loads in flight, programs a processor.

    tma: whether the copy engine reads rows at multiples of 16 bytes, which takes fewer registers.
    """

    step: int
    warps: int
    stages: int
    programs: int = 1
    tma: bool = False


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
_narrow = {SMALL: Setting(128, 4, 4, 2), MIDDLE: Setting(64, 8, 4)}
_narrow[TRIANGLE] = Setting(64, 8, 4, tma=True)
_wide = {SMALL: Setting(64, 4, 4, 2), MIDDLE: Setting(32, 8, 4), SLIM: Setting(32, 8, 3)}
SM90 = Target(
    "sm_90",
    triangles=True,
    pair=WIDE,
    float32="tf32x3",
    narrow=_narrow | {PAIR: Setting(64, 8, 3), WIDE: Setting(64, 8, 4, tma=True)},
    wide=_wide,
)
# Compilers of Triton up to 3.8 give up on three sums in the memory of sm_100's tensor cores, and
# spill them on gfx942.
_THREE_SUMS = release() >= (3, 9)
SM100 = Target(
    "sm_100",
    triangles=_THREE_SUMS,
    pair=PAIR,  # 128 × 256 sums would leave the registers on their way to memory
    float32="tf32x3",
    narrow=_narrow | {PAIR: Setting(32, 8, 4)},
    wide=_wide | {SMALL: Setting(64, 8, 4, 2), SLIM: Setting(32, 8, 2)},
)
GFX942 = Target(
    "gfx942",
    triangles=_THREE_SUMS,
    pair=PAIR,
    float32="ieee",
    narrow={
        SMALL: Setting(64, 4, 2, 2),
        MIDDLE: Setting(32, 8, 2),
        TRIANGLE: Setting(32, 8, 2),
        PAIR: Setting(64, 8, 2),
    },
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
    decided: bool = False,
    aligned: bool = True,
    far: bool = False,
    interpreted: bool = False,
) -> tuple[dict, Setting]:
    """The constants of `products_kernel`, and how it is launched.

    decided: whether `decide_kernel` ran. aligned, far: as in `gpu_gram.Batch`.
    """
    setting = (target.narrow if _narrow_values(dtype, operand) else target.wide)[tile]
    constants = {
        "DTYPE": TYPES[dtype],
        "OPERAND": TYPES[operand],
        "PRECISION": target.float32 if operand == torch.float32 else "ieee",
        "PIECE": 16 // dtype.itemsize if aligned else 1,
        "INDEX": tl.int64 if far else tl.int32,
        "KIND": tile.kind,
        "A": tile.rows,
        "B": tile.columns,
        "STEP": setting.step,
        "CHUNK": CHUNK,
        "DECIDED": decided,
        "BY_TMA": setting.tma and aligned,
        # The interpreter multiplies the bits of bfloat16, not its values.
        "BY_WIDENING": interpreted and operand == torch.bfloat16,
    }
    return constants, setting


def _narrow_values(dtype: torch.dtype, operand: torch.dtype) -> bool:
    return dtype == operand != torch.float32


def gram(x, operand, k: torch.Tensor, stats: torch.Tensor) -> None:
    gpu_gram.gram(Batch, x, operand, k, stats)


class Batch(gpu_gram.Batch):
    def tiles(self):
        return tiles(target_of(self.device), self.n, self.dtype, self.operand, self.aligned)

    def setting(self, tile: Tile) -> tuple[int, int]:
        _, setting = self._constants(tile)
        return setting.step, setting.programs

    def _constants(self, tile: Tile) -> tuple[dict, Setting]:
        return products_constants(
            target_of(self.device),
            tile,
            self.dtype,
            self.operand,
            decided=self._decided(),
            aligned=self.aligned,
            far=self.far,
            interpreted=self.device.type == "cpu",
        )

    def _decided(self) -> bool:
        return self.aligned and _narrow_values(self.dtype, self.operand) and self.n >= DECIDED

    def launch_sample(self, layers: torch.Tensor, norms: torch.Tensor) -> None:
        rows, (count, blocks) = gpu_gram.sampled(self.n), norms.shape
        pairs = norms.new_empty(count, blocks, rows, rows) if self._decided() else norms
        sample_kernel[(blocks, count)](
            self.rows[0].data_ptr(),
            layers,
            self.pivots,
            self.largest,
            norms,
            pairs,
            self.n,
            DTYPE=TYPES[self.dtype],
            PIECE=self.piece,
            ROWS=rows,
            BLOCK=gpu_gram.BLOCK,
            PADDING=gpu_gram.PADDING,
            DECIDED=self._decided(),
            **FUSED,
        )
        if self._decided():
            decide_kernel[(count,)](
                norms,
                pairs,
                blocks,
                self.largest,
                LIMIT=LIMIT[self.dtype],
                ROWS=rows,
                TOGETHER=TOGETHER,
                **FUSED,
            )

    def launch_products(self, tile: Tile, segments, begins, partials) -> None:
        constants, setting = self._constants(tile)

        def launch() -> None:
            # Descriptors for the copy engine lie in memory that Triton asks for.
            triton.set_allocator(lambda size, _, stream: partials.new_empty(size, dtype=torch.int8))
            products_kernel[(len(begins) - 1,)](
                self.rows[0].data_ptr(),
                segments,
                begins,
                self.pivots,
                self.largest,
                partials,
                self.n,
                **constants,
                num_warps=setting.warps,
                num_stages=setting.stages,
                **FUSED,
            )

        copy_context().run(launch)  # who has set an allocator keeps theirs

    def launch_add_up(self, tile: Tile, works, partials, k) -> None:
        add_up_kernel[(len(works), tile.products // SIDE**2)](
            works,
            partials,
            self.largest,
            k,
            self.n,
            KIND=tile.kind,
            A=tile.rows,
            B=tile.columns,
            SIDE=SIDE,
            **FUSED,
        )

    def launch_recentre(self, k: torch.Tensor) -> None:
        columns, grid = triton.next_power_of_2(self.n), (self.n, len(k))
        sums = k.new_empty(len(k), self.n, 2)
        row_sums_kernel[grid](k, sums, self.n, COLUMNS=columns, **FUSED)
        recentre_kernel[grid](k, sums, self.n, COLUMNS=columns, **FUSED)
