"""Everything worth measuring on a GPU, in one command and ten minutes: `python bench/gpu.py`.

Measures what the device can do (bandwidth, matrix rate), runs the tests marked gpu, then times the
operations of fastcka.kernels by every backend, beside cuBLAS. Appends one JSON line a measurement
to bench/results/ as they come. README.md beside this file says how to read one.

Exit code 0: all is well. 1: a test failed or a variant was wrong. 2: there is no CUDA device.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import measurements
import torch
from cases import FULL, SMOKE
from gpu_tests import run_gpu_tests
from provenance import ROOT, provenance
from rows import Rows, result_file
from runner import Runner, failed


def main(arguments=None):
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench/gpu.py needs a CUDA device, and torch {torch.__version__} sees none here.",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    deadline = start + 60 * options.minutes
    device = torch.device(options.device, 0 if options.device == "cuda" else None)
    source = provenance(device)
    rows = Rows(options.output or result_file(source["device"]), source)
    runner = Runner(device, SMOKE if options.smoke else FULL, rows)
    left_out = []
    try:
        for case, job in _jobs(runner, options.tests, deadline):
            label = " ".join(str(value) for value in case.values())
            if time.monotonic() >= deadline:
                left_out.append(label)
                rows.add(**case, variant="all", why="left out: the time was up")
                continue
            print(f"{time.monotonic() - start:6.1f} s  {label}", file=sys.stderr, flush=True)
            try:
                job(**case)
            except Exception as failure:  # the other measurements are worth having
                runner.healthy = False
                rows.add(**case, variant="all", why=failed(failure))
    finally:
        print(rows.table())
    if left_out:
        print(f"Left out, as {options.minutes:g} minutes were up: {'; '.join(left_out)}")
    print(f"{len(rows.all)} rows appended to {rows.path}")
    return 0 if runner.healthy else 1


def _jobs(runner, tests, deadline):
    """(columns of the case, function that takes them), what matters most first."""
    scale = runner.scale
    yield {"op": "rates"}, partial(_rates, runner)
    yield {"op": "tests"}, partial(_tests, runner, tests, deadline)
    yield {"op": "speed_table"}, partial(measurements.speed_table, runner)
    grams = [
        {"op": "gram", "shape": shape, "n": n, "p": p}
        for shape, p in scale.features.items()
        for n in scale.counts
    ]
    others = [{"op": "finish", "n": n} for n in scale.counts]
    others += [{"op": "hsic", "n": n, "layers": L} for L in scale.layers for n in scale.counts]
    first = next(iter(scale.features.items()))
    together = [
        {"op": "gram_finish", "shape": first[0], "n": n, "p": first[1], "layers": layers}
        for layers in scale.together
        for n in scale.counts[:2]
    ]
    streaming = [
        {"op": "streaming", "shape": " ".join(which), "n": scale.counts[0]}
        for which in scale.networks
    ]
    # The first four shapes, one of each kind, and what each is for.
    telling = 4 * len(scale.counts)
    for case in [*grams[:telling], *together, *streaming, *others, *grams[telling:]]:
        options = {"dtype": torch.float16} if case["op"] == "gram_finish" else {}
        yield case, partial(getattr(measurements, case["op"]), runner, **options)


def _rates(runner, op):
    measurements.bandwidth(runner)
    measurements.matrix_rate(runner)


def _tests(runner, folder, deadline, op):
    # Half of the time at most: a test that hangs must not cost the measurements.
    note, passed = run_gpu_tests(folder, (deadline - time.monotonic()) / 2)
    runner.rows.add(op=op, variant="pytest", note=note)
    runner.healthy &= passed


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="start nothing after; default 8")
    parser.add_argument("--output", type=Path, help="default: bench/results/<device>.jsonl")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: the code, not the speed")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="folder of the tests")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.smoke:
        parser.error("--device cpu is for --smoke; for CPU times run `pytest bench/`")
    if options.smoke and not options.output:
        parser.error("--smoke needs --output, so that its rows do not mix with results")
    return options


if __name__ == "__main__":
    sys.exit(main())
