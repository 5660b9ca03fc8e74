"""Tensors in what a module takes and returns."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass, replace

import torch

# What a Gram matrix can be made of.
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensors(nested) -> Iterator[torch.Tensor]:
    """Every tensor of nested tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from tensors(value)
    elif is_dataclass(nested) and not isinstance(nested, type):
        for field in fields(nested):
            yield from tensors(getattr(nested, field.name))


def nests(nested) -> Iterator[Sequence]:
    """Every tuple and list that is not empty, within mappings and each other."""
    if isinstance(nested, Mapping):
        nested = list(nested.values())
        for value in nested:
            yield from nests(value)
    elif isinstance(nested, (tuple, list)) and nested:
        yield nested
        for value in nested:
            yield from nests(value)


def activation(nested) -> torch.Tensor | None:
    """The activation in what a module returns: its first floating tensor."""
    return next((x for x in tensors(nested) if x.is_floating_point()), None)


def copied_to(nested, device: torch.device):
    """The same with a copy of every tensor on a device: a network may overwrite its input."""
    on_gpu = torch.device(device).type == "cuda"

    def copied(x: torch.Tensor) -> torch.Tensor:
        # Without waiting for what the GPU is doing, where the values are read when this returns.
        # Pinned ones may not be, and whoever made them may use their memory for the next batch.
        return x.to(device, copy=True, non_blocking=on_gpu and not x.is_cuda and not x.is_pinned())

    return mapped(nested, copied)


def mapped(nested, change: Callable[[torch.Tensor], torch.Tensor]):
    """The same nest with every tensor changed."""
    if isinstance(nested, torch.Tensor):
        return change(nested)
    if isinstance(nested, MutableMapping):
        copied = copy.copy(nested)
        for key, value in nested.items():
            copied[key] = mapped(value, change)
        return copied
    if isinstance(nested, Mapping):
        return {key: mapped(value, change) for key, value in nested.items()}
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(mapped(value, change) for value in nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(mapped(value, change) for value in nested)
    if is_dataclass(nested) and not isinstance(nested, type):
        parts = {f.name: getattr(nested, f.name) for f in fields(nested) if f.init}
        return replace(nested, **{name: mapped(part, change) for name, part in parts.items()})
    return nested
