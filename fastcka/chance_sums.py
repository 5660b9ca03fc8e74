"""The HSICs of images in random orders, added up over batches."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastcka.gram_stack import GramStack
from fastcka.hsic_sums import weights
from fastcka.jackknife import Sums, ratio
from fastcka.named_sums import NamedSums
from fastcka.permutation import permuted_products


class ChanceSums(NamedSums):
    """Weighted HSICs of every pair of layers in each of some random orders.

    Args:
        permutations: how many orders; 0 adds nothing up.
        pairs: of models. layers: by model.
        estimator, weighting, backend: as in `MinibatchCKA`.
    """

    def __init__(
        self,
        permutations: int,
        pairs: Sequence[tuple[str, str]],
        layers: Mapping[str, Sequence[str]],
        estimator: str,
        weighting: str,
        backend: str | None,
    ):
        self.permutations, self.pairs = permutations, list(pairs)
        self.estimator, self.weighting, self.backend = estimator, weighting, backend
        size = {model: len(names) for model, names in layers.items()}
        shapes = {str(i): (permutations, size[a], size[b]) for i, (a, b) in enumerate(self.pairs)}
        super().__init__(shapes if permutations else {})

    def of(self, stacks: Mapping[str, GramStack], n: int, number: int) -> dict[str, torch.Tensor]:
        """What one batch adds; nothing is added yet."""
        if not self.permutations:
            return {}
        packed = {model: stack.packed for model, stack in stacks.items()}
        options = (n, self.estimator, self.permutations, number, self.backend)
        found = permuted_products(packed, self.pairs, *options)
        factor = weights(n, self.estimator, self.weighting)[1]
        return {str(self.pairs.index(pair)): value.mul_(factor) for pair, value in found.items()}

    def results(
        self, a: str, b: str, total: Sums, without_a: np.ndarray, without_b: np.ndarray
    ) -> np.ndarray | None:
        """[K, L, M]: CKA by chance of a pair of models whose HSICs are `total`.

        The HSIC of a layer with itself does not see the order of the examples. NaN for layers
        without a value, masks [L] and [M].
        """
        if not self.permutations:
            return None
        orders = self._sums[str(self.pairs.index((a, b)))].cpu().numpy()
        null = np.stack([ratio(total._replace(ab=one)) for one in orders])
        null[:, without_a] = null[:, :, without_b] = np.nan
        return null
