import pytest
import torch
from tolerance import REORDERED, assert_close

from fastcka.kernels import hsic_pairs

SIZES = [(1, 1, 6), (2, 3, 10), (5, 4, 63), (9, 13, 2016), (3, 6, 9000)]


@pytest.mark.parametrize(("rows", "columns", "length"), SIZES)
def test_every_pair_is_the_inner_product(version, rows, columns, length):
    a = torch.randn(rows, length, dtype=torch.float64, device=version)
    b = torch.randn(columns, length, dtype=torch.float64, device=version)
    expected = (a[:, None] * b[None]).sum(-1)
    scale = length**0.5
    assert_close(hsic_pairs(a, b) / scale, expected / scale, REORDERED)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11])
def test_a_stack_with_itself_is_symmetric_and_the_rectangle_of_it(version, rows):
    a = torch.randn(rows, 5000, dtype=torch.float64, device=version)
    square = hsic_pairs(a)
    assert torch.equal(square, square.T)
    assert_close(square / 5000, hsic_pairs(a, a.clone()) / 5000, REORDERED)


def test_a_pair_has_the_same_bits_in_any_stack_and_with_any_threads():
    a = torch.randn(11, 9001, dtype=torch.float64)
    whole = hsic_pairs(a, backend="native")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for i in range(11):
                alone = hsic_pairs(a[i : i + 1], a[3:6], backend="native")
                assert torch.equal(alone[0], whole[i, 3:6])
    finally:
        torch.set_num_threads(before)


def test_rows_of_a_larger_tensor_are_read_in_place(version):
    a = torch.full((4, 40), float("nan"), dtype=torch.float64, device=version)
    a[:, 5:25] = torch.randn(4, 20, dtype=torch.float64, device=version)
    assert_close(hsic_pairs(a[:, 5:25]), hsic_pairs(a[:, 5:25].clone()), REORDERED * 100)


def test_rows_that_are_not_dense_are_refused_by_every_version(version):
    a = torch.randn(20, 3, dtype=torch.float64, device=version)
    with pytest.raises(ValueError, match="`b` must be dense along its rows; use b"):
        hsic_pairs(a.T.contiguous(), a.T)


@pytest.mark.parametrize(("rows", "length"), [(0, 6), (2, 0)])
def test_nothing_gives_zeros_or_nothing(version, rows, length):
    a = torch.empty(rows, length, dtype=torch.float64, device=version)
    b = torch.empty(3, length, dtype=torch.float64, device=version)
    assert torch.equal(hsic_pairs(a, b).cpu(), torch.zeros(rows, 3, dtype=torch.float64))


def test_rows_of_two_lengths_are_refused(version):
    a, b = (torch.zeros(2, length, dtype=torch.float64, device=version) for length in (0, 5))
    with pytest.raises(ValueError, match="`a` has rows of 0 entries and `b` of 5"):
        hsic_pairs(a, b)
