"""What minibatch CKA adds up: HSICs a block, and per layer what decides whether it has a value."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastcka import conditioning
from fastcka.gram_stack import GramStack

# Unbiased HSIC divides by n − 3, and the biased one is kept to the same batches.
SMALLEST_BATCH = 4
NEVER = torch.iinfo(torch.int64).max


def weights(n: int, estimator: str, weighting: str) -> tuple[float, float]:
    """Of a batch of n examples: its weight, and that of its inner products."""
    normaliser = float(n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2)
    return (normaliser, 1.0) if weighting == "pairs" else (1.0, 1.0 / normaliser)


class Block:
    """Weighted HSICs of the batches that share a block."""

    def __init__(
        self,
        weight: float,
        pairs: dict[tuple[str, str], torch.Tensor],  # [L, M] each
        own: dict[str, torch.Tensor],  # [L] each
    ):
        self.weight, self.pairs, self.own = weight, pairs, own

    def add(self, other: "Block") -> None:
        self.weight += other.weight
        for pair, value in other.pairs.items():
            self.pairs[pair] = self.pairs[pair] + value.to(self.pairs[pair].device)
        for model, value in other.own.items():
            self.own[model] = self.own[model] + value.to(self.own[model].device)


class LayerTotals:
    """What decides whether the layers of one model have a value, over all batches."""

    def __init__(self, layers: int):
        zeros = torch.zeros(layers, dtype=torch.float64, device="cpu")
        self.sums = zeros.new_zeros(layers, 4)
        self.conditioning = zeros  # |raw K| / rms(U), the largest of any batch
        self.eps = zeros.new_zeros(layers, 2)
        self.first_bad = torch.full_like(zeros, NEVER, dtype=torch.int64)

    def add(self, stack: GramStack, number: int) -> None:
        summary = stack.summary
        if self.sums.device != summary.device:
            self.sums, self.conditioning, self.first_bad = (
                value.to(summary.device) for value in (self.sums, self.conditioning, self.first_bad)
            )
        self.sums = self.sums + summary[:, :4]
        self.conditioning = torch.maximum(self.conditioning, summary[:, 4])
        # It is known without the values: taking it to their device would wait for them.
        self.eps = torch.maximum(self.eps, stack.eps)
        bad = ~torch.isfinite(summary[:, :4]).all(1)
        self.first_bad = torch.where(bad, self.first_bad.clamp(max=number), self.first_bad)

    def merge(self, other: "LayerTotals", shift: int) -> None:
        device = {name: value.device for name, value in self.tensors().items()}
        theirs = {name: value.to(device[name]) for name, value in other.tensors().items()}
        self.sums = self.sums + theirs["sums"]
        self.conditioning = torch.maximum(self.conditioning, theirs["conditioning"])
        self.eps = torch.maximum(self.eps, theirs["eps"])
        bad = torch.where(
            theirs["first_bad"] == NEVER, theirs["first_bad"], theirs["first_bad"] + shift
        )
        self.first_bad = torch.minimum(self.first_bad, bad)

    def constant(self) -> torch.Tensor:
        return conditioning.is_constant(self.sums.cpu(), self.eps)

    def without_value(self) -> np.ndarray:
        return (self.constant() | (self.first_bad != NEVER).cpu()).numpy()

    def least_share(self) -> np.ndarray:
        return conditioning.least_share(self.sums.cpu(), self.eps).numpy()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "sums": self.sums,
            "conditioning": self.conditioning,
            "eps": self.eps,
            "first_bad": self.first_bad,
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            setattr(self, name, value.clone())

    def messages(self, names: Sequence[str], whose: str) -> list[str]:
        """A sentence for each reason why layers have no value, or an uncertain one."""
        first_bad, constant = self.first_bad.tolist(), self.constant().tolist()
        lost = conditioning.has_lost_digits(self.sums.cpu(), self.eps).tolist()
        told: dict[str, list[str]] = {}
        for row, name in enumerate(names):
            if first_bad[row] != NEVER:
                reason = (
                    f"{{hold}} inf or NaN, first in batch {first_bad[row]}; {{their}} CKA is NaN"
                )
            elif constant[row]:
                reason = (
                    "{are} constant: {their} centred Gram matrix holds nothing but rounding; "
                    "{their} CKA is NaN"
                )
            elif lost[row]:
                reason = (
                    "{are} dominated by few examples, and {their} Gram matrix has lost digits; "
                    "{their} CKA may be off by more than 1e-5: give {them} in float64"
                )
            else:
                continue
            told.setdefault(reason, []).append(name)
        return [_sentence(layers, whose, reason) for reason, layers in told.items()]


def _sentence(layers: list[str], whose: str, reason: str) -> str:
    one = {"hold": "holds", "are": "is", "their": "its", "them": "it"}
    words = one if len(layers) == 1 else {word: word for word in one}
    listed = ", ".join(repr(name) for name in layers)
    return f"layer{'' if words is one else 's'} {listed}{whose} {reason.format(**words)}"
