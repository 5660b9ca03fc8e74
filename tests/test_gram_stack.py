"""Stacks filled layer by layer are the same, however they came together."""

import pytest
import torch

from fastcka.gram_stack import GramStack


def test_rows_that_are_joined_are_those_of_one_stack():
    layers = {"a": torch.randn(8, 5), "b": torch.randn(8, 9).double(), "c": torch.randn(8, 3)}
    whole = GramStack(list(layers), 8, gram="rbf", bandwidth=0.5)
    rows = []
    for row, (name, x) in enumerate(layers.items()):
        whole.put(row, x)
        rows.append(GramStack([name], 8, gram="rbf", bandwidth=0.5))
        rows[-1].put(0, x)
    joined = GramStack.joined(rows)
    joined.check_complete()
    assert joined.measure == whole.measure
    for name in ("packed", "diagonal", "row_sums", "summary", "eps"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def test_rows_on_two_devices_are_refused():
    rows = [GramStack(["a"], 8), GramStack(["b"], 8, device="meta")]
    rows[0].put(0, torch.randn(8, 5))
    with pytest.raises(RuntimeError, match="layer 'b' is on meta, but the batch began on cpu"):
        GramStack.joined(rows)
