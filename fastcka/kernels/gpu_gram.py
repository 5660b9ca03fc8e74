"""gram on a GPU, of many layers at once: what goes into one launch, and the tables of the launches.

The launches themselves are those of `triton_launch` and `cuda_launch`. Nothing here waits for the
GPU.
"""

from collections.abc import Sequence

import torch

from fastcka.kernels import torch_gram
from fastcka.kernels.schedule import Tile, deal

# Features that a program of the sampling kernel takes, and that every pivot is padded to.
BLOCK, PADDING = 1024, 256


class Batch:
    """Layers that one launch of each kernel can take.

    aligned: distances, strides and features are multiples of 16 bytes. far: 256 rows lie further
    apart than 2^31 values.
    """

    def __init__(self, rows: list[torch.Tensor], operand: torch.dtype, aligned: bool, far: bool):
        self.rows, self.operand, self.aligned, self.far = rows, operand, aligned, far
        self.n, self.device, self.dtype = len(rows[0]), rows[0].device, rows[0].dtype
        self.piece = 16 // self.dtype.itemsize if aligned else 1  # unit of what tables say
        padded = [-(-x.shape[1] // PADDING) * PADDING for x in rows]
        self.starts = [sum(padded[:layer]) for layer in range(len(rows) + 1)]
        self.pivots = rows[0].new_empty(self.starts[-1], dtype=torch.float32)
        self.largest = self._largest()

    def _largest(self) -> torch.Tensor:
        """Bits of the largest magnitude, as far as it must be known before rows are sampled.

        Half precision overflows where a row is 32,768 times larger than those sampled. Activations
        of that type do not, if none is scaled up; of others the largest is looked up.
        """
        if self.operand != torch.float16:
            return torch.zeros(len(self.rows), dtype=torch.int32, device=self.device)
        if self.dtype == torch.float16:
            largest = torch.ones(len(self.rows), device=self.device)
        else:
            largest = [torch.linalg.vector_norm(x.float(), torch.inf) for x in self.rows]
            largest = torch.stack(largest)
        return largest.float().view(torch.int32)

    # What a backend adds.

    def tiles(self) -> list[tuple[Tile, list[tuple[int, int]]]]:
        """The tiles of a Gram matrix, and where they are."""
        raise NotImplementedError

    def setting(self, tile: Tile) -> tuple[int, int]:
        """Features a step, and programs a processor."""
        raise NotImplementedError

    def launch_sample(self, layers: torch.Tensor, norms: torch.Tensor) -> None:
        raise NotImplementedError

    def launch_products(self, tile: Tile, segments, begins, partials) -> None:
        raise NotImplementedError

    def launch_add_up(self, tile: Tile, works, partials, k) -> None:
        raise NotImplementedError

    def launch_recentre(self, k: torch.Tensor, means: torch.Tensor) -> None:
        raise NotImplementedError

    # What all have in common.

    def multiply(self, k: torch.Tensor) -> torch.Tensor:
        """Fill the lower triangles of k [L, n, n]; returns the sampled norms."""
        blocks = max(-(-x.shape[1] // BLOCK) for x in self.rows)
        norms = k.new_empty(len(self.rows), blocks)
        layers = [self._address(layer) for layer in range(len(self.rows))]
        self.launch_sample(to_device(layers, self.device), norms)
        for tile, places in self.tiles():
            self._products(tile, places, k)
        self.launch_recentre(k, k.new_empty(len(self.rows), self.n))
        return norms

    def _products(self, tile: Tile, places: list[tuple[int, int]], k: torch.Tensor) -> None:
        step, programs = self.setting(tile)
        works = [(layer, *place) for layer in range(len(self.rows)) for place in places]
        steps = [-(-self.rows[layer].shape[1] // step) for layer, _, _ in works]
        segments, begins = deal(steps, programs * processors(self.device))
        table = []
        for work, start, stop in segments:
            layer, row_a, row_b = works[work]
            table.append([*self._address(layer), layer, row_a, row_b, start, stop])
        slots = [[] for _ in works]
        for slot, segment in enumerate(segments):
            slots[segment.work].append(slot)
        ends = [[*work, mine[0], mine[-1] + 1] for work, mine in zip(works, slots, strict=True)]
        partials = self.pivots.new_empty(len(segments), tile.products)
        tables = [to_device(values, self.device) for values in (table, begins, ends)]
        self.launch_products(tile, *tables[:2], partials)
        self.launch_add_up(tile, tables[2], partials, k)

    def _address(self, layer: int) -> list[int]:
        """Distance from the first layer, stride and features in pieces, and where its pivot is."""
        x = self.rows[layer]
        away = (x.data_ptr() - self.rows[0].data_ptr()) // x.itemsize
        values = [away, x.stride(0), x.shape[1]]
        return [value // self.piece for value in values] + [self.starts[layer] // 16]


def gram_all(
    batch_of: type[Batch],
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
        batch = batch_of([rows[layer] for layer in members], operand, aligned, far)
        alone = len(members) == len(rows)
        some = k if alone else k.new_empty(len(members), *k.shape[1:])
        with torch.cuda.device_of(k):
            norms = batch.multiply(some)
        some_stats = _statistics(some, norms)
        if alone:
            stats.copy_(some_stats)
        else:
            places = to_device(members, k.device)
            k.index_copy_(0, places, some)
            stats.index_copy_(0, places, some_stats)


def sampled(n: int) -> int:
    """Rows of which the pivot is the mean: few, as each is read twice."""
    return 4 if n < 128 else 8


def _statistics(k: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|c|², Σ|x_i|², Σ|x_i − c|²; the first two follow from the sampled rows alone."""
    n = k.shape[1]
    spread = k.diagonal(dim1=1, dim2=2).sum(1)
    whole = torch.maximum(n * norms.sum(1), spread)
    return torch.stack([(whole - spread) / n, whole, spread], 1)


# Tables that a CUDA graph copies to the GPU at every replay, from where they lie now.
_held: list[torch.Tensor] = []


def to_device(values: list, device: torch.device) -> torch.Tensor:
    """A table of whole numbers on the device, without waiting for it."""
    table = torch.tensor(values, dtype=torch.int64, device="cpu")
    if device.type == "cpu":
        return table
    table = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _held.append(table)
    return table.to(device, non_blocking=True)


def processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
