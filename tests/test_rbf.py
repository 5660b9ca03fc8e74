import pytest
import torch
from data import related
from tolerance import FLOAT64, assert_close

from fastcka.kernels import gram, rbf
from fastcka.kernels.gaussian import median
from fastcka.maths import gram as definition


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("n", [7, 40])
def test_rbf_is_the_gaussian_of_the_distances(version, n, bandwidth):
    x = related(n, 9, 4)[0].to(version)
    expected = torch.from_numpy(definition.rbf(x.cpu().numpy(), bandwidth)).tril()
    assert_close(rbf(gram(x), bandwidth).k.tril(), expected, FLOAT64)


def test_median_is_the_mean_of_the_two_middle_values(version):
    assert median(torch.tensor([[4.0, 1.0], [2.0, 8.0]], device=version)) == 3.0
    assert median(torch.tensor([[4.0, 1.0, 9.0]], device=version)) == 4.0


def test_equal_rows_have_a_gaussian_gram_matrix_of_ones(version):
    x = torch.randn(1, 5, device=version).expand(6, 5)
    assert torch.equal(rbf(gram(x)).k, torch.ones(6, 6, dtype=torch.float64, device=version))
