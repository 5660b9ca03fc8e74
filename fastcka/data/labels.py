"""What a batch says of its images beside the images: labels, ids."""

import zlib
from collections.abc import Mapping

import torch

LABELS = ("label", "labels", "target", "targets")
IDS = ("id", "ids", "index")


def identities(batch) -> dict[str, torch.Tensor]:
    """Integer vectors by name: the labels and ids of a dict, the second element of (x, y, …)."""
    if isinstance(batch, Mapping):
        named = {name: batch[name] for name in (*LABELS, *IDS) if name in batch}
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        named = {"labels": batch[1]}
    else:
        named = {}
    vectors = {name: _as_integers(value) for name, value in named.items()}
    return {name: vector for name, vector in vectors.items() if vector is not None}


def labels(batch) -> torch.Tensor | None:
    """The class labels of a batch, where it has them."""
    return next((v for name, v in identities(batch).items() if name in LABELS), None)


def _as_integers(value) -> torch.Tensor | None:
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, str) for v in value):
        return torch.tensor([zlib.crc32(text.encode()) for text in value])
    is_vector = isinstance(value, torch.Tensor) and value.ndim == 1
    if not is_vector or value.is_floating_point() or value.is_complex():
        return None
    return value
