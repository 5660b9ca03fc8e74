from functools import lru_cache

import measurements
import pytest
import torch
from cases import COUNTS, FEATURES, ON_CPU, QUICK

DTYPES = [torch.float32, torch.float16]
CASES = [(shape, n, dtype, None) for shape in ON_CPU for n in sorted(COUNTS) for dtype in DTYPES]
CASES += [("vit_b_tokens", n, torch.bfloat16, o) for n in (64, 256) for o in (None, "bf16")]


@lru_cache(maxsize=1)  # numbers of threads follow each other
def data(*case):
    return measurements.gram_data(*case)


def marked(shape, n, dtype, operand):
    slow = 2 * n * n * FEATURES[shape] > QUICK
    name = f"{shape}-{n}-{measurements.name_of(dtype)}" + (f"-as-{operand}" if operand else "")
    marks = pytest.mark.slow if slow else ()
    return pytest.param(shape, n, dtype, operand, id=name, marks=marks)


@pytest.mark.parametrize(("shape", "n", "dtype", "operand"), [marked(*case) for case in CASES])
def test_gram(run, shape, n, dtype, operand):
    case = {"op": "gram", "shape": shape, "n": n, "p": FEATURES[shape]}
    run(measurements.gram, dtype=dtype, operand=operand, data=data, **case)
