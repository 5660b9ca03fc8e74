from functools import lru_cache

import measurements
import pytest
import torch
from cases import COUNTS, FEATURES, ON_CPU, QUICK

DTYPES = [torch.float32, torch.float16]
CASES = [(shape, n, dtype) for shape in ON_CPU for n in sorted(COUNTS) for dtype in DTYPES]
CASES += [("vit_b_tokens", n, torch.bfloat16) for n in (64, 256)]


@lru_cache(maxsize=1)  # numbers of threads follow each other
def data(*case):
    return measurements.gram_data(*case)


def marked(shape, n, dtype):
    slow = 2 * n * n * FEATURES[shape] > QUICK
    name = f"{shape}-{n}-{measurements.name_of(dtype)}"
    return pytest.param(shape, n, dtype, id=name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("shape", "n", "dtype"), [marked(*case) for case in CASES])
def test_gram(run, shape, n, dtype):
    p = FEATURES[shape]
    run(measurements.gram, op="gram", shape=shape, n=n, p=p, dtype=dtype, data=data)
