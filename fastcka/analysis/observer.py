"""What is seen of single images while a network runs: the contract, and one made of taps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from fastcka.capture import Capture, Tap

Values = dict[str, torch.Tensor]


class Observer(Protocol):
    """Turns one forward pass into a few numbers of each image.

    Nothing of an activation is kept beyond what is returned. Observers of one network can watch the
    same pass.
    """

    def watching(self, model: nn.Module, n: int) -> AbstractContextManager[Values]:
        """Around one forward pass of n images; behind the block the mapping holds [n, ...] by name.

        The network is left as it was, also after an error.
        """


class Taps:
    """An observer by taps: each activation is reduced in its hook, then all are combined.

    Args:
        layers: as `layers_a` of `fastcka.compare`.
        reduce: from the name of a layer and its activation [n, ...] to a tensor [n, ...]; None
            keeps the activation itself, copied.
        combine: from these, by layer, to the values, by name; None takes them as they are.

    >>> observer = Taps("0", lambda layer, x: x.norm(dim=1))
    >>> net = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    >>> with observer.watching(net, 3) as values:
    ...     _ = net(torch.ones(3, 4))
    >>> values
    {'0': tensor([2., 2., 2.])}
    """

    def __init__(
        self,
        layers: str | Tap | Sequence[str | Tap],
        reduce: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
        combine: Callable[[Mapping[str, torch.Tensor]], Values] | None = None,
    ):
        self.layers, self._reduce, self._combine = layers, reduce, combine

    @contextmanager
    def watching(self, model: nn.Module, n: int) -> Iterator[Values]:
        seen: Values = {}
        values: Values = {}

        def put(layer: str, x: torch.Tensor) -> None:
            seen[layer] = x.clone() if self._reduce is None else self._reduce(layer, x)

        with Capture(model, self.layers, type(model).__name__).watching(n, put):
            yield values
        values.update(seen if self._combine is None else self._combine(seen))
