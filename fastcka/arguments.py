"""What the functions that run models are given: refused here where it cannot be."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from fastcka.checkpoint import Checkpoint, states
from fastcka.distributed import Share
from fastcka.fingerprints import SUFFIX, Fingerprint


def check_model(name: str, model, optional: bool = False, made: bool = False) -> None:
    """A network or a fingerprint; `optional` allows None, and `made` a function that makes one."""
    if isinstance(model, (nn.Module, Fingerprint)) or (optional and model is None):
        return
    if made and callable(model):
        return
    hint = (
        "; the data are given by name: compare(model, data=...)"
        if isinstance(model, Iterable) and not isinstance(model, (str, Mapping))
        else f"; timm.create_model makes one of a name, and a path ends in {SUFFIX}"
        if isinstance(model, str)
        else "; one that makes a model needs `one_by_one`"
        if callable(model)
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


def checkpoint_of(
    path: str | os.PathLike | None, resume: bool, save_every: float, share: Share
) -> Checkpoint | None:
    """The state of this process, beside those of the others."""
    if path is None:
        if resume:
            raise ValueError("`resume` needs `checkpoint`, the file to go on from")
        return None
    path = Path(path)
    for rank, ranks, other in states(path):
        if resume and ranks != share.ranks:
            raise ValueError(
                f"cannot resume: {other} is of process {rank} of {ranks}, but there are "
                f"{share.ranks} now; start as many"
            )
    if share.ranks > 1:
        path = path.with_name(f"{path.stem}-{share.rank}-of-{share.ranks}{path.suffix}")
    return Checkpoint(path, resume, save_every)
