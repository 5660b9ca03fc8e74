"""All that should be known of a comparison beside its numbers: warnings, and where it came from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from fastcka.batch import image_names
from fastcka.course import Course
from fastcka.data.images import ImageBatches
from fastcka.data.labels import labels
from fastcka.data.loaders import sampler
from fastcka.data.shuffling import ClassMixing, unshuffled
from fastcka.fingerprints import Measured, MeasuredBatches
from fastcka.logbook import Logbook
from fastcka.participant import Participant, autocast_name
from fastcka.provenance import provenance
from fastcka.result import CKAResult

# Of what is known of an image folder, what may change before a comparison goes on.
PLACE = ("root", "shards", "broken", "on_broken")


class Account:
    """Watches the batches go by, and explains the results at the end.

    `ids` says what the images of a batch are called, where the data do not say it themselves.

    Attributes:
        before: warnings that can be given before anything runs.
    """

    def __init__(
        self, participants: list[Participant], course: Course, ids: Callable | None = None
    ):
        self.participants, self.loaders, self._ids = participants, course.loaders, ids
        unlike = (told for loader in self.loaders for told in unshuffled(loader))
        self.before = tuple(dict.fromkeys(unlike))
        # Of batches that were run before, others have seen what there is to see.
        self._known = course.data.account if isinstance(course.data, Logbook) else None
        self._mixing = ClassMixing()
        self._copies = 0  # images that stand in their CKA batch a second time
        self._notices: dict[str, None] = {}  # of earlier runs and other processes
        self._facts = provenance(participants[0].device) | {
            "n": course.n,
            "passes": course.passes,
            "autocast": autocast_name(participants),
            "processes": course.share.ranks,
            "one_by_one": isinstance(course.data, Logbook),
        }
        self.data()  # now: after hours, or an error, the files may be gone

    def data(self) -> dict:
        """What identifies the data."""
        return dict(zip(("data", "data_b"), map(_describe, self.loaders), strict=False))

    def identity(self) -> dict:
        """What of an image folder must be the same; other data are read again, and show it."""
        facts = zip(("data", "data_b"), self.loaders, strict=False)
        return {
            name: {k: v for k, v in images.provenance().items() if k not in PLACE}
            | {"views": images.views}
            for name, images in facts
            if isinstance(images, ImageBatches)
        }

    def see(self, batch, parts: list[slice]) -> None:
        """Watch the classes of a batch."""
        if self._known is not None:
            return
        first = _of_first(batch, self.loaders)
        known = labels(first)
        if known is not None and len(known) == parts[-1].stop:
            for part in parts:
                self._mixing.see(known[part])
        if isinstance(self.loaders[0], ImageBatches):
            files = first["file"]
            self._copies += sum(len(files[part]) - len(files[part].unique()) for part in parts)

    def names(self, batch, n: int) -> list | None:
        """What the n images of a batch are called; None where nothing says it."""
        if self._known is not None:
            return batch.get("images")
        return names(batch, n, self.loaders, self._ids)

    def note(self, notice: str) -> None:
        self._notices[notice] = None

    def resumed(self, counts: Mapping | None) -> None:
        """The comparison goes on from a state with these counts."""
        before = counts["ran_on"] if counts else {}
        batches = counts["n_batches"] if counts else 0
        self._facts["resumed"] = batches
        threads = torch.get_num_threads()
        if before.get("threads", threads) != threads:
            self.note(
                f"resumed with {threads} threads after {batches} batches with "
                f"{before['threads']}: last digits may differ from those of an uninterrupted run"
            )

    def state(self) -> dict:
        """What was seen, as plain values; `merge` takes it."""
        seen = [notice for p in self.participants for notice in p.capture.notices]
        broken = [images.broken for images in self._images()]
        return {
            "classes": self._mixing.state(),
            "copies": self._copies,
            "notices": list(dict.fromkeys((*self._notices, *seen))),
            "broken": broken,
        }

    def merge(self, state: Mapping) -> None:
        """Add what was seen before an interruption, or by another process."""
        self._mixing.merge(state["classes"])
        self._copies += state["copies"]
        for notice in state["notices"]:
            self.note(notice)
        for images, names in zip(self._images(), state["broken"], strict=True):
            images.note_broken(names)

    def explain(
        self, results: dict[tuple[str, ...], CKAResult]
    ) -> dict[tuple[str, ...], CKAResult]:
        """The results with warnings, and with where they come from."""
        if self._known is not None:
            self.merge(self._known)
        after = self.state()["notices"] + self._mixing.warnings()
        for images in self._images():
            after += images.notices()
        if self._copies:
            after.append(
                f"{self._copies} images stand in their batch a second time, under another name: "
                "that makes CKA too high; remove the copies"
            )
        n_batches = next(iter(results.values())).n_batches
        for participant in self.participants:
            if isinstance(participant, Measured):
                after += participant.explain(n_batches)
        models = {p.label: p.describe() for p in self.participants}
        return {
            pair: replace(
                result,
                warnings=tuple(dict.fromkeys((*self.before, *after, *result.warnings))),
                meta=self._facts
                | self.data()
                | {"models": _sides(*(models[label] for label in pair))}
                | result.meta,
            )
            for pair, result in results.items()
        }

    def _images(self) -> list[ImageBatches]:
        return [loader for loader in self.loaders if isinstance(loader, ImageBatches)]


def names(batch, n: int, loaders: Sequence[Iterable], ids: Callable | None) -> list | None:
    """What `ids` or else the data call the n images of a batch; None where nothing says it."""
    if ids is not None:
        return image_names(ids(batch), n, "ids")
    if isinstance(loaders[0], ImageBatches):
        return loaders[0].names(_of_first(batch, loaders))
    return image_names(batch["file"], n) if isinstance(loaders[0], MeasuredBatches) else None


def _of_first(batch, loaders: Sequence[Iterable]):
    """What the first loader gave."""
    return batch if len(loaders) == 1 else batch[0]


def _sides(a: dict, b: dict | None = None) -> dict[str, dict]:
    """The facts of two models, or of one that was compared with itself."""
    return {"a": a} if b is None or b is a else {"a": a, "b": b}


def _describe(data: Iterable) -> dict:
    """What a result says of the data."""
    if isinstance(data, ImageBatches):
        return data.provenance()
    facts = {"type": type(data).__name__, "batch_size": getattr(data, "batch_size", None)}
    if isinstance(data, DataLoader):
        seed = None if data.generator is None else data.generator.initial_seed()
        order = type(sampler(data)).__name__ if sampler(data) else "unknown"
        facts |= {"dataset": type(data.dataset).__name__, "order": order, "seed": seed}
    return facts
