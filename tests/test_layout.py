import pytest
import torch
from data import DTYPES
from tolerance import OPERAND, assert_close

from fastcka.gram_stack import GramStack
from fastcka.kernels import gram, gram_finish
from fastcka.kernels.layout import as_rows, read_in_place

x = torch.arange(6 * 3 * 4 * 5, dtype=torch.float32).reshape(6, 3, 4, 5)

READ_IN_PLACE = {
    "contiguous": x,
    "channels_last": x.to(memory_format=torch.channels_last),
    "permuted tokens": x.permute(0, 2, 3, 1),
    "every other example": x[::2],
    "examples apart": torch.zeros(6, 100)[:, 7:60],
    "one feature": torch.zeros(6, 9)[:, 3:4],
    "a single token": torch.zeros(6, 10, 16)[:, 3],
    "unaligned": torch.zeros(61)[1:].view(6, 10),
    "the same row": torch.zeros(1, 10).expand(6, 10),
    "halves": x.half(),
}

COPIED = {
    "transposed": torch.zeros(10, 6).T,
    "every other feature": torch.zeros(6, 20)[:, ::2],
    "some tokens": torch.zeros(6, 10, 16)[:, ::3],
    "a negative view": torch._neg_view(torch.zeros(6, 10)),
}


@pytest.mark.parametrize("name", READ_IN_PLACE)
def test_dense_rows_are_read_in_place(name):
    tensor = READ_IN_PLACE[name]
    rows = as_rows(tensor)
    assert rows.data_ptr() == tensor.data_ptr()
    assert read_in_place(tensor)
    assert rows.shape == (tensor.shape[0], tensor[0].numel())


@pytest.mark.parametrize("name", COPIED)
def test_rows_that_are_not_dense_are_copied(name):
    tensor = COPIED[name]
    rows = as_rows(tensor)
    assert rows.data_ptr() != tensor.data_ptr()
    assert not read_in_place(tensor)
    assert rows.stride(1) == 1
    assert torch.equal(rows, tensor.flatten(1))


@pytest.mark.parametrize("name", READ_IN_PLACE)
def test_rows_hold_the_values_of_their_example(name):
    tensor = READ_IN_PLACE[name]
    assert torch.equal(as_rows(tensor).sort(1).values, tensor.flatten(1).sort(1).values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram_does_not_depend_on_the_layout(version, dtype):
    maps = torch.randn(9, 8, 5, 7).to(dtype).to(version)
    expected = gram(maps.flatten(1)).k.tril()
    scale = expected.diagonal().max()
    spaced = torch.full((9, 300), float("nan"), dtype=dtype, device=version)
    spaced[:, 11:291] = maps.flatten(1)
    layouts = {
        "channels_last": maps.to(memory_format=torch.channels_last),
        "surrounded by NaN": spaced[:, 11:291],
        "transposed": maps.flatten(1).T.contiguous().T,
        "every other feature": maps.flatten(1).repeat_interleave(2, 1)[:, ::2],
        "negative": torch._neg_view(-maps.flatten(1)),
    }
    for tensor in layouts.values():
        assert_close(gram(tensor).k.tril() / scale, expected / scale, 1e-6)


def test_a_batch_holds_one_copy_of_a_layer_at_a_time(monkeypatch):
    torch.manual_seed(0)
    xs = [torch.randn(8, 5), *(torch.randn(5, 8).T for _ in range(3)), torch.randn(8, 2, 3)]
    expected = gram_finish(xs).packed
    together = []

    def spy(layers, **options):
        together.append(sum(not read_in_place(x) for x in layers))
        return gram_finish(layers, **options)

    monkeypatch.setattr("fastcka.gram_stack.gram_finish", spy)
    stack = GramStack([str(i) for i in range(5)], 8)
    stack.put_all(xs)
    assert together == [0, 1, 1, 1]
    assert_close(stack.packed, expected, OPERAND["fp32"])
    stack.check_complete()
