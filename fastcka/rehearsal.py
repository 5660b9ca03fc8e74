"""A comparison that stops after a few batches, and what it took until then."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader

from fastcka import process_memory
from fastcka.capture.tensors import tensors
from fastcka.course import Course
from fastcka.data.images import ImageBatches
from fastcka.data.loaders import length
from fastcka.distributed import Share
from fastcka.fingerprints import Measured, MeasuredBatches
from fastcka.stages import MODELS, PRODUCTS, READING, Stages
from fastcka.streaming import BLOCKS, SMALLEST_BATCH, MinibatchCKA

# Behind a first batch, which is slower than all others: so many are timed, and for so long.
BATCHES, SECONDS = 3, 2.0
# Of data that do not say how many images they have.
PER = 1000


class Timed(NamedTuple):
    """One batch: how many images, and the seconds of each stage."""

    images: int
    seconds: Counter


class Rehearsal(Stages):
    """Runs the first batches of the data as any comparison does, and watches time and memory.

    Where processes decode the images, some more batches are read and not run: those that wait
    decoded say nothing of how fast more will come.

    Attributes:
        before: seconds until the first batch.
        first, timed: the first batch, and those behind it.
        unread: seconds an image where nothing but the data are read; 0 where that is part of
            `timed`.
        peaks: bytes of this process at most: while models ran, and in the products.
        resident, between: bytes of this process before the first batch, and after the last.
        weights, images, stacks: bytes of the models, of one batch, and of its Gram matrices, by the
            kind of device.
        accumulator, state, ended: what is added up, what is saved of it or None, and when that was.
    """

    rehearsal = True

    def __init__(self):
        self._began = time.perf_counter()
        self._stage, self._spent, self._n = None, Counter(), 0
        self.first: Timed | None = None
        self.timed: list[Timed] = []
        self.unread = 0.0
        self.peaks = Counter()
        self.weights, self.images, self.stacks = Counter(), Counter(), Counter()

    def start(self, participants: list, course: Course) -> None:
        """See that what is read now is there again when it counts."""
        if course.share != Share():
            raise ValueError(
                "a plan is of one process: leave `distributed` out; each of several takes as much "
                "memory, and its share of the time"
            )
        if any(isinstance(loader, Iterator) for loader in course.loaders):
            raise ValueError(
                "`data` is an iterator, which gives each batch once, and a plan reads some: give a "
                "list or a loader"
            )
        self.participants, self.course = participants, course
        self.models = [p for p in participants if not isinstance(p, Measured)]
        self.cuda = {p.device for p in self.models if p.device.type == "cuda"}
        values = [v for p in self.models for v in (*p.model.parameters(), *p.model.buffers())]
        for value in {id(value): value for value in values}.values():  # models may share them
            self.weights[value.device.type] += value.nbytes
        for device in self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self.before = self._now() - self._began
        self.resident = process_memory.resident()
        process_memory.reset_peak()

    def begin(self, stage: str) -> None:
        now = self._now()
        if self._stage is not None:
            self._spent[self._stage] += now - self._since
        if stage == PRODUCTS:
            self._note_peak(MODELS)
        self._stage = stage
        self._since = time.perf_counter()

    def _note_peak(self, of: str) -> None:
        self.peaks[of] = max(self.peaks[of], process_memory.peak())
        process_memory.reset_peak()

    def _now(self) -> float:
        for device in getattr(self, "cuda", ()):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def some(self, batches: Iterator) -> Iterator:
        while True:
            self._spent, self._stage = Counter(), None
            self.begin(READING)
            item = next(batches, None)
            if item is None:
                return
            yield item
            self.begin(READING)  # of the next: what came before is told
            self._note_peak(PRODUCTS)
            batch = Timed(self._n, self._spent)
            if self.first is None:
                self.first = batch
            else:
                self.timed.append(batch)
            if len(self.timed) >= BATCHES and sum(map(total, self.timed)) >= SECONDS:
                break
        self._read_on(batches)
        batches.close()

    def _read_on(self, batches: Iterator) -> None:
        """How fast the data come where decoding is not waited for."""
        workers = self.workers
        if not workers:
            return
        times = []
        rounds = math.ceil(BATCHES / workers)  # whole ones: they come together
        for _ in range(self.waiting + rounds * workers):
            began = time.perf_counter()
            if next(batches, None) is None:
                break
            times.append(time.perf_counter() - began)
        fresh = times[self.waiting :]
        if fresh:
            self.unread = sum(fresh) / len(fresh) / self._n

    @property
    def workers(self) -> int:
        """Processes that decode images."""
        return sum(getattr(loader, "num_workers", 0) for loader in self.course.loaders)

    @property
    def waiting(self) -> int:
        """Batches that these have decoded ahead."""
        return sum(
            getattr(loader, "num_workers", 0) * (getattr(loader, "prefetch_factor", None) or 2)
            for loader in self.course.loaders
        )

    def hold(self, batch, inputs: dict, stacks: list) -> None:
        self._n = next(iter(inputs.values())).n
        held = Counter()
        given = [(one.args, one.kwargs) for one in inputs.values()]
        for x in {id(x): x for x in tensors([batch, *given])}.values():
            held[x.device.type] += x.nbytes
        grams = Counter()
        for part in stacks:
            for stack in (part or {}).values():
                grams[stack.packed.device.type] += stack.nbytes
        self.images |= held  # the larger of the two
        self.stacks |= grams

    def end(self, accumulator: MinibatchCKA | None, record: Callable[[], tuple] | None) -> None:
        self.accumulator = accumulator
        self.between = process_memory.resident()
        self.state = record() if record is not None else None
        self.on_cuda = sum(torch.cuda.max_memory_allocated(device) for device in self.cuda)
        self.ended = self._now()

    def sizes(self) -> list[int]:
        """Images of every batch of one pass; of `PER` images where the data do not say."""
        size, loader = self.first.images, self.course.loaders[0]
        batches = length(loader)
        if batches is None:
            return [size] * max(1, round(PER / size))
        last = size
        if isinstance(loader, Sequence):
            last = self.participants[0].inputs(self._alone(loader[-1])).n
        elif (images := _images(loader)) is not None:
            last = images - (batches - 1) * size
        return [size] * (batches - 1) + [last if 0 < last <= size else size]

    def _alone(self, batch):
        """A batch of the first loader as the engine has it, where there are two."""
        return (batch, batch) if len(self.course.loaders) > 1 else batch

    def parts(self) -> list[int]:
        """Images of every CKA batch of one pass."""
        slices = (part for size in self.sizes() for part in self.course.slices(size))
        return [n for n in (part.stop - part.start for part in slices) if n >= SMALLEST_BATCH]

    def blocks(self) -> int:
        """Of the sums, when all is added up."""
        if length(self.course.loaders[0]) is None:
            return BLOCKS
        found = set()
        for number, size in enumerate(self.sizes()):
            for place, part in enumerate(self.course.slices(size)):
                if part.stop - part.start >= SMALLEST_BATCH:
                    found.add(self.course.index(number, place) % BLOCKS)
        return len(found)


def _images(loader) -> int | None:
    """The number of images, where the data say it."""
    if isinstance(loader, ImageBatches):
        return loader.provenance()["files_used"]
    if isinstance(loader, MeasuredBatches):
        return loader.fingerprint.n_examples
    if isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler:
        return None if loader.drop_last else len(loader.sampler)
    return None


def total(batch: Timed) -> float:
    return sum(batch.seconds.values())
