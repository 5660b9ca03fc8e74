"""Patches of a sequence and positions of a map, alike."""

import torch

from fastcka.capture.selection import Layout, take
from fastcka.capture.tap import Tap

PATCHES = Tap("*", tokens="patches")


def positions(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[n, positions, channels], row by row, of an activation; prefix tokens are no positions.

    Raises:
        Unusable: it has no tokens or positions, or the network does not say which are prefixes.

    >>> positions(torch.arange(8.0).reshape(1, 2, 2, 2), Layout(channels_last=False))[0, 1]
    tensor([1., 5.])
    """
    x = take(x, PATCHES, layout)
    if x.ndim == 3:
        return x
    return (x if layout.channels_last else x.permute(0, 2, 3, 1)).flatten(1, 2)
