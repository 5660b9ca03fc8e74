"""The batches of a comparison, one after the other: what is behind, and what is to be run here."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch.utils.data import DistributedSampler

from fastcka.data.images import ImageBatches
from fastcka.data.loaders import length, sampler
from fastcka.data.pairing import Paired
from fastcka.distributed import Share
from fastcka.logbook import Logbook
from fastcka.streaming import BLOCKS
from fastcka.trail import Trail


class Course:
    """Goes through the data once a pass, from where it was left, for its share of the batches.

    `ImageBatches` begin where they are told to. Any other data are read from the start, and what is
    behind or another process's is let by; a digest shows whether they are still the same.

    Args:
        data: batches, or two loaders of them as `Paired`, or a `Logbook` of batches that were run.
        n: images in a CKA batch; None is all of a batch.
        passes: over the data.
        share: of this process.
        watched: whether the digest is needed: batches may be read again, or by others too.

    Attributes:
        loaders: the one or two loaders.
        division: CKA batches of a batch, and blocks of the error bars that it takes; None until its
            size is known.
    """

    def __init__(self, data: Iterable, n: int | None, passes: int, share: Share, watched: bool):
        self.data, self.n, self.passes, self.share = data, n, passes, share
        self.loaders = (data.a, data.b) if isinstance(data, Paired) else (data,)
        self._read = self.loaders
        if isinstance(data, Logbook):
            self.loaders, self._read = data.loaders, (data,)
        if passes > 1 and any(isinstance(loader, Iterator) for loader in self.loaders):
            raise ValueError(
                f"`passes` is {passes}, but an iterator can be read once; give a list or a loader"
            )
        self._positioned = isinstance(data, (ImageBatches, Logbook))
        self.watched = watched
        self._trail = Trail() if watched and not self._positioned else None
        self._next = (0, 0)  # pass and number of the batch behind the last one that was run
        self._behind = ""  # digest of all until there
        self._seen = ""  # of all that went by, when all of them have
        self._size = getattr(self.loaders[0], "batch_size", None)
        self._lengths = [length(loader) for loader in self.loaders]
        self.division: tuple[int, int] | None = None
        if isinstance(data, Logbook):
            self.division = data.division
        elif self._positioned:
            self._learn(self._size)

    def batches(
        self, size_of: Callable[[object], int], progress: bool | str
    ) -> Iterator[tuple[int, int, object]]:
        """Pass, number and batch of each that is to be run, and a bar that shows them go by."""
        begin = self._next
        reached = begin == (0, 0) or self._positioned
        per_pass = self._lengths[0]
        with self._bar(None if None in self._lengths else per_pass * self.passes, progress) as bar:
            for turn in range(begin[0] if self._positioned else 0, self.passes):
                self._set_epoch(turn)
                number = -1
                for number, batch in self._numbered(turn, begin):
                    self._see(batch, size_of)
                    if (turn, number) >= begin and self.share.has(number, self.blocks):
                        yield turn, number, batch
                    elif (turn, number + 1) == begin:
                        self._check_trail()
                        reached = True
                    bar.update(max(0, (per_pass or 0) * turn + number + 1 - bar.n))
                if number < 0 and not self._may_be_empty(turn, begin):
                    again = f" in pass {turn + 1}" if turn else ""
                    raise ValueError(f"`data` gave no batches{again}")
        if not reached:
            raise ValueError(
                f"cannot resume: {begin[1]} batches of pass {begin[0] + 1} were read before, but "
                "now `data` gives fewer"
            )
        self._seen = self._trail.digest if self._trail is not None else ""

    def _bar(self, total: int | None, progress: bool | str):
        from tqdm import tqdm

        shown = progress and self.share.rank == 0
        what = progress if isinstance(progress, str) else "comparing"
        return tqdm(total=total, desc=what, unit="batch", disable=None if shown else True)

    def _set_epoch(self, turn: int) -> None:
        for loader in self._read:
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(turn)

    def _see(self, batch, size_of: Callable[[object], int]) -> None:
        if self.division is None:
            self._learn(max(self._size or 0, size_of(batch)))
        if self._trail is not None:
            self._trail.see(batch)

    def _numbered(self, turn: int, begin: tuple[int, int]) -> Iterator[tuple[int, object]]:
        if not self._positioned:
            return enumerate(self.data)
        return self.data.numbered(
            lambda number: (turn, number) >= begin and self.share.has(number, self.blocks)
        )

    def _may_be_empty(self, turn: int, begin: tuple[int, int]) -> bool:
        """Whether all batches of a pass are behind, or the others'."""
        return self._positioned and ((turn == begin[0] and begin[1] > 0) or self.share.ranks > 1)

    def _learn(self, size: int) -> None:
        """Take the size of a whole batch: no multiple of n would give CKA batches of two sizes."""
        if self.n is not None and size % self.n:
            raise ValueError(
                f"`n` is {self.n}, but the batches of `data` hold {size} images; give batches of a "
                "multiple of `n`, or leave it out"
            )
        parts = 1 if self.n is None else size // self.n
        # A CKA batch is a block as long as there are enough; then a batch of the data is. Where it
        # is not known how many there will be, a power of two: block 256 is block 0 again.
        known = self._lengths[0]
        if known is None:
            blocks = min(BLOCKS, 1 << (parts.bit_length() - 1))
        else:
            blocks = 1 if parts * known > BLOCKS else parts
        self.division = parts, blocks

    @property
    def blocks(self) -> int:
        """Of the error bars, that one batch takes."""
        return self.division[1]

    def check_shared(self) -> None:
        """Every process must be given all of the data."""
        for loader in self.loaders:
            if isinstance(sampler(loader), DistributedSampler):
                raise ValueError(
                    "`data` has a DistributedSampler, which gives each process other batches; give "
                    "all of them to every process: they are dealt out here"
                )

    def slices(self, size: int) -> list[slice]:
        """The CKA batches of a batch of so many images."""
        step = size if self.n is None else self.n
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def index(self, number: int, part: int) -> int:
        """The number under which a part of a batch is added up."""
        # Parts that share a number follow each other: sorted by number, images are as they came.
        parts, blocks = self.division
        return number * blocks + min(part * blocks // parts, blocks - 1)

    def done(self, turn: int, number: int) -> None:
        """The batch has been added up."""
        self._next = (turn, number + 1)
        self._behind = self._trail.digest if self._trail is not None else ""

    def state(self) -> dict:
        division = self.division and list(self.division)
        known = {"behind": self._behind, "seen": self._seen, "division": division}
        return {"next": list(self._next)} | known

    def load(self, state: Mapping) -> None:
        """Begin behind what was done when the state was taken."""
        self._next, self._behind = tuple(state["next"]), state["behind"]
        self._seen = state["seen"]
        self.division = state["division"] and tuple(state["division"])

    def seen(self) -> str:
        """The digest of all batches that went by, whoever ran them."""
        return self._seen

    def _check_trail(self) -> None:
        if self._trail is not None and self._trail.digest != self._behind:
            raise ValueError(
                "cannot resume: `data` gives other batches than before; where it shuffles, give "
                "its generator a seed before each comparison"
            )
