"""gram on a GPU, of many layers at once: what goes into one launch, and the tables of the launches.

The launches themselves are those of `triton_launch` and `cuda_launch`. Nothing here waits for the
GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

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
        self._layers = tuple(map(self._address, range(len(rows))))

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

    def launch_recentre(self, k: torch.Tensor) -> None:
        """From products of rows less a common row to those of rows less their mean."""
        raise NotImplementedError

    # What all have in common.

    def multiply(self, k: torch.Tensor) -> torch.Tensor:
        """Products of the rows less some common row, into the lower triangles of k [L, n, n].

        Returns:
            The mean of the sampled rows' squares, [L, blocks of features].
        """
        blocks = max(-(-x.shape[1] // BLOCK) for x in self.rows)
        norms = k.new_empty(len(self.rows), blocks)
        (layers,) = on_device(self.device, _alone, self._layers)
        self.launch_sample(layers, norms)
        for tile, places in self.tiles():
            self._products(tile, tuple(places), k)
        return norms

    def _products(self, tile: Tile, places: tuple, k: torch.Tensor) -> None:
        step, programs = self.setting(tile)
        steps = tuple(-(-x.shape[1] // step) for x in self.rows)
        programs *= processors(self.device)
        of = self._layers, steps, places, programs
        segments, begins, works = on_device(self.device, _dealt, *of)
        partials = self.pivots.new_empty(len(segments), tile.products)
        self.launch_products(tile, segments, begins, partials)
        self.launch_add_up(tile, works, partials, k)

    def _address(self, layer: int) -> tuple[int, ...]:
        """Distance from the first layer, stride and features in pieces, and where its pivot is."""
        x = self.rows[layer]
        away = (x.data_ptr() - self.rows[0].data_ptr()) // x.itemsize
        values = away, x.stride(0), x.shape[1]
        return *(value // self.piece for value in values), self.starts[layer] // 16


def batches(
    batch_of: type[Batch], rows: Sequence[torch.Tensor], operands: Sequence[torch.dtype]
) -> Iterator[tuple[list[int], Batch | None]]:
    """Which layers go into one launch, and the launch: None of float64.

    No tensor core multiplies float64 faster than BLAS.
    """
    groups: dict[tuple, list[int]] = {}
    for layer, (x, operand) in enumerate(zip(rows, operands, strict=True)):
        stride = x.stride(0) if len(x) > 1 else x.shape[1]
        bits = x.data_ptr() | stride * x.itemsize | x.shape[1] * x.itemsize
        far = 256 * stride >= 2**31
        aligned = bits % 16 == 0 and stride >= x.shape[1]  # rows that overlap are read by value
        groups.setdefault((x.dtype, operand, aligned, far), []).append(layer)
    for (dtype, *options), members in groups.items():
        some = [rows[layer] for layer in members]
        yield members, None if dtype == torch.float64 else batch_of(some, *options)


def gram(batch_of: type[Batch], x, operand, k: torch.Tensor, stats: torch.Tensor) -> None:
    """The Gram matrix [n, n] and statistics [3] of one layer."""
    ((_, batch),) = batches(batch_of, [x], [operand])
    if batch is None:
        torch_gram.gram(x, operand, k, stats)
        return
    with torch.cuda.device_of(k):
        (norms,) = batch.multiply(k[None])
        batch.launch_recentre(k[None])
    stats.copy_(_statistics(k, norms))


def gram_finish_all(
    batch_of: type[Batch],
    finish_all: Callable[..., None],
    layers: Sequence[torch.Tensor],
    operands: Sequence[torch.dtype],
    out: Sequence[torch.Tensor],
    estimator: str,
) -> None:
    """gram and finish of layers of the same examples: one launch of each kernel for all of a kind.

    Args:
        finish_all: Called with k [L, n, n], stats, the parts of `out`, the estimator and, where k
            and stats are what `Batch.multiply` leaves and returns, pivoted=True.
        out: packed, diagonal, row_sums and summary, a row a layer.
    """
    n = len(layers[0])
    for members, batch in batches(batch_of, layers, operands):
        alone = len(members) == len(layers)
        some = out if alone else [part.new_empty(len(members), part.shape[1]) for part in out]
        k = out[0].new_empty(len(members), n, n)
        if batch is None:
            stats = k.new_empty(len(members), 3)
            for row, layer in enumerate(members):
                torch_gram.gram(layers[layer], operands[layer], k[row], stats[row])
            finish_all(k, stats, *some, estimator)
        else:
            with torch.cuda.device_of(k):
                stats = batch.multiply(k)
            finish_all(k, stats, *some, estimator, pivoted=True)
        if not alone:
            for part, of_all in zip(some, out, strict=True):
                put_back(part, of_all, members)


def put_back(some: torch.Tensor, of_all: torch.Tensor, members: list[int]) -> None:
    """Rows of some layers to where they belong."""
    (places,) = on_device(of_all.device, _alone, tuple(members))
    of_all.index_copy_(0, places, some)


def sampled(n: int) -> int:
    """Rows of which the pivot is the mean: few, as each is read twice."""
    return 4 if n < 128 else 8


def _statistics(k: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|c|², Σ|x_i|², Σ|x_i − c|²; the first two follow from the sampled rows alone."""
    n = len(k)
    spread = k.diagonal().sum()
    whole = torch.maximum(n * norms.sum(), spread)
    return torch.stack([(whole - spread) / n, whole, spread])


# Tables that a CUDA graph copies to the GPU at every replay, from where they lie now.
_held: list[torch.Tensor] = []


def on_device(device: torch.device, make: Callable, *arguments) -> tuple[torch.Tensor, ...]:
    """The tables that `make` returns of arguments that can be hashed, on the device.

    The same layers come at the same addresses batch after batch: their tables are there already.
    """
    if device.type == "cpu":
        return _kept(device, 0, make, arguments)
    if not torch.cuda.is_current_stream_capturing():
        # What one stream copies another must not read before.
        return _kept(device, torch.cuda.current_stream(device).cuda_stream, make, arguments)
    tables = [_on_host(values).pin_memory() for values in make(*arguments)]
    _held.extend(tables)
    return tuple(table.to(device, non_blocking=True) for table in tables)


@lru_cache(maxsize=256)
def _kept(device, stream, make, arguments) -> tuple[torch.Tensor, ...]:
    tables = [_on_host(values) for values in make(*arguments)]
    if device.type == "cpu":
        return tuple(tables)
    return tuple(table.pin_memory().to(device, non_blocking=True) for table in tables)


def _on_host(values: Sequence) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _alone(values: Sequence) -> tuple[Sequence]:
    return (values,)


def _dealt(layers, steps, places, programs) -> tuple[list, list, list]:
    """Segments, where each program's begin, and of each work its slots."""
    works = [(layer, *rows) for layer in range(len(layers)) for rows in places]
    segments, begins = deal([steps[layer] for layer, _, _ in works], programs)
    table = []
    slots = [[] for _ in works]
    for slot, (work, start, stop) in enumerate(segments):
        layer, row_a, row_b = works[work]
        table.append([*layers[layer], layer, row_a, row_b, start, stop])
        slots[work].append(slot)
    ends = [[*work, mine[0], mine[-1] + 1] for work, mine in zip(works, slots, strict=True)]
    return table, begins, ends


def processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
