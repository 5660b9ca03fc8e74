"""Checking the variants of a case, timing those that are right, writing a row for each."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from memory import Peak
from provenance import clocks
from reference import SANE
from timing import CpuTimer, CudaTimer, measure


class Variant(NamedTuple):
    """One way to compute a case."""

    name: str
    call: Callable | None  # without arguments; None where there is an obstacle
    error: Callable | None = None  # of what `call` returns
    tolerance: float = SANE
    needs: int = 0  # bytes of memory beside the input
    obstacle: str | None = None
    judged: bool = True  # False: that it is wrong is a finding, and no failure of the run


class Runner:
    """A device, what it can do, and where the rows go."""

    def __init__(self, device, scale, rows, measure=measure):
        self.device = device
        self.scale = scale
        self.rows = rows
        self.timer = CudaTimer(device) if device.type == "cuda" else CpuTimer()
        self.measure = measure
        self.bandwidth = None  # bytes a second
        self.rates = {}  # dtype -> flop a second
        self.healthy = True  # no variant was wrong, no test failed

    def run(self, variants, *, flop=None, size=None, floor=None, **case):
        """Check the variants, time those that are right in turns, and write a row for each.

        Args:
            flop, size: operations and bytes that count for every variant, whatever it does.
            floor: seconds that no version can beat; None where the rates are not known.
            case: columns that the rows share.

        Returns:
            variant -> Timing
        """
        calls, errors = {}, {}
        for variant in variants:
            error, why = self._check(variant, case.get("n"))
            if why is None:
                calls[variant.name] = variant.call
                errors[variant.name] = error
            else:
                self.rows.add(**case, variant=variant.name, error=error, why=why)
        if not calls:
            return {}
        timings = self.measure(self.timer, calls, self.scale.seconds, self.scale.at_least)
        note = None
        if self.device.type == "cuda":
            note = ", ".join(f"{key} {value}" for key, value in clocks(self.device).items())
        for name, timing in timings.items():
            seconds = timing.median_us / 1e6
            self.rows.add(
                **case,
                variant=name,
                **timing._asdict(),
                gb_per_s=size and size / seconds / 1e9,
                tflop_per_s=flop and flop / seconds / 1e12,
                floor_us=floor and floor * 1e6,
                share_of_floor=floor and floor / seconds,
                error=errors[name],
                peak_mb=self._peak_mb(calls[name]),
                note=note,
            )
        return timings

    def _check(self, variant, n):
        """The error of a variant, and why it must not be timed; None where it may."""
        why = variant.obstacle or self.too_large(variant.needs)
        if why:
            return None, why
        try:
            if n:  # NaN where the allocator is about to put a result [n, n]
                torch.full((n, n), torch.nan, dtype=torch.float64, device=self.device)
            error = variant.error(variant.call())
        except torch.OutOfMemoryError:
            return None, "out of memory"
        except Exception as failure:  # the other variants are worth having
            self.healthy &= not variant.judged
            return None, failed(failure)
        if error <= variant.tolerance:
            return error, None
        self.healthy &= not variant.judged
        why = f"wrong: the error is {error:.2g}, allowed is {variant.tolerance:.2g}"
        return (error if math.isfinite(error) else None), why  # JSON has no NaN

    def too_large(self, needs):
        """Why so many bytes do not fit; None where they do."""
        free = self.free_memory()
        if needs <= 0.9 * free:
            return None
        return f"does not fit: needs {needs / 1e9:.2f} GB, free are {free / 1e9:.2f} GB"

    def free_memory(self):
        if self.device.type != "cuda":
            return _available_memory()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def _peak_mb(self, call):
        if self.device.type == "cuda":
            return None
        with Peak() as memory:
            call()
        return memory.above and memory.above / 1e6

    def triangle(self, n):
        """The share of a square that must be computed for its triangle, in blocks of rows.

        64 are what tensor cores multiply at once, 16 the lanes of AVX-512 in float32.
        """
        return min(1, (1 + (64 if self.device.type == "cuda" else 16) / n) / 2)

    def floor(self, size, flop, dtype):
        """Seconds to move so many bytes or do so many operations, whichever takes longer."""
        if self.bandwidth is None or dtype not in self.rates:
            return None
        return max(size / self.bandwidth, flop / self.rates[dtype])


def _available_memory():
    """What Linux would hand out without swapping; elsewhere nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def failed(failure):
    return f"failed: {type(failure).__name__}: {failure}".splitlines()[0]
