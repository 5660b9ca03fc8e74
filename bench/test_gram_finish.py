import measurements
import pytest

from fastcka import kernels

pytestmark = pytest.mark.skipif(
    not hasattr(kernels, "gram_finish"), reason="fastcka.kernels has no gram_finish"
)


@pytest.mark.parametrize("layers", [24])
def test_gram_finish(run, layers):
    run(measurements.gram_finish, op="gram_finish", shape="vit_b_cls", n=64, p=768, layers=layers)
