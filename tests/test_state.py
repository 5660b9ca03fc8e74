"""What accumulators keep: merging, states, blocks."""

import copy

import numpy as np
import pytest
import torch
from data import layers, names
from tolerance import REORDERED, assert_close

from fastcka import CKAWarning, MinibatchCKA


def test_merging_parts_equals_one_run(version):
    one, parts = MinibatchCKA(names(3)), [MinibatchCKA(names(3)) for _ in range(3)]
    for i in range(300):
        xs = layers(8, 3, i, version)
        one.update(xs)
        parts[i // 120].update(xs)
    merged = parts[0].merge(parts[1]).merge(parts[2]).compute()
    expected = one.compute()
    assert_close(merged.cka, expected.cka, REORDERED)
    assert_close(merged.stderr, expected.stderr, REORDERED)
    assert (merged.n_batches, merged.n_examples) == (300, 2400)
    assert merged.meta["n_blocks"] == 256


def test_shards_with_an_index_merge_to_the_blocks_of_one_run():
    one = MinibatchCKA(names(3))
    shards = [MinibatchCKA(names(3)) for _ in range(2)]
    for i in range(9):
        xs = layers(8, 3, i)
        one.update(xs, index=i)
        shards[i % 2].update(xs, index=i)
    merged, expected = shards[1].merge(shards[0]).compute(), one.compute()
    assert (merged.stderr == expected.stderr).all()
    assert (merged.cka == expected.cka).all()


def test_merging_keeps_the_batch_of_the_first_bad_value_and_what_was_left_out():
    parts = [MinibatchCKA(["x"]) for _ in range(2)]
    for part in parts:
        for _ in range(3):
            part.update([torch.randn(8, 5)])
        part.update([torch.randn(2, 5)])
    parts[1].update([torch.full((8, 5), float("nan"))])
    with pytest.warns(CKAWarning, match="first in batch 6|left out") as caught:
        meta = parts[0].merge(parts[1]).compute().meta
    assert "first in batch 6" in str(caught[0].message)
    assert (meta["skipped_batches"], meta["skipped_examples"]) == (2, 4)


def test_numbering_is_taken_over_by_merging_and_by_loading():
    indexed = MinibatchCKA(["x"]).update([torch.randn(8, 5)], index=2)
    merged = MinibatchCKA(["x"]).merge(indexed)
    loaded = MinibatchCKA(["x"])
    loaded.load_state_dict(indexed.state_dict())
    for cka in (merged, loaded):
        with pytest.raises(ValueError, match="either every batch has an `index`"):
            cka.update([torch.randn(8, 5)])


def test_merging_twice_leaves_the_other_as_it_was():
    a, b, c = (MinibatchCKA(["x"]).update([torch.randn(8, 5)], index=1) for _ in range(3))
    empty = MinibatchCKA(["x"])
    before = copy.deepcopy(b.state_dict()["tensors"])
    empty.merge(b).merge(a).merge(c)
    assert all(
        torch.equal(value, before[name]) for name, value in b.state_dict()["tensors"].items()
    )


def test_merging_leaves_the_other_as_it_was():
    a, b = MinibatchCKA(names(2)), MinibatchCKA(names(2))
    a.update(layers(8, 2, 0))
    b.update(layers(8, 2, 1))
    before = copy.deepcopy(b.state_dict())
    a.merge(b)
    a.update(layers(8, 2, 2))
    after = b.state_dict()
    assert all(torch.equal(after["tensors"][k], v) for k, v in before["tensors"].items())


def test_a_run_resumed_from_its_state_has_the_bits_of_an_uninterrupted_one():
    one, first = MinibatchCKA(names(3), names(2, "r")), MinibatchCKA(names(3), names(2, "r"))
    data = [layers(12, 5, i) for i in range(7)]
    data[5][1][0, 0] = float("inf")
    for i, xs in enumerate(data):
        one.update(xs[:3], xs[3:])
        if i < 4:
            first.update(xs[:3], xs[3:])
    state = copy.deepcopy(first.state_dict())
    first.update(data[0][:3], data[0][3:])  # the state does not follow
    second = MinibatchCKA(names(3), names(2, "r"))
    second.load_state_dict(state)
    for xs in data[4:]:
        second.update(xs[:3], xs[3:])
    with pytest.warns(CKAWarning, match="first in batch 5"):
        resumed = second.compute()
    with pytest.warns(CKAWarning):
        expected = one.compute()
    np.testing.assert_array_equal(resumed.cka, expected.cka)
    np.testing.assert_array_equal(resumed.stderr, expected.stderr)
    assert resumed.warnings == expected.warnings
    assert resumed.n_batches == expected.n_batches


def test_an_empty_state_loads():
    cka = MinibatchCKA(names(2))
    cka.load_state_dict(MinibatchCKA(names(2)).state_dict())
    cka.update(layers(8, 2, 0))
    assert cka.compute().n_batches == 1


def test_the_error_of_examples_that_come_again_is_that_of_the_first_time():
    data = [layers(16, 2, i) for i in range(12)]
    whole = [torch.cat(parts) for parts in zip(*data, strict=True)]
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(0))
    other = list(zip(*(x[order].split(16) for x in whole), strict=True))
    once, twice, second, as_new = (MinibatchCKA(names(2)) for _ in range(4))
    for i, xs in enumerate(data):
        once.update(xs, index=i)
    for pass_number, batches in enumerate((data, other)):
        for i, xs in enumerate(batches):
            twice.update(list(xs), index=i, again=pass_number > 0)
            as_new.update(list(xs))
    for i, xs in enumerate(other):
        second.update(list(xs), index=i)
    results = [cka.compute() for cka in (once, twice, second, as_new)]
    once_, twice_, second_, as_new_ = results
    assert (twice_.stderr == once_.stderr).all()
    assert twice_.meta["n_blocks"] == 12
    assert (twice_.n_batches, twice_.n_examples) == (24, 384)
    # The HSICs are those of both passes, each half of the weight.
    assert_close(twice_.hsic_ab, (once_.hsic_ab + second_.hsic_ab) / 2, REORDERED)
    assert_close(twice_.cka, as_new_.cka, REORDERED)
    # In parts, and from a state, to the same bits.
    parts = [MinibatchCKA(names(2)) for _ in range(2)]
    for pass_number, batches in enumerate((data, other)):
        for i, xs in enumerate(batches):
            parts[i % 2].update(list(xs), index=i, again=pass_number > 0)
    loaded = MinibatchCKA(names(2))
    loaded.load_state_dict(parts[1].merge(parts[0]).state_dict())
    assert (loaded.compute().cka == twice_.cka).all()
    assert (loaded.compute().stderr == twice_.stderr).all()


def test_examples_that_were_only_given_again_have_no_error():
    result = MinibatchCKA(names(2)).update(layers(16, 2, 0), again=True).compute()
    assert np.isnan(result.stderr).all()
    assert np.isnan(result.ci()[0]).all()
    assert result.meta["n_blocks"] == 0


def test_memory_does_not_grow_with_the_batches():
    cka = MinibatchCKA(names(2))
    for i in range(600):
        cka.update(layers(4, 2, i))
    state = cka.state_dict()["tensors"]
    assert state["block"].numel() == 256
    assert cka.compute().meta["n_blocks"] == 256
