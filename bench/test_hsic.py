import measurements
import pytest


@pytest.mark.parametrize(("layers", "n"), [(12, 64), (12, 256), (87, 256)])
def test_hsic_of_a_stack_with_itself(run, layers, n):
    run(measurements.hsic, op="hsic", layers=layers, n=n)


def test_hsic_of_all_leaves_of_two_networks(run):
    # ViT-B/16 and ResNet-50
    run(measurements.hsic, op="hsic", shape="87 x 159", layers=87, others=159, n=64)
