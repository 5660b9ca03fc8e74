"""Which examples meet in a batch."""

from collections.abc import Iterator

import numpy as np
import torch


class BatchOrder:
    """Batches of a random permutation, a function of (seed, epoch, length, batch_size) alone.

    A `batch_sampler` for torch's DataLoader. Every example comes once a pass, the last batch may be
    smaller. Never file order: batches of a single class give another CKA than batches of the whole.

    Args:
        length: number of examples.
        batch_size: examples a batch.
        seed: from 0 on.

    Attributes:
        epoch: the pass; another one is another permutation.

    >>> from fastcka.data.order import BatchOrder
    >>> order = BatchOrder(5, batch_size=2, seed=0)
    >>> [len(batch) for batch in order], sorted(sum(order, []))
    ([2, 2, 1], [0, 1, 2, 3, 4])
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Hashed, not added: pass 1 of seed 0 shall not be pass 0 of seed 1.
        mixed = np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)).generate_state(
            1, np.uint64
        )
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self.length, generator=generator)
        return map(torch.Tensor.tolist, order.split(self.batch_size))
