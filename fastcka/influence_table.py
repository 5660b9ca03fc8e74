"""What single images do to CKA, as a table: the file influence.csv."""

import csv
import os
from collections.abc import Iterator

from fastcka.result import CKAResult, CKAResults

COLUMNS = ("image", "model_a", "layer_a", "model_b", "layer_b", "influence")


def rows(result: CKAResult | CKAResults) -> Iterator[tuple]:
    """One for each image and pair of layers; an image without a name is its place from 0 on."""
    for one in result.values() if isinstance(result, CKAResults) else [result]:
        for (a, b), changes in one.influence.items():
            images = range(len(changes)) if one.images is None else one.images
            for image, change in zip(images, changes.tolist(), strict=True):
                yield image, one.models[0], a, one.models[-1], b, change


def write(result: CKAResult | CKAResults, path: str | os.PathLike) -> None:
    """All digits, comma-separated, in the order in which the images were read.

    >>> import fastcka, tempfile, torch
    >>> cka = fastcka.MinibatchCKA(["x"], ["y"], influence=[("x", "y")])
    >>> x = torch.arange(6.0)[:, None]
    >>> result = cka.update([x], [x.square()], images="abcdef").compute()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(result, f"{folder}/influence.csv")
    ...     with open(f"{folder}/influence.csv") as file:
    ...         print(file.read()[:60])
    image,model_a,layer_a,model_b,layer_b,influence
    a,model a,x,
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows(result))
