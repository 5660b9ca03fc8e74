"""Two loaders side by side: the same images, or an error."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from fastcka.data.pairing import Paired

x = torch.arange(24.0).reshape(12, 2)
y = torch.arange(12)


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), batch_size=4, **options)


def test_pairs_come_in_order():
    pairs = list(Paired(loader(x, y), loader(2 * x, y)))
    assert len(pairs) == 3
    for a, b in pairs:
        assert torch.equal(2 * a[0], b[0])


def shuffled_batches():
    data = TensorDataset(x)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False))


@pytest.mark.parametrize("names", [("data", "data_b"), ("data_b", "data")])
@pytest.mark.parametrize("make", [lambda: loader(x, shuffle=True), shuffled_batches])
def test_a_loader_that_shuffles_is_refused(names, make):
    loaders = {names[0]: make(), names[1]: loader(x)}
    with pytest.raises(
        ValueError, match=f"`{names[0]}` shuffles on its own, so its images are not"
    ):
        Paired(loaders["data"], loaders["data_b"])


def test_unequal_lengths_are_refused_before_anything_runs_where_they_are_known():
    with pytest.raises(ValueError, match="`data` has 3 batches, but `data_b` has 2"):
        Paired(loader(x), loader(x[:8]))


@pytest.mark.parametrize(("short", "long"), [("data", "data_b"), ("data_b", "data")])
def test_an_iterator_that_ends_early_is_an_error(short, long):
    lists = {short: iter(x.split(4)[:2]), long: x.split(4)}
    with pytest.raises(ValueError, match=f"`{short}` ended after 2 batches, but the other"):
        list(Paired(lists["data"], lists["data_b"]))


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda x, y: (x, y), "labels"),
        (lambda x, y: (x, y, y + 1), "labels"),
        (lambda x, y: (x, [f"{i}.png" for i in y.tolist()]), "labels"),
        (lambda x, y: {"pixels": x, "ids": y}, "ids"),
        (lambda x, y: {"pixels": x, "target": y}, "target"),
    ],
)
def test_labels_and_ids_must_agree(wrap, name):
    good = [wrap(*batch) for batch in zip(x.split(4), y.split(4), strict=True)]
    bad = [*good[:2], wrap(x[8:], y[8:].flip(0))]
    assert len(list(Paired(good, good))) == 3
    with pytest.raises(
        ValueError, match=f"batch 2 of `data` and of `data_b` differ in their {name}"
    ):
        list(Paired(good, bad))


def test_a_float_target_is_not_an_identity():
    targets = torch.randn(12)
    assert len(list(Paired(loader(x, targets), loader(x, targets + 1)))) == 3


def test_one_iterator_cannot_be_both():
    batches = iter(x.split(4))
    with pytest.raises(ValueError, match="`data` and `data_b` are one iterator"):
        Paired(batches, batches)


def test_loaders_of_unknown_length_are_read():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(x)

    assert len(list(Paired(DataLoader(Stream(), 4), DataLoader(Stream(), 4)))) == 3
