"""Whether batches are random samples of the data. Sorted by class, they give a wrong CKA."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch.utils.data import SequentialSampler

from fastcka.data.loaders import sampler

# Standard errors by which images of one batch must share their class more often than chance, and
# how much more often. Random batches reach 6 once in 1e9.
SIGNIFICANT = 6.0
NOTABLE = 1.5


def unshuffled(data: Iterable) -> list[str]:
    """A warning for a loader that reads its data set in the order in which it is stored."""
    if isinstance(sampler(data), SequentialSampler):
        return [
            "the data are read in stored order: if that is sorted, by class for example, CKA is "
            "wrong; shuffle the data set, or give the DataLoader shuffle=True and a generator"
        ]
    return []


class ClassMixing:
    """Whether the images of a batch share their class more often than those of all the data.

    >>> mixing = ClassMixing()
    >>> for label in range(8):
    ...     mixing.see(torch.full((16,), label))
    >>> len(mixing.warnings())
    1
    """

    def __init__(self):
        self._counts: Counter = Counter()
        self._alike = self._pairs = 0

    def see(self, labels: torch.Tensor) -> None:
        values, counts = torch.unique(labels.cpu(), return_counts=True)
        self._counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self._alike += int((counts * (counts - 1) // 2).sum())
        self._pairs += math.comb(labels.numel(), 2)

    def state(self) -> dict:
        """All that was seen, as plain values; `merge` takes it."""
        return {"alike": self._alike, "pairs": self._pairs, "classes": sorted(self._counts.items())}

    def merge(self, state: Mapping) -> None:
        """Add what another has seen."""
        self._counts.update({label: count for label, count in state["classes"]})
        self._alike += state["alike"]
        self._pairs += state["pairs"]

    def warnings(self) -> list[str]:
        total = math.comb(self._counts.total(), 2)
        if not self._pairs or not total:
            return []
        within = self._alike / self._pairs
        chance = sum(math.comb(count, 2) for count in self._counts.values()) / total
        # Pairs of a batch are nearly independent in whether they share a class.
        error = math.sqrt(chance * (1 - chance) / self._pairs)
        if within - chance <= SIGNIFICANT * error or within <= NOTABLE * chance:
            return []
        return [
            f"batches are sorted by class: two images of a batch share their class in {within:.0%} "
            f"of cases, two of all images in {chance:.0%}; CKA is wrong, shuffle the data"
        ]
