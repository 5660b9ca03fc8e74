import pytest
import torch
from cases import packed_stack
from reference import FLOAT64, SANE, relative_error

from fastcka.kernels import hsic_pairs


def inner_products(stack):
    """One by one, in an order of addition that is nobody's."""
    return torch.stack([(stack * row).sum(1) for row in stack])


@pytest.mark.benchmark(max_time=0.5, min_rounds=3)
@pytest.mark.parametrize("variant", ["native", "torch", "mm_fp32"])
@pytest.mark.parametrize(("layers", "n"), [(12, 64), (12, 256), (87, 256)])
def test_hsic(timed, need, layers, n, variant):
    stack = packed_stack(layers, n)
    expected = inner_products(stack)
    if variant == "mm_fp32":
        single = stack.float()
        call, tolerance = lambda: single @ single.T, SANE
    else:
        need("hsic_pairs", variant)
        call, tolerance = lambda: hsic_pairs(stack, backend=variant), FLOAT64
    case = {"op": "hsic", "n": n, "layers": layers, "dtype": "float64"}
    timed(call, lambda out: relative_error(out, expected), tolerance, variant=variant, **case)
