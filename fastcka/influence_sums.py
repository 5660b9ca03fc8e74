"""What leaving out each image changes in the sums, kept until the sums are known."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from fastcka.gram_stack import GramStack
from fastcka.hsic_sums import SMALLEST_BATCH, weights
from fastcka.influence import Pair, check_layers, places_of_rows, without_each
from fastcka.jackknife import Sums, cosine


class InfluenceSums:
    """Of every image and every product that the wanted pairs need: what is missing without it.

    Args:
        wanted: pairs of layers; none keeps nothing.
        layers: by model.
        estimator, weighting: as in `MinibatchCKA`.

    Attributes:
        images: what the images are called, in the order of arrival; None where a batch did not say.

    Grows with the images: 8 bytes for each, and each product. Two layers need three products, and
    pairs share those of a layer with itself.
    """

    def __init__(
        self,
        wanted: Sequence[Pair],
        layers: Mapping[str, Sequence[str]],
        estimator: str,
        weighting: str,
    ):
        check_layers(wanted, layers)
        self.wanted, self.layers = list(wanted), layers
        self.estimator, self.weighting = estimator, weighting
        ends = [end for pair in wanted for end in pair]
        products = [*wanted, *((end, end) for end in ends)]
        self._place = {product: i for i, product in enumerate(dict.fromkeys(products))}
        self._numbers: list[int] = []  # of the batches, as they came
        self._changes: list[torch.Tensor] = []  # [products, n] each
        self.images: list[str | int] | None = []

    def of(self, stacks: Mapping[str, GramStack], n: int, number: int) -> dict[str, torch.Tensor]:
        """What one batch adds; nothing is added yet."""
        if not self.wanted:
            return {}
        _, factor = weights(n, self.estimator, self.weighting)
        # One example less may be one too few: then the whole batch is missing.
        remains = n - 1 >= SMALLEST_BATCH
        fewer = weights(n - 1, self.estimator, self.weighting)[1] if remains else 0.0
        rows = []
        for product in self._place:
            one, other = (stacks[m].packed[self.layers[m].index(name)] for m, name in product)
            both = one * other
            places = places_of_rows(n, self.estimator, both.device)
            less = without_each(both, places, self.estimator)
            rows.append((fewer - factor) * both.sum() - fewer * less)
        return {"number": torch.tensor([number], device="cpu"), "change": torch.stack(rows)}

    def add(self, found: Mapping[str, torch.Tensor]) -> None:
        if found:
            self._numbers += found["number"].tolist()
            self._changes.append(found["change"])

    def name(self, images: Iterable[str | int] | None) -> None:
        """What the images of the batch that was just added are called."""
        if images is None or self.images is None:
            self.images = None
        elif self.wanted:
            self.images.extend(images)

    def merge(self, other: "InfluenceSums", shift: int) -> None:
        self._numbers += [number + shift for number in other._numbers]
        self._changes += [change.cpu() for change in other._changes]
        self.name(other.images)

    def tensors(self) -> dict[str, torch.Tensor]:
        if not self.wanted:
            return {}
        sizes = [change.shape[1] for change in self._changes]
        none = torch.zeros(len(self._place), 0, dtype=torch.float64, device="cpu")
        return {
            "number": torch.tensor(self._numbers, dtype=torch.int64, device="cpu"),
            "size": torch.tensor(sizes, dtype=torch.int64, device="cpu"),
            "change": torch.cat([none, *(change.cpu() for change in self._changes)], 1),
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.wanted:
            self._numbers = tensors["number"].tolist()
            self._changes = list(tensors["change"].clone().split(tensors["size"].tolist(), 1))

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Those that tensors to be loaded must have."""
        if not self.wanted:
            return {}
        count, examples = len(tensors.get("number", ())), int(sum(tensors.get("size", ())))
        return {"number": (count,), "size": (count,), "change": (len(self._place), examples)}

    def results(
        self, a: str, b: str, total: Sums, cka: np.ndarray, least_a: np.ndarray, least_b: np.ndarray
    ) -> dict[tuple[str, str], np.ndarray]:
        """CKA less what it is without each image, by the wanted layers of a pair of models.

        In the order of the batches' numbers. NaN where CKA is, and where without the image no more
        is left of a layer than the share `least_a` [L] or `least_b` [M] of its HSIC.
        """
        found = {}
        for one, other in self.wanted:
            if (one[0], other[0]) != (a, b):
                continue
            i, j = self.layers[a].index(one[1]), self.layers[b].index(other[1])
            aa = total.aa[i] + self._change((one, one))
            bb = total.bb[j] + self._change((other, other))
            aa[aa <= least_a[i] * total.aa[i]] = np.nan
            bb[bb <= least_b[j] * total.bb[j]] = np.nan
            without = cosine(total.ab[i, j] + self._change((one, other)), aa, bb)
            found[one[1], other[1]] = cka[i, j] - without
        return found

    def names(self) -> tuple[str | int, ...] | None:
        """Of the images, in the order of the results."""
        if self.images is None:
            return None
        ends = np.cumsum([change.shape[1] for change in self._changes]).tolist()
        starts = [0, *ends]
        return tuple(
            name for place in self._order() for name in self.images[starts[place] : ends[place]]
        )

    def _change(self, product: Pair) -> np.ndarray:
        row = self._place[product]
        return np.concatenate([self._changes[place][row].cpu().numpy() for place in self._order()])

    def _order(self) -> list[int]:
        """Parts of a batch that share its number stay as they came."""
        return np.argsort(self._numbers, kind="stable").tolist()
