from functools import lru_cache, partial

import pytest
import torch
from cases import FEATURES, ON_CPU, activations
from measurements import float_mm, name_of
from reference import SANE, TOLERANCE, gram64, packed, relative_error

from fastcka.kernels import gram

DTYPES = [torch.float32, torch.float16]
CASES = [(shape, n, dtype) for shape, n in ON_CPU for dtype in DTYPES]
CASES.append(("vit_b_tokens", 64, torch.bfloat16))


@lru_cache(maxsize=1)  # the variants of a case follow each other
def data(shape, n, dtype):
    x = activations(n, FEATURES[shape], dtype)
    return x, packed(gram64(x))


@pytest.mark.benchmark(max_time=0.5, min_rounds=3)
@pytest.mark.parametrize("variant", ["native", "torch", "float_mm"])
@pytest.mark.parametrize(
    ("shape", "n", "dtype"),
    CASES,
    ids=[f"{shape}-{n}-{name_of(dtype)}" for shape, n, dtype in CASES],
)
def test_gram(timed, need, shape, n, dtype, variant):
    x, expected = data(shape, n, dtype)
    case = {"op": "gram", "shape": shape, "n": n, "p": x.shape[1], "dtype": name_of(dtype)}
    if variant == "float_mm":
        call, tolerance = partial(float_mm, x), SANE
    else:
        need("gram", variant)
        # On a CPU half values are multiplied in float32.
        call, tolerance = lambda: gram(x, backend=variant).k, TOLERANCE[torch.float32]
    timed(call, lambda k: relative_error(packed(k), expected), tolerance, variant=variant, **case)
