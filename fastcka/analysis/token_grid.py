"""Where in the image each token of a layer lies.

A network cuts the image into a grid of cells. A token stands for a cell, and its place is the
cell's centre in pixels, whatever the kernels that made it reach beyond; class, distillation and
register tokens have no place. Some networks keep their tokens in another order than row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from fastcka.analysis.attention import Attention, around
from fastcka.analysis.sublayers import unrolls
from fastcka.capture.modules import named, unwrap
from fastcka.capture.selection import Unusable, layout_of


class Level(NamedTuple):
    """A grid over the image at one of its resolutions."""

    rows: int
    cols: int
    patch: tuple[float, float]  # height and width of a cell in pixels


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The tokens of a layer over the image.

    Attributes:
        rows, cols: of the grid.
        prefix: tokens that stand before the patches and have no place.
        patch: height and width of a cell in pixels.
        cells: [rows * cols] int64, of each token after the prefix its cell, row * cols + col.
    """

    rows: int
    cols: int
    prefix: int
    patch: tuple[float, float]
    cells: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.prefix + self.rows * self.cols

    @property
    def centre(self) -> tuple[int, int]:
        """The middle cell: (rows // 2, cols // 2)."""
        return self.rows // 2, self.cols // 2

    def index(self, row: int, col: int) -> int:
        """The number of the token that stands for a cell, prefix counted.

        Raises:
            ValueError: there is no such cell.
        """
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise ValueError(
                f"`row`, `col` must be a cell of {self.rows} x {self.cols}, but are {row}, {col}"
            )
        return self.prefix + int((self.cells == row * self.cols + col).nonzero())

    def places(self) -> torch.Tensor:
        """[tokens, 2] float64: height and width of each token's centre in pixels; NaN of prefix."""
        grid = torch.stack([self.cells // self.cols, self.cells % self.cols], 1)
        placed = (grid + 0.5) * torch.tensor(self.patch, dtype=torch.float64)
        return torch.cat([torch.full((self.prefix, 2), math.nan, dtype=torch.float64), placed])


def token_grid(
    model: nn.Module, layer: str, shape: Sequence[int], image: tuple[int, int]
) -> TokenGrid:
    """Where the tokens of a layer lie in the image.

    Of sequences [n, tokens, channels] of networks with a patch embedding (timm's ViTs of all kinds,
    Mixers, Swin, MViTv2, Hiera), and of any maps [n, channels, rows, cols], or with the channels
    last.

    Args:
        model: the network.
        layer: the layer's name.
        shape: of its activation.
        image: height and width of the images in pixels.

    Raises:
        ValueError: the network does not say, or the tokens are not those of a grid over the image.

    >>> class Net(nn.Module):
    ...     num_prefix_tokens = 1
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.patch_embed = nn.Module()
    ...         self.patch_embed.proj = nn.Conv2d(3, 8, 16, stride=16)
    >>> grid = token_grid(Net(), "patch_embed", [1, 1 + 2 * 3, 8], (32, 48))
    >>> grid.rows, grid.cols, grid.prefix, grid.centre, grid.index(1, 1)
    (2, 3, 1, (1, 1), 5)
    >>> grid.places()[grid.index(1, 2)]
    tensor([24., 40.], dtype=torch.float64)
    """
    model = unwrap(model)
    modules = named(model)
    if layer not in modules:
        raise ValueError(f"`layer` must name a module of the network, and {layer!r} does not")
    if len(shape) == 4:
        last = layout_of(layer, modules).channels_last
        rows, cols = shape[1:3] if last else shape[2:4]
        return _plain(_over(image, rows, cols), 0)
    if len(shape) != 3:
        raise ValueError(
            f"layer {layer!r} has no tokens: `shape` must be [n, tokens, channels] or of a map, "
            f"but is {list(shape)}"
        )
    try:
        return _of_sequence(_network(around(layer, modules)), layer, shape[1], image)
    except Unusable as unusable:
        raise ValueError(f"tokens of layer {layer!r}: {unusable}") from unusable


class Places(NamedTuple):
    """Where the queries and keys of an attention lie; NaN where that is nowhere in the image.

    Windows are one for attention over all tokens. Float64, in pixels: height, width.
    """

    queries: torch.Tensor  # [windows, queries, 2]
    keys: torch.Tensor  # [windows, keys, 2]


def places_of(attention: Attention) -> Places:
    """Where the queries and keys of an attention lie in the image.

    Of ViTs of all kinds (all tokens, any number before the patches), Swin (shifted windows of the
    whole image; what pads it to whole windows has no place), MViTv2 (pooled queries and keys, at
    the middle of what a pooling kernel reaches) and Hiera (mask units, pooled queries).

    Raises:
        Unusable: the network does not say where they lie.
    """
    module, *outer = attention.around
    if attention.image is None:
        raise Unusable("no image [n, channels, height, width] came into the network")
    block = outer[0] if outer else module
    hiera = next((one for one in outer if unrolls(one)), None)
    if hiera is not None and hasattr(module, "use_mask_unit_attn"):
        places = _of_hiera(attention, module, hiera)
    elif hasattr(block, "shift_size") and hasattr(block, "window_size"):
        places = _of_swin(attention, block)
    elif hasattr(module, "pool_q") and hasattr(module, "pool_k"):
        places = _of_mvit(attention, module)
    else:
        places = _of_all_tokens(attention)
    windows, queries, keys = attention.shape[2:]
    found = [list(x.shape[:2]) for x in places]
    if found != [[windows, queries], [windows, keys]]:
        raise Unusable(
            f"its attention is {queries} queries by {keys} keys in {windows} windows an image, and "
            f"the network's tokens are {found[0][1]} and {found[1][1]} in {found[0][0]}: where "
            "they lie in the image is not known"
        )
    return places


def levels(model: nn.Module, image: tuple[int, int]) -> list[Level]:
    """The grid of the patch embedding, and its halves (rounded up), as pyramids have them.

    Raises:
        Unusable: the network has no patch embedding that says its cells.
    """
    embed = getattr(model, "patch_embed", getattr(model, "stem", None))
    conv = getattr(embed, "proj", None)
    if isinstance(conv, nn.Conv2d):
        stride = conv.stride
        rows, cols = _convolved(image, conv)
        if getattr(embed, "dynamic_img_pad", False):
            rows, cols = (math.ceil(side / step) for side, step in zip(image, stride, strict=True))
    elif getattr(embed, "grid_size", None) is not None:
        rows, cols = embed.grid_size
        stride = image[0] / rows, image[1] / cols
    else:
        raise Unusable("the network has no patch embedding that says into what it cuts an image")
    found = [Level(rows, cols, (float(stride[0]), float(stride[1])))]
    while rows * cols > 1:
        rows, cols = math.ceil(rows / 2), math.ceil(cols / 2)
        high, wide = found[-1].patch
        found.append(Level(rows, cols, (2 * high, 2 * wide)))
    return found


def _convolved(size: Sequence[int], conv: nn.Module | None) -> tuple[int, int]:
    """Rows and columns of a map after a convolution or pooling."""
    if conv is None:
        return size[0], size[1]
    kernel, stride, padding = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.padding)
    rows, cols = (
        (side + 2 * pad - reach) // step + 1
        for side, pad, reach, step in zip(size, padding, kernel, stride, strict=True)
    )
    return rows, cols


def _over(image: tuple[int, int], rows: int, cols: int) -> Level:
    return Level(rows, cols, (image[0] / rows, image[1] / cols))


def _plain(level: Level, prefix: int) -> TokenGrid:
    rows, cols, patch = level
    return TokenGrid(rows, cols, prefix, patch, torch.arange(rows * cols))


def _prefix_of(model: nn.Module) -> int:
    prefix = getattr(model, "num_prefix_tokens", 0)
    return prefix if isinstance(prefix, int) else 0


def _of_sequence(model: nn.Module, layer: str, tokens: int, image: tuple[int, int]) -> TokenGrid:
    if unrolls(model) and "patch_embed" not in layer.split("."):
        return _unrolled(model, tokens, image)
    grids = levels(model, image)
    # Before class and register tokens are put in front, there are patches alone.
    for prefix in dict.fromkeys((_prefix_of(model), 0)):
        for level in grids:
            if tokens == prefix + level.rows * level.cols:
                return _plain(level, prefix)
    first = grids[0]
    raise Unusable(
        f"there are {tokens}, and an image of {image[0]} x {image[1]} pixels is {first.rows} x "
        f"{first.cols} patches, or half as many a side and so on, after {_prefix_of(model)} others"
    )


def _unrolled(model: nn.Module, tokens: int, image: tuple[int, int]) -> TokenGrid:
    """Of Hiera: the tokens of a mask unit lie side by side, and pooling takes them together."""
    step = math.prod(model.q_stride)
    for level in levels(model, image):
        if level.rows * level.cols == tokens:
            rows = _unrolled_places(model, image, tokens, step)
            grid = (rows / torch.tensor(level.patch, dtype=torch.float64)).floor().long()
            return TokenGrid(*level[:2], 0, level.patch, grid[:, 0] * level.cols + grid[:, 1])
    raise Unusable(f"there are {tokens}, and its grid has none of so many cells")


def _unrolled_places(model, image, tokens: int, step: int) -> torch.Tensor:
    places = _plain(levels(model, image)[0], 0).places()
    # Not called as a module: hooks that others hung there would take it for a part of the pass.
    places = model.unroll.forward(places[None])[0]
    while len(places) > tokens:
        places = places.view(step, -1, 2).mean(0)
    return places


def _of_hiera(attention: Attention, module: nn.Module, model: nn.Module) -> Places:
    windows, _, keys = attention.shape[2:]
    step = math.prod(model.q_stride)
    places = _unrolled_places(model, attention.image, windows * keys, step)
    units = places.view(-1, windows, 2).transpose(0, 1)
    return Places(units.reshape(windows, module.q_stride, -1, 2).mean(1), units)


def _of_swin(attention: Attention, block: nn.Module) -> Places:
    inputs = attention.inputs.get(block)
    if not inputs or inputs[0].ndim != 4:
        raise Unusable("the block around it was not called with a map [n, rows, cols, channels]")
    rows, cols = inputs[0].shape[1:3]
    image = attention.image
    grids = levels(_network(attention.around), image)
    level = next((one for one in grids if one[:2] == (rows, cols)), _over(image, rows, cols))
    places = _plain(level, 0).places().view(rows, cols, 2)
    high, wide = _pair(block.window_size)
    places = places.roll([-shift for shift in _pair(block.shift_size)], (0, 1))
    padding = (0, 0, 0, -cols % wide, 0, -rows % high)
    places = nn.functional.pad(places, padding, value=math.nan)
    places = places.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2)
    places = places.reshape(-1, high * wide, 2)
    return Places(places, places)


