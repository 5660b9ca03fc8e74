"""The measures beside CKA added up over batches, each batch counting its examples."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastcka.gram_stack import GramStack
from fastcka.measures import OF_LAYERS, OF_PAIRS, between, defined_for, grams
from fastcka.named_sums import NamedSums


class MeasureSums(NamedSums):
    """Sums of n times the measure of each batch of n examples.

    Args:
        names: of measures. pairs: of models. layers: by model.
    """

    def __init__(
        self,
        names: Sequence[str],
        pairs: Sequence[tuple[str, str]],
        layers: Mapping[str, Sequence[str]],
    ):
        self.names, self.pairs, self.models = tuple(names), list(pairs), list(layers)
        size = {model: len(of) for model, of in layers.items()}
        shapes = {}
        for name in names:
            if name in OF_PAIRS:
                for i, (a, b) in enumerate(self.pairs):
                    # Of each cell, n times its value, and n where it has one.
                    shapes[f"{name}.{i}"] = (2, size[a], size[b])
            else:
                for i, model in enumerate(self.models):
                    shapes[f"{name}.{i}"] = (2, size[model])
        super().__init__(shapes)

    def of(self, stacks: Mapping[str, GramStack], n: int, number: int) -> dict[str, torch.Tensor]:
        """What one batch adds; nothing is added yet."""
        names = [name for name in self.names if defined_for(name, n)]
        if not names:
            return {}
        k = {model: grams(stack) for model, stack in stacks.items()}
        found = {}
        for name in names:
            if name in OF_PAIRS:
                vectors = {model: OF_PAIRS[name](one) for model, one in k.items()}
                for i, (a, b) in enumerate(self.pairs):
                    found[f"{name}.{i}"] = _weighted(between(name, vectors[a], vectors[b]), n)
            else:
                for i, model in enumerate(self.models):
                    found[f"{name}.{i}"] = _weighted(OF_LAYERS[name](k[model]), n)
        return found

    def results(
        self, a: str, b: str, without_a: np.ndarray, without_b: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The means of a pair of models: [L, M] by name; of a measure of layers, [L] and [M].

        NaN for layers without a value, masks [L] and [M], and where no batch has one: it was too
        small, or a layer constant in it.
        """
        found = {}
        for name in self.names:
            if name in OF_PAIRS:
                found[name] = self._mean(name, self.pairs.index((a, b)))
                found[name][without_a] = found[name][:, without_b] = np.nan
            else:
                for side, model, without in (("a", a, without_a), ("b", b, without_b)):
                    found[f"{name}_{side}"] = self._mean(name, self.models.index(model))
                    found[f"{name}_{side}"][without] = np.nan
        return found

    def _mean(self, name: str, place: int) -> np.ndarray:
        total, examples = self._sums[f"{name}.{place}"].cpu().numpy()
        return total / np.where(examples > 0, examples, np.nan)


def _weighted(value: torch.Tensor, n: int) -> torch.Tensor:
    """n times the value and n; 0 and 0 of what is not defined in this batch: a dead layer, say."""
    there = torch.isfinite(value)
    return torch.stack([torch.where(there, n * value, 0.0), n * there.to(value.dtype)])
