"""What is measured: the device itself, and the operations of fastcka.kernels beside baselines."""

import math
import os
import sys
import warnings
from functools import partial
from unittest import mock

import baselines
import torch
from cases import activations, packed_stack
from reference import FLOAT64, OPERANDS, TOLERANCE, gram64, packed, relative_error
from runner import Variant


def bandwidth(runner):
    """Of memory, by the plainest means: reading and copying."""
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


def matrix_rate(runner):
    """Of the device, by large products in four types."""
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


def multiply_add_rate(runner):
    """Of a CPU, in registers alone: products of torch reach half of it on some."""
    from fastcka.kernels import native

    if native.module is None:
        return  # rows carry no floor
    # On a CPU 16-bit values are multiplied in float32.
    rate = native.multiply_add_rate(torch.get_num_threads())
    runner.rates = dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), rate)
    case = {"op": "multiply_add_rate", "dtype": "float32"}
    note = f"{rate / 1e9:.0f} Gflop/s"
    runner.rows.add(**case, variant="registers", tflop_per_s=rate / 1e12, note=note)


def gram_data(n, p, dtype, device):
    """Activations and their centred, packed Gram matrix."""
    x = activations(n, p, dtype, device)
    return x, packed(gram64(x))


def gram(runner, *, dtype=torch.float16, operand=None, data=gram_data, **case):
    """A Gram matrix, beside the products that a user would write."""
    n, p = case["n"], case["p"]
    case |= {"dtype": name_of(dtype), "operand": operand}
    size, flop = n * p * dtype.itemsize, 2 * n * n * p
    pieces = 5 * 8 * n * 16_384 + 6 * 8 * n * n  # of the data and of the reference, in float64
    why = runner.too_large(size + pieces)
    if why:
        runner.rows.add(**case, variant="all", why=why)
        return
    x, expected = data(n, p, dtype, runner.device)

    def error(k):
        return relative_error(packed(torch.as_tensor(k)), expected)

    variants = [
        *_ours(
            runner,
            lambda kernels, backend: partial(kernels.gram, x, operand=operand, backend=backend),
            lambda batch: error(batch.k),
            # On a CPU 16-bit values are multiplied in float32 where nobody asks for less.
            TOLERANCE[OPERANDS[operand] if operand else dtype if x.is_cuda else torch.float32],
            isas=True,
        ),
        *baselines.gram(x, error),
    ]
    # The rate of the floor is that of the default operand.
    floor = None if operand else runner.floor(size, runner.triangle(n) * flop, dtype)
    runner.run(variants, flop=flop, size=size, floor=floor, **case)


def gram_finish(runner, *, dtype=torch.float32, **case):
    """The finished Gram matrices of many layers in one call, beside products alone."""
    n, p = case["n"], case["p"]
    why = runner.too_large(2 * n * p * case["layers"] * dtype.itemsize)
    if why:
        runner.rows.add(**case, dtype=name_of(dtype), variant="all", why=why)
        return
    together = activations(n, p * case["layers"], dtype, runner.device)
    layers = [x.contiguous() for x in together.split(p, dim=1)]
    del together
    expected = torch.stack([packed(gram64(x)) for x in layers])
    size, flop = dtype.itemsize * n * p * len(layers), 2 * n * n * p * len(layers)

    def error(products):
        return relative_error(torch.stack([packed(torch.as_tensor(k)) for k in products]), expected)

    variants = [
        *_ours(
            runner,
            lambda kernels, backend: partial(kernels.gram_finish, layers, backend=backend),
            lambda out: relative_error(out.packed, expected),
            TOLERANCE[dtype if layers[0].is_cuda else torch.float32],
            isas=True,
        ),
        *baselines.gram_finish(layers, error),
    ]
    floor = runner.floor(size, runner.triangle(n) * flop, dtype)
    runner.run(variants, flop=flop, size=size, floor=floor, dtype=name_of(dtype), **case)


