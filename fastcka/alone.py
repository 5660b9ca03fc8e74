"""One model that runs alone: what it was given is noted, and its Gram matrices are kept."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fastcka.fingerprints import Fingerprint, FingerprintWriter, Measured
from fastcka.gram_stack import GramStack
from fastcka.keeping import Keeper
from fastcka.logbook import Entry
from fastcka.participant import Inputs, Participant
from fastcka.result import CKAResult
from fastcka.trail import Trail


class Alone(Keeper):
    """Keeps one of several models, which must all be given the same batches.

    Args:
        label: of the model. writer: of what is kept.
        first: the first of the models, when it has run.
        stored: models that do not run, and must hold the images of the first.
        ids: as for `images_of`, where some are stored.
        names: what the images of a batch of so many are called; None where nobody asks.
        check: called with the Gram matrices of the first batch.
        read: whether all models have run, and what is kept may have been removed.

    Attributes:
        entries: its batches.
        account, division: `Account.state`, and of a batch as `Course` has it; when it has run.
    """

    def __init__(
        self,
        label: str,
        writer: FingerprintWriter,
        *,
        first: "Alone | None",
        stored: Sequence[Measured],
        ids: Callable | None,
        names: Callable[[object, int], list | None] | None,
        check: Callable[[list[GramStack]], None],
        read: bool,
    ):
        super().__init__(writer, ids)
        self.label, self._first, self._stored = label, first, stored
        self._names, self._check, self._read = names, check, read
        self.entries: list[Entry] = []
        self.account: Mapping = {}
        self.division: tuple[int, int] | None = None
        self._count = 0  # images in the entries
        self._next: Entry | None = None

    def images(self, place: tuple[int, int], batch, size: int) -> torch.Tensor:
        """Their names where they must be found again, and else numbers in a row."""
        trail = Trail()
        # A file is known by its hash; what several models see of it may be hundreds of megabytes.
        trail.see(batch["file"] if isinstance(batch, Mapping) and "file" in batch else batch)
        named = self._names and self._names(batch, size)
        self._next = Entry(*place, size, trail.digest[:16], images=named)
        self._check_same(self._next)
        if self._stored:
            return super().images(place, batch, size)
        return torch.arange(self._count, self._count + size)

    def _check_same(self, entry: Entry) -> None:
        if self._first is None:
            return
        place, expected = len(self.entries), self._first.entries
        if place == len(expected):
            self._refuse("more")
        if entry[:4] != expected[place][:4]:
            raise ValueError(
                f"batch {entry.number} of `data` is another one for model {self.label!r} than for "
                f"{self._first.label!r}: with `one_by_one` the data are read once a model, and "
                "must give the same batches in the same order"
            )

    def _refuse(self, count: str) -> None:
        raise ValueError(
            f"`data` gives {count} batches to model {self.label!r} than to {self._first.label!r}, "
            f"which had {len(self._first.entries)}: with `one_by_one` the data are read once a "
            "model, and must give the same batches"
        )

    def add(
        self,
        images: torch.Tensor,
        parts: list[slice],
        stacks: list[Mapping[str, GramStack] | None],
    ) -> None:
        filled = [one[self.label] for one in stacks if one is not None]
        if not self.entries:
            self._check(filled)
        if self._first is None:
            large = [part for part, one in zip(parts, stacks, strict=True) if one is not None]
            for one in self._stored:
                one.places(images, large, self._next.number)
        super().add(images, parts, stacks)
        self.entries.append(self._next._replace(kept=len(filled)))
        self._count += self._next.size

    def identity(self) -> dict:
        return super().identity() | {"named": self._names is not None}

    def state(self) -> dict:
        return super().state() | {"entries": [list(entry) for entry in self.entries]}

    def load(self, state: Mapping) -> None:
        self.entries = [Entry(*entry) for entry in state["entries"]]
        self._count = sum(entry.size for entry in self.entries)
        self.writer.load(state, read=self._read)

    def finish(self, result: CKAResult, account: Mapping, division: tuple[int, int] | None) -> None:
        if self._first is not None and len(self.entries) < len(self._first.entries):
            self._refuse("fewer")
        self.account, self.division = account, division
        super().finish(result, account, division)


class Kept(Measured):
    """A model that has run alone, as one of those that are compared.

    Args:
        participant: what it was; not held on to.
        layers: that it turned out to have.
        path: of its Gram matrices. operand: of all models.
        about: what a result says of the model.
    """

    def __init__(
        self,
        participant: Participant,
        layers: Sequence[str],
        path: Path,
        operand: torch.dtype | None,
        about: Mapping,
    ):
        self.label, self.autocast, self.device = (
            participant.label,
            participant.autocast,
            participant.device,
        )
        self.layers, self.capture = tuple(layers), self
        self._path, self._operand, self._about = path, operand, dict(about)
        self._file: Fingerprint | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Opened when it is needed: a finished comparison has removed it."""
        if self._file is None:
            self._file = Fingerprint(self._path)
        return self._file

    def inputs(self, batch: Mapping) -> Inputs:
        return Inputs((batch["first"],), {}, batch["size"])

    def stacks(self, inputs: Inputs, parts: list[slice], batch: int) -> list[GramStack]:
        (first,) = inputs.args
        return [
            self.fingerprint.stack(first + place, self._operand, self.device)
            for place in range(len(parts))
        ]

    def images(self, first: int, entry: Entry) -> torch.Tensor:
        """The names of the images of a batch; 0 for those of a part that was too small."""
        names = torch.zeros(entry.size, dtype=torch.int64)
        found = [self.fingerprint.images(first + place) for place in range(entry.kept)]
        if found:
            known = torch.cat(found)
            names[: len(known)] = known
        return names

    def identity(self) -> dict:
        """When it ran, its weights were what they had been."""
        return {"class": self._about["class"], "one_by_one": True}

    def describe(self) -> dict:
        return self._about

    def explain(self, n_batches: int) -> list[str]:
        return []
