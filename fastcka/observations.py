"""Means over the images of what observers see in the passes of a comparison."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from fastcka.analysis.observer import Observer, Values

Seen = dict[tuple[str, str], Values]  # by model and observer: [n, ...] by name


class Observations:
    """Watches models while they are compared: mean and standard error of every value over images.

    Images are taken as independent: the error of a mean is the standard deviation over the root of
    their number. Of several passes over the data the first alone counts.

    Args:
        observers: by the label of the model, by a name of their own.

    >>> from fastcka.analysis.observer import Taps
    >>> observations = Observations({"net": {"size": Taps("0", lambda name, x: x.norm(dim=1))}})
    >>> observations.add({("net", "size"): {"0": torch.tensor([1.0, 2.0, 3.0])}})
    >>> observations.mean("net", "size")["0"], observations.count
    (array(2.), 3)
    """

    def __init__(self, observers: Mapping[str, Mapping[str, Observer]]):
        self.observers = {model: dict(by_name) for model, by_name in observers.items()}
        self.count = 0
        # The mean and the sum of squared differences from it.
        self._moments: dict[tuple[str, str, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def watching(
        self, label: str, model: nn.Module, n: int
    ) -> dict[tuple[str, str], AbstractContextManager[Values]]:
        """Around one forward pass of n images: the observers of a model."""
        return {
            (label, name): observer.watching(model, n)
            for name, observer in self.observers.get(label, {}).items()
        }

    def add(self, seen: Seen) -> None:
        """Add the values of some images, all that were seen of these; after an error, none."""
        merged, sizes = {}, set()
        for (model, observer), values in seen.items():
            for name, value in values.items():
                value = value.detach().to("cpu", torch.float64)
                sizes.add(len(value))
                mean = value.mean(0)
                moments = (mean, (value - mean).square().sum(0))
                key = (model, observer, name)
                merged[key] = self._joined(key, moments, len(value))
        if len(sizes) > 1:
            raise ValueError(f"observers saw different numbers of images: {sorted(sizes)}")
        self._check_names(merged)
        self._moments |= merged
        self.count += sizes.pop() if sizes else 0

    def mean(self, model: str, observer: str) -> dict[str, np.ndarray]:
        """The mean over the images, by the name of the value."""
        return {name: mean.numpy() for name, (mean, _) in self._of(model, observer).items()}

    def stderr(self, model: str, observer: str) -> dict[str, np.ndarray]:
        """Standard errors of the means; NaN of a single image."""
        many = self.count - 1 if self.count > 1 else np.nan
        return {
            name: np.sqrt(squares.numpy() / many / self.count)
            for name, (_, squares) in self._of(model, observer).items()
        }

    def names(self) -> dict[str, list[str]]:
        """What is observed: the names of the observers, by the label of their model."""
        return {model: sorted(by_name) for model, by_name in self.observers.items()}

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Plain values and tensors; `load` takes them."""
        keys = sorted(self._moments)
        tensors = {}
        for number, key in enumerate(keys):
            tensors[f"mean.{number}"], tensors[f"squares.{number}"] = self._moments[key]
        return {"count": self.count, "keys": [list(key) for key in keys]}, tensors

    def load(self, plain: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take these values instead of those here."""
        self.count = plain["count"]
        self._moments = {
            tuple(key): (tensors[f"mean.{number}"], tensors[f"squares.{number}"])
            for number, key in enumerate(plain["keys"])
        }

    def merge(self, plain: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add a state of other images."""
        merged = {}
        for number, key in enumerate(map(tuple, plain["keys"])):
            moments = (tensors[f"mean.{number}"], tensors[f"squares.{number}"])
            merged[key] = self._joined(key, moments, plain["count"])
        if plain["count"]:
            self._check_names(merged)
        self._moments |= merged
        self.count += plain["count"]

    def _check_names(self, found: Mapping) -> None:
        """A mean is over all images: none may lack a value."""
        if self.count and found.keys() != self._moments.keys():
            _, observer, name = min(found.keys() ^ self._moments.keys())
            raise ValueError(
                f"observer {observer!r} saw {name!r} of some images only: it must give the same "
                "values for every batch"
            )

    def _joined(
        self, key: tuple[str, str, str], theirs: tuple[torch.Tensor, torch.Tensor], n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments of these images and of those before, without cancellation [Chan et al. 1979]."""
        if key not in self._moments or not self.count:
            return theirs
        (mean, squares), total = self._moments[key], self.count + n
        difference = theirs[0] - mean
        return (
            mean + difference * (n / total),
            squares + theirs[1] + difference.square() * (self.count * n / total),
        )

    def _of(self, model: str, observer: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            name: moments
            for (of, by, name), moments in self._moments.items()
            if (of, by) == (model, observer)
        }
