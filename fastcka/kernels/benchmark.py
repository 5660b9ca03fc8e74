"""Measuring how fast every backend is on a device, and whether it is right: `measure_speed`."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from fastcka.array_file import replacing
from fastcka.kernels import dispatch, speed, torch_finish, torch_gram
from fastcka.kernels.operations import packed_length, resolve_operand
from fastcka.options import BACKENDS, check_whole_number

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COUNTS = (64, 256, 1024)
# Layers whose products are taken, and layers that are reduced in one call, at most.
STACKED, TOGETHER = 12, 8
ROUNDS = 7
# ‖found − expected‖ / ‖expected‖ at most, by the type of the values that are multiplied: what the
# package allows in CKA.
ALLOWED = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-4,
    torch.bfloat16: 1e-3,
}
# Features that are made, or multiplied in float64, at a time.
PIECE = 4096


class Work(NamedTuple):
    """Features of a layer, and bytes of all layers together, both at most."""

    features: int
    room: int


# On a GPU more than its caches hold: no layer is found there when its turn comes again.
WORK = {"cpu": Work(4096, 4 << 20), "cuda": Work(98_304, 256 << 20)}


class Case(NamedTuple):
    """One operation on activations of one type and number of examples.

    calls: the arguments of a version; the outputs are among them. found: what of the outputs is
    compared with `expected` after the first call.
    """

    calls: list[tuple]
    outputs: Sequence[torch.Tensor]
    found: Callable[[], torch.Tensor]
    expected: torch.Tensor
    allowed: float


def measure_speed(
    device: torch.device | str,
    *,
    counts: Sequence[int] = COUNTS,
    folder: Path | str | None = None,
    progress: bool = True,
) -> Path:
    """Time every backend on a device, so that the fastest that is right runs there from now on.

    Each operation of `fastcka.kernels`, on activations of 16 and 32 bits, by each backend that can
    run: first its result is compared with float64, and what is wrong is not timed and never picked;
    then all take turns, and the median counts. `fastcka info` shows what came out, and processes
    that are started later, and this one, go by it.

    Args:
        device: "cpu" (by as many threads as torch has), "cuda" or "cuda:1"; GPUs of one name share
            a table.
        counts: a list of numbers of examples, 4 or more; others go by the nearest.
        folder: for the table; None is the cache, where it is found again.
        progress: whether to show a bar.

    Returns:
        The table, a JSON file named after the device; an earlier one is replaced.

    Raises:
        ValueError: there are no counts, or one is too small.
        RuntimeError: there is no such device, or it fails.
        OSError: the table cannot be written; mostly known before anything is measured.

    Cost: a minute or two on a CPU; on a GPU half a gigabyte, and minutes where kernels are
    compiled. Nothing else should run meanwhile.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = speed.read(measure_speed("cpu", counts=[8], folder=folder, progress=False))
    >>> sorted({row.operation for row in table.rows})
    ['finish', 'gram', 'gram_finish', 'hsic_pairs']
    """
    counts = sorted(set(counts))
    if not counts:
        raise ValueError("`counts` is empty; give one number of examples or more")
    for n in counts:
        check_whole_number("counts", n, 4)
    device = _checked(device)
    name = speed.measured_as(device)
    path = Path(speed.own_folder() if folder is None else folder) / speed.file_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:  # opened before the minutes that measuring takes
            date = datetime.now(UTC).isoformat(timespec="seconds")
            threads = torch.get_num_threads() if device.type == "cpu" else None
            rows = _measured(device, counts, progress)
            table = speed.Table(name, speed.versions(), date, threads, rows)
            file.write(speed.as_json(table))
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"cannot write {path}: {why}; FASTCKA_CACHE names another cache") from None
    speed.forget()
    return path


def _checked(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type not in WORK:
        raise RuntimeError(f"cannot measure {device}: only torch runs there, so nothing is faster")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise RuntimeError(f"cannot measure {device}: torch sees {count or 'no'} GPUs here")
    return torch.device("cuda", device.index or 0)


@torch.no_grad()
def _measured(device: torch.device, counts: Sequence[int], progress: bool) -> tuple[speed.Row, ...]:
    from tqdm import tqdm

    of_activations = [("gram", _gram), ("gram_finish", _gram_finish)]
    of_matrices = [("finish", _finish), ("hsic_pairs", _hsic_pairs)]
    cases = [(*made, dtype, n) for made in of_activations for dtype in DTYPES for n in counts]
    cases += [(*made, torch.float64, n) for made in of_matrices for n in counts]
    backends = [name for name in BACKENDS if dispatch.obstacle(name, device) is None]
    hidden = None if progress else True  # None: hidden where no terminal shows it
    rows = []
    for operation, make, dtype, n in tqdm(cases, f"measuring {device}", disable=hidden):
        versions = {name: dispatch.choose(operation, device, dtype, n, name) for name in backends}
        source = torch.Generator(device).manual_seed(n)
        # No case is held while the next is made: on a GPU it is large.
        for name, result in _results(make(source, dtype, n), versions, device):
            rows.append(speed.Row(operation, speed.dtype_name(dtype), n, name, *result))
    return tuple(rows)


def _results(
    case: Case, versions: dict[str, Callable], device: torch.device
) -> Iterator[tuple[str, tuple]]:
    """Of each version the median, the error, and why there is no median."""
    checked = {name: _check(version, case) for name, version in versions.items()}
    right = {name: versions[name] for name, (_, why) in checked.items() if why is None}
    samples = {name: [] for name in right}
    for _ in range(1 + ROUNDS):  # in turns, as clocks rise and neighbours come and go
        for name, version in right.items():
            samples[name].append(_microseconds(version, case.calls, device))
    for name, result in checked.items():
        median = statistics.median(samples[name][1:]) if name in right else None
        yield name, (median, *result)


def _check(version: Callable, case: Case) -> tuple[float | None, str | None]:
    """The error of a version, and why it must not run."""
    for out in case.outputs:
        out.fill_(torch.nan)  # what a version forgets is seen
    try:
        version(*case.calls[0])
        error = ((case.found() - case.expected).norm() / case.expected.norm()).item()
    except torch.OutOfMemoryError:  # says nothing of the version
        raise
    except Exception as failure:  # whatever a compiler or a driver raises
        return None, f"failed: {type(failure).__name__}: {failure}".splitlines()[0]
    if error <= case.allowed:
        return error, None
    return None, f"wrong: its error is {error:.2g}, allowed is {case.allowed:.2g}"


def _microseconds(version: Callable, calls: list[tuple], device: torch.device) -> float:
    """Of a call, one behind the other as in a comparison.

    On a GPU a call that costs the host more than the device counts as what it costs the host.
    """
    if device.type == "cpu":
        start = time.perf_counter()
        for arguments in calls:
            version(*arguments)
        return (time.perf_counter() - start) * 1e6 / len(calls)
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for arguments in calls:
            version(*arguments)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) * 1e3 / len(calls)  # from milliseconds


def _gram(source: torch.Generator, dtype: torch.dtype, n: int) -> Case:
    layers = _layers(source, dtype, n)
    operand = resolve_operand(None, layers[0])
    k, stats = _empty(source, n, n), _empty(source, 3)
    return Case(
        calls=[(x, operand, k, stats) for x in layers],
        outputs=(k, stats),
        found=lambda: _finished(k, stats),
        expected=_finished(*_exact(layers[0])),
        allowed=ALLOWED[operand],
    )


def _gram_finish(source: torch.Generator, dtype: torch.dtype, n: int) -> Case:
    layers = _layers(source, dtype, n)
    operand = resolve_operand(None, layers[0])
    size = min(TOGETHER, len(layers))
    starts = range(0, len(layers) - size + 1, size)
    outputs = _empty_finished(source, n, size)
    return Case(
        calls=[(layers[at : at + size], [operand] * size, *outputs, "unbiased") for at in starts],
        outputs=outputs,
        found=lambda: _joined(*outputs),
        expected=torch.stack([_finished(*_exact(x)) for x in layers[:size]]),
        allowed=ALLOWED[operand],
    )


def _finish(source: torch.Generator, dtype: torch.dtype, n: int) -> Case:
    k, stats = _exact(_activations(source, PIECE, torch.float32, n))
    outputs = [part[0] for part in _empty_finished(source, n, 1)]
    return Case(
        calls=[(k, stats, *outputs, "unbiased")] * TOGETHER,
        outputs=outputs,
        found=lambda: _joined(*outputs),
        expected=_finished(k, stats),
        allowed=ALLOWED[dtype],
    )


def _hsic_pairs(source: torch.Generator, dtype: torch.dtype, n: int) -> Case:
    stack = _normal(source, STACKED, packed_length(n, "unbiased"), dtype=dtype)
    out = _empty(source, STACKED, STACKED)
    return Case(
        calls=[(stack, stack, out)],
        outputs=(out,),
        found=lambda: out,
        expected=stack @ stack.T,
        allowed=ALLOWED[dtype],
    )


def _layers(source: torch.Generator, dtype: torch.dtype, n: int) -> list[torch.Tensor]:
    """As many as fit, for two calls at most. The first, third, ... are nearly all mean."""
    work = WORK[source.device.type]
    features = max(64, min(work.features, work.room // (n * dtype.itemsize)) // 64 * 64)
    fit = max(1, work.room // (n * features * dtype.itemsize))
    layers = [_activations(source, features, dtype, n) for _ in range(min(fit, 2 * TOGETHER))]
    for x in layers[::2]:
        x += 30 * _normal(source, features).to(dtype)
    return layers


def _activations(
    source: torch.Generator, features: int, dtype: torch.dtype, n: int
) -> torch.Tensor:
    """Examples that share eight directions, with noise of their own and a mean per feature."""
    x = torch.empty(n, features, dtype=dtype, device=source.device)
    latent = _normal(source, n, 8) / 8**0.5
    for part in x.split(PIECE, dim=1):
        width = part.shape[1]
        shared = latent @ _normal(source, 8, width) + _normal(source, 1, width)
        part.copy_(shared + _normal(source, n, width))
    return x


def _normal(source: torch.Generator, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=source, dtype=dtype, device=source.device)


def _empty(source: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.float64, device=source.device)


def _empty_finished(source: torch.Generator, n: int, layers: int) -> list[torch.Tensor]:
    """What `finish` writes to, of some layers."""
    return [_empty(source, layers, size) for size in (packed_length(n, "unbiased"), n, n, 5)]


def _exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The Gram matrix and its statistics in float64, added up over pieces of the features."""
    k = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    stats = k.new_zeros(3)
    some, some_stats = torch.empty_like(k), torch.empty_like(stats)
    for part in x.split(PIECE, dim=1):
        torch_gram.gram(part.double(), torch.float64, some, some_stats)
        k += some
        stats += some_stats
    return k, stats


def _finished(k: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """What is compared of a Gram matrix: centred, so that no mean hides an error."""
    n = len(k)
    parts = [k.new_empty(size) for size in (packed_length(n, "unbiased"), n, n, 5)]
    torch_finish.finish(k, stats, *parts, "unbiased")
    return _joined(*parts)


def _joined(packed, diagonal, row_sums, summary) -> torch.Tensor:
    """All that follows from a Gram matrix, as large as its entries or a norm of them.

    What is estimated from some rows must only be finite.
    """
    n = diagonal.shape[-1]
    norms = summary[..., :2].sqrt()
    spread, estimated = summary[..., 2:3] / n, 0 * summary[..., 3:]
    return torch.cat([packed, diagonal, row_sums / n**0.5, norms, spread, estimated], -1)