def _of_mvit(attention: Attention, module: nn.Module) -> Places:
    size = next((x for x in attention.inputs[module][1:] if isinstance(x, Sequence)), None)
    if size is None:
        raise Unusable("it was not called with the size of the map that its tokens are of")
    network = _network(attention.around)
    return Places(
        _pooled_places(attention.image, size, module.pool_q, _prefix_of(network)),
        _pooled_places(attention.image, size, module.pool_k, _prefix_of(network)),
    )


def _pooled_places(image, size, pool: nn.Module | None, prefix: int) -> torch.Tensor:
    """Each at the middle of what the pooling takes together, [1, tokens, 2]."""
    rows, cols = _convolved(size, pool)
    grid = _plain(_over(image, rows, cols), prefix)
    if pool is None:
        return grid.places()[None]
    places = grid.places()
    for axis, side in enumerate(size):
        stride, reach, pad = (
            _pair(value)[axis] for value in (pool.stride, pool.kernel_size, pool.padding)
        )
        cell = grid.cells % cols if axis else grid.cells // cols
        middle = cell.double() * stride + (reach - 1) / 2 - pad
        places[prefix:, axis] = (middle + 0.5) * image[axis] / side
    return places[None]


def _of_all_tokens(attention: Attention) -> Places:
    network = _network(attention.around)
    if not hasattr(network, "num_prefix_tokens"):
        raise Unusable(
            "the network does not say how many tokens come before the patches (num_prefix_tokens)"
        )
    places = _plain(levels(network, attention.image)[0], _prefix_of(network)).places()[None]
    return Places(places, places)


def _network(around: Sequence[nn.Module]) -> nn.Module:
    """The nearest module that cuts images into patches, or the outermost."""
    cutting = (one for one in around if hasattr(one, "patch_embed") or hasattr(one, "stem"))
    return next(cutting, around[-1])


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
