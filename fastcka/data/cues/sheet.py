"""Many images at a glance."""

import numpy as np

from fastcka.data.cues.dataset import Cues

GAP = 2  # white pixels between images


def contact_sheet(images: Cues, columns: int = 12):
    """A PIL image with a row a class of the label, and its first images side by side.

    Args:
        images: enough that every class has some; others are left white.
        columns: images of each class.

    >>> from fastcka import data
    >>> data.contact_sheet(data.Cues(100, size=32), columns=4).size
    (138, 274)
    """
    from PIL import Image

    labels = images.factors(range(len(images)))["label"]
    step = images.size + GAP
    canvas = np.full((step * len(images.classes) + GAP, step * columns + GAP, 3), 255, np.uint8)
    for label in range(len(images.classes)):
        for column, i in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = label * step + GAP, column * step + GAP
            canvas[top : top + images.size, left : left + images.size] = images.scene(i).image
    return Image.fromarray(canvas)
