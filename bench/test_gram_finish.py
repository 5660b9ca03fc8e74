import measurements
import pytest


@pytest.mark.parametrize("layers", [24])
def test_gram_finish(run, layers):
    run(measurements.gram_finish, op="gram_finish", shape="vit_b_cls", n=64, p=768, layers=layers)
