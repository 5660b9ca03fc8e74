"""Batches of images on the disk, as several models see them, each file decoded once."""

import hashlib
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.utils.data import DataLoader, Dataset

from fastcka.data import source
from fastcka.data.order import BatchOrder
from fastcka.data.source import Source
from fastcka.options import check_choice, check_whole_number

# Seconds without a batch from the workers, after which one of them hangs.
PATIENCE = 600.0


class ImageBatches:
    """Batches of the images of a folder, of shards or of a known data set, in seeded random order.

    Images are files ending in .jpg, .jpeg or .png, at any depth; the innermost folder is the class.
    They are converted to RGB; EXIF orientation is not applied, as in timm. The same names in tar
    files, in whatever order, are the same batches; there a .cls file of the same key may say the
    class. Tar files are read in place: nothing is unpacked, and nothing fetched.

    A folder that is or holds one of these is that data set:

    - CIFAR-10 or CIFAR-100: cifar-10-batches-py, cifar-100-python, cifar-10-batches-bin or
      cifar-100-binary; splits "test" (unless asked) and "train".
    - ImageNet: ILSVRC/Data/CLS-LOC/val, or val, with the images flat or in folders of their
      classes; splits "val" (unless asked) and "train".
    - a data set of the Hub that `save_to_disk` wrote, or, by its name, "hfds/OWNER/NAME", which
      alone may be downloaded; needs the package `datasets`. Splits are its own; its validation,
      test or only images unless asked.
    - "torch/NAME@DIR": what torchvision keeps in DIR, by timm's names: cifar10, cifar100, imagenet,
      mnist, kmnist, fashion_mnist, qmnist.

    Args:
        root: the folder of images, or of .tar files; or these by name, with braces for several:
            "train-{0000..0146}.tar"; or a data set as above.
        transforms: name of a view -> function of a PIL RGB image to a tensor. All views come from
            one decoding of the file, and a function that several views share is applied once.
        batch_size: images a batch, from 1 on.
        seed: of the order and of the choice, from 0 on. The number of workers does not matter.
        workers: processes that decode; 0 decodes in this one.
        max_images: take so many, chosen at random, the same in every pass; None takes all.
        on_broken: "stop" at a file that cannot be decoded, or "skip" it and list it in `broken`.
        split: of a data set that has several.
        only: take these images, by their numbers in the sorted list of all; None takes all.

    Attributes:
        batch_size: as given.
        labels: the class of every image, -1 where it is unknown; None where all are.
        classes: what they are called, by number; empty where that is unknown.
        broken: names of the files that were skipped so far, sorted.

    Raises:
        FileNotFoundError, PermissionError: `root` does not exist or may not be read.
        ValueError: `root` is another file, or holds no images; a tar file is damaged or compressed,
            or a file of CIFAR or ImageNet is; there is no such split; another argument is out of
            range; during iteration, a file that cannot be decoded.
        RuntimeError: a data set of the Hub cannot be loaded.

    Iterating gives {"views": {name: tensor [n, ...]}, "label": int64 [n], "index": int64 [n],
    "file": int64 [n]}: the numbers of the files in the sorted list of all, and the first 8 bytes of
    their SHA-256. n is `batch_size` but for the last batch and for skipped files; a batch whose
    files were all skipped is left out.

    >>> import tempfile
    >>> from fastcka import data
    >>> from torchvision.transforms.functional import to_tensor
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = data.write_images(folder, 10, size=32)
    ...     images = data.ImageBatches(folder, {"vit": to_tensor}, batch_size=8)
    ...     [batch["views"]["vit"].shape for batch in images]
    [torch.Size([8, 3, 32, 32]), torch.Size([2, 3, 32, 32])]
    """

    def __init__(
        self,
        root: str | os.PathLike,
        transforms: Mapping[str, Callable],
        *,
        batch_size: int = 64,
        seed: int = 0,
        workers: int = 0,
        max_images: int | None = None,
        on_broken: str = "stop",
        split: str | None = None,
        only: Sequence[int] | None = None,
    ):
        check_whole_number("batch_size", batch_size, 1)
        check_whole_number("seed", seed, 0)
        check_whole_number("workers", workers, 0)
        if max_images is not None:
            check_whole_number("max_images", max_images, 1)
        check_choice("on_broken", on_broken, ("stop", "skip"))
        if not isinstance(transforms, Mapping) or not transforms:
            raise ValueError(f"`transforms` must name at least one view, but is {transforms!r}")
        self.root, self.batch_size, self.seed = os.fspath(root), batch_size, seed
        self._workers, self._on_broken = workers, on_broken
        self._source = source.find(self.root, split)
        files = self._source.files
        if only is not None:
            strange = [number for number in only if not 0 <= number < len(files)]
            if strange:
                raise ValueError(
                    f"`only` must hold numbers from 0 to {len(files) - 1}, but holds {strange[0]}"
                )
            files = [files[number] for number in sorted(only)]
        if max_images is not None and max_images < len(files):
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(files), generator=generator)[:max_images].sort().values
            files = [files[i] for i in chosen.tolist()]
        self._transforms = dict(transforms)
        self._dataset = _Images(self._source, files, self._transforms)
        self._order = BatchOrder(len(files), batch_size, seed)
        self._broken = set()

    @property
    def views(self) -> dict[str, str]:
        """The transforms in words."""
        return {name: describe(transform) for name, transform in self._transforms.items()}

    @cached_property
    def labels(self) -> list[int] | None:
        return source.labels(self._source)

    @property
    def classes(self) -> list[str]:
        return self._source.classes

    @property
    def num_workers(self) -> int:
        """As a DataLoader calls them."""
        return self._workers

    @property
    def broken(self) -> list[str]:
        return sorted(self._broken)

    def set_epoch(self, epoch: int) -> None:
        """The next passes take this permutation; 0 at first."""
        check_whole_number("epoch", epoch, 0)
        self._order.epoch = epoch

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[dict]:
        return (batch for _, batch in self.numbered())

    def numbered(
        self, wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[tuple[int, dict]]:
        """The number of a batch in this pass, and the batch; those not wanted are not decoded."""
        numbers = [number for number in range(len(self)) if wanted(number)]
        # Workers live for one pass: a pass takes longer than their start, and passes can overlap.
        loader = DataLoader(
            self._dataset,
            batch_sampler=_Chosen(self._order, wanted),
            num_workers=self._workers,
            timeout=PATIENCE if self._workers else 0,
            collate_fn=self._dataset.together,
            generator=torch.Generator(),  # or it would draw from the caller's random state
        )
        for number, (batch, broken) in zip(numbers, loader, strict=True):
            if broken and self._on_broken == "stop":
                raise ValueError(
                    f"cannot read the image {broken[0].name!r} in {broken[0].place!r}: "
                    f"{broken[0].reason}; repair or remove it, or skip such images (`on_broken`)"
                )
            self._broken.update(file.name for file in broken)
            if batch:
                yield number, batch

    def names(self, batch: Mapping) -> list[str]:
        """The files of a batch, as they are called within the folder."""
        return [self._names[index] for index in batch["index"].tolist()]

    @cached_property
    def _names(self) -> dict[int, str]:
        return {index: name for index, name, _ in self._dataset.files}

    def note_broken(self, names: Iterable[str]) -> None:
        """Files that were skipped elsewhere: before an interruption, or in another process."""
        self._broken.update(names)

    def notices(self) -> list[str]:
        """What who reads the numbers should know of the images."""
        if not self._broken:
            return []
        count, few = len(self._broken), ", ".join(self.broken[:5])
        more = f" and {count - 5} more" if count > 5 else ""
        return [
            f"{count} of {len(self._dataset.files)} images could not be read and are left out: "
            f"{few}{more}"
        ]

    @cached_property
    def _digest(self) -> str:
        names = hashlib.sha256()
        for number, name, _ in self._dataset.files:
            size = self._source.size(number)
            names.update(os.fsencode(name) + f"\0{size}\n".encode())
        return names.hexdigest()

    def provenance(self) -> dict:
        """What identifies the images and their order; can be written as JSON.

        Returns:
            Among others `sha256`, over the names and sizes of the files used, and `broken` as
            of now. The first call looks at the size of each file.
        """
        return {
            "root": os.path.abspath(self.root),
            "files_found": len(self._source.files),
            "files_used": len(self._dataset.files),
            "classes": len({label for *_, label in self._source.files} - {-1}),
            "seed": self.seed,
            "order": "torch.randperm of (seed, pass)",
            "batch_size": self.batch_size,
            "sha256": self._digest,
            "on_broken": self._on_broken,
            "broken": self.broken,
            **self._source.facts,
        }


def describe(transform: Callable) -> str:
    """A function as it shows itself, but for where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


class _Chosen:
    """Some batches of an order."""

    def __init__(self, order: BatchOrder, wanted: Callable[[int], bool]):
        self._order, self._wanted = order, wanted

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for number, batch in enumerate(self._order) if self._wanted(number))


@dataclass(frozen=True)
class _Broken:
    """An error as data: raised in a worker, it would arrive as a traceback."""

    name: str
    reason: str
    place: str


class _Images(Dataset):
    def __init__(
        self,
        source: Source,
        files: list[tuple[int, str, int]],
        views: dict[str, Callable],
    ):
        self.source, self.files = source, files
        unique = {id(transform): transform for transform in views.values()}
        self.transforms = list(unique.values())
        self.views = {name: list(unique).index(id(views[name])) for name in views}

    def __getitem__(self, i: int):
        index, name, label = self.files[i]
        try:
            content = self.source.read(index)
            image = source.decode(content)
        # Decoders raise anything, from OSError to SyntaxError.
        except Exception as error:
            reason = textwrap.shorten(str(error), 200) or type(error).__name__
            return _Broken(name, reason, self.source.place(index))
        digest = hashlib.sha256(content).digest()
        known = int.from_bytes(digest[:8], "little", signed=True)
        return index, known, label, [transform(image) for transform in self.transforms]

    def together(self, items: list) -> tuple[dict | None, list[_Broken]]:
        broken = [item for item in items if isinstance(item, _Broken)]
        whole = [item for item in items if not isinstance(item, _Broken)]
        if not whole:
            return None, broken
        index, known, label, images = zip(*whole, strict=True)
        stacks = [torch.stack(view) for view in zip(*images, strict=True)]
        batch = {
            "views": {name: stacks[k] for name, k in self.views.items()},
            "label": torch.tensor(label),
            "index": torch.tensor(index),
            "file": torch.tensor(known),
        }
        return batch, broken
