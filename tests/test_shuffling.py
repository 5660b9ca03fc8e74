"""Batches that are no random samples are told, and random ones are not."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fastcka.data.shuffling import ClassMixing, unshuffled


def told(batches):
    mixing = ClassMixing()
    for batch in batches:
        mixing.see(batch)
    return mixing.warnings()


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("batch", [4, 16, 64])
def test_sorted_classes_are_told(classes, batch):
    labels = torch.arange(classes).repeat_interleave(max(1, 2000 // classes))
    if classes == 1000 and batch == 64:
        labels = labels.repeat_interleave(4)
    assert len(told(labels.split(batch))) == 1


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("batch", [4, 16, 64])
def test_random_classes_are_not_told(classes, batch):
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (400,), generator=generator)
        assert told(labels.split(batch)) == []


def test_rare_classes_are_not_told():
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(2000, generator=generator) < 0.02).long()
        assert told(labels.split(32)) == []


def test_a_single_batch_says_nothing():
    assert told([torch.zeros(16, dtype=torch.long)]) == []
    assert told([torch.arange(16)]) == []
    assert told([torch.zeros(1)]) == []


def test_the_share_of_equal_classes_is_stated():
    [text] = told(torch.arange(4).repeat_interleave(50).split(25))
    assert "share their class in 100% of cases, two of all images in 25%" in text


def test_only_a_sequential_loader_is_unshuffled():
    data = TensorDataset(torch.zeros(8, 2))
    assert len(unshuffled(DataLoader(data, batch_size=4))) == 1
    assert unshuffled(DataLoader(data, batch_size=4, shuffle=True)) == []
    assert unshuffled([torch.zeros(4, 2)]) == []
    random = BatchSampler(RandomSampler(data), 4, drop_last=False)
    assert unshuffled(DataLoader(data, batch_sampler=random)) == []
    assert unshuffled(DataLoader(data, batch_sampler=[[0, 1], [2, 3]])) == []
