"""What bench/gpu.py measures: the device itself, and the operations of fastcka.kernels."""

from functools import partial

import torch
from cases import activations, packed_stack
from reference import FLOAT64, TOLERANCE, gram64, packed, relative_error
from runner import Variant


def rates(runner):
    """What the device can do, by the plainest means: reading, copying, multiplying matrices."""
    source = torch.rand(runner.scale.buffer // 4, device=runner.device)
    target = torch.empty_like(source)
    total = source.sum(dtype=torch.float64)
    size = source.numel() * source.element_size()
    read = Variant("sum", source.sum, lambda out: abs(out.double() / total - 1).item())
    copy = Variant(
        "copy_",
        partial(target.copy_, source),
        lambda out: (out != source).sum().item() / source.numel(),
        tolerance=0,
    )
    bandwidths = []
    for variant, moved in ((read, size), (copy, 2 * size)):
        timings = runner.run([variant], size=moved, op="bandwidth", dtype="float32")
        bandwidths += [moved / timing.median_us * 1e6 for timing in timings.values()]
    runner.bandwidth = max(bandwidths, default=None)

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        # Some GPUs do 1/64 as much in float64.
        side = runner.scale.side // (1 if dtype.itemsize == 2 else 2)
        a, b = (torch.randn(side, side, device=runner.device).to(dtype) for _ in range(2))
        rows = a[:64].double() @ b.double()
        mm = Variant("mm", partial(torch.mm, a, b), partial(_first_rows_error, expected=rows))
        case = {"op": "matrix_rate", "n": side, "p": side, "dtype": name_of(dtype)}
        flop = 2 * side**3
        for timing in runner.run([mm], flop=flop, size=3 * a.nbytes, **case).values():
            runner.rates[dtype] = flop / timing.median_us * 1e6


def gram(runner, *, dtype=torch.float16, **case):
    """A Gram matrix, beside the products that a user would write."""
    n, p = case["n"], case["p"]
    size, flop = n * p * dtype.itemsize, 2 * n * n * p
    pieces = 5 * 8 * n * 16_384 + 6 * 8 * n * n  # of the data and of the reference, in float64
    why = runner.too_large(size + pieces)
    if why:
        runner.rows.add(**case, dtype=name_of(dtype), variant="all", why=why)
        return
    x = activations(n, p, dtype, runner.device)
    expected = packed(gram64(x))

    def error(k):
        return relative_error(packed(k), expected)

    variants = [
        Variant(
            "mm_out_fp32",
            partial(torch.mm, x, x.T, out_dtype=torch.float32),
            error,
            obstacle=None if x.is_cuda else "torch.mm takes out_dtype on CUDA only",
        ),
        Variant("float_mm", partial(float_mm, x), error, needs=4 * n * p),
        *_ours(
            runner,
            "gram",
            lambda kernels, backend: partial(kernels.gram, x, backend=backend),
            lambda batch: error(batch.k),
            TOLERANCE[dtype],
        ),
    ]
    floor = runner.floor(size, triangle(n) * flop, dtype)
    runner.run(variants, flop=flop, size=size, floor=floor, dtype=name_of(dtype), **case)


def triangle(n):
    """The share of the square that must be computed, in blocks of 64 × 64, for its triangle."""
    return min(1, (1 + 64 / n) / 2)


def finish(runner, **case):
    n = case["n"]
    k = gram64(activations(n, 768, torch.float32, runner.device))
    expected = packed(k)

    def call(kernels, backend):
        sizes = (kernels.packed_length(n, "unbiased"), n, n, 5)
        into = kernels.Finished(*(k.new_full((size,), torch.nan) for size in sizes))
        return partial(kernels.finish, kernels.Gram(k, k.new_ones(3)), into=into, backend=backend)

    variants = _ours(
        runner, "finish", call, lambda out: relative_error(out.packed, expected), FLOAT64
    )
    size = 8 * n * n  # half a matrix is read, half a matrix is written
    floor = runner.bandwidth and size / runner.bandwidth
    runner.run(variants, size=size, floor=floor, dtype="float64", **case)


def hsic(runner, **case):
    n, layers = case["n"], case["layers"]
    length = n * (n - 1) // 2
    size, flop = 8 * layers * length, 2 * layers * layers * length
    why = runner.too_large(4 * size)
    if why:
        runner.rows.add(**case, dtype="float64", variant="all", why=why)
        return
    stack = packed_stack(layers, n, runner.device)
    expected = sum(part @ part.T for part in stack.split(4096, dim=1))
    variants = _ours(
        runner,
        "hsic_pairs",
        lambda kernels, backend: partial(kernels.hsic_pairs, stack, backend=backend),
        lambda out: relative_error(out, expected),
        FLOAT64,
    )
    floor = runner.floor(size, flop / 2, torch.float64)  # the result is symmetric
    runner.run(variants, flop=flop, size=size, floor=floor, dtype="float64", **case)


def _ours(runner, operation, call, error, tolerance):
    """A variant for every backend of fastcka; those that cannot run here carry the reason."""
    try:
        from fastcka import kernels
        from fastcka.kernels import dispatch
    except ImportError as missing:
        return [Variant("fastcka", None, obstacle=f"fastcka is not installed: {missing}")]
    variants = []
    for backend in dispatch.OPERATIONS[operation]:
        obstacle = dispatch.obstacle(operation, backend, runner.device)
        version = None if obstacle else call(kernels, backend)
        variants.append(Variant(f"fastcka:{backend}", version, error, tolerance, 0, obstacle))
    return variants


def float_mm(x):
    """What a user would write who wants float32: no centring; of 16-bit values a copy first."""
    x = x.float()
    return x @ x.T


def _first_rows_error(out, expected):
    return relative_error(out[: len(expected)], expected)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")
