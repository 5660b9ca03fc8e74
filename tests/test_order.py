"""Which examples meet in a batch, as a function of seed, pass, length and batch size."""

import pytest
import torch

from fastcka.data.order import BatchOrder


def batches(length=50, batch_size=8, seed=0, epoch=0):
    order = BatchOrder(length, batch_size, seed)
    order.epoch = epoch
    return list(order)


def flat(batches):
    return [i for batch in batches for i in batch]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 50])
def test_every_example_comes_once_in_full_batches_but_the_last(length):
    found = batches(length)
    assert sorted(flat(found)) == list(range(length))
    assert all(len(batch) == 8 for batch in found[:-1])
    assert 1 <= len(found[-1]) <= 8
    assert len(found) == len(BatchOrder(length, 8))


def test_the_order_is_a_function_of_seed_and_pass_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert batches(seed=4, epoch=2) == batches(seed=4, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_orders_differ_between_seeds_and_passes_and_from_the_files():
    pairs = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {str(batches(seed=seed, epoch=epoch)) for seed, epoch in pairs}
    assert len(orders) == 9
    assert flat(batches()) != list(range(50))


def test_the_order_stays_what_it_was_in_earlier_versions():
    assert batches(10, 4) == [[2, 0, 4, 1], [5, 3, 9, 6], [8, 7]]
    assert batches(10, 4, epoch=1) == [[7, 8, 3, 0], [9, 4, 1, 2], [5, 6]]
