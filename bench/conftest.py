"""Fixtures of the CPU benchmarks: `pytest bench/`."""

import os

# OpenBLAS reads it when NumPy loads it: its idle threads are to spin for 2^20 cycles, below a
# millisecond, and not for up to 100 ms, in which the variant that comes next would share a core.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

import sys
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

# As for `python bench/gpu.py`: the modules beside this file are imported by their plain names.
sys.path.insert(0, str(Path(__file__).parent))

import measurements
from cases import CPU
from provenance import provenance
from rows import Rows, ours_and_best
from runner import Runner
from timing import measure_beside


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, help="append a JSON line a variant to this file")


@pytest.hookimpl(trylast=True)  # numbers of threads follow each other, and share data
def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        # Answers that do not depend on it are for tests/.
        timed = not metafunc.config.getoption("benchmark_disable")
        counts = [1, 2] if timed and len(os.sched_getaffinity(0)) > 1 else [1]
        metafunc.parametrize("threads", counts, indirect=True, ids=lambda n: f"{n}t")


@pytest.fixture
def threads(request):
    """So many for torch and fastcka, and for the BLAS of NumPy and SciPy."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with threadpool_limits(request.param, user_api="blas"):
        yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rows(pytestconfig):
    return Rows(pytestconfig.getoption("rows"), provenance())


@pytest.fixture(scope="session")
def limits(rows):
    """Bandwidth and rates by the number of threads, measured once in a run."""

    @lru_cache
    def measured(threads):
        runner = Runner(torch.device("cpu"), CPU, rows)
        measurements.bandwidth(runner)
        measurements.multiply_add_rate(runner)
        return runner.bandwidth, runner.rates

    return measured


@pytest.fixture
def run(benchmark, threads, rows, limits):
    """Check and time all variants of a case: run(function of measurements.py, **case)."""

    def check_and_time(measurement, **case):
        runner = Runner(torch.device("cpu"), CPU, rows, partial(measure_beside, benchmark))
        if benchmark.enabled:
            runner.bandwidth, runner.rates = limits(threads)
        before = len(rows.all)
        measurement(runner, **case)
        found = rows.all[before:]
        assert runner.healthy, [row["why"] for row in found]
        if benchmark.stats is None and benchmark.enabled:
            pytest.skip(found[0]["why"])
        _tell(benchmark, found, rows.provenance)

    return check_and_time


def _tell(benchmark, found, provenance):
    """Into the JSON of pytest-benchmark, all that a row says."""
    variants = {row["variant"]: {k: v for k, v in row.items() if v is not None} for row in found}
    benchmark.extra_info.update(provenance, variants=variants)
    ours, best = ours_and_best(found)
    if ours and best:
        times = best["median_us"] / ours["median_us"]
        benchmark.extra_info.update(best_baseline=best["variant"], times_faster=times)
