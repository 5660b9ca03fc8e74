"""The cell in the middle of a layer's map: which it is, and where in the image it lies."""

from typing import NamedTuple

import torch
from torch import nn

from fastcka.analysis.sublayers import moves_tokens
from fastcka.capture.selection import layout_of


class Centre(NamedTuple):
    """The cell (rows // 2, columns // 2) of a map or a grid of tokens.

    Attributes:
        values: [n, channels], a copy that keeps its place in the graph of gradients, whatever
            happens to the activation in place afterwards.
        row, column: the middle of the cell in pixels of the image, from the middle of the first
            pixel: of a grid of r rows in h pixels ((r // 2) + 1/2) h / r - 1/2.
    """

    values: torch.Tensor
    row: float
    column: float


def centre_cell(
    x: torch.Tensor, layer: str, modules: dict[str, nn.Module], image: tuple[int, int]
) -> Centre:
    """The middle of an activation.

    Args:
        x: [n, channels, rows, columns], or with the channels last, or a sequence
            [n, tokens, channels] whose first `model.num_prefix_tokens` are no patches and whose
            others stand row by row, in a grid shaped as the image is.
        layer: the name of the module that it is of.
        modules: all of the network, by name.
        image: height and width in pixels.

    Raises:
        ValueError: it has no positions, or the network does not say where its tokens stand.

    >>> row, column = centre_cell(torch.zeros(1, 5, 4, 4), "", {"": nn.ReLU()}, (8, 8))[1:]
    >>> row, column
    (4.5, 4.5)
    """
    layout = layout_of(layer, modules)
    if x.ndim == 4:
        maps = x if layout.channels_last else x.permute(0, 2, 3, 1)
        rows, columns = maps.shape[1:3]
        values = maps[:, rows // 2, columns // 2]
    elif x.ndim == 3:
        prefix, rows, columns = _grid(x, layer, modules, image)
        values = x[:, prefix + rows // 2 * columns + columns // 2]
    else:
        raise ValueError(
            f"`layers` must be maps [n, channels, rows, columns] or tokens [n, tokens, channels], "
            f"but {layer!r} is {list(x.shape)}; take a layer before the pooling"
        )
    row, column = (
        (cells // 2 + 0.5) * pixels / cells - 0.5
        for cells, pixels in zip((rows, columns), image, strict=True)
    )
    return Centre(values.clone(), row, column)


def _grid(x, layer, modules, image) -> tuple[int, int, int]:
    """Tokens before the patches, rows, columns."""
    layout = layout_of(layer, modules)
    if moves_tokens(modules) or layout.prefix is None:
        why = (
            "moves its tokens out of the order of the image"
            if moves_tokens(modules)
            else "does not say how many tokens come before the patches (num_prefix_tokens)"
        )
        raise ValueError(
            f"`layers` must have a centre, but the network {why}, so {layer!r} has none; take "
            "layers that are maps"
        )
    # Before class and register tokens are put in front there are patches alone.
    prefix = 0 if x.shape[1] == layout.patches else layout.prefix
    patches = x.shape[1] - prefix
    rows = max(round((patches * image[0] / image[1]) ** 0.5), 1)
    if patches < 1 or patches % rows:
        raise ValueError(
            f"`layers` must be grids of tokens shaped as the image, {image[0]} by {image[1]}, but "
            f"{layer!r} has {patches} patches after {prefix} others; pass images that are whole "
            "patches, or take layers that are maps"
        )
    return prefix, rows, patches // rows
