"""Launching the CUDA kernels: which tiles, which tables, in which order."""

import os

import torch

from fastcka.kernels import gpu_gram, native
from fastcka.kernels.schedule import PAIR, SLIM, SMALL, Tile, covering

# What multiplies: FASTCKA_GPU_ISA names one. mma runs on every GPU from compute capability 8.0 on;
# wgmma, of 9.0, holds 256 rows at once, and has never run on a GPU.
ISAS = ("mma", "wgmma")

# Bytes of a row that a step takes, of activations or of operands.
STEP = 128
# Shared memory of a tile of 128 × 128 products; some GPUs have 100 kB.
PAIR_SHARED = 160 << 10
# Entries that a block of `hsic_pairs` adds up, and how many blocks do so at most: their partial
# results are 64 MB of 465 × 465 pairs.
RUN, MOST_RUNS = 2048, 32


class _Batch(gpu_gram.Batch):
    def tiles(self) -> list[tuple[Tile, list[tuple[int, int]]]]:
        sixteen = self.dtype == self.operand != torch.float32
        triangles = _isa() == "wgmma" and self.aligned and sixteen
        return covering(self.n, triangles, PAIR if _shared(self.device) >= PAIR_SHARED else SLIM)

    def setting(self, tile: Tile) -> tuple[int, int]:
        step = STEP // max(self.dtype.itemsize, self.operand.itemsize)
        return step, 2 if tile == SMALL else 1

    def launch_sample(self, layers: torch.Tensor, norms: torch.Tensor) -> None:
        native.module.cuda_sample(
            self.rows[0],
            layers,
            self.pivots,
            self.largest,
            norms,
            self.n,
            self.piece,
            gpu_gram.sampled(self.n),
            gpu_gram.BLOCK,
            gpu_gram.PADDING,
        )

    def launch_products(self, tile: Tile, segments, begins, partials) -> None:
        step, _ = self.setting(tile)
        native.module.cuda_products(
            self.rows[0],
            segments,
            begins,
            self.pivots,
            self.largest,
            partials,
            native.operand_name(self.operand),
            self.n,
            self.piece,
            tile.kind,
            tile.rows,
            tile.columns,
            step,
        )

    def launch_add_up(self, tile: Tile, works, partials, k) -> None:
        native.module.cuda_add_up(
            works, partials, self.largest, k.flatten(0, 1), tile.kind, tile.rows, tile.columns
        )

    def launch_recentre(self, k: torch.Tensor) -> None:
        means = k.new_empty(k.shape[:2])
        native.module.cuda_recentre(k.flatten(0, 1), means)


def gram(x, operand, k, stats) -> None:
    gpu_gram.gram(_Batch, x, operand, k, stats)


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    out = packed, diagonal, row_sums, summary
    gpu_gram.gram_finish_all(_Batch, _finish, layers, operands, out, estimator)


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    _finish(*(part[None] for part in (k, stats, packed, diagonal, row_sums, summary)), estimator)


def _finish(
    k, stats, packed, diagonal, row_sums, summary, estimator: str, pivoted: bool = False
) -> None:
    """finish of layers [L, ...]. pivoted: of what `gpu_gram.Batch.multiply` leaves and returns."""
    sums, squares = (k.new_empty(len(k), 2 * k.shape[1]) for _ in range(2))
    out = packed, diagonal, row_sums, summary
    k, stats = k.contiguous().flatten(0, 1), stats.contiguous()
    biased = estimator == "biased"
    with torch.cuda.device_of(k):
        native.module.cuda_finish(k, stats, *out, sums, squares, biased, pivoted)


def hsic_pairs(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    runs = max(1, min(MOST_RUNS, a.shape[1] // RUN))
    run = -(-a.shape[1] // runs)
    partials = a.new_empty(runs, len(a) * len(b))
    with torch.cuda.device_of(a):
        native.module.cuda_hsic_pairs(a, b, out, partials, run)


def _isa() -> str:
    name = os.environ.get("FASTCKA_GPU_ISA") or ISAS[0]
    if name not in ISAS:
        raise RuntimeError(f"FASTCKA_GPU_ISA must be one of {', '.join(ISAS)}, but is {name}")
    return name


def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a block of threads may ask for."""
    if device.type == "cpu":
        return PAIR_SHARED
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
