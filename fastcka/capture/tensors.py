"""Tensors in what a module takes and returns."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch


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


def activation(nested) -> torch.Tensor | None:
    """The activation in what a module returns: its first floating tensor."""
    return next((x for x in tensors(nested) if x.is_floating_point()), None)


def copied_to(nested, device: torch.device):
    """The same with a copy of every tensor on a device: a network may overwrite its input."""
    if isinstance(nested, torch.Tensor):
        return nested.to(device, copy=True)
    if isinstance(nested, Mapping):
        return {key: copied_to(value, device) for key, value in nested.items()}
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(copied_to(value, device) for value in nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(copied_to(value, device) for value in nested)
    return nested
