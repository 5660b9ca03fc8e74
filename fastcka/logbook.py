"""The batches of data that were run before, gone through again without the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch


class Entry(NamedTuple):
    """One batch that was run: its pass and number, its size, and a digest of what it held."""

    turn: int
    number: int
    size: int
    digest: str
    kept: int = 0  # CKA batches of it that were large enough
    images: list[str | int] | None = None  # what they are called, where that is asked for


class Logbook:
    """Batches by what was noted of them, for models that are read from disk.

    Args:
        loaders: of the data, which are described but not read.
        entries: of the batches that this process ran, in their order.
        division: of a batch, as `Course` has it.
        account: `Account.state` of who has seen the batches.
        numbers: from the number of the first CKA batch of a batch, and its entry, to what stored
            models know its images by; None where there are none.

    Batches are {"first": number of the first CKA batch, "size": how many images}, with "images",
    their names, where the entry has these, and "file" by `numbers`.

    >>> logbook = Logbook([[]], [Entry(0, 0, 8, "", 2), Entry(0, 2, 4, "", 1)], (2, 2), {})
    >>> list(logbook.numbered())
    [(0, {'first': 0, 'size': 8}), (2, {'first': 2, 'size': 4})]
    """

    def __init__(
        self,
        loaders: Iterable,
        entries: Iterable[Entry],
        division: tuple[int, int] | None,
        account: Mapping,
        numbers: Callable[[int, Entry], torch.Tensor] | None = None,
    ):
        self.loaders, self.division, self.account = tuple(loaders), division, account
        self._entries, self._numbers, self._epoch = list(entries), numbers, 0

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
                if entry.images is not None:
                    known["images"] = entry.images
                if self._numbers is not None:
                    known["file"] = self._numbers(first, entry)
                yield entry.number, known
            first += entry.kept
