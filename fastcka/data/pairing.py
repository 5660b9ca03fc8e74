"""Two loaders read side by side, where each model has its own."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import torch
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from fastcka.data.labels import identities
from fastcka.data.loaders import length, sampler

SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_END = object()


class Paired:
    """Batches of two loaders, pair by pair; the same images must come in the same order.

    Args:
        a, b: iterables of batches.

    Raises:
        ValueError: one of them shuffles on its own, their lengths differ, or the ids or labels of
            two batches do.

    >>> len(list(Paired([torch.zeros(4, 2)], [torch.ones(4, 3)])))
    1
    """

    def __init__(self, a: Iterable, b: Iterable):
        for name, loader in (("data", a), ("data_b", b)):
            if isinstance(sampler(loader), SHUFFLING):
                raise ValueError(
                    f"`{name}` shuffles on its own, so its images are not those of the other "
                    "loader: let one data set return both views of an image, and pick them with "
                    "`input_a` and `input_b`"
                )
        if a is b and isinstance(a, Iterator):
            raise ValueError(
                "`data` and `data_b` are one iterator, which gives each batch once: leave `data_b` "
                "out, or give two"
            )
        sizes = length(a), length(b)
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(f"`data` has {sizes[0]} batches, but `data_b` has {sizes[1]}")
        self.a, self.b = a, b

    def __iter__(self) -> Iterator[tuple]:
        for number, (a, b) in enumerate(zip_longest(self.a, self.b, fillvalue=_END)):
            if a is _END or b is _END:
                short = "data" if a is _END else "data_b"
                raise ValueError(
                    f"`{short}` ended after {number} batches, but the other loader goes on; both "
                    "must give the same images"
                )
            _check_same_images(number, a, b)
            yield a, b


def _check_same_images(number: int, a, b) -> None:
    theirs = identities(b)
    for name, ours in identities(a).items():
        if name in theirs and not torch.equal(ours.cpu(), theirs[name].cpu()):
            raise ValueError(
                f"batch {number} of `data` and of `data_b` differ in their {name}: both must give "
                "the same images in the same order"
            )
