"""What a user would write without fastcka, at its best. None of it centres.

16-bit values are copied to float32 first, into memory that is there already, but for the product in
their own type: fresh memory costs more than the product.
"""

import time
from functools import cache, partial

import torch
from cases import FEATURES
from runner import Variant

# Features of the layers for which torch's compiler may try what is fastest.
TUNED = (FEATURES["vit_b_tokens"], FEATURES["resnet_layer4"])
# Seconds of one call. torch multiplies float16 on some CPUs a hundred times slower than float32.
TOO_SLOW = 2


def gram(x, error):
    """Of one layer; `error` takes the lower triangle of the product."""
    room = x if x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32)
    fp32 = Variant("mm_fp32", partial(mm_fp32, x, room), error)
    if x.is_cuda:
        # The best that cuBLAS has; on a CPU torch.mm takes no out_dtype.
        own = partial(mm_out_fp32, x)
        return [Variant("mm_out_fp32", own, error), fp32, _tuned(x, error)]
    variants = [
        fp32,
        fp32._replace(name="numpy_fp32", call=partial(numpy_fp32, x, room)),
        fp32._replace(name="ssyrk_fp32", call=partial(ssyrk_fp32, x, room)),
    ]
    if x.dtype != torch.float32:
        name = {torch.float16: "mm_fp16", torch.bfloat16: "mm_bf16"}[x.dtype]
        own = Variant(name, partial(torch.mm, x, x.T), error, obstacle=_too_slow(x), judged=False)
        variants.append(own)
    return variants


def gram_finish(layers, error):
    """Of many layers; `error` takes the products one after the other."""
    if layers[0].is_cuda:
        stacked = torch.stack(layers)  # at no cost of theirs
        return [
            Variant("mm_out_fp32_loop", lambda: [mm_out_fp32(x) for x in layers], error),
            Variant(
                "bmm_out_fp32",
                partial(torch.bmm, stacked, stacked.mT, out_dtype=torch.float32),
                error,
            ),
        ]
    loops = {"mm": mm_fp32, "numpy": numpy_fp32, "ssyrk": ssyrk_fp32}
    variants = [
        Variant(f"{name}_loop_fp32", partial(_each, one, layers), error)
        for name, one in loops.items()
    ]
    return [*variants, Variant("bmm_fp32", partial(bmm_fp32, layers), error)]


def hsic(a, b, error):
    """Of all pairs of two stacks, in float32."""
    a, b = a.float(), b.float()
    return [Variant("mm_fp32", lambda: a @ b.T, error)]


def mm_out_fp32(x):
    """The best that cuBLAS has for values of 16 bits; on a CPU torch.mm takes no out_dtype."""
    return torch.mm(x, x.T, out_dtype=torch.float32)


def _tuned(x, error):
    """What torch's compiler finds when it tries all it knows: half a minute for each shape."""
    why = None if x.shape[1] in TUNED else "left out: it is tuned for some shapes alone"
    return Variant("max_autotune", partial(_compiled(), x), error, obstacle=why, judged=False)


@cache
def _compiled():
    return torch.compile(mm_out_fp32, mode="max-autotune-no-cudagraphs", dynamic=False)


def mm_fp32(x, room):
    x = _as_float32(x, room)
    return x @ x.T


def numpy_fp32(x, room):
    """NumPy sees that it is one matrix twice, and calls SYRK."""
    x = _as_float32(x, room).numpy()
    return x @ x.T


def ssyrk_fp32(x, room):
    """BLAS is Fortran: without a copy it is given the transpose, and returns one."""
    from scipy.linalg.blas import ssyrk

    return ssyrk(1.0, _as_float32(x, room).numpy().T, trans=1).T


def _as_float32(x, room):
    return x if room is x else room.copy_(x)


def bmm_fp32(layers):
    stacked = torch.stack(layers)
    return stacked @ stacked.mT


def _each(product, layers):
    return [product(x, x) for x in layers]


def _too_slow(x):
    """Why the product in the type of x is left out, by the time of a part; None where it is not."""
    part = x[:, :512]
    for _ in range(2):  # the first call prepares
        start = time.perf_counter()
        torch.mm(part, part.T)
        seconds = (time.perf_counter() - start) * x.shape[1] / part.shape[1]
    return f"too slow: a call takes some {seconds:.0f} s" if seconds > TOO_SLOW else None
