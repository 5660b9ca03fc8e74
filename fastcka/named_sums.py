"""Tensors by name that every batch adds to: what is measured beside the HSICs."""

from collections.abc import Mapping

import torch


class NamedSums:
    """Sums in float64, on the device of what was added last.

    Args:
        shapes: of the sums, by name.

    >>> sums = NamedSums({"x": (2,)})
    >>> sums.add({"x": torch.ones(2)})
    >>> sums.tensors()
    {'x': tensor([1., 1.], dtype=torch.float64)}
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._sums = {
            name: torch.zeros(shape, dtype=torch.float64, device="cpu")
            for name, shape in shapes.items()
        }

    def add(self, found: Mapping[str, torch.Tensor]) -> None:
        """Add those that are named; the others stay as they are."""
        for name, value in found.items():
            self._sums[name] = self._sums[name].to(value.device) + value

    def merge(self, other: "NamedSums", shift: int) -> None:
        """Add those of another; by how much its batches' numbers shift does not matter here."""
        self.add(other.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value.cpu() for name, value in self._sums.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._sums = {name: tensors[name].clone() for name in self._sums}

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Those that tensors to be loaded must have, whichever they are."""
        return {name: tuple(value.shape) for name, value in self._sums.items()}


def named(tensors: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }
