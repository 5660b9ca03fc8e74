"""Checking the variants of a case, timing those that are right, writing a row for each."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
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


class Runner:
    """A device, what it can do, and where the rows go."""

    def __init__(self, device, scale, rows):
        self.device = device
        self.scale = scale
        self.rows = rows
        self.timer = CudaTimer(device) if device.type == "cuda" else CpuTimer()
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
        timings = measure(self.timer, calls, self.scale.seconds)
        note = None
        if calls and self.device.type == "cuda":
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
        except RuntimeError as failure:
            self.healthy = False
            return None, failed(failure)
        if error <= variant.tolerance:
            return error, None
        self.healthy = False
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
            return math.inf
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def floor(self, size, flop, dtype):
        """Seconds to move so many bytes or do so many operations, whichever takes longer."""
        if self.bandwidth is None or dtype not in self.rates:
            return None
        return max(size / self.bandwidth, flop / self.rates[dtype])


def failed(failure):
    return f"failed: {type(failure).__name__}: {failure}".splitlines()[0]
