"""What a batch says of its images beside the images: labels, ids."""

from collections.abc import Mapping

import torch

LABELS = ("label", "labels", "target", "targets")
IDS = ("id", "ids", "index")


def identities(batch) -> dict[str, torch.Tensor]:
    """Integer vectors by name: the labels and ids of a dict, the second element of (x, y)."""
    if isinstance(batch, Mapping):
        named = {name: batch[name] for name in (*LABELS, *IDS) if name in batch}
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        named = {"labels": batch[1]}
    else:
        named = {}
    return {name: value for name, value in named.items() if _is_vector(value)}


def labels(batch) -> torch.Tensor | None:
    """The class labels of a batch, where it has them."""
    return next((v for name, v in identities(batch).items() if name in LABELS), None)


def _is_vector(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 1
        and not value.is_floating_point()
        and not value.is_complex()
    )
