"""The images of a study: which, in which order, and as each network takes them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastcka.data import ImageBatches
from fastcka.experiments.runner.subjects import Subject

# By the kind of a need, how its images are chosen.
OF_KIND = {
    "Comparison": ("count", "n"),
    "Watch": ("count", "n"),
    "Probe": ("probe_split", "tests"),
    "Field": ("fields",),
    None: ("root", "probe_root", "probe_split", "count", "n", "fields", "tests"),
}


@dataclass(frozen=True)
class Sample:
    """Images on disk, and how many of them are used for what.

    Attributes:
        root: as `fastcka.data.ImageBatches` takes it; `split` likewise.
        probe_root, probe_split: labelled images that probes are fitted to; None are the others of
            `root`.
        count: of images for CKA and what is seen beside it; None is all.
        n: images in a CKA batch.
        fields: of images for receptive fields.
        tests: of images that probes are tested on, at most.
        batch_size, seed, workers, on_broken: as for `ImageBatches`.
    """

    root: str
    split: str | None = None
    probe_root: str | None = None
    probe_split: str | None = None
    count: int | None = 10_240
    n: int = 256
    fields: int = 32
    tests: int = 10_000
    batch_size: int = 256
    seed: int = 0
    workers: int = 0
    on_broken: str = "stop"

    def batches(
        self, subjects: Iterable[Subject], count: int | None, only: Sequence[int] | None = None
    ) -> ImageBatches:
        """So many of the images, in random order, as these networks take them."""
        return self._batches(self.root, self.split, subjects, count, only)

    def probes(
        self, subjects: Iterable[Subject], count: int | None, only: Sequence[int] | None = None
    ) -> ImageBatches:
        """The same of the images that probes are fitted to."""
        return self._batches(self.probe_root, self.probe_split, subjects, count, only)

    def _batches(self, root, split, subjects, count, only) -> ImageBatches:
        return ImageBatches(
            root,
            transforms(subjects),
            batch_size=self.batch_size,
            seed=self.seed,
            workers=self.workers,
            max_images=count,
            on_broken=self.on_broken,
            split=split,
            only=only,
        )

    def identity(self, kind: str | None = None) -> dict:
        """What the numbers depend on; of one kind of needs, what these do.

        >>> Sample("images").identity("Field")
        {'split': None, 'fields': 32, 'batch_size': 256, 'seed': 0, 'on_broken': 'stop'}
        """
        names = ["split", *OF_KIND[kind], "batch_size", "seed", "on_broken"]
        return {name: getattr(self, name) for name in names}


def transforms(subjects: Iterable[Subject]) -> dict[str, Callable]:
    """The preprocessing of each network by its name; equal ones are shared."""
    found, shared = {}, {}
    for one in subjects:
        key = str(one.network.data_config)
        found[one.name] = shared.setdefault(key, one.network.transform())
    return found


def view(name: str) -> Callable[[Mapping], object]:
    """From a batch to what the network of this name is called with."""
    return lambda batch: batch["views"][name]
