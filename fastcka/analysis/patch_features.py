"""Features for probes of feature maps: cut into patches first, so that all layers are as wide."""

import math

import torch
from torch.nn import functional


def patch_side(channels: int, last_channels: int, size: tuple[int, int]) -> int:
    """How wide patches must be for their channels to be about as many as those of the last stage.

    The divisor of both sides of the map that is nearest to √(last_channels/channels) [inferred from
    Raghu et al. 2021, appendix: patches of early maps, flattened]; of two the smaller.

    Args:
        channels, last_channels: of the map and of the last stage.
        size: height and width of the map.

    Raises:
        ValueError: a number is not 1 or more.

    >>> [patch_side(c, 2048, (s, s)) for c, s in ((256, 56), (512, 28), (1024, 14), (2048, 7))]
    [2, 2, 1, 1]
    """
    if min(channels, last_channels, *size) < 1:
        raise ValueError(
            "`channels`, `last_channels` and `size` must be 1 or more, but are "
            f"{channels}, {last_channels} and {tuple(size)}"
        )
    common = math.gcd(*size)
    wanted = math.sqrt(last_channels / channels)
    divisors = [q for q in range(1, common + 1) if common % q == 0]
    return min(divisors, key=lambda q: abs(q - wanted))


def space_to_depth(maps: torch.Tensor, side: int) -> torch.Tensor:
    """The channels of every side x side patch, one after the other: a permutation of the values.

    Args:
        maps: [n, C, H, W] of any dtype. side: divides H and W.

    Returns:
        [n, C·side², H/side, W/side]

    Raises:
        ValueError: `maps` has other axes, or `side` does not divide them.

    >>> space_to_depth(torch.arange(16).reshape(1, 1, 4, 4), 2)[0, :, 0, 1]
    tensor([2, 3, 6, 7])
    """
    if maps.ndim != 4 or side < 1 or maps.shape[2] % side or maps.shape[3] % side:
        raise ValueError(
            f"`maps` must be [n, channels, height, width] with sides that {side} divides, but is "
            f"{list(maps.shape)}"
        )
    return functional.pixel_unshuffle(maps, side)


def patch_features(
    maps: torch.Tensor, last_channels: int, last_size: tuple[int, int], channels_last: bool = False
) -> torch.Tensor:
    """Features of a map for a probe: patches, pooled to the size of the last stage, and averaged.

    `space_to_depth` with `patch_side`, adaptive average pooling to `last_size`, and the mean over
    positions [Raghu et al. 2021, figure 13b]. The plain mean beside it is Tap(layer, tokens="gap").

    Args:
        maps: [n, C, H, W], or [n, H, W, C] with `channels_last`; of any floating type.
        last_channels, last_size: channels, height and width of the last stage's maps. Maps that are
            smaller are not pooled.

    Returns:
        [n, C·q²], of the dtype of the maps.

    Raises:
        ValueError: `maps` has other axes, or a number is not 1 or more.

    To keep them of every block of a ResNet-50, `Taps("blocks", lambda layer, x: patch_features(x,
    2048, (7, 7)))`.

    >>> [patch_features(torch.ones(2, c, s, s), 64, (2, 2)).shape[1] for c, s in ((4, 16), (64, 2))]
    [64, 64]
    """
    if maps.ndim != 4:
        raise ValueError(f"`maps` must be maps of four axes, but is {list(maps.shape)}")
    if channels_last:
        maps = maps.permute(0, 3, 1, 2)
    side = patch_side(maps.shape[1], last_channels, maps.shape[2:])
    deep = space_to_depth(maps, side)
    height, width = (min(pair) for pair in zip(last_size, deep.shape[2:], strict=True))
    return functional.adaptive_avg_pool2d(deep, (height, width)).mean((2, 3))
