"""The batches of data that were run before, gone through again without the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch


class Entry(NamedTuple):
    """One batch that was run: its pass and number, its images, and a digest of what it held."""

    turn: int
    number: int
    size: int
    digest: str
    kept: int = 0  # CKA batches of it that were large enough


class Logbook:
    """Batches by what was noted of them, for models that are read from disk.

    Args:
        loaders: of the data, which are described but not read.
        entries: of the batches that this process ran, in their order.
        blocks: of the error bars, that one batch takes.
        account: `Account.state` of who has seen the batches.
        names: from the number of the first CKA batch of a batch, and its entry, to its images;
            None where nobody asks.

    Batches are {"first": number of the first CKA batch, "size": images}, and "file" by `names`.

    >>> logbook = Logbook([[]], [Entry(0, 0, 8, "", 2), Entry(0, 2, 4, "", 1)], 2, {})
    >>> list(logbook.numbered())
    [(0, {'first': 0, 'size': 8}), (2, {'first': 2, 'size': 4})]
    """

    def __init__(
        self,
        loaders: Iterable,
        entries: Iterable[Entry],
        blocks: int | None,
        account: Mapping,
        names: Callable[[int, Entry], torch.Tensor] | None = None,
    ):
        self.loaders, self.blocks, self.account = tuple(loaders), blocks, account
        self._entries, self._names, self._epoch = list(entries), names, 0

    def set_epoch(self, epoch: int) -> None:
        """The next passes are this one of the data."""
        self._epoch = epoch

    def numbered(
        self, wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[tuple[int, dict]]:
        """The number of a batch in this pass, and what is known of it."""
        first = 0
        for entry in self._entries:
            if entry.turn == self._epoch and wanted(entry.number):
                known = {"first": first, "size": entry.size}
                named = {"file": self._names(first, entry)} if self._names else {}
                yield entry.number, known | named
            first += entry.kept
