import measurements
import pytest


@pytest.mark.parametrize("n", [64, 256])
def test_finish(run, n):
    run(measurements.finish, op="finish", n=n)
