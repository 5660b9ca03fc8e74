"""Pictures with their classes and boxes as a data set of torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from fastcka.data import source
from fastcka.data.annotations import Box
from fastcka.data.geometry import boxes_after


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what is known of it, under the names that `Scene` has.

    Attributes:
        image: [height, width, 3] uint8.
        boxes: left, top, right and bottom of each object of its class, in pixels; right and bottom
            are the first pixels outside.
        factors: its label, by that name.
    """

    image: np.ndarray
    boxes: tuple[Box, ...]
    factors: dict[str, int]


class ImageSet(Dataset):
    """The images that `ImageBatches` reads, one by one, with what is known of each.

    Args:
        root, split: as of `ImageBatches`.
        transform: of a PIL RGB image; None gives PIL images.

    Attributes:
        labels: the class of every image, -1 where it is unknown; None where all are.
        classes: what they are called, by number; empty where that is unknown.
        names: of the images.

    Indexing gives (image, label). The numbers are those in `index` of the batches of
    `ImageBatches`, and `labels` and `classes` are the same there. ImageNet's classes are numbered
    as in networks trained on it.

    Raises:
        As `ImageBatches`; what PIL raises, where a file cannot be decoded.

    >>> import tempfile
    >>> from fastcka import data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images = data.ImageSet(data.write_images(folder, 10, size=32))
    ...     images[0][0].size, images.classes[images.labels[0]], images.names[0]
    ((32, 32), 'corner', 'corner/000003.png')
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        split: str | None = None,
        transform: Callable | None = None,
    ):
        self.root, self.transform = os.fspath(root), transform
        self._source = source.find(self.root, split)
        self.labels = source.labels(self._source)
        self.classes = self._source.classes
        self.names = [name for _, name, _ in self._source.files]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        label = self._label(index)
        image = source.decode(self._source.read(index))
        return (image if self.transform is None else self.transform(image)), label

    def boxes(self, index: int, transform: Callable | None = None) -> tuple:
        """The boxes of an image; its pixels are not decoded.

        Args:
            transform: None gives them in pixels of the image, as those of `Scene`; a network's, in
                those of the tensor it makes: see `boxes_after`.

        Returns:
            Left, top, right and bottom of each object of the image's class; right and bottom are
            the first pixels outside. ImageNet's are taken as the first and last pixel, counted from
            0, and cut to the image.

        Raises:
            ValueError: the data set is another than ImageNet; a file of boxes is damaged; the
                geometry of `transform` is not known.
            FileNotFoundError: there are no files of boxes.
            IndexError: there is no such image.
        """
        self._label(index)
        known = getattr(self._source, "boxes", None)
        if known is None:
            raise ValueError(
                f"the images in {self.root!r} have no boxes: give ImageNet, or generated images "
                "(fastcka.data.Cues)"
            )
        boxes = known(index)
        if transform is None:
            return boxes
        height, width = self._source.shape(index)
        return boxes_after(transform, boxes, height, width)

    def scene(self, index: int) -> Picture:
        """An image with what is known of it, as `Cues.scene`; raises as `boxes`."""
        boxes = self.boxes(index)
        image = source.decode(self._source.read(index))
        return Picture(np.asarray(image), boxes, {"label": self._label(index)})

    def _label(self, index: int) -> int:
        if not 0 <= index < len(self):  # ends the loops that know of no length
            raise IndexError(f"there are {len(self)} images, and none has the number {index}")
        return self._source.files[index][2]
