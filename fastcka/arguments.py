"""What the functions that run models are given: refused here where it cannot be."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from fastcka.fingerprints import SUFFIX, Fingerprint


def check_model(name: str, model, optional: bool = False) -> None:
    if isinstance(model, (nn.Module, Fingerprint)) or (optional and model is None):
        return
    hint = (
        "; the data are given by name: compare(model, data=...)"
        if isinstance(model, Iterable) and not isinstance(model, (str, Mapping))
        else f"; timm.create_model makes one of a name, and a path ends in {SUFFIX}"
        if isinstance(model, str)
        else ""
    )
    raise TypeError(f"`{name}` must be a torch.nn.Module, but is {type(model).__name__}{hint}")


def check_data(data, name: str = "data") -> None:
    if data is None:
        raise TypeError(
            f"`{name}` is missing: give an iterable of batches, for example a DataLoader"
        )
    if isinstance(data, torch.Tensor):
        raise TypeError(
            f"`{name}` is one tensor, not batches of it; give for example {name}.split(64)"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"`{name}` is a data set of single images; wrap it in "
            "torch.utils.data.DataLoader(..., batch_size=64, shuffle=True)"
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"`{name}` must be an iterable of batches, but is {type(data).__name__}")
