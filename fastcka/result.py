"""What a measurement returns: the matrix, its error bars, and how it was obtained."""

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class CKAResult:
    """CKA between every layer of one network and every layer of another.

    Attributes:
        cka: [L, M] float64; 1 is equal up to rotation and scale, 0 is unrelated. The unbiased
            estimate may be slightly negative. NaN for layers that `warnings` names.
        stderr: [L, M], standard error over independent batches; NaN for a single block.
        hsic_ab: [L, M]; hsic_aa: [L]; hsic_bb: [M]: weighted means over the batches, in the unit of
            squared Gram entries, so that cka = hsic_ab / √(hsic_aa · hsic_bb).
        layers_a, layers_b: names of the rows and columns.
        n_examples, n_batches: what was measured; batches that were left out are in `meta`.
        warnings: one sentence each.
        meta: what the numbers depend on: estimator, weighting, gram, bandwidth, operand (as asked
            for), backend, isa, device, threads, versions; n_blocks of the error bars; what was left
            out; conditioning_a and _b, the largest |raw Gram matrix| / rms(centred one) of each
            layer, whose digits the subtraction of the mean row saves.
    """

    cka: np.ndarray
    stderr: np.ndarray
    hsic_ab: np.ndarray
    hsic_aa: np.ndarray
    hsic_bb: np.ndarray
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    n_examples: int
    n_batches: int
    warnings: tuple[str, ...] = ()
    meta: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        shape = f"{len(self.layers_a)} x {len(self.layers_b)} layers"
        return (
            f"CKAResult({shape}, {self.n_examples} examples in {self.n_batches} batches,\n"
            f"{np.array2string(self.cka, precision=3)})"
        )

    def ci(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence interval for the CKA of the population: cka ± t · stderr.

        t is the quantile of Student's distribution with k − 1 degrees of freedom, k the blocks of
        batches. Meant for k >= 10 independent batches of light-tailed data: 95 % intervals then
        cover the truth in 93 to 97 % of cases. With weighting="equal" and a last batch much smaller
        than the others they are too wide; with fewer batches and a small last one, too narrow.
        Repeated passes add no blocks. The ends are not clipped to 0 and 1, and not widened for many
        layers.

        Args:
            level: between 0 and 1.

        Returns:
            Lower and upper ends, [L, M] each; NaN where the standard error is.

        >>> import torch, fastcka
        >>> cka = fastcka.MinibatchCKA(["x"], ["y"])
        >>> for _ in range(10):
        ...     _ = cka.update([torch.randn(16, 4)], [torch.randn(16, 4)])
        >>> low, high = cka.compute().ci(0.95)
        >>> bool(low < high)
        True
        """
        if not isinstance(level, numbers.Real) or not 0 < level < 1:
            raise ValueError(f"`level` must lie between 0 and 1, but is {level!r}")
        from scipy.stats import t

        freedom = self.meta["n_blocks"] - 1
        half = t.ppf((1 + level) / 2, freedom) * self.stderr if freedom > 0 else self.stderr
        return self.cka - half, self.cka + half


class CKAResults(Mapping):
    """The results of several models: `results["vit", "resnet"]` is a `CKAResult`.

    Holds every pair of models in the order in which they were named, each with itself included.
    """

    def __init__(self, pairs: Mapping[tuple[str, str], CKAResult]):
        self._pairs = dict(pairs)

    def __getitem__(self, pair: tuple[str, str]) -> CKAResult:
        if pair not in self._pairs:
            if isinstance(pair, tuple) and pair[::-1] in self._pairs:
                raise KeyError(f"no result for {pair!r}: take {pair[::-1]!r} and transpose it")
            known = ", ".join(dict.fromkeys(name for names in self._pairs for name in names))
            raise KeyError(f"no result for {pair!r}: ask for a pair of {known}")
        return self._pairs[pair]

    def __repr__(self) -> str:
        return f"CKAResults({', '.join(f'{a} ~ {b}' for a, b in self._pairs)})"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)
