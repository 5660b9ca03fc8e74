"""Fixtures of the CPU benchmarks: `pytest bench/`."""

import sys
from pathlib import Path

import pytest
import torch

# As for `python bench/gpu.py`: the modules beside this file are imported by their plain names.
sys.path.insert(0, str(Path(__file__).parent))

from provenance import provenance


@pytest.fixture(scope="session")
def source():
    return provenance()


@pytest.fixture
def timed(benchmark, source):
    """Check a call, then time it: timed(call, error, tolerance, op=..., variant=..., ...)."""

    def check_and_time(call, error, tolerance, **case):
        off = error(call())
        assert off <= tolerance
        benchmark.group = " ".join(str(v) for k, v in case.items() if k != "variant")
        benchmark.extra_info.update(case, error=off, **source)
        benchmark(call)

    return check_and_time


@pytest.fixture
def need():
    """Skip where a backend cannot run an operation on the CPU, with the reason."""
    from fastcka.kernels import dispatch

    def skip_without(operation, backend):
        reason = dispatch.obstacle(operation, backend, torch.device("cpu"))
        if reason:
            pytest.skip(reason)

    return skip_without