def streaming(runner, **case):
    """CKA of a network with itself over some batches under autocast, beside its bare passes."""
    import timm

    import fastcka

    n, batches = case["n"], 4
    network, layers = case["shape"].split()
    kinds = {"blocks": "blocks", "products": [torch.nn.Linear, torch.nn.Conv2d]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(network).eval().to(runner.device)
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    generator = torch.Generator(runner.device).manual_seed(0)
    data = [
        torch.randn(n, *size, generator=generator, device=runner.device) for _ in range(batches)
    ]
    autocast = "fp16" if runner.device.type == "cuda" else None
    options = {"layers_a": kinds[layers], "progress": False, "autocast": autocast}

    def forward():
        for images in data:
            half = torch.autocast(runner.device.type, torch.float16, enabled=autocast is not None)
            with torch.no_grad(), half:
                out = model(images)
        return out

    def compare(kernels, backend):
        return partial(fastcka.compare, model, data=data, backend=backend, **options)

    # What the activations are, down to their rounding, is the same for all.
    exact = fastcka.compare(model, data=data, backend="torch", operand="fp32", **options).cka
    tolerance = TOLERANCE[torch.float16 if autocast else torch.float32]
    variants = [
        Variant("forward", forward, lambda out: 0.0 if out.isfinite().all() else math.inf),
        *_ours(
            runner,
            compare,
            lambda out: float(abs(out.cka - exact).max()),
            tolerance,
        ),
    ]
    dtype = "float16" if autocast else "float32"
    timings = runner.run(variants, layers=len(exact), dtype=dtype, **case)
    for name, timing in timings.items():
        if name != "forward":
            share = timing.median_us / timings["forward"].median_us - 1
            print(f"    {name}: {share:+.1%} beside the forward passes", file=sys.stderr)


def finish(runner, **case):
    n = case["n"]
    k = gram64(activations(n, 768, torch.float32, runner.device))
    expected = packed(k)

    def call(kernels, backend):
        sizes = (kernels.packed_length(n, "unbiased"), n, n, 5)
        into = kernels.Finished(*(k.new_full((size,), torch.nan) for size in sizes))
        return partial(kernels.finish, kernels.Gram(k, k.new_ones(3)), into=into, backend=backend)

    variants = _ours(runner, call, lambda out: relative_error(out.packed, expected), FLOAT64)
    size = 8 * n * n  # half a matrix is read, half a matrix is written
    floor = runner.bandwidth and size / runner.bandwidth
    runner.run(variants, size=size, floor=floor, dtype="float64", **case)


def hsic(runner, *, others=None, **case):
    """All pairs of one stack, or of one with another that has `others` layers."""
    n, layers = case["n"], case["layers"]
    length = n * (n - 1) // 2
    columns = others or layers
    size, flop = 8 * (layers + (others or 0)) * length, 2 * layers * columns * length
    why = runner.too_large(4 * size)
    if why:
        runner.rows.add(**case, dtype="float64", variant="all", why=why)
        return
    a = packed_stack(layers, n, runner.device)
    b = packed_stack(others, n, runner.device) if others else None
    second = a if b is None else b
    parts = zip(a.split(4096, dim=1), second.split(4096, dim=1), strict=True)
    expected = sum(left @ right.T for left, right in parts)

    def error(out):
        return relative_error(out, expected)

    variants = [
        *_ours(
            runner,
            lambda kernels, backend: partial(kernels.hsic_pairs, a, b, backend=backend),
            error,
            FLOAT64,
        ),
        *baselines.hsic(a, second, error),
    ]
    # A stack with itself: the result is symmetric.
    floor = runner.floor(size, flop if others else flop / 2, torch.float64)
    runner.run(variants, flop=flop, size=size, floor=floor, dtype="float64", **case)


def speed_table(runner, op):
    """By which fastcka chooses a backend: a table beside the rows, for the package."""
    try:
        from fastcka.kernels import measure_speed, speed
    except ImportError as missing:
        runner.rows.add(op=op, variant="fastcka", why=f"fastcka is not installed: {missing}")
        return
    counts, folder = sorted(runner.scale.counts), runner.rows.path.parent
    table = measure_speed(runner.device, counts=counts, folder=folder, progress=False)
    excluded = [row for row in speed.read(table).rows if row.why]
    runner.healthy &= not excluded
    for row in excluded:
        case = {"op": row.operation, "n": row.n, "dtype": row.dtype}
        runner.rows.add(**case, variant=f"fastcka:{row.backend}", why=row.why)
    runner.rows.add(op=op, variant="fastcka", note=table.name)


def _ours(runner, call, error, tolerance, isas=False):
    """A variant for every backend of fastcka; those that cannot run here carry the reason.

    isas: whether the call multiplies, which a GPU may do by instructions that are taken by name.
    """
    try:
        from fastcka import kernels
        from fastcka.kernels import dispatch
    except ImportError as missing:
        return [Variant("fastcka", None, obstacle=f"fastcka is not installed: {missing}")]
    variants = []
    for backend in dispatch.BACKENDS:
        obstacle = dispatch.obstacle(backend, runner.device)
        if obstacle and backend == "triton" and runner.device.type == "cpu":
            continue  # it is for GPUs
        version = None if obstacle else call(kernels, backend)
        variants.append(Variant(f"fastcka:{backend}", version, error, tolerance, 0, obstacle))
        if isas and version and backend == "native" and _has_wgmma(runner.device):
            by_wgmma = mock.patch.dict(os.environ, FASTCKA_GPU_ISA="wgmma")(version)
            variants.append(Variant("fastcka:native:wgmma", by_wgmma, error, tolerance))
    return variants


def _has_wgmma(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _first_rows_error(out, expected):
    return relative_error(out[: len(expected)], expected)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")
