import pytest
import torch
from cases import activations
from reference import FLOAT64, gram64, packed, relative_error

from fastcka.kernels import Gram, finish


@pytest.mark.benchmark(max_time=0.5, min_rounds=3)
@pytest.mark.parametrize("variant", ["native", "torch"])
@pytest.mark.parametrize("n", [64, 256])
def test_finish(timed, need, n, variant):
    need("finish", variant)
    k = gram64(activations(n, 768, torch.float32))
    batch, expected = Gram(k, k.new_ones(3)), packed(k)
    timed(
        lambda: finish(batch, backend=variant).packed,
        lambda out: relative_error(out, expected),
        FLOAT64,
        **{"op": "finish", "n": n, "dtype": "float64", "variant": variant},
    )
